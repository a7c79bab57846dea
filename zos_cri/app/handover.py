"""The socket that callers look for outlives the server: who calls meanwhile waits for the next one.

systemd (socket activation), or the server itself before it begins anew, has a socket that listens
under the path. gRPC's library can't be handed a socket, it makes its own; so that is put over the
other one's name for as long as we serve, and at the end the name is given back. Who called in
between is in the backlog of the socket that was held, and is connected through.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from zos_cri.errors import FailedPrecondition
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping
    from pathlib import Path

_log = get_log(__name__)

FIRST_FD: Final = 3  # sd_listen_fds(3)
BACKLOG: Final = 1024
_CHUNK: Final = 1 << 16


def fresh(path: Path) -> Path:
    """Where a socket is made that is to get the name `path`."""
    return path.with_name(f"{path.name}.n")


def own(path: Path) -> Path:
    """The other name, for as long as it serves, of the socket that serves at `path`."""
    return path.with_name(f"{path.name}.g")


def put(there: Path, path: Path) -> None:
    """Gives the socket at `there` the name `path` besides, in whoever's place has it."""
    new = fresh(path)
    new.unlink(missing_ok=True)
    os.link(there, new)
    new.rename(path)


class Held:
    """A socket that listens while there is no server."""

    def __init__(self, listening: socket.socket, path: Path) -> None:
        self.listening = listening
        self._path = path
        self._aside = path.with_name(f"{path.name}.h")  # another name of its own
        self._server: asyncio.Server | None = None

    @classmethod
    def inherited(cls, environ: MutableMapping[str, str], path: Path) -> Held | None:
        """The socket that we were started with; None where there is none.

        Raises:
            FailedPrecondition: it isn't one at `path`.
        """
        mine = environ.pop("LISTEN_PID", "") == str(os.getpid())
        number = environ.pop("LISTEN_FDS", "")
        environ.pop("LISTEN_FDNAMES", None)
        if not mine or number in ("", "0"):
            return None
        os.set_inheritable(FIRST_FD, False)
        listening = socket.socket(fileno=FIRST_FD)
        name = listening.getsockname()
        if number != "1" or name not in (str(path), str(fresh(path))):
            raise FailedPrecondition(
                f"handed to us: {number} sockets, the first at {name!r}; expected one at {path}"
            )
        held = cls(listening, path)
        held._set_aside()
        return held

    @classmethod
    def made(cls, path: Path, give: Callable[[Path], None]) -> Held:
        """A new one, which has the name from now on; whoever has it now loses it.

        Args:
            give: gives the socket its owner and mode.
        """
        listening = socket.socket(socket.AF_UNIX)
        new = fresh(path)
        new.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            listening.bind(str(new))
        finally:
            os.umask(mask)
        give(new)
        listening.listen(BACKLOG)
        new.rename(path)
        return cls(listening, path)

    def _set_aside(self) -> None:
        """Keeps the socket's name besides, to be given back in the end."""
        if _answers(self._path):  # nobody serves, so it is the one that we hold
            self._aside.unlink(missing_ok=True)
            os.link(self._path, self._aside)
        elif not _answers(self._aside):
            raise FailedPrecondition(
                f"{self._path}: the socket that was handed to us isn't there any more:"
                " start its systemd unit again"
            )

    async def relay(self) -> None:
        """Connects those through that called before, and who still comes this way."""
        self.listening.setblocking(False)
        self._server = await asyncio.start_unix_server(self._relay, sock=self.listening.dup())

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError):
                there, back = await asyncio.open_unix_connection(str(self._path))
                await asyncio.gather(_pump(reader, back), _pump(there, writer))
        finally:
            writer.close()

    def give_back(self) -> None:
        """Who calls from now on waits for the next server."""
        if self._server is not None:
            self._server.close()
            put(self._aside, self._path)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def begin_anew(held: Held) -> NoReturn:
    """Becomes the program that we are once more, which finds the socket as systemd's."""
    os.dup2(held.listening.fileno(), FIRST_FD)
    os.set_inheritable(FIRST_FD, True)  # dup2 says nothing of it where the number is the same
    os.environ["LISTEN_FDS"] = "1"
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
