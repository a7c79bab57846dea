"""The worker process: one job from standard input, its outcome to standard output.

python -m zos_cri.checkpoint.worker
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Final

import msgspec

from zos_cri.checkpoint import archive, layout
from zos_cri.checkpoint.diff import write_diff
from zos_cri.checkpoint.jobs import AnyJob, Apply, Diff, Outcome, Pack, Unpack
from zos_cri.errors import DataLoss
from zos_cri.images import lowerfix
from zos_cri.images.jobs import failed
from zos_cri.images.merged import MergedView
from zos_cri.images.unpack import unpack

_MAX_DELETED: Final = 1_000_000


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=AnyJob)
    try:
        run(job)
        outcome = Outcome()
    except Exception as error:
        outcome = Outcome(failed(error))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def run(job: AnyJob) -> None:
    """Does a job.

    Raises:
        Error: see the functions of `archive`.
        OSError: the disk is full, …
    """
    match job:
        case Diff():
            directory = Path(job.directory)
            removed = write_diff(Path(job.upper), directory / layout.ROOTFS_DIFF)
            (directory / layout.DELETED).write_text(json.dumps(removed))
            if job.log and os.path.isfile(job.log):
                shutil.copyfile(job.log, directory / layout.LOG)
        case Pack():
            archive.pack(Path(job.directory), Path(job.target))
        case Unpack():
            archive.unpack(Path(job.source), Path(job.directory))
        case Apply():
            _apply(Path(job.directory), job.upper, job.lowers)


def _apply(directory: Path, upper: str, lowers: tuple[str, ...]) -> None:
    """Puts what the container had written and removed into a new container's upper directory."""
    difference = directory / layout.ROOTFS_DIFF
    lower = MergedView([os.fsencode(path) for path in lowers])
    if difference.exists():
        with difference.open("rb") as file:
            lowerfix.fix(upper, lower, unpack(file, upper))
        difference.unlink()  # it is in its place now
    whiteouts = _whiteouts(directory / layout.DELETED)
    if whiteouts is not None:
        lowerfix.fix(upper, lower, unpack(whiteouts, upper))


def _whiteouts(path: Path) -> io.BytesIO | None:
    """An archive that removes what deleted.files names; None where there is nothing to remove."""
    if not path.exists():
        return None
    try:
        names = msgspec.json.decode(path.read_bytes(), type=list[str])
    except msgspec.MsgspecError as error:
        raise DataLoss(f"{layout.DELETED}: {error}") from error
    if len(names) > _MAX_DELETED:
        raise DataLoss(f"{layout.DELETED}: more than {_MAX_DELETED} names")
    # Whiteouts of whiteouts are there for readers that know none; ours were in the layer.
    marks = [n for n in names if not os.path.basename(n).startswith(".wh.") and n.strip("/")]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in marks:
            parent, base = os.path.split(name.strip("/"))
            tar.addfile(tarfile.TarInfo(os.path.join(parent, f".wh.{base}")))
    buffer.seek(0)
    return buffer if marks else None


if __name__ == "__main__":
    main()
