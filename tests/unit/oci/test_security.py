from __future__ import annotations

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import security
from zos_cri.oci.host import HostFacts

Context = cri_pb2.LinuxContainerSecurityContext
Profile = cri_pb2.SecurityProfile
HOST = HostFacts()
ARMORED = HostFacts(
    apparmor=True, apparmor_profiles=frozenset({"mine", "dflt"}), apparmor_default="dflt"
)
DENY = b'{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[]}'
DEFAULT = Profile(profile_type=Profile.RuntimeDefault)
UNCONFINED = Profile(profile_type=Profile.Unconfined)


def localhost(reference: str) -> Profile:
    return Profile(profile_type=Profile.Localhost, localhost_ref=reference)


def seccomp(context: Context, localhost: bytes | None = None, unset: str = "") -> str:
    profile = security.seccomp_profile(
        context, localhost=localhost, capabilities=(), host=HOST, unset=unset
    )
    if profile is None:
        return "unconfined"
    return "default" if profile["defaultAction"] == "SCMP_ACT_ERRNO" else "localhost"


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (Context(), "unconfined"),
        (Context(seccomp=Profile()), "default"),
        (Context(seccomp=DEFAULT), "default"),
        (Context(seccomp=UNCONFINED), "unconfined"),
        (Context(seccomp=localhost("/p.json")), "localhost"),
        (Context(seccomp=localhost("localhost//p.json")), "localhost"),
        (Context(seccomp_profile_path="runtime/default"), "default"),
        (Context(seccomp_profile_path="docker/default"), "default"),
        (Context(seccomp_profile_path="unconfined"), "unconfined"),
        (Context(seccomp_profile_path="localhost//p.json"), "localhost"),
        # The field that replaced the string comes first.
        (Context(seccomp=UNCONFINED, seccomp_profile_path="runtime/default"), "unconfined"),
        (Context(privileged=True, seccomp=localhost("/p.json")), "unconfined"),
    ],
)
def test_seccomp_choices(context: Context, expected: str) -> None:
    assert seccomp(context, DENY) == expected


def test_a_handlers_profile_for_those_that_name_none() -> None:
    assert seccomp(Context(), unset="runtime/default") == "default"
    assert seccomp(Context(seccomp=UNCONFINED), unset="runtime/default") == "unconfined"
    assert seccomp(Context(privileged=True), unset="runtime/default") == "unconfined"
    assert seccomp(Context(), DENY, unset="localhost//p.json") == "localhost"


def test_the_file_that_is_needed() -> None:
    assert security.localhost_path(Context(seccomp=localhost("/a/b.json"))) == "/a/b.json"
    assert security.localhost_path(Context(seccomp=DEFAULT)) == ""
    assert security.localhost_path(Context(), unset="localhost//x") == "/x"


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (Context(seccomp=localhost("")), r"seccomp\.localhost_ref: is empty"),
        (Context(seccomp=localhost("p.json")), r"seccomp\.localhost_ref: \"p.json\" is not an abs"),
        (Context(seccomp=localhost("/p.json")), r"seccomp\.localhost_ref: there is no file"),
        (
            Context(seccomp=Profile(profile_type=Profile.Unconfined, localhost_ref="/p")),
            r"seccomp\.localhost_ref: is given, and",
        ),
        (Context(seccomp=Profile(profile_type=9)), r"seccomp\.profile_type: 9"),  # type: ignore[arg-type]
        (Context(seccomp_profile_path="mine"), r"seccomp_profile_path: \"mine\" is no profile"),
        (Context(seccomp_profile_path="localhost/"), r"seccomp_profile_path: "),
    ],
)
def test_bad_seccomp(context: Context, message: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.security_context\." + message):
        seccomp(context)


def test_a_kernel_without_seccomp() -> None:
    host = HostFacts(seccomp=False)
    profile = security.seccomp_profile(Context(), localhost=None, capabilities=(), host=host)
    assert profile is None
    with pytest.raises(InvalidArgument, match="has no seccomp"):
        security.seccomp_profile(
            Context(seccomp=DEFAULT), localhost=None, capabilities=(), host=host
        )


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (Context(), "dflt"),
        (Context(apparmor=DEFAULT), "dflt"),
        (Context(apparmor=UNCONFINED), ""),
        (Context(apparmor=localhost("mine")), "mine"),
        (Context(apparmor=localhost("localhost/mine")), "mine"),
        (Context(apparmor_profile="localhost/mine"), "mine"),
        (Context(apparmor_profile="runtime/default"), "dflt"),
        (Context(apparmor_profile="unconfined"), ""),
        (Context(apparmor=UNCONFINED, apparmor_profile="localhost/mine"), ""),
        (Context(privileged=True), ""),
        (Context(privileged=True, apparmor=DEFAULT), ""),
        (Context(privileged=True, apparmor=localhost("mine")), "mine"),
    ],
)
def test_apparmor_choices(context: Context, expected: str) -> None:
    assert security.apparmor_profile(context, ARMORED) == expected


@pytest.mark.parametrize(
    "context",
    [
        Context(apparmor=localhost("theirs")),
        Context(apparmor_profile="localhost/theirs"),
        Context(apparmor_profile="theirs"),
        Context(privileged=True, apparmor=localhost("theirs")),
    ],
)
def test_a_profile_that_is_not_loaded(context: Context) -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.security_context\.apparmor"):
        security.apparmor_profile(context, ARMORED)


def test_a_kernel_without_apparmor() -> None:
    assert security.apparmor_profile(Context(), HOST) == ""
    assert security.apparmor_profile(Context(apparmor=UNCONFINED), HOST) == ""
    assert security.apparmor_profile(Context(apparmor_profile="unconfined"), HOST) == ""
    for context in (Context(apparmor=DEFAULT), Context(apparmor_profile="runtime/default")):
        with pytest.raises(InvalidArgument, match="has no AppArmor"):
            security.apparmor_profile(context, HOST)


def test_selinux_labels() -> None:
    host = HostFacts(selinux=True)
    options = cri_pb2.SELinuxOption(type="spc_t", level="s0:c1,c2")
    assert security.selinux_labels("f", options, host) == (
        "system_u:system_r:spc_t:s0:c1,c2",
        "system_u:object_r:container_file_t:s0:c1,c2",
    )
    assert security.selinux_labels("f", options, HOST) == ("", "")
    assert security.selinux_labels("f", cri_pb2.SELinuxOption(), host) == ("", "")


@pytest.mark.parametrize("field", ["user", "role", "type", "level"])
def test_parts_that_would_end_a_label(field: str) -> None:
    options = cri_pb2.SELinuxOption(**{field: "a b"})
    with pytest.raises(InvalidArgument, match=rf"^f\.{field}: "):
        security.selinux_labels("f", options, HOST)
