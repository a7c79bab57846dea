from __future__ import annotations

import pytest

from zos_cri.checkpoint.criu import Criu, errors, errors_in
from zos_cri.errors import FailedPrecondition

LOG = """\
(00.000001) Version: 4.2 (gitid 0)
(00.008821) Warn  (criu/image.c:134): Failed to open parent directory
(00.011000) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using \
--tcp-established option.
(00.011003) ----------------------------------------
(00.011009) Error (criu/cr-dump.c:1669): Dump files (pid: 7) failed with -1
"""


@pytest.fixture
def criu(tmp_path, monkeypatch):
    """Puts a criu on PATH that says this."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def make(text, code):
        path = tmp_path / "criu"
        path.write_text(
            f"#!/bin/sh\n[ \"$1\" = check ] || exit 9\necho '{text}' >&2\nexit {code}\n"
        )
        path.chmod(0o755)
        return path

    return make


async def test_one_that_works_is_asked_once(criu):
    path = criu("Looks good.", 0)
    asked = Criu()
    await asked.check()
    path.unlink()
    await asked.check()


async def test_one_that_does_not_work_says_why_and_is_asked_again(criu):
    criu("Error (criu/vdso.c:381): vdso: Unexpected rt vDSO area bounds", 1)
    asked = Criu()
    with pytest.raises(FailedPrecondition, match="criu check: vdso: Unexpected rt vDSO area"):
        await asked.check()
    criu("Looks good.", 0)
    await asked.check()


async def test_none_at_all(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FailedPrecondition, match="need criu on PATH"):
        await Criu().check()


def test_errors_of_a_log(tmp_path):
    assert errors(LOG) == [
        "inet: Connected TCP socket, consider using --tcp-established option.",
        "Dump files (pid: 7) failed with -1",
    ]
    assert errors_in(tmp_path / "none") == []
    (tmp_path / "dump.log").write_text("x" * 100_000 + LOG)
    assert len(errors_in(tmp_path / "dump.log")) == 2
