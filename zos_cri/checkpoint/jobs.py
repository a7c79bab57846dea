"""What is done to checkpoints in a process of its own: much to read and write, and others' data."""

from __future__ import annotations

import sys
from typing import Final

import msgspec

from zos_cri.errors import Internal
from zos_cri.images.jobs import Failed, as_error
from zos_cri.images.workers import environment
from zos_cri.linux import spawn

_STDERR_TAIL: Final = 2048


class Diff(msgspec.Struct, frozen=True, tag=True):
    """What is in `upper`, and the log, into the checkpoint's directory."""

    directory: str
    upper: str
    log: str


class Pack(msgspec.Struct, frozen=True, tag=True):
    """The checkpoint's directory to the archive `target`."""

    directory: str
    target: str


class Unpack(msgspec.Struct, frozen=True, tag=True):
    """An archive, or a directory with the same in it, to the checkpoint's new directory."""

    source: str
    directory: str


class Apply(msgspec.Struct, frozen=True, tag=True):
    """What the container had written, from the checkpoint's directory, into an empty `upper`.

    Attributes:
        lowers: the directories of its image's layers, the base layer's first.
    """

    directory: str
    upper: str
    lowers: tuple[str, ...]


AnyJob = Diff | Pack | Unpack | Apply


class Outcome(msgspec.Struct, frozen=True):
    """How a job ended."""

    failure: Failed | None = None


async def run(job: AnyJob, *, timeout: float) -> None:
    """Does a job in a worker; where the caller is cancelled, the worker is killed.

    Raises:
        Error: it failed, as the class that the worker had.
        DeadlineExceeded: it took longer than `timeout` seconds.
        Internal: the worker died.
    """
    done = await spawn.run(
        [sys.executable, "-P", "-m", "zos_cri.checkpoint.worker"],
        env=environment(),
        stdin=msgspec.json.encode(job),
        timeout=timeout,
    )
    try:
        outcome = msgspec.json.decode(done.stdout, type=Outcome)
    except msgspec.MsgspecError:
        said = " ".join(done.stderr[-_STDERR_TAIL:].decode(errors="replace").split())
        raise Internal(f"checkpoint worker: ended with {done.returncode}: {said}") from None
    if outcome.failure is not None:
        raise as_error(outcome.failure)
