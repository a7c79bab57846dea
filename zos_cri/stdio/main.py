"""The logger process: its arguments, its lock, its start and stop.

There is one for a socket path: it holds a lock on `<socket>.lock`, and a second one ends at once
and says so. SIGTERM ends it in order; what it served waits in the FIFOs for its successor, as it
does after a SIGKILL.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri import log
from zos_cri.linux import malloc, openfiles
from zos_cri.linux.notify import notify
from zos_cri.stdio import keeper, messages
from zos_cri.stdio.control import Control, listen
from zos_cri.stdio.logger import Logger
from zos_cri.stdio.loop import Loop
from zos_cri.stdio.state import StateDir

if TYPE_CHECKING:
    from collections.abc import Sequence

_log = log.get_log(__name__)

_READY: Final = b"+"
_REACHABLE_EVERY: Final = 10.0
_LARGEST_BUFFER: Final = 4 << 20  # a step's entries, at their worst
# A container that is gone is a cycle of some 40 objects: collected by the hundred, not by the
# thousand. What there was at the start is frozen, so that a collection costs little.
_COLLECT: Final = (700, 5, 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the logger; returns its exit code."""
    options = _arguments(argv)
    log.setup(level=options.log_level, fmt=options.log_format)
    os.umask(0o022)
    ready = -1
    if options.daemon:
        ready = _daemonize()
        if ready < 0:
            return -ready - 1
    lock = _lock(options.socket + ".lock")
    if lock is None:
        sys.stderr.write(f"zos-cri logger: another one serves {options.socket}\n")
        return messages.EXIT_RUNNING
    try:
        return _serve(options, ready)
    finally:
        os.close(lock)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="zos-cri logger", description="Writes containers' output to their CRI log files."
    )
    path = os.path.abspath
    parser.add_argument(
        "--socket", type=path, default="/run/zos-cri/logger.sock", help="control socket"
    )
    parser.add_argument(
        "--state-dir", type=path, default="/run/zos-cri/logger", help="what it serves; on tmpfs"
    )
    parser.add_argument("--log-level", choices=log.LEVELS, default="info")
    parser.add_argument("--log-format", choices=log.FORMATS, default="text")
    parser.add_argument(
        "--log-file", type=path, help="where its own log goes to; standard error by default"
    )
    parser.add_argument(
        "--daemon",
        action="store_true",
        help="go on in a session of its own; return when it serves",
    )
    return parser.parse_args(argv)


def _serve(options: argparse.Namespace, ready: int) -> int:
    openfiles.raise_limit()  # three descriptors a container
    malloc.keep_freed_memory(_LARGEST_BUFFER, 2 * _LARGEST_BUFFER)
    with contextlib.ExitStack() as stack:
        kept = keeper.connect(options.socket + ".keeper")  # forks: before all else
        stack.callback(kept.close)
        gc.set_threshold(*_COLLECT)
        loop = Loop()
        stack.callback(loop.close)
        logger = Logger(loop=loop, state=StateDir(Path(options.state_dir)), keeper=kept)
        stack.callback(logger.close)
        _stop_on_signals(logger, loop, stack)
        logger.take_over()
        control = Control(listen(options.socket), logger=logger, loop=loop)
        stack.callback(control.close)
        stop_when_unreachable(options.socket, logger, loop)
        if ready >= 0:
            os.write(ready, _READY)
            os.close(ready)
            _let_go_of_stdio(options.log_file)
        else:  # a daemon's NOTIFY_SOCKET is that of who started it
            notify("READY=1")
        logger.run()
        _log.info("logger ends")
    return 0


def _daemonize() -> int:
    """In the child, the descriptor that tells the parent it serves; in the parent, -1 - its code.

    The process has one thread and nothing open, so fork is safe here.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        return writer
    os.close(writer)
    if os.read(reader, 1) == _READY:
        return -1
    _, status = os.waitpid(child, 0)
    return -1 - (abs(os.waitstatus_to_exitcode(status)) or 1)


def _let_go_of_stdio(log_file: str) -> None:
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    target = null
    if log_file:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        target = os.open(log_file, flags, 0o640)
    for fd, source in ((0, null), (1, target), (2, target)):
        os.dup2(source, fd)
    for fd in {null, target}:
        os.close(fd)


def _lock(path: str) -> int | None:
    """The descriptor that holds the lock; None where another process does.

    The file stays: removing it would let two processes lock two files of one name.
    """
    os.makedirs(os.path.dirname(path) or ".", mode=0o711, exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _stop_on_signals(logger: Logger, loop: Loop, stack: contextlib.ExitStack) -> None:
    # A signal's Python handler can't end epoll_wait (PEP 475); a byte in this socket can.
    reader, writer = socket.socketpair()
    for end in (reader, writer):
        end.setblocking(False)
        stack.callback(end.close)

    def stop(_events: int) -> None:
        logger.stopping = True

    loop.register(reader.fileno(), select.EPOLLIN, stop)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    stack.callback(signal.set_wakeup_fd, -1)


def stop_when_unreachable(
    path: str, logger: Logger, loop: Loop, *, every: float = _REACHABLE_EVERY
) -> None:
    """Ends the logger when its socket was removed and it has no container: it was forgotten."""
    own = os.stat(path).st_ino

    def check() -> None:
        try:
            found = os.stat(path).st_ino
        except FileNotFoundError:
            found = 0
        if found != own and not logger.status().containers:
            _log.info("logger can't be reached any more", socket=path)
            logger.stopping = True
        loop.call_later(every, check)

    loop.call_later(every, check)
