from __future__ import annotations

import os

import pytest

from zos_cri.doctor.machine import NEEDED_CAPABILITIES, Machine, check, gather
from zos_cri.host import host_facts
from zos_cri.linux.cgroup import Cgroups
from zos_cri.oci.host import CAPABILITIES, RLIM_INFINITY, HostFacts

LIMITS = {"RLIMIT_NOFILE": 1 << 20}


def host(**fields):
    return HostFacts(**{"rlimits": LIMITS, **fields})


def judged(machine):
    return {each.check: each for each in check(machine)}


def test_an_ordinary_host_is_fit():
    findings = judged(Machine(host=host()))
    assert {each.level for each in findings.values()} == {"ok"}
    assert not any(each.advice for each in findings.values())


@pytest.mark.parametrize(
    ("machine", "name", "level", "advice"),
    [
        (Machine(uid=1000), "user", "fail", "root"),
        (Machine(host=host(kernel=(5, 10))), "kernel", "fail", "5.12"),
        (Machine(host=host(kernel=(5, 15))), "user namespaces", "warn", "5.19"),
        (Machine(user_namespaces=0), "user namespaces", "warn", "user.max_user_namespaces"),
        (Machine(filesystems=frozenset({"mqueue"})), "overlay", "fail", "modprobe overlay"),
        (Machine(host=host(cgroup_mode="hybrid")), "cgroups", "warn", "failCgroupV1"),
        (Machine(controllers=frozenset({"cpu"})), "controllers", "fail", "enable=memory"),
        (Machine(cgroup_options=()), "favordynmods", "warn", "remount,favordynmods /sys/fs/cgroup"),
        (Machine(cgroup_options=(), cgroup2=""), "favordynmods", "warn", "Linux 6.0"),
        (
            Machine(host=host(capabilities=frozenset(CAPABILITIES) - {"CAP_SYS_ADMIN"})),
            "capabilities",
            "fail",
            "CapabilityBoundingSet",
        ),
        (
            Machine(host=host(capabilities=frozenset(NEEDED_CAPABILITIES))),
            "CAP_SYS_RESOURCE",
            "warn",
            "clamped",
        ),
        (Machine(host=host(rlimits={"RLIMIT_NOFILE": 1024})), "open files", "warn", "LimitNOFILE"),
        (Machine(root_shared=False), "mount propagation", "warn", "make-rshared"),
        (Machine(forwarding=False), "ip_forward", "warn", "sysctl -w"),
        (Machine(host=host(seccomp=False)), "security", "warn", ""),
    ],
)
def test_what_is_missing_comes_with_what_to_do(machine, name, level, advice):
    findings = judged(machine)
    found = findings.get(name) or findings["seccomp"]
    assert found.level == level
    assert found.advice
    assert advice in found.advice


def test_no_limit_is_said_so():
    findings = judged(Machine(host=host(rlimits={"RLIMIT_NOFILE": RLIM_INFINITY})))
    assert findings["open files"].found == "unlimited"


async def test_this_host_can_be_read():
    cgroups = Cgroups()
    machine = gather(await host_facts(cgroups), cgroups)
    assert machine.uid == os.geteuid()
    assert machine.controllers == cgroups.controllers
    assert "tmpfs" in machine.filesystems
    assert judged(machine)["kernel"].found == os.uname().release
