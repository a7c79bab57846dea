from __future__ import annotations

import errno
import os
import stat
import threading

import pytest

from tests.descriptors import open_descriptors
from zos_cri.errors import FailedPrecondition, ResourceExhausted
from zos_cri.linux import safefs, syscalls
from zos_cri.linux.safefs import mkdirs_in_root, open_in_root, read_file_in_root, write_atomic


@pytest.fixture
def root(tmp_path):
    """A root with a secret beside it."""
    (tmp_path / "secret").write_text("the host's")
    inside = tmp_path / "root"
    (inside / "etc").mkdir(parents=True)
    (inside / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    before = open_descriptors()
    yield inside
    assert open_descriptors() <= before


@pytest.mark.parametrize("path", ["etc/passwd", "/etc/passwd", "//etc/./passwd", "../etc/passwd"])
def test_a_file_is_read(root, path):
    assert read_file_in_root(str(root), path, 100) == b"root:x:0:0::/root:/bin/sh\n"


@pytest.mark.parametrize(
    "link", ["../secret", "../../secret", "../../../../../../../../../secret", "{outside}/secret"]
)
def test_links_do_not_lead_out(root, link):
    (root / "link").symlink_to(link.format(outside=root.parent))
    assert read_file_in_root(str(root), "link", 100) is None


def test_links_inside_are_followed_as_from_the_root(root):
    (root / "abs").symlink_to("/etc")
    (root / "up").symlink_to("../../../../etc/passwd")
    assert read_file_in_root(str(root), "abs/passwd", 100)
    assert read_file_in_root(str(root), "up", 100)


def test_magic_links_are_refused():
    host = safefs.open_root("/")
    try:
        with pytest.raises(OSError, match="symbolic links") as caught:
            open_in_root(host, "/proc/self/root/etc/passwd", os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP
    finally:
        os.close(host)


def test_what_is_not_there(root):
    (root / "dangling").symlink_to("nowhere")
    for path in ("gone", "dangling", "gone/x", "etc/passwd/x"):
        assert read_file_in_root(str(root), path, 100) is None


@pytest.mark.parametrize("path", ["etc", "", "/", "fifo", "loop"])
def test_what_is_no_regular_file_is_not_opened(root, path):
    os.mkfifo(root / "fifo")  # opening it would block for ever
    (root / "loop").symlink_to("loop")
    with pytest.raises(FailedPrecondition, match=f"read {path} in its root"):
        read_file_in_root(str(root), path, 100)


def test_the_size_is_bounded(root):
    descriptor = safefs.open_root(str(root))
    try:
        assert read_file_in_root(descriptor, "etc/passwd", 26)
        with pytest.raises(ResourceExhausted, match="larger than 25 bytes"):
            read_file_in_root(descriptor, "etc/passwd", 25)
    finally:
        os.close(descriptor)


def test_files_are_made_inside(root):
    descriptor = safefs.open_root(str(root))
    (root / "out").symlink_to("/../../etc")
    made = open_in_root(descriptor, "/out/new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    assert not os.get_inheritable(made)
    os.close(made)
    os.close(descriptor)
    assert stat.S_IMODE((root / "etc" / "new").stat().st_mode) == 0o640


def test_a_raced_lookup_is_tried_again_for_a_while(root, monkeypatch):
    real = syscalls.openat2
    tries: list[int] = []

    def raced(*args, **kwargs):
        tries.append(1)
        if len(tries) < 3:
            raise BlockingIOError(errno.EAGAIN, "again")
        return real(*args, **kwargs)

    monkeypatch.setattr(syscalls, "openat2", raced)
    assert read_file_in_root(str(root), "etc/passwd", 100)
    assert len(tries) == 3

    def always(*_args, **_kwargs):
        raise BlockingIOError(errno.EAGAIN, "again")

    monkeypatch.setattr(syscalls, "openat2", always)
    with pytest.raises(FailedPrecondition, match="keeps being changed"):
        read_file_in_root(str(root), "etc/passwd", 100)


def test_directories_are_made(root):
    old = os.umask(0o077)
    try:
        descriptor = mkdirs_in_root(str(root), "a//b/./c", 0o751)
    finally:
        os.umask(old)
    assert os.readlink(f"/proc/self/fd/{descriptor}") == str(root / "a" / "b" / "c")
    os.close(descriptor)
    assert stat.S_IMODE((root / "a" / "b").stat().st_mode) == 0o751
    os.close(mkdirs_in_root(str(root), "/a/b/c"))
    os.close(mkdirs_in_root(str(root), "/"))


def test_directories_are_made_through_links_but_never_outside(root):
    (root / "var").symlink_to("/../../deep")
    (root / "deep").mkdir()
    os.close(mkdirs_in_root(str(root), "var/../../../run/lock"))
    assert (root / "run" / "lock").is_dir()
    os.close(mkdirs_in_root(str(root), "var/x"))
    assert (root / "deep" / "x").is_dir()
    assert not (root.parent / "deep").exists()


def test_a_dangling_link_or_a_file_in_the_way(root):
    (root / "dangling").symlink_to("/nowhere")
    with pytest.raises(OSError, match=r"Not a directory|symbolic links|File exists"):
        mkdirs_in_root(str(root), "dangling/x")
    with pytest.raises(NotADirectoryError):
        mkdirs_in_root(str(root), "etc/passwd/x")
    assert not (root / "nowhere").exists()


def test_a_directory_that_somebody_else_makes_first(root, monkeypatch):
    real = os.mkdir

    def slow(path, mode, *, dir_fd):
        real(path, 0o711, dir_fd=dir_fd)
        real(path, mode, dir_fd=dir_fd)  # fails: it is there by now

    monkeypatch.setattr(os, "mkdir", slow)
    os.close(mkdirs_in_root(str(root), "new"))
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o711


def test_swapping_links_never_leads_out(root):
    """A tree that is changed all the time: whatever is read is the inside's, or nothing."""
    (root / "d").mkdir()
    (root / "d" / "f").write_text("inside")
    outside = root.parent / "d"
    outside.mkdir()
    (outside / "f").write_text("outside")
    (root / "l").symlink_to(str(outside))
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(root / "d", root / "t")
            os.rename(root / "l", root / "d")
            os.rename(root / "d", root / "l")
            os.rename(root / "t", root / "d")

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        seen = {read_file_in_root(str(root), "d/f", 100) for _ in range(2000)}
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"inside", None}
    assert b"inside" in seen


def test_an_atomic_write(tmp_path):
    target = tmp_path / "f"
    write_atomic(target, b"one", 0o600)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"one", 0o600)
    write_atomic(str(target), b"two", sync=True)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"two", 0o644)
    assert os.listdir(tmp_path) == ["f"]


def test_a_failed_atomic_write_leaves_the_old_and_no_more(tmp_path, monkeypatch):
    target = tmp_path / "f"
    write_atomic(target, b"one")

    def refuse(_fd, _mode):
        raise OSError(errno.EIO, "no")

    monkeypatch.setattr(os, "fchmod", refuse)
    with pytest.raises(OSError, match="no"):
        write_atomic(target, b"two")
    assert target.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["f"]


def test_an_atomic_write_in_the_current_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomic("f", b"x", sync=True)
    assert (tmp_path / "f").read_bytes() == b"x"
