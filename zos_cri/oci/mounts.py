"""A CRI container's mounts: the config's, the pod's files, and what else the caller resolved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from zos_cri._pb import cri_pb2
from zos_cri.oci import namespaces
from zos_cri.oci.fields import absolute_path, bad, mount_target, quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRIVATE: Final = cri_pb2.MountPropagation.PROPAGATION_PRIVATE
HOST_TO_CONTAINER: Final = cri_pb2.MountPropagation.PROPAGATION_HOST_TO_CONTAINER
BIDIRECTIONAL: Final = cri_pb2.MountPropagation.PROPAGATION_BIDIRECTIONAL

RRO_UNSUPPORTED: Final = "RROUnsupported"
IMAGE_VOLUME_FAILED: Final = "ImageVolumeMountFailed"
"""What the kubelet looks for in an error's text (k8s.io/cri-api, pkg/errors)."""

OPTIONS: Final = frozenset(("noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime"))
"""What `mount_options` may say: what takes a right away, and the access times."""

_MAX_MOUNTS: Final = 4096
"""The kernel's own sysctl fs.mount-max is 100,000 a namespace; a pod with 4096 isn't meant."""


class MountFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller found out about one of the config's mounts, or prepared for it."""

    source: str
    """The host path with all symbolic links resolved; for an image mount, where it is (the sub
    path included)."""
    exists: bool = True
    propagation: Literal["private", "slave", "shared", "unbindable"] = "private"
    """Of the mount that the source is on: shared also where it is a slave at the same time."""
    mount_point: str = ""
    """Where that mount is, for errors."""


class BindMount(msgspec.Struct, frozen=True, kw_only=True):
    """A bind mount of the caller's own: the pod's files, an image's volume, CDI's."""

    source: str
    target: str
    readonly: bool = False
    options: tuple[str, ...] = ()
    id_mapped: bool = False
    """Whether the pod's id mappings apply to it, where it has any."""


class PodFiles(msgspec.Struct, frozen=True, kw_only=True):
    """The pod's files, each "" where the container is to have none of it."""

    hosts: str = ""
    hostname: str = ""
    resolv_conf: str = ""
    shm: str = ""
    """A tmpfs directory, or /dev/shm itself for a pod with the host's ipc namespace."""


class MountPlan(msgspec.Struct, frozen=True, kw_only=True):
    """OCI mounts, and the propagation of the root that they need."""

    mounts: tuple[dict[str, Any], ...]
    rootfs_propagation: str = ""


def pod_mounts(files: PodFiles, *, readonly: bool) -> tuple[BindMount, ...]:
    """The pod's files as mounts; /etc's are read only where the root file system is.

    They belong to the pod's root on the host already, and need no id mapping.
    """
    etc = (
        ("/etc/hosts", files.hosts),
        ("/etc/hostname", files.hostname),
        ("/etc/resolv.conf", files.resolv_conf),
    )
    result = [
        BindMount(source=source, target=target, readonly=readonly)
        for target, source in etc
        if source
    ]
    if files.shm:
        # What isn't said again is taken away when a runtime makes a bind mount writable (runc 1.2).
        sealed = ("nosuid", "nodev") if files.shm == "/dev/shm" else ("nosuid", "nodev", "noexec")
        result.append(BindMount(source=files.shm, target="/dev/shm", options=sealed))
    return tuple(result)


def plan(
    given: Sequence[cri_pb2.Mount],
    facts: Sequence[MountFacts],
    extra: Iterable[BindMount],
    *,
    pod: namespaces.PodPlan,
    recursive_read_only: bool,
    id_mapped_mounts: bool,
) -> MountPlan:
    """All bind mounts of a container; where two have one target, the config's is taken.

    Args:
        given: The config's mounts.
        facts: What is known of each, in the same order.
        extra: The pod's files and others.
        pod: For its id mappings.
        recursive_read_only: The handler's runtime knows `rro`.
        id_mapped_mounts: The handler's runtime knows id-mapped mounts.

    Raises:
        InvalidArgument: a mount is wrong; the message names it as `mounts[2].host_path`.
    """
    if len(given) > _MAX_MOUNTS:
        raise bad("mounts", f"are {len(given)}, and at most {_MAX_MOUNTS} are taken")
    if len(given) != len(facts):
        raise ValueError(f"{len(given)} mounts, but facts of {len(facts)}")
    mounts: dict[str, dict[str, Any]] = {}
    root = ""
    for index, (mount, fact) in enumerate(zip(given, facts, strict=True)):
        field = f"mounts[{index}]"
        target = mount_target(f"{field}.container_path", mount.container_path, dotdot=True)
        _check_source(field, mount, fact)
        propagation = _propagation(field, mount, fact)
        options = ["rbind", propagation, _access(field, mount, recursive_read_only)]
        options += _extra_options(field, mount)
        entry = _bind(absolute_path(f"{field}.host_path", fact.source), target, options)
        if not mount.HasField("image"):  # An image's view is id-mapped as it is mounted.
            entry |= _id_mapped(field, mount, id_mapped_mounts)
        mounts[target] = entry
        if propagation == "rshared" or (propagation == "rslave" and not root):
            root = propagation
    for own in extra:
        target = mount_target("mounts", own.target, dotdot=True)
        if target in mounts:
            continue
        access = "ro" if own.readonly else "rw"
        entry = _bind(own.source, target, ["rbind", "rprivate", access, *own.options])
        if own.id_mapped and pod.user_namespace:
            entry["uidMappings"] = namespaces.oci_mappings(pod.uids)
            entry["gidMappings"] = namespaces.oci_mappings(pod.gids)
        mounts[target] = entry
    return MountPlan(mounts=tuple(mounts.values()), rootfs_propagation=root)


def to_relabel(given: Sequence[cri_pb2.Mount], facts: Sequence[MountFacts]) -> tuple[str, ...]:
    """Sources that are to get the container's SELinux mount label: those that ask for it."""
    pairs = zip(given, facts, strict=True)
    return tuple(fact.source for mount, fact in pairs if mount.selinux_relabel)


def _bind(source: str, target: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": source, "options": options}


def _check_source(field: str, mount: cri_pb2.Mount, fact: MountFacts) -> None:
    if mount.HasField("image"):
        if mount.host_path:
            raise bad(f"{field}.host_path", "is given together with an image")
        if not mount.image.image:
            raise bad(f"{field}.image.image", "is empty")
        if mount.propagation != PRIVATE:
            raise bad(f"{field}.propagation", "is not PRIVATE, and an image is mounted")
        if not fact.exists:
            path = quote(mount.image_sub_path)
            what = f"{IMAGE_VOLUME_FAILED}: the image has no directory or file {path}"
            raise bad(f"{field}.image_sub_path", what)
        return
    if mount.image_sub_path:
        raise bad(f"{field}.image_sub_path", "is given without an image")
    absolute_path(f"{field}.host_path", mount.host_path)
    if not fact.exists:
        raise bad(f"{field}.host_path", f"{quote(mount.host_path)} does not exist on this host")


def _propagation(field: str, mount: cri_pb2.Mount, fact: MountFacts) -> str:
    where = f"{field}.propagation"
    on = f"{quote(fact.source)} is on {quote(fact.mount_point)}"
    if mount.propagation == PRIVATE:
        return "rprivate"
    if mount.propagation == HOST_TO_CONTAINER:
        if fact.propagation not in ("shared", "slave"):
            raise bad(where, f"{on}, which is not a shared or slave mount")
        return "rslave"
    if mount.propagation == BIDIRECTIONAL:
        if fact.propagation != "shared":
            raise bad(where, f"{on}, which is not a shared mount")
        return "rshared"
    raise bad(where, f"{mount.propagation} is no propagation mode")


def _access(field: str, mount: cri_pb2.Mount, recursive_supported: bool) -> str:
    if not mount.recursive_read_only:
        # An image is never mounted for writing, whatever is asked for.
        return "ro" if mount.readonly or mount.HasField("image") else "rw"
    where = f"{field}.recursive_read_only"
    if not mount.readonly:
        raise bad(where, "is true, and readonly is not")
    if mount.propagation != PRIVATE:
        raise bad(where, "needs the propagation PRIVATE")
    if not recursive_supported:
        raise bad(
            where, f"{RRO_UNSUPPORTED}: the runtime handler can't mount recursively read only"
        )
    return "rro"


def _extra_options(field: str, mount: cri_pb2.Mount) -> list[str]:
    for index, option in enumerate(mount.mount_options):
        if option not in OPTIONS:
            known = ", ".join(sorted(OPTIONS))
            raise bad(f"{field}.mount_options[{index}]", f"{quote(option)} is not one of {known}")
    return list(dict.fromkeys(mount.mount_options))


def _id_mapped(field: str, mount: cri_pb2.Mount, supported: bool) -> dict[str, Any]:
    uids = namespaces.id_mappings(f"{field}.uidMappings", mount.uidMappings)
    gids = namespaces.id_mappings(f"{field}.gidMappings", mount.gidMappings)
    if not uids and not gids:
        return {}
    if not (uids and gids):
        raise bad(f"{field}.uidMappings", "and gidMappings go together")
    if not supported:
        # runc before 1.2 passes over the mappings: the files would be nobody's, without a word.
        raise bad(f"{field}.uidMappings", "the runtime handler has no id-mapped mounts")
    oci = namespaces.oci_mappings
    return {"uidMappings": oci(uids), "gidMappings": oci(gids)}
