"""The worker process: one job from standard input, its events to standard output, then the end.

    python -m zos_cri.images.worker

It may be killed at any moment: what it makes lies in its staging directory until the server takes
it over, and partial downloads are checked by their digests before anything is made of them.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING

import msgspec

from zos_cri.images.jobs import (
    AnyEvent,
    AnyJob,
    Done,
    PullJob,
    failed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

# Each job imports what it needs: a worker starts for every pull, and its start is part of it.


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyJob)
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
        os.umask(0)
        emit(_run(job, emit))
    except BaseException as error:
        emit(failed(error))
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
    raise NotImplementedError(type(job).__name__)


if __name__ == "__main__":
    main()
