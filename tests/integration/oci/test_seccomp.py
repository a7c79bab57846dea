"""Seccomp under a real runc: the forbidden and the allowed calls are made."""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.oci.bundles import Bundle, Paths, cri, status
from zos_cri._pb import cri_pb2

if TYPE_CHECKING:
    from zos_cri.oci.host import HostFacts, Spec

pytestmark = [pytest.mark.root, pytest.mark.runtime]


CALLS = """
    import ctypes, json, os
    libc = ctypes.CDLL(None, use_errno=True)
    def call(number, *args):
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in args))
        return 0 if result >= 0 else ctypes.get_errno()
    print(json.dumps({name: call(*args) for name, args in %r.items()}))
"""
# x86_64 numbers, with arguments that do no harm where the call is let through.
FORBIDDEN = {
    "add_key": (248, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, -3, 0),
    "request_key": (249, 0, 0, 0, 0),
    "io_uring_setup": (425, 0, 0),
    "userfaultfd": (323, -1),
    "get_mempolicy": (239, 0, 0, 0, 0, 12345),
    "lookup_dcookie": (212, 0, 0, 0),
    "unshare(NEWUSER)": (272, 0x10000000),
    "open_tree": (428, -1, 0, 0),
    "fsopen": (430, 0, 0),
    "kcmp": (312, 0, 0, 0, 0, 0),
    "socket(ALG)": (41, 38, 5, 0),
    "personality(ADDR_NO_RANDOMIZE)": (135, 0x40000),
}
ALLOWED = {
    "getpid": (39,),
    "socket(INET)": (41, 2, 1, 0),
    "socket(NETLINK)": (41, 16, 3, 0),
    "personality(query)": (135, 0xFFFFFFFF),
    "memfd_create": (319, 0, 0),
    "landlock_create_ruleset": (444, 0, 0, 1),
    "openat2": (437, -1, 0, 0, 0),
    "futex_waitv": (449, 0, 0, 0, 0, 0),
    "io_setup": (206, 0, 0),
    "statmount": (457, 0, 0, 0, 0),
}
EPERM, ENOSYS = 1, 38


def python_calls(bundle: Bundle, spec: Spec, calls: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Makes system calls in a container by its own Python; the errno of each."""
    interpreter = os.path.realpath(sys.executable)
    roots = {"/usr", "/lib", "/lib64", sys.base_prefix}
    for root in sorted(root for root in roots if Path(root).exists()):
        entry = {"destination": root, "type": "bind", "source": os.path.realpath(root)}
        spec["mounts"].append(entry | {"options": ["rbind", "ro"]})
    code = textwrap.dedent(CALLS % calls)
    spec["process"]["args"] = [interpreter, "-I", "-S", "-c", code]
    result: dict[str, int] = json.loads(bundle.run(spec))
    return result


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86_64's")
def test_the_default_profile_forbids_and_allows(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    confined = cri_pb2.LinuxContainerSecurityContext(seccomp=cri_pb2.SecurityProfile())
    calls = FORBIDDEN | ALLOWED | {"clone3": (435, 0, 0)}
    errors = python_calls(bundle, cri(bundle, paths, host, "", context=confined), calls)
    assert {name: errors[name] for name in FORBIDDEN} == dict.fromkeys(FORBIDDEN, EPERM)
    assert not [name for name in ALLOWED if errors[name] == EPERM]
    # Not EPERM: libc goes back to clone only where clone3 seems not to exist.
    assert errors["clone3"] == ENOSYS


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86_64's")
def test_unconfined_the_kernel_itself_answers(
    bundle: Bundle, paths: Paths, host: HostFacts
) -> None:
    errors = python_calls(bundle, cri(bundle, paths, host, ""), FORBIDDEN)
    # Or the test above would show nothing about the profile.
    refused = [name for name in FORBIDDEN if errors[name] == EPERM]
    # What the kernel itself keeps from root without CAP_SYS_ADMIN, or from everyone here.
    assert set(refused) <= {
        "open_tree",
        "fsopen",
        "unshare(NEWUSER)",
        "userfaultfd",
        "lookup_dcookie",
    }


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are x86_64's")
def test_a_capability_unlocks_its_calls(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    context = cri_pb2.LinuxContainerSecurityContext(
        seccomp=cri_pb2.SecurityProfile(),
        capabilities=cri_pb2.Capability(add_capabilities=["SYS_ADMIN"]),
    )
    calls = {name: FORBIDDEN[name] for name in ("open_tree", "fsopen", "keyctl")}
    errors = python_calls(bundle, cri(bundle, paths, host, "", context=context), calls)
    assert EPERM not in (errors["open_tree"], errors["fsopen"])
    assert errors["keyctl"] == EPERM


def test_a_profile_of_ones_own(bundle: Bundle, paths: Paths, host: HostFacts) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}],
    }
    context = cri_pb2.LinuxContainerSecurityContext(
        seccomp=cri_pb2.SecurityProfile(
            profile_type=cri_pb2.SecurityProfile.Localhost, localhost_ref="/p.json"
        )
    )
    (bundle.path / "rootfs" / "bin" / "chmod").symlink_to("busybox")
    spec = cri(
        bundle,
        paths,
        host,
        "chmod 400 / 2>&1 || echo Chmod: refused",
        context=context,
        seccomp_localhost=json.dumps(profile).encode(),
    )
    output = bundle.run(spec)
    assert "Operation not permitted" in output
    assert status(output)["Chmod"] == "refused"
