"""Log files: where they may lie, whole entries or nothing, mending after a kill."""

import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.stdio.logfile import LogFile


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Writes beyond `size` are cut short, then fail: as on a full disk, with EFBIG for ENOSPC."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def opened(path: Path, root: Path | str = "", taken_over: int | None = None) -> LogFile:
    log = LogFile(str(path), str(root))
    log.open(taken_over)
    return log


def test_directories_and_file_are_made(tmp_path: Path) -> None:
    path = tmp_path / "pods" / "a" / "b" / "0.log"
    log = opened(path, tmp_path / "pods")
    log.append(b"x\n")
    log.close()
    assert path.read_bytes() == b"x\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o700 == 0o700


def test_it_appends(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    log = opened(path)
    log.append(b"after\n")
    log.close()
    assert path.read_bytes() == b"before\nafter\n"


def test_what_others_left_unterminated_is_ended_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before")
    opened(path).close()
    assert path.read_bytes() == b"before\n"


@pytest.mark.parametrize(
    ("path", "root"),
    [
        ("/root/../etc/x", "/root"),
        ("/root/a/../../x", "/root"),
        ("/other/x", "/root"),
        ("/rootless/x", "/root"),
        ("/root", "/root"),
        ("/root/", "/root"),
        ("/root//x", "/root"),
        ("relative", ""),
        ("/root/x", "root"),
        ("/root/x\0y", "/root"),
        ("", ""),
    ],
)
def test_paths_that_leave_the_directory_are_refused(path: str, root: str) -> None:
    with pytest.raises(InvalidArgument, match="log"):
        LogFile(path, root)


def test_the_file_system_s_root_may_be_the_directory() -> None:
    assert LogFile("/x/y", "/").path == "/x/y"


def test_a_symbolic_link_on_the_way_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "dir").symlink_to(outside)
    with pytest.raises(InvalidArgument, match="symbolic link"):
        opened(root / "dir" / "0.log", root)
    assert not list(outside.iterdir())


def test_a_symbolic_link_as_the_file_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"keep")
    (tmp_path / "0.log").symlink_to(target)
    with pytest.raises(InvalidArgument, match="regular"):
        opened(tmp_path / "0.log")
    assert target.read_bytes() == b"keep"


def test_links_to_the_directory_itself_are_the_node_s_affair(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "root").symlink_to(tmp_path / "real")
    opened(tmp_path / "root" / "0.log", tmp_path / "root").close()
    assert (tmp_path / "real" / "0.log").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dir").mkdir()
    for name in ("fifo", "dir"):
        with pytest.raises(InvalidArgument, match="regular"):
            opened(tmp_path / name)


def test_a_short_write_is_undone_and_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.append(b"first\n")
    with files_up_to(1000), pytest.raises(OSError, match="too large"):
        log.append(b"x" * 1500 + b"\n")
    assert path.read_bytes() == b"first\n"
    log.append(b"third\n")
    log.close()
    assert path.read_bytes() == b"first\nthird\n"


def test_reopening_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.append(b"1\n")
    first = log.inode
    path.rename(tmp_path / "log.1")
    log.append(b"2\n")
    log.open()
    log.append(b"3\n")
    log.close()
    assert (tmp_path / "log.1").read_bytes() == b"1\n2\n"
    assert path.read_bytes() == b"3\n"
    assert log.inode != first


def test_a_failed_reopen_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    path.rename(tmp_path / "old")
    path.mkdir()
    with pytest.raises(InvalidArgument):
        log.open()
    log.append(b"still\n")
    log.close()
    assert (tmp_path / "old").read_bytes() == b"still\n"


@pytest.mark.parametrize("lost", [b"", b"torn", b"t" * 200_000])
def test_a_torn_entry_is_removed_when_taken_over(tmp_path: Path, lost: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n" + lost)
    opened(path, taken_over=path.stat().st_ino).close()
    assert path.read_bytes() == b"one\ntwo\n"


def test_a_torn_only_entry_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"torn")
    opened(path, taken_over=path.stat().st_ino).close()
    assert path.read_bytes() == b""


def test_a_torn_entry_of_a_file_rotated_meanwhile_is_removed(tmp_path: Path) -> None:
    old = tmp_path / "log.1"
    old.write_bytes(b"one\ntorn")
    (tmp_path / "other").write_bytes(b"not ours")
    opened(tmp_path / "log", taken_over=old.stat().st_ino).close()
    assert old.read_bytes() == b"one\n"
    assert (tmp_path / "other").read_bytes() == b"not ours"
    assert (tmp_path / "log").read_bytes() == b""


def test_a_take_over_that_fails_is_made_up_for_later(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "0.log"
    path.parent.mkdir()
    path.write_bytes(b"one\ntorn")
    log = LogFile(str(path))
    inode = path.stat().st_ino
    aside = tmp_path / "aside"
    path.parent.rename(aside)
    path.parent.write_bytes(b"a file in the directory's place")
    with pytest.raises(OSError, match="exists"):
        log.open(inode)
    path.parent.unlink()
    aside.rename(path.parent)
    log.open()
    log.close()
    assert path.read_bytes() == b"one\n"
