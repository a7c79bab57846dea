"""Seccomp, AppArmor and SELinux: which profile a CRI security context means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import seccomp
from zos_cri.oci.fields import bad, quote

if TYPE_CHECKING:
    from collections.abc import Collection

    from zos_cri.oci.host import HostFacts

_CONTEXT: Final = "linux.security_context"
_LOCALHOST: Final = "localhost/"
_MAX_PROFILE_NAME: Final = 1024
_SELINUX_PART: Final = re.compile(r"[A-Za-z0-9_.\-]+")
_SELINUX_LEVEL: Final = re.compile(r"[A-Za-z0-9_.,:\-]+")

Profile = cri_pb2.SecurityProfile


def seccomp_choice(
    context: cri_pb2.LinuxContainerSecurityContext, *, unset: str = ""
) -> tuple[str, cri_pb2.SecurityProfile]:
    """The seccomp profile that a container asks for, with the field that says so.

    Without any it is unconfined, as CRI has it ("" is identical with unconfined), or what the
    handler's settings have for that case in `unset`. Privileged containers have none.

    Raises:
        InvalidArgument: a profile of no known form.
    """
    if context.privileged:
        return f"{_CONTEXT}.privileged", Profile(profile_type=Profile.Unconfined)
    if context.HasField("seccomp"):
        return f"{_CONTEXT}.seccomp", _checked(f"{_CONTEXT}.seccomp", context.seccomp)
    field = f"{_CONTEXT}.seccomp_profile_path"
    return field, _from_string(field, context.seccomp_profile_path or unset or "unconfined")


def check_pods(context: cri_pb2.LinuxSandboxSecurityContext) -> None:
    """Refuses profiles of no known form. A pod has no process of its own that would need a file.

    Raises:
        InvalidArgument: the message names the field.
    """
    for name in ("seccomp", "apparmor"):
        _checked(f"{_CONTEXT}.{name}", getattr(context, name))
    _from_string(f"{_CONTEXT}.seccomp_profile_path", context.seccomp_profile_path or "unconfined")


def localhost_path(context: cri_pb2.LinuxContainerSecurityContext, *, unset: str = "") -> str:
    """The file of the seccomp profile that a container needs, "" where it needs none.

    Raises:
        InvalidArgument: as `seccomp_choice`, or the path isn't absolute.
    """
    field, profile = seccomp_choice(context, unset=unset)
    if profile.profile_type != Profile.Localhost:
        return ""
    path = profile.localhost_ref.removeprefix(_LOCALHOST)
    if not path.startswith("/") or "\0" in path:
        raise bad(f"{field}.localhost_ref", f"{quote(path)} is not an absolute path")
    return path


def seccomp_profile(
    context: cri_pb2.LinuxContainerSecurityContext,
    *,
    localhost: bytes | None,
    capabilities: Collection[str],
    host: HostFacts,
    unset: str = "",
) -> dict[str, Any] | None:
    """OCI's linux.seccomp, None where the container is unconfined.

    Args:
        context: The container's.
        localhost: The content of the file that `localhost_path` named; None: it isn't there.
        capabilities: The bounding set; what a capability unlocks is allowed with it.
        host: For the architecture and the kernel.
        unset: The handler's profile for containers that name none.

    Raises:
        InvalidArgument: no such profile, a broken one, or a kernel without seccomp.
    """
    field, profile = seccomp_choice(context, unset=unset)
    if profile.profile_type == Profile.Unconfined:
        return None
    if not host.seccomp:
        raise bad(field, "this host's kernel has no seccomp")
    if profile.profile_type == Profile.RuntimeDefault:
        return seccomp.default_profile(capabilities, host)
    path = localhost_path(context, unset=unset)
    if localhost is None:
        raise bad(f"{field}.localhost_ref", f"there is no file {quote(path)}")
    return seccomp.parse_profile(
        localhost, field=f"{field}.localhost_ref", capabilities=capabilities, host=host
    )


def apparmor_profile(context: cri_pb2.LinuxContainerSecurityContext, host: HostFacts) -> str:
    """OCI's process.apparmorProfile, "" for none.

    A container that names no profile gets the default one where the kernel has AppArmor (what
    Kubernetes expects since its #51746), a privileged one none unless it names a file's.

    Raises:
        InvalidArgument: the profile isn't loaded, or the kernel has no AppArmor and one is named.
    """
    field, named = f"{_CONTEXT}.apparmor", True
    if context.HasField("apparmor"):
        profile = _checked(field, context.apparmor)
    else:
        named = bool(context.apparmor_profile)
        field = f"{_CONTEXT}.apparmor_profile"
        profile = _from_string(field, context.apparmor_profile or "runtime/default")
    if profile.profile_type == Profile.Unconfined:
        return ""
    if not host.apparmor:
        if named:
            raise bad(field, "this host's kernel has no AppArmor")
        return ""
    if profile.profile_type == Profile.RuntimeDefault:
        return "" if context.privileged else host.apparmor_default
    name = profile.localhost_ref.removeprefix(_LOCALHOST)
    if len(name) > _MAX_PROFILE_NAME or name not in host.apparmor_profiles:
        raise bad(field, f"no AppArmor profile {quote(name)} is loaded on this host")
    return name


def selinux_labels(field: str, options: cri_pb2.SELinuxOption, host: HostFacts) -> tuple[str, str]:
    """The process' and the mounts' SELinux label, "" each where there is none to set.

    The parts that aren't given are those of the reference policy for containers. Without SELinux
    in the kernel a label means nothing, and is passed over.

    Raises:
        InvalidArgument: a part with a character that would end it.
    """
    given = (options.user, options.role, options.type, options.level)
    for name, value in zip(("user", "role", "type", "level"), given, strict=True):
        pattern = _SELINUX_LEVEL if name == "level" else _SELINUX_PART
        if value and not pattern.fullmatch(value):
            raise bad(f"{field}.{name}", f"{quote(value)} is no part of an SELinux label")
    if not host.selinux or not any(given):
        return "", ""
    user, role = options.user or "system_u", options.role or "system_r"
    level = options.level or "s0"
    process = f"{user}:{role}:{options.type or 'container_t'}:{level}"
    return process, f"{user}:object_r:container_file_t:{level}"


def _checked(field: str, profile: cri_pb2.SecurityProfile) -> cri_pb2.SecurityProfile:
    kind = profile.profile_type
    if kind not in Profile.ProfileType.values():
        raise bad(f"{field}.profile_type", f"{kind} is no type of profile")
    if kind == Profile.Localhost and not profile.localhost_ref:
        raise bad(f"{field}.localhost_ref", "is empty, and the profile's type is Localhost")
    if kind != Profile.Localhost and profile.localhost_ref:
        raise bad(f"{field}.localhost_ref", "is given, and the profile's type is not Localhost")
    return profile


def _from_string(field: str, name: str) -> cri_pb2.SecurityProfile:
    """The deprecated strings: runtime/default, docker/default, unconfined, localhost/…"""
    if name in ("runtime/default", "docker/default"):
        return Profile(profile_type=Profile.RuntimeDefault)
    if name == "unconfined":
        return Profile(profile_type=Profile.Unconfined)
    reference = name.removeprefix(_LOCALHOST)
    if reference == name or not reference:
        raise InvalidArgument(f"{field}: {quote(name)} is no profile")
    return Profile(profile_type=Profile.Localhost, localhost_ref=reference)
