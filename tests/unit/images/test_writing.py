"""A layer written by a process of its own; it is forked, so from an interpreter of its own here."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

TOP = str(Path(__file__).parents[3])
PROLOGUE = """
import io, json, os, random, signal, sys, threading, time
from tests.fakes import tars
from tests.unit.images.test_unpack import HOSTILE, snapshot
from pathlib import Path
from zos_cri.errors import Error
from zos_cri.images.layerfs import Limits
from zos_cri.images.unpack import Unpacked, unpack_into
from zos_cri.images.writing import Apart, Here

top = Path(sys.argv[1])
os.umask(0)

def made(how, name, archive, limits=None, ahead=False):
    root = top / name
    root.mkdir()
    try:
        said = unpack_into(io.BytesIO(archive), how(str(root), limits), ahead=ahead)
    except Error as error:
        said = (type(error).__name__, str(error))
    left = sorted(path.name for path in top.iterdir() if path != root)
    tree = {path[len(str(root)):]: facts for path, facts in snapshot(root, without=top).items()}
    for path, facts in tree.items():
        time_ = os.lstat(f"{root}{path}").st_mtime
        tree[path] = (*facts, 0 if abs(time.time() - time_) < 86400 else time_)
    os.rename(root, f"{top}-{name}")
    return said, tree if isinstance(said, Unpacked) else None, left
"""


def run(tmp_path: Path, code: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", PROLOGUE + code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=TOP,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_makes_the_same_of_every_archive(tmp_path: Path) -> None:
    code = """
limits = Limits(max_bytes=64 << 20)
archives = {**HOSTILE,
    "no UTF-8": tars.pax((b"SCHILY.xattr.user.\\xff", b"\\xff")) + tars.file(b"\\xff", b"x"),
    "sparse": tars.pax(("GNU.sparse.size", b"100000"), ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"3,2,50000,3")) + tars.file(b"f", b"abcde"),
    "leftovers": tars.hardlink(b"a/b", b"not/here") + tars.file(b"c/.wh.d") + tars.file(b"\\xff/e"),
    "replaced": tars.file(b"d/e/f", b"1") + tars.file(b"d", b"2"),
}
del archives["path of 2000 directories"]  # deeper than `snapshot` can look
different = []
for number, (name, archive) in enumerate(archives.items()):
    archive += tars.end()
    here = made(Here, f"here{number}", archive, limits)
    if made(Apart, f"apart{number}", archive, limits) != here or here[2]:
        different.append(name)
print(json.dumps([different, len(archives) > 150]))
"""
    assert run(tmp_path / "top", "top.mkdir()\n" + code) == [[], True]


@pytest.mark.parametrize("ahead", [False, True])
def test_more_than_the_shared_memory_holds(tmp_path: Path, ahead: bool) -> None:
    code = f"""
chance = random.Random(3)
sizes = [chance.choice([0, 1, 511, 512, 513, 5000, 300_000]) for _ in range(150)] + [9_000_000]
archive = b"".join(
    tars.file(b"d%d/f%d" % (n % 7, n), chance.randbytes(size)) for n, size in enumerate(sizes)
) + tars.end()
here = made(Here, "here", archive)
print(json.dumps([len(archive) > 12 << 20, made(Apart, "apart", archive, ahead={ahead}) == here]))
"""
    assert run(tmp_path / "top", "top.mkdir()\n" + code) == [True, True]


def test_what_it_meets_with_ends_the_work(tmp_path: Path) -> None:
    """Also where the archive goes on for longer than chunks can be under way."""
    code = """
first = tars.file(b"f", b"x") + tars.file(b"f/g", b"y")
rest = tars.file(b"h", bytes(20 << 20)) + tars.end()
said, _, left = made(Apart, "long", first + rest)
print(json.dumps([said, left, made(Apart, "short", first + tars.end())[0]]))
"""
    expected = ["UnpackError", "f/g: Not a directory"]
    assert run(tmp_path / "top", "top.mkdir()\n" + code) == [expected, [], expected]


def test_its_death_is_an_error(tmp_path: Path) -> None:
    code = """
said = []
for chunks in (0, 1, 40):
    sink = Apart(str(top))
    for _ in range(chunks):
        sink.take(bytes(512), [])
    os.kill(sink._pid, signal.SIGKILL)
    os.waitid(os.P_PID, sink._pid, os.WEXITED | os.WNOWAIT)
    try:
        sink.take(b"", [])
        sink.finish()
    except Error as error:
        said.append(str(error))
    sink.close()
    sink.close()
print(json.dumps(said))
"""
    said = ["the process that writes the layer has died"] * 3
    assert run(tmp_path, code) == said


def test_it_dies_with_who_feeds_it(tmp_path: Path) -> None:
    code = """
sink = Apart(str(top))
print(sink._pid, flush=True)
time.sleep(600)
"""
    feeder = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + code, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=TOP,
    )
    with feeder:
        assert feeder.stdout is not None
        writer = os.pidfd_open(int(feeder.stdout.readline()))
        try:
            assert not select.select([writer], [], [], 0)[0]
            feeder.send_signal(signal.SIGKILL)
            assert select.select([writer], [], [], 30)[0]
        finally:
            os.close(writer)
        assert feeder.stdout.read() == ""  # and nobody holds it open
