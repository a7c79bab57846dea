"""What is known on disk of each attachment: enough to take it off whatever happens to net.d or us.

One file for each (container id, network, interface): `<dir>/<id>/<network>@<interface>.json`. It is
written before the first plugin runs, as an intent, and again after each plugin; it goes when DEL
has succeeded. It holds the configuration that ADD used, since DEL must use the same.

Files are replaced atomically but not synced one by one. After a loss of power a file may be empty:
its name still says what to take off, and the network's present configuration says how.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any, Final

import msgspec

from zos_cri.network.conf import ConfError, NetworkConf, parse_list

FORMAT: Final = 1
# An interface's name as the kernel has it, of those that can be part of a file's name.
IFNAME: Final = re.compile(r"[^\s/:@.][^\s/:@]{0,14}")
_FILE: Final = re.compile(r"(?P<network>[^@/]+)@(?P<ifname>[^@/]+)\.json")


class Attachment(msgspec.Struct, frozen=True):
    """A pod's interface in a network.

    Attributes:
        index: position of the network among the pod's.
        args: CNI_ARGS as ADD had them.
        capabilities: what the plugins could have by declaring it.
        conf: the network as ADD used it; None where the record is damaged.
        begun: how many of its plugins have been run or were about to be.
        complete: ADD has succeeded.
        result: what the last plugin to succeed answered; None when none has.
        damage: why the record can't be read, "" when it can.
        newer: it was written by a later release, and must be left alone.
    """

    container_id: str
    network: str
    ifname: str
    index: int = 0
    netns: str = ""
    version: str = ""
    args: str = ""
    capabilities: dict[str, Any] = {}
    conf: NetworkConf | None = None
    begun: int = 0
    complete: bool = False
    result: bytes | None = None
    damage: str = ""
    newer: bool = False


class _File(msgspec.Struct):
    """The file's form, format 1."""

    format: int
    index: int
    netns: str
    args: str
    capabilities: dict[str, Any]
    version: str
    conf: msgspec.Raw
    begun: int
    complete: bool
    result: msgspec.Raw


class _Format(msgspec.Struct):
    format: int


class Records:
    """The directory of records. Its methods block for a file system's moment: call them off-loop.

    Any method raises OSError where the disk fails.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory)

    def save(self, attachment: Attachment) -> None:
        """Writes or replaces a record."""
        if attachment.conf is None:
            raise ValueError("a damaged record can't be written")
        data = msgspec.json.encode(
            _File(
                format=FORMAT,
                index=attachment.index,
                netns=attachment.netns,
                args=attachment.args,
                capabilities=attachment.capabilities,
                version=attachment.version,
                conf=msgspec.Raw(attachment.conf.to_json(attachment.version)),
                begun=attachment.begun,
                complete=attachment.complete,
                result=msgspec.Raw(attachment.result or b"null"),
            )
        )
        path = self._path(attachment)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One writer for a pod at a time: the name needs no randomness, and leaves no litter behind.
        temporary = path.with_suffix(".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
        os.replace(temporary, path)

    def remove(self, attachment: Attachment) -> None:
        """Removes a record, and the pod's directory with its last one. Absent: nothing to do."""
        path = self._path(attachment)
        path.with_suffix(".new").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            path.parent.rmdir()

    def tidy(self, container_id: str) -> None:
        """Removes what a writer that was killed left in a pod's directory, and that when empty."""
        directory = self._directory / container_id
        for leftover in directory.glob("*.new"):
            leftover.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            directory.rmdir()

    def of(self, container_id: str) -> list[Attachment]:
        """A pod's records in the order in which its networks were attached."""
        if "/" in container_id or container_id in ("", ".", ".."):
            return []
        try:
            names = os.listdir(self._directory / container_id)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = [self._load(container_id, name) for name in sorted(names)]
        return sorted((each for each in found if each), key=lambda each: each.index)

    def ids(self) -> list[str]:
        """The ids of all pods that have a record."""
        try:
            return sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return []

    def every(self) -> list[Attachment]:
        """All records there are."""
        return [each for container_id in self.ids() for each in self.of(container_id)]

    def _path(self, attachment: Attachment) -> Path:
        name = f"{attachment.network}@{attachment.ifname}.json"
        return self._directory / attachment.container_id / name

    def _load(self, container_id: str, name: str) -> Attachment | None:
        match = _FILE.fullmatch(name)
        if match is None:
            return None
        bare = Attachment(
            container_id=container_id, network=match["network"], ifname=match["ifname"]
        )
        path = self._directory / container_id / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # removed meanwhile
            return None
        try:
            if (written := msgspec.json.decode(data, type=_Format).format) != FORMAT:
                damage = f"{path}: written in format {written}, known is {FORMAT}"
                return msgspec.structs.replace(bare, damage=damage, newer=True)
            file = msgspec.json.decode(data, type=_File)
            conf = parse_list(bytes(file.conf), source=str(path))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ConfError) as error:
            return msgspec.structs.replace(bare, damage=f"{path}: damaged: {error}")
        result = bytes(file.result)
        return msgspec.structs.replace(
            bare,
            index=file.index,
            netns=file.netns,
            version=file.version,
            args=file.args,
            capabilities=file.capabilities,
            conf=conf,
            begun=file.begun,
            complete=file.complete,
            result=None if result == b"null" else result,
        )
