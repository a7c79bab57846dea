"""What a container has written, to an archive and into another container's layer."""

from __future__ import annotations

import json
import os
import stat
import tarfile

import pytest

from zos_cri.checkpoint import layout, worker
from zos_cri.checkpoint.diff import write_diff
from zos_cri.checkpoint.jobs import Apply, Diff
from zos_cri.images.merged import OPAQUE_XATTR, is_whiteout

pytestmark = pytest.mark.root
CAPABILITY = b"\1\0\0\2\0\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0"  # cap_net_bind_service=p


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def upper(tmp_path):
    """An overlay's upper directory with one of everything."""
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc" / "passwd").write_text("me")
    (upper / "etc" / "passwd").chmod(0o640)
    os.chown(upper / "etc" / "passwd", 5, 6)
    os.utime(upper / "etc" / "passwd", ns=(1_000_000_001, 1_234_567_891_234_567_891))
    os.setxattr(upper / "etc" / "passwd", "security.capability", CAPABILITY)
    os.link(upper / "etc" / "passwd", upper / "etc" / "same")
    (upper / "etc" / "link").symlink_to("passwd")
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(upper / "etc" / "group", stat.S_IFCHR, 0)
    (upper / "new").mkdir(0o700)
    os.setxattr(upper / "new", OPAQUE_XATTR, b"y")
    return upper


def test_marks_become_whiteouts(upper, tmp_path):
    removed = write_diff(upper, tmp_path / "a.tar")
    assert removed == ["/etc/group", "/etc/.wh.group"]
    with tarfile.open(tmp_path / "a.tar") as tar:
        members = {member.name: member for member in tar}
    assert {"etc/.wh.group", "new/.wh..wh..opq", "etc/same", "fifo"} <= members.keys()
    assert members["etc/same"].islnk()
    assert not any(OPAQUE_XATTR in name for m in members.values() for name in m.pax_headers)


def test_another_layer_is_the_same(upper, tmp_path):
    directory, target, lower = tmp_path / "d", tmp_path / "target", tmp_path / "lower"
    for path in (directory, target, lower / "etc", lower / "new"):
        path.mkdir(parents=True)
    (lower / "etc" / "group").write_text("x")
    (tmp_path / "log").write_text("log")
    worker.run(Diff(str(directory), str(upper), str(tmp_path / "log")))
    assert (directory / layout.LOG).read_text() == "log"
    worker.run(Apply(str(directory), str(target), (str(lower),)))
    same = os.lstat(target / "etc" / "passwd")
    assert (same.st_uid, same.st_gid, stat.S_IMODE(same.st_mode)) == (5, 6, 0o640)
    assert same.st_mtime_ns // 1000 == 1_234_567_891_234_567
    assert same.st_ino == os.lstat(target / "etc" / "same").st_ino
    assert os.getxattr(target / "etc" / "passwd", "security.capability") == CAPABILITY
    assert os.readlink(target / "etc" / "link") == "passwd"
    assert stat.S_ISFIFO(os.lstat(target / "fifo").st_mode)
    assert os.lstat(target / "device").st_rdev == os.makedev(1, 3)
    assert is_whiteout(os.lstat(target / "etc" / "group"))
    assert os.getxattr(target / "new", OPAQUE_XATTR) == b"y"


def test_what_others_have_removed(tmp_path):
    """CRI-O's archives have no whiteouts, but deleted.files."""
    directory, target, lower = tmp_path / "d", tmp_path / "target", tmp_path / "lower"
    for path in (directory, target, lower / "etc"):
        path.mkdir(parents=True)
    (lower / "etc").chmod(0o711)
    (lower / "etc" / "group").write_text("x")
    (directory / layout.DELETED).write_text(json.dumps(["/etc/group", "/../../evil", "/", ""]))
    worker.run(Apply(str(directory), str(target), (str(lower),)))
    assert is_whiteout(os.lstat(target / "etc" / "group"))
    assert stat.S_IMODE(os.lstat(target / "etc").st_mode) == 0o711  # as it was below
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "lower", "target"]
