"""A log directory on a file system that doesn't answer: a FUSE mount whose server says nothing."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import pytest

from zos_cri.errors import DeadlineExceeded
from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.unit.stdio.conftest import Rig

pytestmark = pytest.mark.root


@pytest.fixture
def hang() -> Iterator[Callable[[Path], None]]:
    """Mounts such a file system over a directory."""
    with contextlib.ExitStack() as undo:

        def mount(target: Path) -> None:
            try:
                fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            except OSError as error:
                pytest.skip(f"no FUSE: {error}")
            options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0"
            syscalls.mount("silent", str(target), "fuse", 0, options)
            undo.callback(syscalls.umount2, str(target), syscalls.MNT_DETACH)
            undo.callback(os.close, fuse)  # ends its requests with ENOTCONN

        yield mount


def test_it_holds_up_its_own_container_only(rig: Rig, hang: Callable[[Path], None]) -> None:
    hung = rig.directory / "hung"
    hung.mkdir()
    hang(hung)
    rig.attach(rig.spec())
    rig.open()
    for name in ("x.stdout", "x.stderr"):
        os.mkfifo(rig.directory / name)
    other = rig.spec(
        id="x",
        log_path=str(hung / "pod" / "0.log"),
        log_root=str(hung / "pod"),
        stdout=str(rig.directory / "x.stdout"),
        stderr=str(rig.directory / "x.stderr"),
    )
    answers: list[Exception | None] = []
    rig.logger.attach(other, answers.append)
    rig.logger.attach(other, answers.append)
    rig.write(b"meanwhile\n")
    rig.until(lambda: rig.entries() == [b"stdout F meanwhile"])
    rig.until(lambda: len(answers) == 2)
    for error in answers:
        assert isinstance(error, DeadlineExceeded)
        assert str(hung) in str(error)
    assert [each.spec.id for each in rig.logger.list()] == ["c"]
    assert rig.logger.status().waiting == 1


def test_a_logger_takes_over_though_one_hangs(rig: Rig, hang: Callable[[Path], None]) -> None:
    rig.attach(rig.spec(drop_after=0.1))
    rig.open()
    rig.die()
    hang(rig.log.parent)
    rig.succeed()
    rig.write(b"lost\n")
    rig.hang_up()
    assert rig.finish(0.3).dropped == 5
