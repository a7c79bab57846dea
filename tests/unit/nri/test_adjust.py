"""Adjustments laid over OCI specs: every field, and every error."""

from __future__ import annotations

import copy

import pytest
from google.protobuf import json_format

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import FailedPrecondition, InvalidArgument
from zos_cri.nri.adjust import Facts, adjusted, sources
from zos_cri.oci import cdi
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts

KNOWING = HandlerSettings(
    oci_fields=frozenset(
        (
            "process.scheduler",
            "process.ioPriority",
            "linux.netDevices",
            "linux.memoryPolicy",
            "linux.intelRdt",
            "linux.intelRdt.schemata",
            "linux.intelRdt.enableMonitoring",
        )
    ),
    rdt_classes=("gold",),
    blockio_classes={"slow": {"weight": 10}},
)
SPEC = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["sleep"],
        "env": ["PATH=/bin", "A=1", "B=2"],
        "user": {"uid": 0, "gid": 0},
        "oomScoreAdj": 0,
        "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
    },
    "annotations": {"old": "1", "gone": "2"},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []},
        {"destination": "/data", "type": "bind", "source": "/x", "options": ["rbind"]},
        {"destination": "/data/deep", "type": "bind", "source": "/y", "options": ["rbind"]},
    ],
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/n"}],
        "cgroupsPath": "/pods/c",
        "devices": [{"path": "/dev/old", "type": "c", "major": 1, "minor": 3}],
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": 2}},
    },
}


def adjust(handler=KNOWING, host=None, **fields):
    """The adjusted spec, of Facts' fields and a ContainerAdjustment's as JSON."""
    facts = {name: fields.pop(name) for name in ("edits", "propagation") if name in fields}
    before = copy.deepcopy(SPEC)
    given = json_format.ParseDict(fields, pb.ContainerAdjustment())
    result = adjusted(SPEC, given, Facts(handler=handler, host=host or HostFacts(), **facts))
    assert before == SPEC, "the argument was changed"
    return result


def test_nothing_changes_nothing():
    assert adjust() == SPEC


def test_annotations():
    result = adjust(annotations={"-gone": "", "new": "3", "old": "4"})
    assert result["annotations"] == {"old": "4", "new": "3"}


def test_what_is_taken_away_and_set_is_set():
    assert adjust(annotations={"-old": "", "old": "5"})["annotations"]["old"] == "5"


def test_environment():
    env = [{"key": "-B"}, {"key": "A", "value": "9"}, {"key": "NEW", "value": "x=y"}]
    result = adjust(env=env)["process"]["env"]
    assert result == ["PATH=/bin", "A=9", "NEW=x=y"]


def test_arguments():
    assert adjust(args=["a", "b"])["process"]["args"] == ["a", "b"]


def test_rlimits_replace_those_of_their_kind():
    given = [
        {"type": "RLIMIT_NOFILE", "hard": "20", "soft": "10"},
        {"type": "RLIMIT_CORE", "hard": str(2**64 - 1), "soft": "5"},
    ]
    assert adjust(rlimits=given)["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 5, "hard": 2**64 - 1},
    ]


def test_oom_score_adj():
    result = adjust(linux={"oomScoreAdj": {"value": "-5"}})
    assert result["process"]["oomScoreAdj"] == -5
    host = HostFacts(oom_score_adj_min=0)
    result = adjust(host=host, linux={"oomScoreAdj": {"value": "-5"}})
    assert result["process"]["oomScoreAdj"] == 0


def test_io_priority_and_scheduler():
    result = adjust(
        linux={
            "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 7},
            "scheduler": {
                "policy": "SCHED_DEADLINE",
                "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
                "runtime": "1",
                "deadline": "2",
                "period": "3",
            },
        }
    )["process"]
    assert result["ioPriority"] == {"class": "IOPRIO_CLASS_BE", "priority": 7}
    assert result["scheduler"] == {
        "policy": "SCHED_DEADLINE",
        "runtime": 1,
        "deadline": 2,
        "period": 3,
        "flags": ["SCHED_FLAG_RESET_ON_FORK", "SCHED_FLAG_RECLAIM"],
    }


def test_no_io_priority_and_no_scheduler():
    result = adjust(linux={"ioPriority": {}, "scheduler": {}})["process"]
    assert "ioPriority" not in result
    assert "scheduler" not in result


def test_hooks():
    hooks = {
        "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": {"value": "3"}}],
        "createRuntime": [{"path": "/b"}],
        "createContainer": [{"path": "/c"}],
        "startContainer": [{"path": "/d"}],
        "poststart": [{"path": "/e"}],
        "poststop": [{"path": "/f"}, {"path": "/g"}],
    }
    assert adjust(hooks=hooks)["hooks"] == {
        "prestart": [{"path": "/a", "args": ["a", "b"], "env": ["X=1"], "timeout": 3}],
        "createRuntime": [{"path": "/b"}],
        "createContainer": [{"path": "/c"}],
        "startContainer": [{"path": "/d"}],
        "poststart": [{"path": "/e"}],
        "poststop": [{"path": "/f"}, {"path": "/g"}],
    }


def test_cdi_devices():
    edits = cdi.Edits(env=("FROM=cdi",))
    assert "FROM=cdi" in adjust(edits=edits)["process"]["env"]


def test_mounts_are_taken_away_replaced_and_sorted():
    given = [
        {"destination": "-/data/deep"},
        {"destination": "/data", "type": "bind", "source": "/z", "options": ["rbind", "ro"]},
        {"destination": "/a/b/c", "type": "tmpfs", "source": "tmpfs"},
        {"destination": "/dev/x", "type": "bind", "source": "/dev/x", "options": ["bind"]},
    ]
    found = [(m["destination"], m["source"]) for m in adjust(mounts=given)["mounts"]]
    assert found == [
        ("/proc", "proc"),
        ("/dev", "tmpfs"),
        ("/dev/x", "/dev/x"),
        ("/data", "/z"),
        ("/a/b/c", "tmpfs"),
    ]


@pytest.mark.parametrize(
    ("option", "found", "root"),
    [
        ("rshared", "shared", "rshared"),
        ("rslave", "slave", "rslave"),
        ("rslave", "shared", "rslave"),
    ],
)
def test_mounts_that_propagate_open_the_root(option, found, root):
    mount = {"destination": "/m", "type": "bind", "source": "/s", "options": ["rbind", option]}
    result = adjust(mounts=[mount], propagation={"/s": found})
    assert result["linux"]["rootfsPropagation"] == root
    (made,) = (m for m in result["mounts"] if m["destination"] == "/m")
    assert made["options"] == ["rbind", option]


def test_sources_whose_propagation_must_be_known():
    mounts = [
        {"destination": "/a", "source": "/s", "options": ["rshared"]},
        {"destination": "/b", "source": "/t", "options": ["rprivate"]},
        {"destination": "/c", "source": "tmpfs", "options": ["rslave"]},
    ]
    assert sources(json_format.ParseDict({"mounts": mounts}, pb.ContainerAdjustment())) == ["/s"]


def test_devices():
    devices = [
        {"path": "-/dev/old"},
        {
            "path": "/dev/c",
            "type": "c",
            "major": "1",
            "minor": "5",
            "fileMode": {"value": 0o600},
            "uid": {"value": 7},
            "gid": {"value": 8},
        },
        {"path": "/dev/b", "type": "b", "major": "8"},
        {"path": "/dev/p", "type": "p"},
    ]
    linux = adjust(linux={"devices": devices})["linux"]
    assert linux["devices"] == [
        {
            "path": "/dev/c",
            "type": "c",
            "major": 1,
            "minor": 5,
            "fileMode": 0o600,
            "uid": 7,
            "gid": 8,
        },
        {"path": "/dev/b", "type": "b", "major": 8, "minor": 0},
        {"path": "/dev/p", "type": "p", "major": 0, "minor": 0},
    ]
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rw"},
        {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "rwm"},
    ]


def test_device_rules():
    rules = [{"allow": True, "type": "c", "major": {"value": "1"}, "access": "r"}]
    linux = adjust(linux={"resources": {"devices": rules}})["linux"]
    rule = {"allow": True, "access": "r", "type": "c", "major": 1}
    assert linux["resources"]["devices"][1:] == [rule]


def test_namespaces():
    given = [{"type": "-pid"}, {"type": "network", "path": "/run/m"}, {"type": "time"}]
    assert adjust(linux={"namespaces": given})["linux"]["namespaces"] == [
        {"type": "network", "path": "/run/m"},
        {"type": "time"},
    ]


def test_the_rest_of_linux():
    linux = adjust(
        linux={
            "cgroupsPath": "/other/c",
            "sysctl": {"net.core.somaxconn": "9"},
            "netDevices": {"eth1": {"name": "x"}, "eth2": {}},
            "memoryPolicy": {
                "mode": "MPOL_BIND",
                "nodes": "0-1",
                "flags": ["MPOL_F_STATIC_NODES"],
            },
            "rdt": {
                "closId": {"value": "c"},
                "schemata": {"value": ["L3:0=f"]},
                "enableMonitoring": {"value": True},
            },
        }
    )["linux"]
    assert linux["cgroupsPath"] == "/other/c"
    assert linux["sysctl"] == {"net.core.somaxconn": "9"}
    assert linux["netDevices"] == {"eth1": {"name": "x"}, "eth2": {}}
    assert linux["memoryPolicy"] == {
        "mode": "MPOL_BIND",
        "nodes": "0-1",
        "flags": ["MPOL_F_STATIC_NODES"],
    }
    assert linux["intelRdt"] == {"closID": "c", "schemata": ["L3:0=f"], "enableMonitoring": True}


def test_seccomp():
    policy = {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrno": {"value": 38},
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/l",
        "listenerMetadata": "m",
        "syscalls": [
            {
                "names": ["read"],
                "action": "SCMP_ACT_ALLOW",
                "errnoRet": {"value": 1},
                "args": [{"index": 1, "value": "2", "valueTwo": "3", "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    assert adjust(linux={"seccompPolicy": policy})["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "listenerPath": "/run/l",
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


def test_classes():
    linux = adjust(
        linux={"resources": {"rdtClass": {"value": "gold"}, "blockioClass": {"value": "slow"}}}
    )["linux"]
    assert linux["intelRdt"] == {"closID": "gold"}
    assert linux["resources"]["blockIO"] == {"weight": 10}
    none = {"resources": {"rdtClass": {}, "blockioClass": {}}, "rdt": {"remove": True}}
    linux = adjust(linux=none)["linux"]
    assert "intelRdt" not in linux
    assert "blockIO" not in linux["resources"]


def test_limits_are_laid_over_those_that_are_there():
    linux = adjust(linux={"resources": {"cpu": {"quota": {"value": "5000"}}}})["linux"]
    assert linux["resources"]["cpu"] == {"shares": 2, "quota": 5000}


OLD = HandlerSettings()
ERRORS = [
    ({"env": [{"key": "A=B"}]}, 'env: "A=B" is no variable\'s name'),
    ({"env": [{"key": ""}]}, 'env: "" is no variable'),
    ({"env": [{"key": "A", "value": "\0"}]}, r'env\["A"\]: has a NUL'),
    ({"args": ["\0"]}, "args: has a NUL"),
    ({"annotations": {"a": "\0"}}, r'annotations\["a"\]: has a NUL'),
    ({"rlimits": [{"type": "RLIMIT_X"}]}, r"rlimits\[0\].type: no rlimit"),
    ({"rlimits": [{"type": "RLIMIT_CORE", "soft": "2", "hard": "1"}]}, r"rlimits\[0\]: soft 2"),
    ({"mounts": [{"destination": "x"}]}, r"mounts\[0\].destination: .* not an absolute path"),
    ({"mounts": [{"destination": "/"}]}, r"mounts\[0\].destination: the root"),
    ({"mounts": [{"destination": "/a/../b"}]}, r"mounts\[0\].destination: .* '\.\.'"),
    ({"mounts": [{"destination": "/a", "source": "\0"}]}, r"mounts\[0\].source: has a NUL"),
    (
        {"mounts": [{"destination": "/a", "source": "/s", "options": ["rshared"]}]},
        r'mounts\[0\].options: rshared: the mount of "/s" is private',
    ),
    ({"hooks": {"poststop": [{"path": "x"}]}}, r"hooks.poststop\[0\].path: "),
    ({"hooks": {"poststop": [{"path": "/x", "timeout": {}}]}}, r"timeout: 0 s is no time"),
    ({"linux": {"devices": [{"path": "/dev/x", "type": "z"}]}}, r"linux.devices\[0\].type: "),
    ({"linux": {"devices": [{"path": "x", "type": "c"}]}}, r"linux.devices\[0\].path: "),
    ({"linux": {"namespaces": [{"type": "nt"}]}}, r"linux.namespaces\[0\].type: "),
    ({"linux": {"namespaces": [{"type": "pid", "path": "x"}]}}, r"linux.namespaces\[0\].path: "),
    ({"linux": {"oomScoreAdj": {"value": "1001"}}}, "linux.oom_score_adj: 1001"),
    ({"linux": {"cgroupsPath": "a/../b"}}, r"linux.cgroups_path: .* '\.\.'"),
    ({"linux": {"cgroupsPath": "a"}}, "linux.cgroups_path: .* not an absolute path"),
    ({"linux": {"resources": {"rdtClass": {"value": "x"}}}}, 'no RDT class "x" is configured'),
    ({"linux": {"resources": {"blockioClass": {"value": "x"}}}}, 'no block I/O class "x"'),
    ({"linux": {"ioPriority": {"class": 9}}}, "linux.io_priority.class: there is no 9"),
    ({"linux": {"memoryPolicy": {"mode": 99}}}, "linux.memory_policy.mode: there is no 99"),
]


@pytest.mark.parametrize(("fields", "message"), ERRORS)
def test_what_is_wrong_is_named(fields, message):
    with pytest.raises(InvalidArgument, match=message):
        adjust(**fields)


def test_cgroups_paths_of_systemd():
    handler = HandlerSettings(systemd_cgroup=True)
    path = "a-b.slice:p:n"
    assert adjust(handler, linux={"cgroupsPath": path})["linux"]["cgroupsPath"] == path
    for wrong in ("/a/b", "a.slice:p", "a:p:n", "a/b.slice:p:n"):
        with pytest.raises(InvalidArgument, match="no slice:prefix:name"):
            adjust(handler, linux={"cgroupsPath": wrong})


UNKNOWN = [
    ({"ioPriority": {"class": "IOPRIO_CLASS_RT"}}, "linux.io_priority: .* no process.ioPriority"),
    ({"scheduler": {"policy": "SCHED_RR"}}, "linux.scheduler: .* no process.scheduler"),
    ({"netDevices": {"e": {}}}, "linux.net_devices: .* no linux.netDevices"),
    ({"memoryPolicy": {"mode": "MPOL_BIND"}}, "linux.memory_policy: .* no linux.memoryPolicy"),
    ({"rdt": {"closId": {"value": "x"}}}, "linux.rdt.clos_id: .* no linux.intelRdt"),
    ({"rdt": {"schemata": {"value": ["x"]}}}, "linux.rdt.schemata: .* no linux.intelRdt.schemata"),
    ({"rdt": {"enableMonitoring": {}}}, "linux.rdt.enable_monitoring: "),
]


@pytest.mark.parametrize(("linux", "message"), UNKNOWN)
def test_what_the_runtime_would_pass_over_is_refused(linux, message):
    with pytest.raises(FailedPrecondition, match=message):
        adjust(OLD, linux=linux)


def test_seccomp_that_the_runtime_was_built_without():
    with pytest.raises(FailedPrecondition, match="built without seccomp"):
        adjust(HandlerSettings(seccomp=False), linux={"seccompPolicy": {"defaultAction": "x"}})
