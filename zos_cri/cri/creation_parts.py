"""Parts of CreateContainer's work that need nothing but their arguments."""

from __future__ import annotations

import posixpath
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import msgspec

from zos_cri.cri.views import CriContainer
from zos_cri.errors import FailedPrecondition
from zos_cri.oci import fields, mounts, signals, users

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.images.model import Image
    from zos_cri.module.types import ContainerRecord
    from zos_cri.oci.host import Spec
    from zos_cri.store.model import SandboxMeta


def log_file(directory: str, path: str) -> str:
    """A container's log: `PodSandboxConfig.log_directory` + `ContainerConfig.log_path`.

    Returns:
        "" where there is to be none.

    Raises:
        InvalidArgument: the path leads out of the directory.
    """
    if not directory or not path:
        return ""
    fields.absolute_path("log_directory", directory)
    fields.text("log_path", path)
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise fields.bad("log_path", f"{fields.quote(path)} leads out of {directory}")
    return str(Path(directory, path))


def kept(
    config: pb.ContainerConfig, image: Image, spec: Spec, log_path: str, stop_signal: int
) -> bytes:
    """What CRI keeps of a container beside the module's metadata: `ContainerMeta.extra`."""
    return msgspec.msgpack.encode(
        CriContainer(
            config=config.SerializeToString(deterministic=True),
            image_id=image.id,
            image_ref=config.image.image,
            log_path=log_path,
            user=users.reported(spec).SerializeToString(),
            stop_signal=signals.reported(stop_signal),
        )
    )


def image_volumes(config: pb.ContainerConfig, image: Image) -> tuple[str, ...]:
    """The paths of the image's VOLUMEs, but those that the configuration mounts something at."""
    given = {_normal(mount.container_path) for mount in config.mounts}
    named = dict.fromkeys(_normal(path) for path in image.config.volumes)
    return tuple(path for path in named if path not in given)


def _normal(path: str) -> str:
    """An image may name its volumes as `data/` or `/data/.`."""
    return posixpath.join("/", posixpath.normpath(f"/{path}").lstrip("/"))


def volume_mounts(volumes: Mapping[str, str]) -> tuple[mounts.BindMount, ...]:
    """Mounts of the directories of an image's volumes.

    Args:
        volumes: the directories by where they are mounted.
    """
    return tuple(
        # Its files have the image's owners, as the root filesystem's have.
        mounts.BindMount(source=source, target=target, id_mapped=True)
        for target, source in volumes.items()
    )


def private_pid(spec: Mapping[str, Any]) -> bool:
    """Whether the container's init is the first of its pid namespace: with it all others end."""
    return any(ns["type"] == "pid" and not ns.get("path") for ns in spec["linux"]["namespaces"])


def cgroup_of(spec: Mapping[str, Any], sandbox: SandboxMeta, *, systemd: bool) -> str:
    """Where the container's cgroup is once the runtime has made it: a logical path."""
    path: str = spec["linux"]["cgroupsPath"]
    if not systemd:
        return path
    slice_, prefix, name = path.split(":")
    parent = sandbox.cgroup or f"/{slice_}"
    if posixpath.basename(parent) != slice_:  # an NRI plugin has chosen another one
        parent = slice_path(slice_)
    return f"{parent}/{prefix}-{name}.scope"


def slice_path(name: str) -> str:
    """Where systemd has a slice: `a-b.slice` is within `a.slice` (systemd.slice(5))."""
    stem = name.removesuffix(".slice")
    parts = stem.split("-") if stem != "-" else []
    names = ["-".join(parts[: count + 1]) for count in range(len(parts))]
    return "".join(f"/{each}.slice" for each in names)


def pid_namespace(record: ContainerRecord) -> str:
    """The path of a running container's pid namespace.

    Raises:
        FailedPrecondition: it doesn't run.
    """
    if not record.status.pid:
        raise FailedPrecondition(f"container {record.meta.id} is {record.status.state}")
    return f"/proc/{record.status.pid}/ns/pid"
