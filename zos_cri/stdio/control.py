"""The logger's control socket: clients, their requests and the answers."""

from __future__ import annotations

import os
import select
import socket
import struct
from functools import partial
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, InvalidArgument, grpc_code, one_line
from zos_cri.log import get_log
from zos_cri.stdio import messages

if TYPE_CHECKING:
    from zos_cri.stdio.logger import Logger
    from zos_cri.stdio.loop import Loop

_log = get_log(__name__)

_RECEIVE: Final = 64 * 1024
_MAX_FDS: Final = 2
# The server, its predecessor that is still going, tools. All are root: this is against leaks.
_MAX_CLIENTS: Final = 64
_UCRED: Final = struct.Struct("3i")


class Control:
    """Accepts clients of our own user, and root, and serves them."""

    def __init__(self, listener: socket.socket, *, logger: Logger, loop: Loop) -> None:
        """Owns `listener`, a listening unix socket."""
        self._listener = listener
        self._logger = logger
        self._loop = loop
        self._clients: set[Client] = set()
        listener.setblocking(False)
        loop.register(listener.fileno(), select.EPOLLIN, self._accept)

    def close(self) -> None:
        for client in list(self._clients):
            client.close()
        self._loop.unregister(self._listener.fileno())
        self._listener.close()

    def _accept(self, _events: int) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError as error:  # it went away again, or we have no descriptor left
            _log.warning("accept", error=str(error))
            return
        uid = _peer_uid(sock)
        if uid not in (0, os.geteuid()) or len(self._clients) >= _MAX_CLIENTS:
            _log.warning("client turned away", uid=uid, clients=len(self._clients))
            sock.close()
            return
        self._clients.add(Client(sock, self._logger, self._loop, self._clients.discard))


class Client:
    """One connection."""

    def __init__(self, sock: socket.socket, logger: Logger, loop: Loop, on_close: Gone) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._logger = logger
        self._loop = loop
        self._on_close = on_close
        self._frames = messages.Frames(messages.MAX_REQUEST)
        self._fds: list[int] = []  # received, for the next Tap
        self._out = bytearray()
        self._closed = False
        loop.register(sock.fileno(), select.EPOLLIN, self._event)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._drop_fds()
            self._loop.unregister(self._sock.fileno())
            self._sock.close()
            self._on_close(self)

    def _event(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush()
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                self._receive()
        except (OSError, messages.ProtocolError) as error:
            _log.debug("client dropped", error=one_line(error))
            self.close()

    def _receive(self) -> None:
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            data, fds, got, _ = socket.recv_fds(self._sock, _RECEIVE, _MAX_FDS, flags)
        except BlockingIOError:
            return
        self._fds += fds
        if got & socket.MSG_CTRUNC or len(self._fds) > _MAX_FDS:
            raise messages.ProtocolError("logger: too many descriptors")
        if not data:
            self.close()
            return
        for body in self._frames.feed(data):
            self._handle(body)
            if self._closed:
                break

    def _handle(self, body: bytes) -> None:
        seq = 0
        try:
            request = messages.parse_request(body)
            seq = request.seq
            match request:
                case messages.Finish():
                    self._logger.finish(request.id, request.timeout, partial(self._answer, seq))
                case messages.Attach():
                    self._logger.attach(request.spec, partial(self._settle, seq))
                case messages.Reopen():
                    self._logger.reopen(request.id, partial(self._settle, seq))
                case _:
                    self._answer(seq, self._do(request))
        except (Error, OSError) as error:
            self._settle(seq, error)
        except Exception as error:
            _log.exception("request failed")
            self._settle(seq, error)

    def _do(self, request: messages.AnyRequest) -> object:
        logger = self._logger
        match request:
            case messages.Detach():
                logger.detach(request.id)
            case messages.Tap():
                self._tap(request)
            case messages.List():
                return logger.list()
            case messages.Status():
                return logger.status()
            case _:  # Ping; those that aren't here answer for themselves
                pass
        return None

    def _tap(self, request: messages.Tap) -> None:
        names = [name for name in ("stdout", "stderr") if getattr(request, name)]
        if not names or len(names) != len(self._fds):
            self._drop_fds()
            raise InvalidArgument("logger: tap: as many descriptors as streams are needed")
        self._logger.tap(request.id, list(zip(names, self._fds, strict=True)))
        self._fds = []

    def _settle(self, seq: int, error: Exception | None) -> None:
        if error is None:
            self._answer(seq, None)
            return
        self._send(messages.Reply(seq=seq, code=_code(error), error=one_line(error)))

    def _answer(self, seq: int, result: object) -> None:
        self._send(messages.Reply(seq=seq, result=messages.raw(result)))

    def _send(self, reply: messages.Reply) -> None:
        if self._closed:
            return
        waiting = bool(self._out)
        self._out += messages.frame(reply)
        if len(self._out) > 2 * messages.MAX_REPLY:
            _log.warning("client dropped: it doesn't read its answers")
            self.close()
        elif not waiting:
            try:
                self._flush()
            except OSError:
                self.close()

    def _flush(self) -> None:
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        del self._out[:sent]
        wanted = select.EPOLLIN | (select.EPOLLOUT if self._out else 0)
        self._loop.modify(self._sock.fileno(), wanted)

    def _drop_fds(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


if TYPE_CHECKING:
    from collections.abc import Callable

    Gone = Callable[[Client], None]


def listen(path: str) -> socket.socket:
    """A listening socket at `path`, for our user alone. The caller holds the lock on that path."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            os.unlink(path)  # a predecessor's
        sock.bind(path)
        os.chmod(path, 0o600)
        sock.listen(_MAX_CLIENTS)
    except BaseException:
        sock.close()
        raise
    return sock


def _peer_uid(sock: socket.socket) -> int:
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _, uid, _ = _UCRED.unpack(data)
    return int(uid)


def _code(error: Exception) -> str:
    if isinstance(error, OSError):
        return "RESOURCE_EXHAUSTED"
    return grpc_code(error) if isinstance(error, Error) else "INTERNAL"
