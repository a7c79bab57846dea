"""The CDI spec files of this host: read when a container asks for a device, kept while unchanged.

As the CDI specification has it, a file that can't be read takes nothing but its own devices away.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.cri import facts
from zos_cri.errors import Error, InvalidArgument, one_line
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.oci import cdi

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri._pb import cri_pb2 as pb

_log = get_log(__name__)

READ_TIMEOUT: Final = 20.0  # seconds; the directories may be anywhere that somebody linked them to
FILE_LIMIT: Final = 8 << 20  # bytes of one file; a GPU vendor's for eight devices has some 50 KiB
MAX_FILES: Final = 1024  # of one directory
_MAX_DEPTH: Final = 32  # of a YAML document; a CDI spec is 7 deep
_EXTENSIONS: Final = (".json", ".yaml")
# A file that is changed twice within a tick of the clock looks the same afterwards: what has
# changed just now isn't taken for the same the next time.
_SETTLED: Final = 1_000_000_000  # ns

_Stamp = tuple[int, int, int, int, int]


class _File(msgspec.Struct, frozen=True):
    """What a file said when it was read: a spec, or what is wrong with it."""

    stamp: _Stamp
    read_at: int
    spec: cdi.CdiSpec | None
    error: str = ""


class CdiSpecs:
    """The devices that the files in some directories describe."""

    def __init__(self, directories: Sequence[str]) -> None:
        """
        Args:
            directories: a device in a later one is taken before its namesake in an earlier one.
        """
        self._directories = tuple(directories)
        self._files: dict[str, _File] = {}

    async def edits(self, devices: Sequence[pb.CDIDevice]) -> cdi.Edits | None:
        """What devices add to a container, complete with the numbers of their nodes.

        Returns:
            None where no device is asked for.

        Raises:
            InvalidArgument: no file has such a device, or it isn't on this host.
            DeadlineExceeded: the files can't be read in time.
        """
        if not devices:
            return None
        return await blocking.call_abandonable(
            self._edits, devices, timeout=READ_TIMEOUT, what=", ".join(self._directories)
        )

    def _edits(self, devices: Sequence[pb.CDIDevice]) -> cdi.Edits | None:
        listed = [_listing(directory) for directory in self._directories]
        known = self._files
        files = {path: _read(path, known.get(path)) for paths in listed for path in paths}
        for path, file in files.items():
            if file.error and (path not in known or known[path].error != file.error):
                _log.warning("CDI spec file is not used", error=file.error)
        self._files = files
        specs = [[s for p in paths if (s := files[p].spec) is not None] for paths in listed]
        try:
            edits = cdi.edits_for(devices, cdi.catalogue(specs))
        except InvalidArgument as error:
            wrong = [file.error for file in files.values() if file.error]
            if not wrong:
                raise
            more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
            raise InvalidArgument(f"{error}; not used: {wrong[0]}{more}") from error
        if edits is None:
            return None
        nodes = {path: facts.device_node(path) for path in cdi.unresolved(edits)}
        return cdi.resolve(edits, {path: node for path, node in nodes.items() if node is not None})


def _listing(directory: str) -> list[str]:
    """A directory's spec files; none where there is no such directory."""
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(_EXTENSIONS))
    except OSError:
        return []
    return [f"{directory}/{name}" for name in names[:MAX_FILES]]


def _read(path: str, known: _File | None) -> _File:
    now = time.time_ns()
    stamp: _Stamp = (0, 0, 0, 0, 0)
    try:
        # A FIFO has no end to wait for.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            stamp = (
                *(status.st_dev, status.st_ino, status.st_size),
                *(status.st_mtime_ns, status.st_ctime_ns),
            )
            if known is not None and known.stamp == stamp and _settled(known):
                return known
            data = file.read(FILE_LIMIT + 1)
        if len(data) > FILE_LIMIT:
            raise InvalidArgument(f"{path}: larger than {FILE_LIMIT} bytes")
        decode = msgspec.json.decode if path.endswith(".json") else _yaml
        return _File(stamp, now, cdi.parse_spec(decode(data), path))
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        return _File(stamp, now, None, f"{path}: {one_line(error)}")
    except OSError as error:
        return _File(stamp, now, None, f"{path}: {error.strerror}")
    except Error as error:
        return _File(stamp, now, None, one_line(error))


def _yaml(data: bytes) -> object:
    """A YAML document; one that nests without measure would end the C loader, and us with it.

    Raises:
        ValueError: it is none, or has aliases: few of them make a document of any size.
    """
    import yaml  # noqa: PLC0415 most hosts have no such file

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for event in yaml.parse(data, Loader=loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("YAML aliases are not taken")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"nested more than {_MAX_DEPTH} deep")
        return yaml.load(data, Loader=loader)  # a safe loader: plain values only
    except yaml.YAMLError as error:
        raise ValueError(one_line(error)) from error


def _settled(file: _File) -> bool:
    return file.read_at - max(file.stamp[3:]) > _SETTLED
