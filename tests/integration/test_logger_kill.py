"""Every byte of busy containers, while their logs are rotated and the logger is killed.

ZOS_CRI_LOGGER_MIB says how much each of them writes (4 by default), ZOS_CRI_LOGGER_KILLS how often
the logger gets SIGKILL.
"""

import asyncio
import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from zos_cri.stdio.client import LoggerClient
from zos_cri.stdio.stream import QUANTUM

MIB = float(os.environ.get("ZOS_CRI_LOGGER_MIB", "4"))
KILLS = int(os.environ.get("ZOS_CRI_LOGGER_KILLS", "8"))
WRITERS = 3
ENTRY = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) (stdout|stderr) ([FP]) (.*)", re.S)

# Writes numbered lines of random lengths, in writes of random sizes; the shim's part is its second
# descriptor: a read end of its own, so that the logger's death is no EPIPE.
WRITER = """
import os, random, sys
path, seed, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
fd = os.open(path, os.O_WRONLY)
keep = os.open(path, os.O_RDONLY)
held, written, n = b"", 0, 0
while written < total:
    size = rng.choice((0, 10, 100, 100, 100, 1000, 16384, 20000))
    line = b"%d:%d:" % (seed, n) + bytes([97 + n % 26]) * rng.randrange(size + 1) + b"\\n"
    n += 1
    written += len(line)
    held += line
    if len(held) > rng.choice((1, 50, 5000, 60000)):
        while held:
            held = held[os.write(fd, held):]
os.write(fd, held)
"""


def expected(seed: int, total: int) -> list[bytes]:
    rng = random.Random(seed)
    lines, written, n, held = [], 0, 0, 0
    while written < total:
        size = rng.choice((0, 10, 100, 100, 100, 1000, 16384, 20000))
        line = b"%d:%d:" % (seed, n) + bytes([97 + n % 26]) * rng.randrange(size + 1)
        n += 1
        written += len(line) + 1
        held += len(line) + 1
        if held > rng.choice((1, 50, 5000, 60000)):
            held = 0
        lines.append(line)
    return lines


def entries(files: list[Path]) -> dict[bytes, list[tuple[bytes, bytes]]]:
    """Tag and bytes of all entries, by stream; fails on anything torn."""
    found: dict[bytes, list[tuple[bytes, bytes]]] = {b"stdout": [], b"stderr": []}
    for file in files:
        data = file.read_bytes()
        assert not data or data.endswith(b"\n"), f"{file}: torn end {data[-80:]!r}"
        for line in data.split(b"\n")[:-1]:
            match = ENTRY.fullmatch(line)
            assert match, f"{file}: torn entry {line[:80]!r}"
            found[match[2]].append((match[3], match[4]))
    return found


def pieces(lines: list[bytes], max_line: int = 16384) -> list[tuple[bytes, bytes]]:
    """The entries that the lines make."""
    made = []
    for line in lines:
        at = 0
        while len(line) - at > max_line:
            made.append((b"P", line[at : at + max_line]))
            at += max_line
        made.append((b"F", line[at:]))
    return made


def compare(got: list[tuple[bytes, bytes]], wanted: list[tuple[bytes, bytes]]) -> int:
    """Checks that all is there in order; returns the sizes of what was written again.

    A repetition goes back to entries that were written already, at most one step's.
    """
    at = again = 0
    index: dict[tuple[bytes, bytes], list[int]] = {}
    for i, entry in enumerate(wanted):
        index.setdefault(entry, []).append(i)
    for entry in got:
        if at < len(wanted) and wanted[at] == entry:
            at += 1
            continue
        back = [i for i in index.get(entry, ()) if i < at]
        assert back, f"at {at}: neither the next entry nor an earlier one: {entry[1][:60]!r}"
        size = sum(len(wanted[i][1]) + 1 for i in range(back[-1], at))
        assert size <= QUANTUM, f"went back by {size} bytes"
        again += size
        at = back[-1] + 1
    assert at == len(wanted), f"lost: {len(wanted) - at} entries at the end"
    return again


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[LoggerClient]:
    client = LoggerClient(tmp_path / "logger.sock", state_dir=tmp_path / "state")
    await client.ensure()
    yield client
    pid = (await client.status()).pid
    await client.aclose()
    os.kill(pid, signal.SIGTERM)
    await gone(pid)


async def gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
            assert time.monotonic() < deadline, f"logger {pid} doesn't end"
            await asyncio.sleep(0.01)


async def kill(client: LoggerClient, delay: float) -> None:
    """Not right after an answer: by then it is at the same point of its work each time."""
    pid = (await client.status()).pid
    await asyncio.sleep(delay)
    os.kill(pid, signal.SIGKILL)


async def attach(client: LoggerClient, directory: Path, n: int) -> str:
    name = f"c{n}"
    for stream in ("stdout", "stderr"):
        os.mkfifo(directory / f"{name}.{stream}")
    await client.attach(
        name,
        log_path=str(directory / "logs" / name / "0.log"),
        log_root=str(directory / "logs"),
        stdout_fifo=str(directory / f"{name}.stdout"),
        stderr_fifo=str(directory / f"{name}.stderr"),
    )
    return name


def start_writers(directory: Path, name: str, n: int, total: int) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, directory / f"{name}.{stream}", str(seed), str(total)]
        )
        for seed, stream in ((2 * n, "stdout"), (2 * n + 1, "stderr"))
    ]


async def run(client: LoggerClient, directory: Path, *, kills: int) -> int:
    """Writes, rotates, kills, compares; returns how many bytes were repeated."""
    total = int(MIB * (1 << 20))
    names = [await attach(client, directory, n) for n in range(WRITERS)]
    writers = [w for n, name in enumerate(names) for w in start_writers(directory, name, n, total)]
    try:
        return await rotate_and_kill(client, directory, names, writers, kills)
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()


async def rotate_and_kill(
    client: LoggerClient,
    directory: Path,
    names: list[str],
    writers: list[subprocess.Popen[bytes]],
    kills: int,
) -> int:
    total = int(MIB * (1 << 20))
    rng = random.Random(2)
    rotated: dict[str, list[Path]] = {name: [] for name in names}
    killed = 0
    deadline = time.monotonic() + 200
    while any(writer.poll() is None for writer in writers) or killed < kills:
        assert time.monotonic() < deadline
        await asyncio.sleep(rng.uniform(0, 0.03))
        if killed < kills and rng.random() < 0.3:
            await kill(client, rng.uniform(0, 0.01))
            killed += 1
            continue
        name = rng.choice(names)
        log = directory / "logs" / name / "0.log"
        if not log.exists():
            continue
        aside = log.with_name(f"0.log.{len(rotated[name]):06d}")
        log.rename(aside)
        rotated[name].append(aside)
        await client.reopen(name)
        if killed < kills and rng.random() < 0.2:
            await kill(client, 0)
            killed += 1
    assert [writer.wait() for writer in writers] == [0] * len(writers)
    again = 0
    for n, name in enumerate(names):
        finished = await client.finish(name, timeout=10)
        assert finished.known
        assert finished.complete
        assert finished.dropped == 0
        got = entries([*rotated[name], directory / "logs" / name / "0.log"])
        for seed, stream in ((2 * n, b"stdout"), (2 * n + 1, b"stderr")):
            again += compare(got[stream], pieces(expected(seed, total)))
    return again


async def test_rotation_loses_and_repeats_nothing(client: LoggerClient, tmp_path: Path) -> None:
    assert await run(client, tmp_path, kills=0) == 0
    assert client.starts == 1


async def test_sigkill_loses_nothing_and_repeats_one_step(
    client: LoggerClient, tmp_path: Path
) -> None:
    again = await run(client, tmp_path, kills=KILLS)
    print(f"{KILLS} kills, {again} bytes repeated")
    assert client.starts == KILLS + 1
