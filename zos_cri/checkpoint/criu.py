"""Whether CRIU works on this host, and what it says when it doesn't."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from zos_cri.errors import DeadlineExceeded, FailedPrecondition
from zos_cri.linux import spawn

if TYPE_CHECKING:
    from pathlib import Path

CHECK_TIMEOUT: Final = 30.0  # seconds; it takes 0.1
_LOG_TAIL: Final = 1 << 16
# "(00.012345)      7: Error (criu/files.c:1:2): what went wrong"; the times are in log files only.
_ERROR: Final = re.compile(r"Error \([^)]*\): *(.*)")


class Criu:
    """The `criu` that OCI runtimes find on PATH."""

    def __init__(self) -> None:
        self._works = False

    async def check(self) -> None:
        """Makes sure that it works here. Success is remembered, failure isn't.

        Raises:
            FailedPrecondition: there is none, or `criu check` says why it can't work.
        """
        if self._works:
            return
        try:
            done = await spawn.run(["criu", "check"], timeout=CHECK_TIMEOUT)
        except OSError as error:
            raise FailedPrecondition(
                f"checkpoints need criu on PATH (apt-get install criu): {error.strerror}"
            ) from error
        except DeadlineExceeded as error:
            raise FailedPrecondition(f"criu check: no answer in {CHECK_TIMEOUT:g} s") from error
        if done.returncode != 0:
            said = errors(done.stderr.decode(errors="replace"))
            why = "; ".join(said) or f"exit code {done.returncode}"
            raise FailedPrecondition(f"criu can't work on this host: criu check: {why}")
        self._works = True


def errors(log: str, most: int = 3) -> list[str]:
    """The errors in what CRIU has said, the first ones."""
    return [match[1].strip() for match in _ERROR.finditer(log)][:most]


def errors_in(log: Path) -> list[str]:
    """The same of a log file; none where there is no such file. Blocks."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _LOG_TAIL))
            return errors(file.read(_LOG_TAIL).decode(errors="replace"))
    except OSError:
        return []
