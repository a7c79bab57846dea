"""Processes' streams over real pipes and FIFOs."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.descriptors import open_descriptors
from tests.fakes.streaming import pattern
from zos_cri.streaming.pipes import (
    FdReader,
    FdWriter,
    PipeProcess,
    open_read_end,
    open_write_end,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE = 10.0


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = open_descriptors()
    yield
    assert open_descriptors() <= before


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    path = str(tmp_path / "stdin")
    os.mkfifo(path)
    return path


async def read_all(reader: FdReader) -> bytes:
    parts = []
    async with asyncio.timeout(DEADLINE):
        while data := await reader.read(65536):
            parts.append(data)
    return b"".join(parts)


async def test_bytes_through_a_pipe_both_ends_ours() -> None:
    read_fd, write_fd = os.pipe()
    reader, writer = FdReader(read_fd), FdWriter(write_fd)
    sent = pattern(2_000_000)
    reading = asyncio.create_task(read_all(reader))
    await writer.write(sent)
    writer.close()
    assert await reading == sent
    reader.close()
    reader.close()


async def test_a_full_pipe_makes_the_writer_wait() -> None:
    read_fd, write_fd = os.pipe()
    reader, writer = FdReader(read_fd), FdWriter(write_fd)
    writing = asyncio.create_task(writer.write(bytes(200_000)))
    await asyncio.sleep(0.02)
    assert not writing.done()
    assert await reader.read(10) == bytes(10)
    count = 10
    while count < 200_000:
        count += len(await reader.read(65536))
    await writing
    writer.close()
    reader.close()


async def test_a_fifo_without_a_writer_is_not_at_its_end(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = FdReader(open_read_end(path))
    reading = asyncio.create_task(read_all(reader))
    await asyncio.sleep(0.05)
    assert not reading.done()

    def write() -> None:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"late")
        os.close(fd)

    threading.Thread(target=write).start()
    assert await reading == b"late"
    reader.close()


async def test_a_writer_that_comes_and_goes_without_a_byte(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    reader = FdReader(open_read_end(path))
    reading = asyncio.create_task(read_all(reader))
    await asyncio.sleep(0.01)
    os.close(os.open(path, os.O_WRONLY))
    assert await reading == b""
    assert await reader.read(10) == b""  # and so it stays
    reader.close()


async def test_a_fifo_can_be_written_before_its_reader_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "fifo")
    os.mkfifo(path)
    writer = FdWriter(*open_write_end(path))
    await writer.write(b"early")
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer.reader_opened()
    assert os.read(fd, 100) == b"early"
    os.close(fd)
    with pytest.raises(BrokenPipeError):
        await writer.write(b"nobody reads")
    writer.close()


async def test_closing_wakes_who_waits() -> None:
    read_fd, other = os.pipe()
    reader = FdReader(read_fd)
    reading = asyncio.create_task(reader.read(10))
    await asyncio.sleep(0)
    reader.close()
    assert await asyncio.wait_for(reading, DEADLINE) == b""
    os.close(other)

    other, write_fd = os.pipe()
    writer = FdWriter(write_fd)
    writing = asyncio.create_task(writer.write(bytes(1_000_000)))
    await asyncio.sleep(0)
    writer.close()
    with pytest.raises(BrokenPipeError):
        await asyncio.wait_for(writing, DEADLINE)
    os.close(other)


async def test_a_cancelled_read_loses_nothing() -> None:
    read_fd, write_fd = os.pipe()
    reader = FdReader(read_fd)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(10), 0.01)
    os.write(write_fd, b"x")
    assert await reader.read(10) == b"x"
    os.close(write_fd)
    reader.close()


async def test_a_terminal_whose_other_side_is_closed_is_at_its_end() -> None:
    primary, secondary = os.openpty()
    os.write(secondary, b"bye")
    os.close(secondary)
    reader = FdReader(primary)
    assert await read_all(reader) == b"bye"
    reader.close()


async def test_a_process_of_pipes() -> None:
    (in_r, in_w), (out_r, out_w) = os.pipe(), os.pipe()
    calls: list[object] = []

    async def wait() -> int:
        return 7

    async def resize(width: int, height: int) -> None:
        calls.append((width, height))

    async def stdin_closed() -> None:
        calls.append("stdin closed")

    async def release() -> None:
        calls.append("released")

    process = PipeProcess(
        stdin=FdWriter(in_w),
        stdout=FdReader(out_r),
        wait=wait,
        resize=resize,
        on_stdin_closed=stdin_closed,
        release=release,
    )
    await process.write_stdin(b"in")
    assert os.read(in_r, 10) == b"in"
    os.write(out_w, b"out")
    assert await process.read_stdout(10) == b"out"
    assert await process.read_stderr(10) == b""
    await process.resize(80, 24)
    await process.close_stdin()
    assert os.read(in_r, 10) == b""
    assert await process.wait() == 7
    await process.aclose()
    assert calls == [(80, 24), "stdin closed", "released"]
    with pytest.raises(OSError) as gone:  # noqa: PT011
        os.write(out_w, b"x")
    assert gone.value.errno == errno.EPIPE
    os.close(in_r)
    os.close(out_w)


async def test_an_attachments_end_keeps_stdin() -> None:
    in_r, in_w = os.pipe()

    async def wait() -> int:
        return 0

    process = PipeProcess(stdin=FdWriter(in_w), wait=wait, keep_stdin=True)
    await process.close_stdin()
    await process.write_stdin(b"still")
    assert os.read(in_r, 10) == b"still"
    await process.aclose()
    os.close(in_r)
    with pytest.raises(BrokenPipeError):
        await PipeProcess(wait=wait).write_stdin(b"x")


async def test_a_writer_is_closed_once_its_reader_has_come(fifo: str) -> None:
    """A shim opens it late, and would wait for a writer for ever."""
    writer = FdWriter(*open_write_end(fifo))
    settling = asyncio.create_task(writer.settle())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await asyncio.shield(settling)
    reader = await asyncio.to_thread(os.open, fifo, os.O_RDONLY)
    await settling
    await writer.settle()
    writer.close()
    assert os.read(reader, 10) == b""
    os.close(reader)


async def test_a_settling_that_is_cancelled_is_made_up_for(fifo: str) -> None:
    writer = FdWriter(*open_write_end(fifo))
    settling = asyncio.create_task(writer.settle())
    await asyncio.sleep(0.01)
    settling.cancel()
    await asyncio.gather(settling, return_exceptions=True)
    again = asyncio.create_task(writer.settle())
    await asyncio.sleep(0.01)
    assert not again.done()
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    await again
    writer.close()
    os.close(reader)


async def test_a_reader_that_has_been_there_is_not_waited_for(fifo: str) -> None:
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = FdWriter(*open_write_end(fifo))
    await writer.write(b"read")
    assert os.read(reader, 10) == b"read"
    os.close(reader)
    async with asyncio.timeout(1):
        await writer.settle()
    writer.close()


async def test_a_process_that_is_left_waits_for_its_reader_and_closes_it(fifo: str) -> None:
    async def wait() -> int:
        return 0

    process = PipeProcess(stdin=FdWriter(*open_write_end(fifo)), wait=wait)
    closing = asyncio.create_task(process.aclose())
    await asyncio.sleep(0.01)
    assert not closing.done()
    reader = await asyncio.to_thread(os.open, fifo, os.O_RDONLY)
    await closing
    assert os.read(reader, 10) == b""
    os.close(reader)
