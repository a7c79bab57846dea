from __future__ import annotations

from google.protobuf import json_format

from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri import messages
from zos_cri.nri.adjust import Facts, adjusted
from zos_cri.oci.host import HostFacts

SECCOMP = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["F"],
    "listenerPath": "/l",
    "listenerMetadata": "m",
    "syscalls": [
        {
            "names": ["read"],
            "action": "SCMP_ACT_ALLOW",
            "errnoRet": 1,
            "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
        }
    ],
}
SPEC = {
    "process": {
        "args": ["a"],
        "env": ["A=1"],
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
        "oomScoreAdj": 4,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 1, "hard": 2**64 - 1}],
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "scheduler": {"policy": "SCHED_RR", "priority": 5, "flags": ["SCHED_FLAG_RECLAIM"]},
    },
    "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["rbind"]}],
    "hooks": {"createRuntime": [{"path": "/h", "args": ["h"], "env": ["E=1"], "timeout": 5}]},
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
        "cgroupsPath": "/c",
        "devices": [
            {
                "path": "/dev/x",
                "type": "c",
                "major": 1,
                "minor": 2,
                "fileMode": 3,
                "uid": 4,
                "gid": 5,
            },
            {"path": "/dev/p", "type": "p"},
        ],
        "sysctl": {"a.b": "c"},
        "netDevices": {"eth1": {"name": "x"}},
        "seccomp": SECCOMP,
        "intelRdt": {"closID": "c", "schemata": ["L3:0=f"], "enableMonitoring": True},
        "resources": {
            "memory": {"limit": 1, "swap": 2, "disableOOMKiller": True},
            "cpu": {"shares": 3, "quota": -1, "cpus": "0", "mems": "1"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
            "unified": {"a.b": "c"},
            "devices": [{"allow": True, "type": "c", "major": 1, "minor": 2, "access": "r"}],
            "pids": {"limit": 5},
        },
    },
}


def test_all_of_a_spec():
    container = pb.Container()
    messages.fill(container, SPEC)
    assert json_format.MessageToDict(container) == {
        "args": ["a"],
        "env": ["A=1"],
        "mounts": [{"destination": "/m", "type": "bind", "source": "/s", "options": ["rbind"]}],
        "hooks": {
            "createRuntime": [
                {"path": "/h", "args": ["h"], "env": ["E=1"], "timeout": {"value": "5"}}
            ]
        },
        "rlimits": [{"type": "RLIMIT_CORE", "hard": str(2**64 - 1), "soft": "1"}],
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
            "devices": [
                {
                    "path": "/dev/x",
                    "type": "c",
                    "major": "1",
                    "minor": "2",
                    "fileMode": {"value": 3},
                    "uid": {"value": 4},
                    "gid": {"value": 5},
                },
                {"path": "/dev/p", "type": "p"},
            ],
            "resources": {
                "memory": {
                    "limit": {"value": "1"},
                    "swap": {"value": "2"},
                    "disableOomKiller": {"value": True},
                },
                "cpu": {
                    "shares": {"value": "3"},
                    "quota": {"value": "-1"},
                    "cpus": "0",
                    "mems": "1",
                },
                "hugepageLimits": [{"pageSize": "2MB", "limit": "4"}],
                "unified": {"a.b": "c"},
                "devices": [
                    {
                        "allow": True,
                        "type": "c",
                        "major": {"value": "1"},
                        "minor": {"value": "2"},
                        "access": "r",
                    }
                ],
                "pids": {"limit": "5"},
            },
            "oomScoreAdj": {"value": "4"},
            "cgroupsPath": "/c",
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
            "seccompPolicy": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrno": {"value": 38},
                "architectures": ["SCMP_ARCH_X86_64"],
                "flags": ["F"],
                "listenerPath": "/l",
                "listenerMetadata": "m",
                "syscalls": [
                    {
                        "names": ["read"],
                        "action": "SCMP_ACT_ALLOW",
                        "errnoRet": {"value": 1},
                        "args": [{"index": 1, "value": "2", "valueTwo": "3", "op": "SCMP_CMP_EQ"}],
                    }
                ],
            },
            "sysctl": {"a.b": "c"},
            "netDevices": {"eth1": {"name": "x"}},
            "scheduler": {
                "policy": "SCHED_RR",
                "priority": 5,
                "flags": ["SCHED_FLAG_RECLAIM"],
            },
            "rdt": {
                "closId": {"value": "c"},
                "schemata": {"value": ["L3:0=f"]},
                "enableMonitoring": {"value": True},
            },
        },
    }


def test_nothing_of_an_empty_spec():
    container = pb.Container()
    messages.fill(container, {})
    assert list(container.args) == []
    assert not container.linux.HasField("oom_score_adj")


def test_a_filter_comes_back_as_it_went():
    container = pb.Container()
    messages.fill(container, SPEC)
    adjust = pb.ContainerAdjustment()
    adjust.linux.seccomp_policy.CopyFrom(container.linux.seccomp_policy)
    spec = adjusted({"process": {}, "linux": {}}, adjust, Facts(host=HostFacts()))
    assert spec["linux"]["seccomp"] == SECCOMP


def test_names_that_nri_does_not_know():
    container = pb.Container()
    process = {
        "ioPriority": {"class": "IOPRIO_CLASS_NEW"},
        "scheduler": {"policy": "SCHED_NEW", "flags": ["SCHED_FLAG_NEW"]},
    }
    messages.fill(container, {"process": process})
    assert container.linux.scheduler == pb.LinuxScheduler()
    assert container.linux.io_priority == pb.LinuxIOPriority()
