"""Bundles: the directory that a shim starts in and a container is created from.

Everything that must be known of a group (a pod) after a restart of ours stands in its bundle,
written before it is needed: the directory is the intent, `shim.json` first says what is about to
be started and then what runs. What the shim itself writes here (`address`, `s`, `options.json`,
`runtime`, `init.pid`) is its own.

The functions block for some file operations; call them through `linux.blocking`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri import errors
from zos_cri.linux import mount
from zos_cri.shim.handler import Handler

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG: Final = "config.json"
RECORD: Final = "shim.json"
LOG: Final = "log"
# Written by the shim and the runtime in the course of a Create.
INIT_PID: Final = "init.pid"
RUNTIME_FILES: Final = (INIT_PID, ".init.pid", "log.json")
# Read by the runc shim; a pod's containers carry it with Kubernetes too.
GROUP_ANNOTATION: Final = "io.kubernetes.cri.sandbox-id"
_RECORD_VERSION: Final = 1
# A full OCI spec with its seccomp profile has about 20 KiB.
_MAX_CONFIG: Final = 4 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """`shim.json`: a group's shim. Before it runs, `pid` is 0 and `address` is "".

    Attributes:
        binary: the file that was started, resolved; `delete` must use the same.
        version: of the Task API, 2 or 3.
        start_time: of `pid`, in clock ticks since boot.
    """

    schema: int = _RECORD_VERSION
    group: str
    handler: Handler
    binary: str
    address: str = ""
    protocol: str = ""
    version: int = 0
    pid: int = 0
    start_time: int = 0


class _Spec(msgspec.Struct, frozen=True):
    """Of a config.json, what tells whose it is; `process` is missing in our minimal one."""

    annotations: dict[str, str] = {}
    process: msgspec.Raw = msgspec.Raw(b"")


def create(
    bundles: Path,
    bundle_id: str,
    *,
    group: str,
    record: Record | None = None,
    spec: Mapping[str, Any] | None = None,
) -> Path:
    """Makes a bundle, or completes one that is there; without a spec a config.json stays.

    A new one is made under a hidden name and renamed, so that a bundle is never seen without its
    record, wherever we are killed.

    Args:
        record: written to a group's.
        spec: for config.json; one that only says whose it is where none is given, and none there.

    Returns:
        Its path, with rootfs/, the `log` FIFO and a config.json.
    """
    bundles.mkdir(mode=0o711, parents=True, exist_ok=True)
    path = bundles / bundle_id
    if path.exists():
        _fill(path, group, record, spec)
        return path
    hidden = path.with_name("." + path.name)
    _remove_hidden(hidden)
    hidden.mkdir(mode=0o700)
    _fill(hidden, group, record, spec)
    hidden.rename(path)
    return path


def write(
    bundles: Path, bundle_id: str, *, group: str, spec: Mapping[str, Any], root: tuple[int, int]
) -> None:
    """Makes a container's bundle.

    Args:
        spec: its OCI spec, to which the group's name is added.
        root: uid and gid of who is root in the container.
    """
    annotations = {**spec.get("annotations", {}), GROUP_ANNOTATION: group}
    path = create(bundles, bundle_id, group=group, spec={**spec, "annotations": annotations})
    if any(root):
        open_to(path, root[1])


def _fill(path: Path, group: str, record: Record | None, spec: Mapping[str, Any] | None) -> None:
    (path / "rootfs").mkdir(mode=0o711, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path / LOG, 0o600)
    if spec is None and not (path / CONFIG).exists():
        spec = {"ociVersion": "1.0.2", "annotations": {GROUP_ANNOTATION: group}}
    if spec is not None:
        write_config(path, spec)
    if record is not None:
        write_record(path, record)


def open_to(path: Path, group: int) -> None:
    """Lets a group pass through a bundle: root of a user namespace must get to its rootfs/.

    It can't list it, and the files in it stay ours alone.
    """
    os.chown(path, -1, group)
    path.chmod(0o710)


def write_config(path: Path, spec: Mapping[str, Any]) -> None:
    """Writes a bundle's config.json, replacing a minimal one."""
    write_atomic(path / CONFIG, msgspec.json.encode(spec))


def read_config(path: Path) -> dict[str, Any]:
    """A bundle's OCI spec.

    Raises:
        FileNotFoundError: the bundle is gone.
        DataLoss: it is no JSON.
    """
    with (path / CONFIG).open("rb") as file:
        data = file.read(_MAX_CONFIG)
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise errors.DataLoss(f"{path / CONFIG}: {error}") from error


def mentions(path: Path, key: str) -> bool:
    """Whether a bundle's config.json has this key anywhere, or a text that is the same."""
    with (path / CONFIG).open("rb") as file:
        return f'"{key}"'.encode() in file.read(_MAX_CONFIG)


def write_record(path: Path, record: Record) -> None:
    write_atomic(path / RECORD, msgspec.json.encode(record))


def read_record(path: Path) -> Record | None:
    """A group's record; None where the bundle has none: it is a container's, or nothing began.

    Raises:
        DataLoss: it is there and can't be read.
    """
    try:
        record = msgspec.json.decode((path / RECORD).read_bytes(), type=Record)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, OSError) as error:
        raise errors.DataLoss(f"{path / RECORD}: {errors.one_line(error)}") from error
    if record.schema != _RECORD_VERSION:
        raise errors.DataLoss(f"{path / RECORD}: schema {record.schema} isn't known here")
    return record


def containers(bundles: Path) -> dict[str, list[str]]:
    """The ids of the containers' bundles, by group.

    A bundle whose config.json can't be read counts as no container: nothing was created from it.
    """
    groups: dict[str, list[str]] = {}
    for path in _bundles(bundles):
        try:
            with (path / CONFIG).open("rb") as file:
                spec = msgspec.json.decode(file.read(_MAX_CONFIG), type=_Spec)
        except (OSError, msgspec.DecodeError):
            continue
        if bytes(spec.process):
            group = spec.annotations.get(GROUP_ANNOTATION, path.name)
            groups.setdefault(group, []).append(path.name)
    return groups


def groups(bundles: Path) -> list[Path]:
    """The bundles that a shim was started in, or was about to be."""
    return [path for path in _bundles(bundles) if (path / RECORD).exists()]


def _bundles(bundles: Path) -> list[Path]:
    try:
        return sorted(path for path in bundles.iterdir() if not path.name.startswith("."))
    except FileNotFoundError:
        return []


def remove(path: Path) -> None:
    """Removes a bundle; nothing to do where there is none.

    First it is renamed to a hidden name, so that a kill in the midst leaves nothing that looks
    like a bundle. What is still mounted in it is unmounted before, never deleted.

    Raises:
        FailedPrecondition: a mount in it is busy; the bundle stays as it is.
    """
    hidden = path.with_name("." + path.name)
    if _remove_plain(path, hidden):
        return
    mount.unmount_tree(str(path))
    _remove_hidden(hidden)
    with contextlib.suppress(FileNotFoundError):
        path.rename(hidden)
    _remove_hidden(hidden)


def _remove_plain(path: Path, hidden: Path) -> bool:
    """Removes a bundle with nothing mounted in it; False where not all of it could be.

    It spares reading the host's mounts, which takes the longer the more pods there are: rmdir and
    unlink refuse what something is mounted on.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            (path / "rootfs").rmdir()
        path.rename(hidden)
        for entry in list(os.scandir(hidden)):
            if entry.is_dir(follow_symlinks=False):
                os.rmdir(entry.path)
            else:
                os.unlink(entry.path)
        hidden.rmdir()
    except FileNotFoundError:
        return not hidden.exists()
    except OSError:
        return False
    return True


def remove_runtime_files(path: Path) -> None:
    """Removes what a Create wrote into a bundle; a second one would stumble over its temporary."""
    for name in RUNTIME_FILES:
        (path / name).unlink(missing_ok=True)


def remove_leftovers(bundles: Path) -> None:
    """Removes what interrupted calls of `remove` and `create` left behind."""
    with contextlib.suppress(FileNotFoundError):
        for hidden in bundles.glob(".*"):
            _remove_hidden(hidden)


def _remove_hidden(hidden: Path) -> None:
    if not hidden.exists():
        return
    mount.unmount_tree(str(hidden))
    if mount.mounts_below(str(hidden)):
        raise errors.FailedPrecondition(f"{hidden}: something is mounted in it, so it stays")
    shutil.rmtree(hidden)


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Writes a file so that every reader sees the old one or the new one, whole.

    Without fsync: bundles lie in /run, which doesn't outlive the kernel.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as file:
        file.write(data)
    temporary.rename(path)
