from __future__ import annotations

import json
from typing import Any

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.oci import seccomp
from zos_cri.oci import seccomp_table as table
from zos_cri.oci.capabilities import DEFAULT
from zos_cri.oci.host import HostFacts

X86 = HostFacts(architecture="x86_64", kernel=(6, 1))


def plainly_allowed(profile: dict[str, Any]) -> set[str]:
    return {
        name
        for rule in profile["syscalls"]
        if rule["action"] == "SCMP_ACT_ALLOW" and not rule.get("args")
        for name in rule["names"]
    }


def test_no_name_stands_in_two_groups() -> None:
    names = [name for group in table.ALWAYS for name in group]
    assert len(names) == len(set(names))
    assert all(name == name.lower() and " " not in name for name in names)


# What takes a container out of itself, or a host down, if it is ever let through.
DANGEROUS = (
    "mount umount2 unshare setns bpf kexec_load init_module finit_module "
    "delete_module reboot swapon swapoff pivot_root chroot add_key keyctl request_key "
    "userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register "
    "open_by_handle_at clone clone3 settimeofday clock_settime stime iopl ioperm acct "
    "quotactl nfsservctl vm86 create_module move_pages mbind set_mempolicy kcmp "
    "pidfd_getfd process_madvise syslog vhangup move_mount open_tree fsopen fsmount "
    "fsconfig fspick mount_setattr "
)


@pytest.mark.parametrize("name", DANGEROUS.split())
def test_not_without_a_capability(name: str) -> None:
    assert name not in plainly_allowed(seccomp.default_profile((), X86))


@pytest.mark.parametrize(("capability", "names"), table.BY_CAPABILITY.items())
def test_a_capability_unlocks_what_the_kernel_asks_it_for(
    capability: str, names: tuple[str, ...]
) -> None:
    assert set(names) <= plainly_allowed(seccomp.default_profile([capability], X86))
    assert seccomp.default_profile([capability], X86) != seccomp.default_profile((), X86)


def test_clone_makes_no_namespaces_and_clone3_seems_not_to_exist() -> None:
    rules = {
        tuple(rule["names"]): rule for rule in seccomp.default_profile(DEFAULT, X86)["syscalls"]
    }
    assert rules[("clone",)]["args"] == [
        {"index": 0, "value": 0x7E020000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}
    ]
    assert rules[("clone3",)] == {
        "names": ["clone3"],
        "action": "SCMP_ACT_ERRNO",
        "errnoRet": 38,
    }
    admin = seccomp.default_profile(["CAP_SYS_ADMIN"], X86)
    assert {"clone", "clone3"} <= plainly_allowed(admin)
    assert all(rule["action"] == "SCMP_ACT_ALLOW" for rule in admin["syscalls"])


def test_on_s390x_the_flags_are_the_second_argument() -> None:
    profile = seccomp.default_profile((), HostFacts(architecture="s390x"))
    clone = next(rule for rule in profile["syscalls"] if rule["names"] == ["clone"])
    assert clone["args"][0]["index"] == 1


def test_sockets_are_of_families_that_are_a_containers_business() -> None:
    rules = [r for r in seccomp.default_profile((), X86)["syscalls"] if r["names"] == ["socket"]]
    # Each rule has one condition: a runtime ORs rules, but repeats of an argument within one too.
    assert all(len(rule["args"]) == 1 for rule in rules)

    def allowed(family: int) -> bool:
        return any(
            family < argument["value"]
            if argument["op"] == "SCMP_CMP_LT"
            else family == argument["value"]
            for rule in rules
            for argument in rule["args"]
        )

    assert [family for family in range(60) if not allowed(family)] == [38, 40, *range(46, 60)]
    assert not allowed(2**32 + 38)


def test_architectures() -> None:
    assert seccomp.default_profile((), X86)["architectures"] == [
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
    ]
    arm = seccomp.default_profile((), HostFacts(architecture="aarch64"))
    assert "arch_prctl" not in plainly_allowed(arm)
    assert "arch_prctl" in plainly_allowed(seccomp.default_profile((), X86))
    assert seccomp.default_profile((), HostFacts(architecture="m68k"))["architectures"] == []


def test_tracing_only_where_seccomp_looks_after_the_tracer() -> None:
    old = HostFacts(kernel=(4, 7))
    assert "ptrace" not in plainly_allowed(seccomp.default_profile((), old))
    assert "ptrace" in plainly_allowed(seccomp.default_profile((), X86))


def parse(document: object, capabilities: object = (), host: HostFacts = X86) -> dict[str, Any]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return seccomp.parse_profile(data, field="f", capabilities=capabilities, host=host)  # type: ignore[arg-type]


def test_ocis_own_format_stays_as_it_is() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "defaultErrnoRet": 1,
        "architectures": ["SCMP_ARCH_X86_64"],
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
        "syscalls": [
            {
                "names": ["chmod"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 2,
                "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
            }
        ],
    }
    assert parse(document) == document


def test_a_default_profile_is_a_profile() -> None:
    profile = seccomp.default_profile(DEFAULT, X86)
    again = parse(profile)
    assert plainly_allowed(again) == plainly_allowed(profile)


MOBY = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "moby has more", "args": None},
        {"name": "write", "action": "SCMP_ACT_ALLOW"},
        {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["b"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["c"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["d"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
        {"names": ["e"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["f"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
        {"names": ["g"], "action": "SCMP_ACT_ALLOW", "excludes": {}, "includes": {}},
        {"names": ["h"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "5.0"}},
    ],
}


def test_mobys_format_is_made_plain() -> None:
    profile = parse(MOBY)
    assert profile["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert plainly_allowed(profile) == {"read", "write", "b", "c", "e", "g"}
    assert plainly_allowed(parse(MOBY, ["CAP_SYS_ADMIN"])) == {"read", "write", "a", "c", "e", "g"}
    arm = HostFacts(architecture="aarch64", kernel=(6, 12))
    assert plainly_allowed(parse(MOBY, (), arm)) == {"read", "write", "b", "d", "e", "f", "g"}


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        {},
        {"defaultAction": 1},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["a"]}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"action": "SCMP_ACT_ALLOW"}]},
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}
            ],
        },
    ],
)
def test_what_is_no_profile(document: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^f: not a seccomp profile"):
        parse(document)


def test_a_profile_has_a_bound() -> None:
    with pytest.raises(InvalidArgument, match="longer than"):
        parse(b" " * (seccomp.MAX_PROFILE + 1))
