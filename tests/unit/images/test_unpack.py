"""Unpacking: what archives make, and what hostile ones don't."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import tars
from zos_cri.errors import DataLoss, Error, ResourceExhausted
from zos_cri.images import trees
from zos_cri.images.directories import UnpackError
from zos_cri.images.layerfs import Limits
from zos_cri.images.merged import OPAQUE_XATTR
from zos_cri.images.unpack import Unpacked, unpack
from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def extract(root: Path, *parts: bytes, limits: Limits | None = None) -> Unpacked:
    archive = b"".join(parts) + tars.end()
    return unpack(io.BytesIO(archive), str(root), limits=limits)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "store" / "layer"
    path.mkdir(parents=True)
    return path


def snapshot(top: Path, *, without: Path) -> dict[str, tuple[object, ...]]:
    """Everything that may not change outside of a layer."""
    found: dict[str, tuple[object, ...]] = {}
    for directory, names, files in os.walk(top):
        if directory == str(without):
            names.clear()
            continue
        for name in [".", *names, *files]:
            path = os.path.join(directory, name)
            if path == str(without):
                continue
            st_ = os.lstat(path)
            content: object = None
            if stat.S_ISREG(st_.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(st_.st_mode):
                content = os.readlink(path)
            xattrs = tuple(sorted(os.listxattr(path, follow_symlinks=False)))
            found[path] = (st_.st_mode, st_.st_uid, st_.st_gid, st_.st_nlink, content, xattrs)
    return found


# What layers are made of


def test_all_kinds(root: Path) -> None:
    result = extract(
        root,
        tars.directory(b"./", mode=0o711, uid=5, mtime=77),
        tars.directory(b"d/", mode=0o2775, uid=1000, gid=2000, mtime=99),
        tars.pax(("SCHILY.xattr.user.note", b"hi\0"), ("mtime", b"12.000000345"))
        + tars.file(b"d/f", b"hello", mode=0o4755, uid=1000, gid=50),
        tars.symlink(b"d/s", b"/etc/passwd", uid=7, mtime=5),
        tars.hardlink(b"h", b"d/f"),
        tars.header(b"null", kind=b"3", major=1, minor=3, mode=0o666, uid=3),
        tars.header(b"disk", kind=b"4", major=8, minor=1, mode=0o660),
        tars.header(b"pipe", kind=b"6", mode=0o622),
    )
    assert result.implied == ()
    top = root.stat()
    assert (stat.S_IMODE(top.st_mode), top.st_uid, top.st_mtime) == (0o711, 5, 77)
    d = (root / "d").stat()
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o2775, 1000, 2000, 99)
    f = (root / "d/f").stat()
    assert (stat.S_IMODE(f.st_mode), f.st_uid, f.st_gid) == (0o4755, 1000, 50)
    assert f.st_mtime_ns == 12_000_000_345
    assert os.getxattr(root / "d/f", "user.note") == b"hi\0"
    assert (root / "h").stat().st_ino == f.st_ino
    link = (root / "d/s").lstat()
    assert (os.readlink(root / "d/s"), link.st_uid, link.st_mtime) == ("/etc/passwd", 7, 5)
    null = (root / "null").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert (null.st_rdev, stat.S_IMODE(null.st_mode)) == (os.makedev(1, 3), 0o666)
    assert (root / "disk").stat().st_rdev == os.makedev(8, 1)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


def test_file_capabilities_survive_the_owner(root: Path) -> None:
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    extract(
        root,
        tars.pax(("SCHILY.xattr.security.capability", capability))
        + tars.file(b"ping", b"x", uid=1, mode=0o755),
    )
    assert os.getxattr(root / "ping", "security.capability") == capability


def test_a_file_in_a_setgid_directory_has_its_own_group(root: Path) -> None:
    extract(root, tars.directory(b"d", mode=0o2755, gid=7), tars.file(b"d/f"))
    assert (root / "d/f").stat().st_gid == 0


def test_sparse_files_stay_sparse(root: Path) -> None:
    sparse = tars.pax(
        ("GNU.sparse.size", b"1000000000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"500000000,3"),
    )
    extract(root, sparse + tars.file(b"f", b"abc"))
    status = (root / "f").stat()
    assert status.st_size == 10**9
    assert status.st_blocks * 512 < 10**6
    with open(root / "f", "rb") as file:
        file.seek(499_999_999)
        assert file.read(5) == b"\0abc\0"


def test_the_last_of_several_entries_counts(root: Path) -> None:
    extract(
        root,
        tars.file(b"a", b"1"),
        tars.file(b"a", b"2"),
        tars.directory(b"b"),
        tars.file(b"b/c", b"x"),
        tars.symlink(b"b", b"a"),
        tars.symlink(b"s", b"a"),
        tars.file(b"s", b"not through the link"),
        tars.file(b"d"),
        tars.directory(b"d", mode=0o700),
        tars.file(b"d/e", b"y"),
    )
    assert (root / "a").read_bytes() == b"2"
    assert os.readlink(root / "b") == "a"
    assert (root / "s").read_bytes() == b"not through the link"
    assert (root / "d/e").read_bytes() == b"y"


def test_links_in_paths_lead_around_within_the_root(root: Path) -> None:
    extract(
        root,
        tars.symlink(b"lib", b"usr/lib"),
        tars.directory(b"usr/lib"),
        tars.file(b"lib/libc", b"c"),
        tars.symlink(b"run", b"/var/run"),
        tars.file(b"run/pid", b"1"),
        tars.symlink(b"up", b"../../../usr"),
        tars.file(b"up/share", b"s"),
    )
    assert (root / "usr/lib/libc").read_bytes() == b"c"
    assert (root / "var/run/pid").read_bytes() == b"1"
    assert (root / "usr/share").read_bytes() == b"s"


def test_whiteouts(root: Path) -> None:
    result = extract(
        root,
        tars.file(b"gone/.wh.file"),
        tars.file(b".wh.top"),
        tars.directory(b"opaque"),
        tars.file(b"opaque/.wh..wh..opq"),
        tars.file(b"opaque/new", b"n"),
        tars.file(b".wh..wh.plnk"),
        tars.file(b".wh.reborn"),
        tars.directory(b"reborn"),
        tars.file(b".wh.again"),
        tars.file(b"again", b"a"),
        tars.directory(b"kept"),
        tars.file(b"kept/x", b"x"),
        tars.file(b".wh.kept"),
        tars.file(b"file", b"f"),
        tars.file(b".wh.file"),
        tars.file(b".wh.way"),
        tars.file(b"way/in", b"i"),
    )
    for name in ("gone/file", "top"):
        status = (root / name).lstat()
        assert stat.S_ISCHR(status.st_mode)
        assert status.st_rdev == 0
    for name in ("opaque", "reborn", "kept", "way"):
        assert os.getxattr(root / name, OPAQUE_XATTR) == b"y", name
    assert (root / "again").read_bytes() == b"a"
    assert (root / "kept/x").read_bytes() == b"x"
    assert (root / "file").read_bytes() == b"f"
    assert (root / "way/in").read_bytes() == b"i"
    assert not (root / ".wh..wh.plnk").exists()
    assert result.implied == (b"gone",)


def test_what_is_taken_for_granted_is_noted(root: Path) -> None:
    result = extract(
        root,
        tars.file(b"a/b/c"),
        tars.directory(b"a", mode=0o700),
        tars.hardlink(b"x/link", b"not/here"),
    )
    assert result.implied == (b"a/b", b"x")
    assert result.missing_links == ((b"x/link", b"not/here"),)


def test_diff_id_and_compression(root: Path) -> None:
    archive = tars.file(b"f", b"x" * 100000) + tars.end()
    packed = gzip.compress(archive[:600]) + gzip.compress(archive[600:])
    result = unpack(io.BytesIO(packed), str(root))
    assert result.diff_id == f"sha256:{hashlib.sha256(archive).hexdigest()}"


# What hostile ones are made of

PATHS = [
    b"../outside",
    b"../../outside",
    b"/../outside",
    b"/etc/zos-cri-hostile",
    b"a/../../outside",
    b"./.././../outside",
    b"a/b/../../../../outside",
    b"//../../outside",
    b"..",
    b"../",
    b"../../",
    b"/..",
    b"a/..",
    b"a/../..",
]
LINKS = [
    b"/",
    b"..",
    b"../..",
    b"../../victim",
    b"/proc/self/root",
    b"/proc/self/cwd",
    b"/etc",
    b"../../victim/file",
    b"self/../..",
    b"a/../../..",
]

HOSTILE: dict[str, bytes] = {}
for path in PATHS:
    HOSTILE[f"file {path!r}"] = tars.file(path, b"evil", mode=0o6777)
    HOSTILE[f"directory {path!r}"] = tars.directory(path, mode=0o777, uid=1234)
for target in LINKS:
    HOSTILE[f"file through a link to {target!r}"] = tars.symlink(b"l", target) + tars.file(
        b"l/zos-cri-hostile", b"evil"
    )
    HOSTILE[f"directory over a link to {target!r}"] = tars.symlink(b"l", target) + tars.directory(
        b"l", mode=0o777, uid=1234
    )
    HOSTILE[f"file over a link to {target!r}"] = tars.symlink(b"l", target) + tars.file(
        b"l", b"evil", mode=0o777
    )
    HOSTILE[f"hard link to {target!r}"] = (
        tars.directory(b"a")
        + tars.symlink(b"self", b".")
        + tars.hardlink(b"h", target + b"/victim/file")
        + tars.file(b"h", b"evil")
    )
    HOSTILE[f"hard link through a link to {target!r}"] = (
        tars.symlink(b"l", target) + tars.hardlink(b"h", b"l/file") + tars.file(b"h", b"evil")
    )
    HOSTILE[f"whiteout through a link to {target!r}"] = tars.symlink(b"l", target) + tars.file(
        b"l/.wh.file"
    )
    HOSTILE[f"opaque through a link to {target!r}"] = tars.symlink(b"l", target) + tars.file(
        b"l/.wh..wh..opq"
    )
HOSTILE |= {
    "link to a link to outside": tars.symlink(b"a", b"b")
    + tars.symlink(b"b", b"../../victim")
    + tars.file(b"a/file", b"evil"),
    "hard link to a link, written through": tars.symlink(b"l", b"../../victim/file")
    + tars.hardlink(b"h", b"l")
    + tars.file(b"h", b"evil"),
    "link in a PAX path": tars.pax(("path", b"../../victim/file")) + tars.file(b"x", b"evil"),
    "link in a GNU name": tars.longname(b"../../victim/file") + tars.file(b"x", b"evil"),
    "PAX linkpath": tars.pax(("linkpath", b"../../victim/file")) + tars.hardlink(b"h", b"x"),
    "loop of links": tars.symlink(b"a", b"b") + tars.symlink(b"b", b"a") + tars.file(b"a/x"),
    "link to itself": tars.symlink(b"a", b"a") + tars.file(b"a/x"),
    "directory replaced by a link under an open parent": tars.file(b"d/one", b"1")
    + tars.symlink(b"d", b"../../victim")
    + tars.file(b"d/file", b"evil"),
    "parent replaced above": tars.file(b"p/q/one")
    + tars.symlink(b"p", b"../../victim")
    + tars.file(b"p/q/two", b"evil")
    + tars.file(b"p/file", b"evil"),
    "root as a link": tars.symlink(b".", b"../../victim") + tars.file(b"file", b"evil"),
    "root as a link with a slash": tars.symlink(b"./", b"/"),
    "root as a file": tars.file(b"/", b"evil"),
    "root as a device": tars.header(b".", kind=b"4", major=8),
    "root as a FIFO": tars.header(b"././", kind=b"6"),
    "root as a hard link": tars.hardlink(b"/", b"a"),
    "hard link to the root": tars.hardlink(b"h", b"/"),
    "hard link to nothing": tars.hardlink(b"h", b""),
    "hard link to a directory": tars.directory(b"d") + tars.hardlink(b"h", b"d"),
    "hard link to itself": tars.hardlink(b"h", b"h"),
    "hard link over its target": tars.file(b"f", b"1") + tars.hardlink(b"./f", b"/f"),
    "hard link into a child of itself": tars.hardlink(b"f", b"f/f"),
    "hard link to a whiteout": tars.file(b".wh.f") + tars.hardlink(b"h", b"f"),
    "hard link to a whiteout's name": tars.hardlink(b"h", b".wh.f"),
    "whiteout of the parent": tars.file(b"d/.wh..."),
    "whiteout of itself": tars.file(b"d/.wh.."),
    "whiteout of nothing": tars.file(b"d/.wh."),
    "whiteout with a path": tars.file(b".wh.../outside"),
    "whiteout as a link": tars.symlink(b".wh.f", b"../../victim/file"),
    "whiteout as a directory with content": tars.directory(b".wh.d") + tars.file(b".wh.d/f", b"x"),
    "file in a file": tars.file(b"f", b"x") + tars.file(b"f/g", b"y"),
    "file in a FIFO": tars.header(b"p", kind=b"6") + tars.file(b"p/g", b"y"),
    "file over a FIFO": tars.header(b"p", kind=b"6") + tars.file(b"p", b"y"),
    "file over a device": tars.header(b"p", kind=b"4", major=8) + tars.file(b"p", b"evil"),
    "file over /dev/null's node": tars.header(b"p", kind=b"3", major=1, minor=3)
    + tars.file(b"p", b"evil"),
    "device over a directory": tars.file(b"d/e/f") + tars.header(b"d", kind=b"3", major=1),
    "name of 256 bytes": tars.longname(b"n" * 256) + tars.file(b"x"),
    "path of 5000 bytes": tars.longname(b"d/" * 2500 + b"f") + tars.file(b"x"),
    "path of 2000 directories": tars.longname(b"d/" * 2000 + b"f") + tars.file(b"x"),
    "link of 5000 bytes": tars.longname(b"x" * 5000, b"K") + tars.symlink(b"l", b"x"),
    "link to nothing": tars.symlink(b"l", b""),
    "huge sparse file": tars.pax(
        ("GNU.sparse.size", b"9000000000000000000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"8999999999999999990,1"),
    )
    + tars.file(b"f", b"x"),
    "size of an exabyte": tars.header(b"f", size=1 << 60),
    "PAX size of an exabyte": tars.pax(("size", b"1152921504606846976")) + tars.file(b"f", b"x"),
    "PAX bomb": b"".join(
        tars.pax(*((f"SCHILY.xattr.user.{n}", b"x" * 1000) for n in range(500))) + tars.file(b"f")
        for _ in range(3)
    ),
    "xattr of a megabyte": tars.pax(("SCHILY.xattr.user.a", b"x" * 900_000)) + tars.file(b"f"),
    "xattr name too long": tars.pax(("SCHILY.xattr.user." + "a" * 300, b"x")) + tars.file(b"f"),
    "xattr without a namespace": tars.pax(("SCHILY.xattr.a", b"x")) + tars.file(b"f"),
    "xattr on a link to outside": tars.pax(("SCHILY.xattr.trusted.evil", b"x"))
    + tars.symlink(b"l", b"../../victim/file"),
    "mode and owner on a link to outside": tars.symlink(
        b"l", b"../../victim/file", mode=0o6777, uid=1234, gid=1234
    ),
    "time beyond the end of time": tars.pax(("mtime", b"99999999999999999999")) + tars.file(b"f"),
    "time before its beginning": tars.pax(("mtime", b"-99999999999999999999")) + tars.file(b"f"),
    "truncated in a file": tars.header(b"f", size=100000) + b"x" * 512,
    "NUL in a name": tars.pax(("path", b"a\0../../victim/file")) + tars.file(b"x", b"evil"),
    "backslashes": tars.file(b"..\\..\\victim\\file", b"evil"),
    "newlines": tars.file(b"a\n../../victim/file", b"evil"),
    "bytes that are no UTF-8": tars.file(b"\xff\xfe/../\xff", b"x"),
}


def test_there_are_enough() -> None:
    assert len(HOSTILE) >= 60


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name: str, root: Path, tmp_path: Path) -> None:
    """Refused or contained: nothing outside has changed, and the root is a directory still."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "file").write_bytes(b"precious")
    (victim / "victim").mkdir()
    (victim / "victim" / "file").write_bytes(b"precious")
    host = {path: os.path.lexists(path) for path in ("/zos-cri-hostile", "/etc/zos-cri-hostile")}
    etc = os.stat("/etc")
    before = snapshot(tmp_path, without=root)
    message = ""
    try:
        unpack(io.BytesIO(HOSTILE[name]), str(root), limits=Limits(max_bytes=64 << 20))
    except Error as error:
        message = str(error)
    assert "\n" not in message
    assert snapshot(tmp_path, without=root) == before
    assert {path: os.path.lexists(path) for path in host} == host
    after = os.stat("/etc")
    assert (after.st_mode, after.st_uid) == (etc.st_mode, etc.st_uid)
    assert stat.S_ISDIR(root.lstat().st_mode)
    # What the layer shows must not be a way out either: no hard link to anything of the host.
    inodes = {os.stat(victim / "file").st_ino, os.stat(victim / "victim" / "file").st_ino}
    pending = [str(root)]
    while pending:
        for entry in os.scandir(pending.pop()):
            assert entry.inode() not in inodes
            if entry.is_dir(follow_symlinks=False) and len(entry.path) < 4000:
                pending.append(entry.path)
    trees.remove(str(root))
    assert (victim / "file").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("root as a file", "the root can't be a file"),
        ("whiteout of nothing", "whiteout of nothing"),
        ("hard link to a directory", "hard link to the directory"),
        ("file in a file", "f/g: Not a directory"),
        ("loop of links", "too many"),
        ("name of 256 bytes", "a name of 256 bytes"),
        ("path of 5000 bytes", "a path of 5001 bytes"),
        ("xattr of a megabyte", "f: extended attribute user.a of 900000 bytes"),
    ],
)
def test_a_refusal_names_the_entry(name: str, match: str, root: Path) -> None:
    with pytest.raises(UnpackError, match=f"(?i){match}"):
        extract(root, HOSTILE[name])


def test_overlay_attributes_of_an_archive_are_dropped(root: Path) -> None:
    extract(
        root,
        tars.pax(
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
        )
        + tars.directory(b"d")
        + tars.file(b"d/f"),
    )
    assert os.listxattr(root / "d") == []


def test_limits(root: Path) -> None:
    with pytest.raises(ResourceExhausted, match="larger than 1000000 bytes"):
        extract(root, tars.file(b"f", bytes(1 << 20)), limits=Limits(max_bytes=10**6))
    many = b"".join(tars.file(b"f%d" % n) for n in range(300))
    with pytest.raises(ResourceExhausted, match="larger than"):
        extract(root, many, limits=Limits(max_bytes=10**6))
    with pytest.raises(ResourceExhausted, match="MiB are left"):
        extract(root, tars.file(b"f", b"x"), limits=Limits(min_free=1 << 60))


def test_a_gzip_bomb_ends_at_the_limit(root: Path) -> None:
    bomb = gzip.compress(tars.header(b"f", size=1 << 30) + bytes(200 << 20), 9)
    with pytest.raises(ResourceExhausted):
        unpack(io.BytesIO(bomb), str(root), limits=Limits(max_bytes=10 << 20))


def test_a_damaged_archive_is_data_loss(root: Path) -> None:
    with pytest.raises(DataLoss, match="checksum"):
        unpack(io.BytesIO(b"\1" * 5000), str(root))


def test_what_the_host_moves_meanwhile_is_no_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """openat2(2) gives EAGAIN where any rename or mount of the host raced a `..`."""
    real = syscalls.openat2
    refused: list[str] = []

    def raced(fd: int, path: str, **given: int) -> int:
        if path not in refused:
            refused.append(path)
            raise BlockingIOError(errno.EAGAIN, "again")
        return real(fd, path, **given)

    monkeypatch.setattr(syscalls, "openat2", raced)
    extract(root, tars.directory(b"a"), tars.symlink(b"l", b"../a"), tars.file(b"l/f", b"x"))
    assert (root / "a/f").read_text() == "x"
    assert "l" in refused


def test_a_directory_that_a_link_replaces_leaves_its_time_to_nobody(root: Path) -> None:
    extract(
        root,
        tars.directory(b"other", mtime=5),
        tars.directory(b"b", mtime=99),
        tars.symlink(b"b", b"other"),
        tars.directory(b"loop", mtime=99),
        tars.symlink(b"loop", b"loop"),
    )
    assert os.readlink(root / "b") == "other"
    assert os.readlink(root / "loop") == "loop"
    assert (root / "other").stat().st_mtime == 5


ENTRY = st.builds(
    lambda kind, name, other, data: {
        "file": tars.file(name, data),
        "directory": tars.directory(name),
        "symlink": tars.symlink(name, other),
        "hardlink": tars.hardlink(name, other),
        "whiteout": tars.file(b"/".join([*name.split(b"/")[:-1], b".wh." + name.split(b"/")[-1]])),
        "opaque": tars.file(name + b"/.wh..wh..opq"),
    }[kind],
    st.sampled_from(["file", "directory", "symlink", "hardlink", "whiteout", "opaque"]),
    st.lists(st.sampled_from([b"a", b"b", b"..", b"."]), min_size=1, max_size=4).map(b"/".join),
    st.lists(st.sampled_from([b"a", b"b", b"..", b"", b"."]), max_size=4).map(b"/".join),
    st.binary(max_size=3),
)


@given(st.lists(ENTRY, max_size=12))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_sequence_of_entries_stays_inside(
    tmp_path_factory: pytest.TempPathFactory, entries: list[bytes]
) -> None:
    top = tmp_path_factory.mktemp("fuzz")
    inner = top / "store" / "layer"
    inner.mkdir(parents=True)
    for name in ("a", "b"):
        (top / name).write_text("precious")
    before = snapshot(top, without=inner)
    with contextlib.suppress(UnpackError, DataLoss):
        extract(inner, *entries)
    assert snapshot(top, without=inner) == before
