"""Starts a shim's server without its `start`, for the shim that is known to do no more.

`start` of containerd's shim for runc makes the socket, starts its own binary again with the socket
as descriptor 3, and adjusts its score for the OOM killer. The binary's start alone is 8 ms of CPU,
as much as the server's: a tenth of what a pod costs. All of it is done here instead, by a shell
of 1 ms, which is there because of two things that a child of ours can't have otherwise: the socket
by that very number, and init for its parent, as a shim that outlives us should.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from zos_cri.linux import openfiles, spawn
from zos_cri.shim.bootstrap import Encoding, Result

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zos_cri._pb import types_pb2

_NAME: Final = "io.containerd.runc.v2"
_VERSION: Final = "2."
# What the shim is adjusted by, above its parent (containerd's AdjustOOMScore).
_OOM_STEP: Final = 1
_OOM_MAX: Final = 1000
_SHELL: Final = "/bin/sh"
# $1: the soft limit of open files, $2: the OOM score. The limit is set here as well as by `spawn`,
# which comes to it only when the server may have been started. What shells export isn't ours.
_SCRIPT: Final = """\
ulimit -S -n "$1" && echo "$2" >/proc/self/oom_score_adj && shift 2 || exit
unset PWD OLDPWD SHLVL
exec 3<&0
"$@" </dev/null >/dev/null 2>&1 &
"""


def possible(info: types_pb2.RuntimeInfo | None) -> bool:
    """Whether a shim, by what it says of itself, is one that can be started so."""
    return (
        info is not None
        and info.name == _NAME
        and info.version.version.removeprefix("v").startswith(_VERSION)
    )


async def start(
    argv: Sequence[str], path: str, *, bundle: Path, env: Mapping[str, str], timeout: float
) -> Result | None:
    """Starts a shim's server, which listens from then on.

    Args:
        argv: the shim's binary and flags, without an action.
        path: of its socket.

    Returns:
        None where the path is taken: a server of that group may be running.

    Raises:
        OSError: no socket there, or no shell.
        DeadlineExceeded: the shell still ran after `timeout` seconds and was killed, with whatever
            it had started.
    """
    listening = _listen(path)  # not in a thread: some system calls on our own directory
    if listening is None:
        return None
    with listening:
        limit, score = str(openfiles.inherited_limit()), str(_oom_score())
        shell = await spawn.start(
            [_SHELL, "-c", _SCRIPT, _SHELL, limit, score, *argv],
            cwd=bundle,
            env=env,
            stdin=listening.fileno(),
        )
        try:
            code = await shell.wait(timeout)
        except BaseException:
            shell.kill(group=True)
            raise
    if code:
        raise OSError(f"{_SHELL}: exit code {code}")
    return Result(f"unix://{path}", "ttrpc", 3, Encoding.PROTOBUF)


def _listen(path: str) -> socket.socket | None:
    """A listening socket at a path, ours alone to connect to; None where something is there."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    try:
        listening.bind(path)
    except OSError:
        listening.close()
        if os.path.lexists(path):
            return None
        raise
    try:
        os.chmod(path, 0o600)  # before anyone could connect
        listening.listen(socket.SOMAXCONN)
    except BaseException:
        listening.close()
        os.unlink(path)
        raise
    return listening


def _oom_score() -> int:
    """The score for a child of ours that should go before us."""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return min(int(file.read()) + _OOM_STEP, _OOM_MAX)
