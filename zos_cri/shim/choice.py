"""Which OCI runtime a handler has that names none: crun where it runs containers, else runc.

crun is C, and starts a container in a third of the time that runc takes. Whether it works on a host
is found by trying (`probe`), once for a crun, a boot and a handler's settings.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import Error, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import probe
from zos_cri.shim.bundle import write_atomic

if TYPE_CHECKING:
    from zos_cri.shim.handler import Handler

_log = get_log(__name__)

FIRST: Final = "crun"
ELSE: Final = "runc"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_FILE_LIMIT: Final = 64 << 10  # bytes; it has some hundred


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """
    Attributes:
        runtime: as `Handler.runtime` has it.
        why: for people.
    """

    runtime: str
    why: str


class _Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found, and of what: anything else of it makes a probe necessary."""

    path: str
    mtime_ns: int
    size: int
    boot_id: str
    oci_version: str
    systemd_cgroup: bool
    failure: str = ""


async def choose(
    handler: Handler, scratch: Path, *, oci_version: str, known: Path | None
) -> Choice:
    """What a handler is to run that names no runtime.

    Args:
        scratch: an existing directory, for the time of a probe.
        oci_version: what its specifications say.
        known: the file that keeps what the last probe found, None for none. It may be missing,
            damaged or old.
    """
    path = shutil.which(FIRST)
    if path is None:
        return Choice(runtime=ELSE, why=f"{FIRST} is nowhere on PATH")
    try:
        tried = await blocking.call(_identity, path, oci_version, handler.systemd_cgroup)
        found = await blocking.call(_read, known)
        if found is None or msgspec.structs.replace(found, failure="") != tried:
            trial = msgspec.structs.replace(handler, runtime=path)
            failure = await probe.failure(trial, scratch, oci_version=oci_version)
            found = msgspec.structs.replace(tried, failure=failure)
            await blocking.call(_write, known, found)
    except (Error, OSError) as error:
        _log.warning("runtime not tried", runtime=path, error=one_line(error))
        return Choice(runtime=ELSE, why=f"{path} couldn't be tried: {one_line(error)}")
    if found.failure:
        return Choice(runtime=ELSE, why=f"{path} runs no container here: {found.failure}")
    return Choice(runtime=path, why=f"{path} runs containers here")


def _identity(path: str, oci_version: str, systemd_cgroup: bool) -> _Known:
    status = Path(path).stat()
    return _Known(
        path=path,
        mtime_ns=status.st_mtime_ns,
        size=status.st_size,
        boot_id=_BOOT_ID.read_text().strip(),
        oci_version=oci_version,
        systemd_cgroup=systemd_cgroup,
    )


def _read(path: Path | None) -> _Known | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_FILE_LIMIT), type=_Known)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("what a runtime's trial found was not read", path=path, error=error)
        return None


def _write(path: Path | None, found: _Known) -> None:
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.encode(found), 0o600)
    except OSError as error:
        _log.warning("what a runtime's trial found was not kept", path=path, error=error)
