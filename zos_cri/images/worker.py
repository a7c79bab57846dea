"""The worker process: one job from standard input, its events to standard output, then the end.

    python -m zos_cri.images.worker [pull]

With "pull" it imports what pulls need before it reads the job: it may be started ahead of one.
Where its input ends without a job it ends too.
It may be killed at any moment: what it makes lies in its staging directory until the server takes
it over, and partial downloads are checked by their digests before anything is made of them.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.images import trees
from zos_cri.images.jobs import (
    AnyEvent,
    AnyJob,
    Begun,
    Done,
    FlistJob,
    LoadJob,
    PullJob,
    SaveJob,
    Sealed,
    SealJob,
    failed,
)
from zos_cri.images.layout import Layout
from zos_cri.images.model import Usage
from zos_cri.linux import syscalls
from zos_cri.linux.fsattr import spread_subdirectories
from zos_cri.linux.malloc import keep_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable

# Each job imports what it needs: a worker starts for every pull, and its start is part of it.


# Imports make many objects and no garbage, and so do archives' entries.
_GC_THRESHOLD: Final = 100_000
# Chunks of an archive are freed and allocated over and over.
_LARGEST_CHUNK: Final = 4 << 20
_KEPT_MEMORY: Final = 64 << 20


def main() -> None:
    gc.set_threshold(_GC_THRESHOLD)
    keep_freed_memory(_LARGEST_CHUNK, _KEPT_MEMORY)
    if "pull" in sys.argv[1:]:
        import zos_cri.images.puller  # noqa: F401, PLC0415
    asked = sys.stdin.buffer.read()
    if not asked:  # started ahead, and not needed
        os._exit(0)
    job = msgspec.json.decode(asked, type=AnyJob)
    lock = threading.Lock()
    encode = msgspec.json.Encoder().encode

    def emit(event: AnyEvent) -> None:
        line = encode(event) + b"\n"
        with lock:
            try:
                while line:
                    line = line[os.write(1, line) :]
            except OSError:  # the server is gone, and nobody will take over what we make
                os._exit(1)

    try:
        emit(Begun())
        os.umask(0)
        if job.staging:
            spread_subdirectories(job.staging)
        emit(_run(job, emit))
    except BaseException as error:
        emit(failed(error, job.staging))
        if os.environ.get("ZOS_CRI_WORKER_TRACEBACK"):
            raise
    finally:
        sys.stderr.flush()
        # Connections that nobody needs any more may be in the midst of a read; no waiting for them.
        os._exit(0)


def _run(job: AnyJob, emit: Callable[[AnyEvent], None]) -> Done:
    if isinstance(job, PullJob):
        from zos_cri.images.puller import pull  # noqa: PLC0415

        return pull(job, emit)
    if isinstance(job, LoadJob):
        from zos_cri.images.load import load  # noqa: PLC0415

        return load(job, emit)
    if isinstance(job, SaveJob):
        from zos_cri.images.save import save  # noqa: PLC0415

        return save(job)
    if isinstance(job, FlistJob):
        from zos_cri.images.flist import make  # noqa: PLC0415

        return make(job, emit)
    return _seal(job, emit)


def _seal(job: SealJob, emit: Callable[[AnyEvent], None]) -> Done:
    """Nobody waits for most of this: it yields the processor to whoever wants it."""
    os.nice(10)
    layout = Layout(Path(job.root))
    if job.sync:
        fd = os.open(job.root, os.O_RDONLY | os.O_DIRECTORY)
        syscalls.syncfs(fd)
        os.close(fd)
    for number in job.numbers:
        try:
            seal, usage = trees.seal(os.fsencode(layout.layer(number)))
        except OSError:
            seal, usage = "", Usage(0, 0)
        emit(Sealed(number, seal, usage.bytes, usage.inodes))
    return Done()


if __name__ == "__main__":
    main()
