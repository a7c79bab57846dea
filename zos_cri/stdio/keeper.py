"""The keeper: a process that does nothing but hold the FIFOs' read ends open.

The kernel throws a FIFO's content away when the last one that has it open is gone. While a
container runs, its shim has it open; while we run, logger and server have. The keeper is for a
container that exits while both of them are dead: what it wrote last is still there for the next
logger. It is forked from the logger, shares its memory, and outlives it for as long as it holds
anything.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
from typing import TYPE_CHECKING, Final

from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = get_log(__name__)

_MESSAGE: Final = 256  # bytes: a letter and a container's id
_MAX_FDS: Final = 2
_CHECK: Final = 10.0  # seconds; without a client, the socket's path is looked at so often
# What a logger says: all that is held is doubtful now; hold this (again); drop this; drop what is
# doubtful still.
_BEGIN: Final = b"0"
_HOLD: Final = b"+"
_DROP: Final = b"-"
_END: Final = b"1"


class Keeper:
    """The logger's side. Without a keeper its calls do nothing."""

    def __init__(self, sock: socket.socket | None = None) -> None:
        """Owns the socket, a connection to the keeper."""
        self._sock = sock

    def begin(self) -> None:
        """What isn't held anew until `end` is dropped then."""
        self._send(_BEGIN)

    def end(self) -> None:
        self._send(_END)

    def hold(self, container: str, fds: Sequence[int]) -> None:
        """Has it hold a container's descriptors; those of before are dropped."""
        self._send(_HOLD + container.encode(), fds)

    def drop(self, container: str) -> None:
        self._send(_DROP + container.encode())

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        if self._sock is None:
            return
        try:
            socket.send_fds(self._sock, [message], list(fds), socket.MSG_NOSIGNAL)
        except OSError as error:  # it was killed, or is stopped: the next logger starts another
            _log.warning("keeper is lost", error=str(error))
            self.close()


def connect(path: str) -> Keeper:
    """The keeper at that socket; forked from this process, which must have one thread yet, where
    there is none."""
    for attempt in range(2):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(path)
            sock.setblocking(False)
        except OSError as error:
            sock.close()
            if attempt:
                _log.warning("there is no keeper", error=str(error))
            else:
                _fork(path)
        else:
            return Keeper(sock)
    return Keeper()


def _fork(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # a predecessor's
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen(2)
        gc.collect()
        gc.freeze()  # so that the two go on sharing what is there
        # Twice: who ends it is init, whoever's child the logger is.
        child = os.fork()
        if child == 0:
            _become(listener, path)
        os.waitpid(child, 0)


def _become(listener: socket.socket, path: str) -> None:
    code = 1
    try:
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
            ours = listener.fileno()
            os.closerange(3, ours)
            os.closerange(ours + 1, os.sysconf("SC_OPEN_MAX"))
            os.chdir("/")
            _Holder(listener, path).run()
        code = 0
    finally:
        os._exit(code)


class _Holder:
    """The keeper itself."""

    def __init__(self, listener: socket.socket, path: str) -> None:
        self._listener = listener
        self._path = path
        self._inode = os.stat(path).st_ino
        self._client: socket.socket | None = None
        self._held: dict[str, list[int]] = {}
        self._doubtful: set[str] = set()

    def run(self) -> None:
        """Until there is nothing to hold and nobody to ask for it."""
        idle = False
        while not idle or self._client is not None or (self._held and self._reachable()):
            idle = not self._wait() or not (self._held or self._client)

    def _wait(self) -> bool:
        """Handles what comes within `_CHECK` seconds; whether anything has."""
        poll = select.poll()
        for sock in filter(None, (self._listener, self._client)):
            poll.register(sock, select.POLLIN)
        found = {fd for fd, _ in poll.poll(_CHECK * 1000)}
        if self._client is not None and self._client.fileno() in found:
            self._receive(self._client)
        if self._listener.fileno() in found:
            if self._client is not None:
                self._client.close()  # of a logger that is gone: there is only one
            self._client, _ = self._listener.accept()
        return bool(found)

    def _reachable(self) -> bool:
        try:
            return os.stat(self._path).st_ino == self._inode
        except FileNotFoundError:
            return False

    def _receive(self, client: socket.socket) -> None:
        try:
            message, fds, _, _ = socket.recv_fds(client, _MESSAGE, _MAX_FDS)
        except OSError:
            message, fds = b"", []
        kind, container = message[:1], message[1:].decode()
        if not message:
            client.close()
            self._client = None
        elif kind == _BEGIN:
            self._doubtful = set(self._held)
        elif kind == _HOLD:
            self._drop(container)
            self._held[container] = list(fds)
        elif kind == _DROP:
            self._drop(container)
        elif kind == _END:
            for each in tuple(self._doubtful):
                self._drop(each)

    def _drop(self, container: str) -> None:
        self._doubtful.discard(container)
        for fd in self._held.pop(container, ()):
            os.close(fd)
