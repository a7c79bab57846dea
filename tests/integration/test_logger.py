"""The logger process and the server's client to it."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from zos_cri.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from zos_cri.stdio.client import LoggerClient
from zos_cri.stdio.messages import EXIT_RUNNING

ROOT = Path(__file__).parent.parent.parent


class Rig:
    """A logger's directory, with one container's FIFOs in it, and the clients used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "logs" / "c" / "0.log"
        self.clients: list[LoggerClient] = []
        for name in ("stdout", "stderr"):
            os.mkfifo(directory / name)

    def client(self, *argv: str, start: bool = True) -> LoggerClient:
        client = LoggerClient(
            self.directory / "logger.sock",
            state_dir=self.directory / "state",
            argv=argv or (sys.executable, "-m", "zos_cri.stdio"),
            start=start,
        )
        self.clients.append(client)
        return client

    async def attach(self, client: LoggerClient) -> None:
        await client.attach(
            "c",
            log_path=str(self.log),
            log_root=str(self.directory / "logs"),
            stdout_fifo=str(self.directory / "stdout"),
            stderr_fifo=str(self.directory / "stderr"),
        )

    def writer(self, name: str = "stdout") -> int:
        return os.open(self.directory / name, os.O_WRONLY | os.O_NONBLOCK)

    def entries(self) -> list[bytes]:
        return [line[31:] for line in self.log.read_bytes().splitlines()]

    async def close(self) -> None:
        pids = []
        for client in self.clients:
            with contextlib.suppress(Unavailable):
                pids.append((await client.status()).pid)
            await client.aclose()
        for pid in set(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            await until(partial(gone, pid))
        for pid in self.processes():  # the keeper, where a test has left something attached
            os.kill(pid, signal.SIGTERM)
            await until(partial(gone, pid))

    def processes(self) -> list[int]:
        """Loggers and keepers of this directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.directory / "logger.sock").encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found


def gone(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # also between its opening and its reading
        return True


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it doesn't come to pass"
        await asyncio.sleep(0.005)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    await rig.close()


async def command(*argv: str) -> None:
    child = await asyncio.create_subprocess_exec(*argv)
    assert await child.wait() == 0


async def kill(client: LoggerClient) -> int:
    pid = (await client.status()).pid
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    return pid


async def test_a_container_s_life(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out, err = rig.writer(), rig.writer("stderr")
    os.write(out, b"hello\n")
    os.write(err, b"careful\n")
    await until(lambda: len(rig.entries()) == 2)
    rig.log.rename(rig.log.with_name("old"))
    await client.reopen("c")
    os.write(out, b"bye")
    os.close(out)
    os.close(err)
    finished = await client.finish("c")
    assert finished.complete
    assert rig.entries() == [b"stdout P bye"]
    assert not (await client.finish("c")).known
    with pytest.raises(NotFound):
        await client.reopen("c")
    await client.detach("c")


async def test_it_runs_in_a_session_of_its_own_and_holds_nothing_of_ours(rig: Rig) -> None:
    client = rig.client()
    status = await client.status()
    assert os.getsid(status.pid) != os.getsid(0)
    targets = [os.readlink(fd) for fd in Path(f"/proc/{status.pid}/fd").iterdir()]
    assert targets.count("/dev/null") == 1
    assert targets.count(str(rig.directory / "logger.log")) == 2
    assert not any("pytest" in target and "logger" not in target for target in targets)
    assert os.readlink(f"/proc/{status.pid}/cwd") == "/"


async def test_it_is_small(rig: Rig) -> None:
    """The demand: under 20 MiB, and under 1 MiB a container."""
    client = rig.client()
    pid = (await client.status()).pid

    def rss() -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0])

    idle = rss()
    for n in range(50):
        os.mkfifo(rig.directory / f"f{n}")
        path = str(rig.directory / f"{n}.log")
        await client.attach(str(n), log_path=path, stdout_fifo=str(rig.directory / f"f{n}"))
        fd = os.open(rig.directory / f"f{n}", os.O_WRONLY)
        os.write(fd, (b"x" * 99 + b"\n") * 500)
        os.close(fd)
    for n in range(50):
        await client.finish(str(n))
    print(f"RSS {idle} KiB idle, {rss()} after 50 containers")
    assert idle < 20 * 1024
    assert rss() - idle < 50 * 1024
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "grpc" not in maps
    assert "google" not in maps


async def test_there_is_only_one(rig: Rig) -> None:
    clients = [rig.client() for _ in range(4)]
    pids = {status.pid for status in await asyncio.gather(*(c.status() for c in clients))}
    assert len(pids) == 1
    path, state = rig.directory / "logger.sock", rig.directory / "state"
    second = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "zos_cri.stdio", "--socket", path, "--state-dir", state),
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    _, stderr = await second.communicate()
    assert second.returncode == EXIT_RUNNING
    assert b"another one" in stderr
    assert {(await clients[0].status()).pid} == pids


@contextlib.asynccontextmanager
async def service(rig: Rig) -> AsyncIterator[asyncio.subprocess.Process]:
    """`zos-cri logger` as a service manager runs it, from the moment on that it is ready."""
    config = rig.directory / "config.toml"
    config.write_text(f'[server]\nrun = "{rig.directory}"\n')
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.setblocking(False)
        path = rig.directory / "notify"
        path.unlink(missing_ok=True)
        manager.bind(str(path))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "zos_cri", "logger", "--config", "config.toml"),
            cwd=rig.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NOTIFY_SOCKET": str(path)},
        )
        try:
            assert await asyncio.wait_for(loop.sock_recv(manager, 100), 20) == b"READY=1"
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def test_a_service_manager_runs_it(rig: Rig) -> None:
    client = rig.client(start=False)
    async with service(rig) as process:
        await rig.attach(client)
        assert (await client.status()).pid == process.pid
        out = rig.writer()
        os.write(out, b"before\n")
        await until(lambda: rig.log.exists() and rig.entries())
        process.kill()
        await process.wait()
    os.write(out, b"meanwhile\n")
    with pytest.raises(Unavailable):
        await client.ensure(timeout=0.3)
    async with service(rig) as process:
        os.close(out)
        await client.finish("c")
        assert (await client.status()).pid == process.pid
        process.terminate()
        assert await process.wait() == 0
    assert client.starts == 0
    assert rig.entries() == [b"stdout F before", b"stdout F meanwhile"]


async def test_a_server_that_comes_back_finds_it(rig: Rig) -> None:
    first = rig.client()
    await rig.attach(first)
    pid = (await first.status()).pid
    out = rig.writer()
    await first.aclose()
    os.write(out, b"nobody listens\n")
    second = rig.client()
    await rig.attach(second)
    assert (await second.status()).pid == pid
    assert (first.starts, second.starts) == (1, 0)
    os.close(out)
    await second.finish("c")
    assert rig.entries() == [b"stdout F nobody listens"]


async def test_a_killed_one_comes_back_by_itself_and_takes_over(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    os.write(out, b"before\nhalf")
    await until(lambda: rig.log.exists() and rig.entries())
    await kill(client)
    os.write(out, b" and half\nafter\n")
    await until(lambda: len(rig.entries()) == 3)  # nobody has asked for anything
    await until(lambda: client.starts == 2)
    os.close(out)
    assert (await client.finish("c")).complete
    assert rig.entries() == [b"stdout F before", b"stdout F half and half", b"stdout F after"]


async def test_a_container_that_exits_while_there_is_no_logger_loses_nothing(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    await kill(client)
    # Before the event loop turns again no other can have been started.
    os.write(out, b"last words")
    os.close(out)
    assert (await client.finish("c")).complete
    assert rig.entries() == [b"stdout P last words"]


async def test_a_container_that_exits_while_nobody_is_there_loses_nothing(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out, err = rig.writer(), rig.writer("stderr")
    os.write(out, b"before\n")
    await until(lambda: rig.log.exists() and rig.entries())
    pid = (await client.status()).pid
    await client.aclose()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    os.write(out, b"after\nend")
    os.write(err, b"error\n")
    os.close(out)
    os.close(err)
    second = rig.client()
    assert (await second.finish("c")).complete
    assert sorted(rig.entries()) == [
        *(b"stderr F error", b"stdout F after", b"stdout F before", b"stdout P end")
    ]
    os.kill((await second.status()).pid, signal.SIGTERM)
    await second.aclose()
    await until(lambda: not rig.processes())  # nothing is held any more


async def test_a_keeper_drops_what_no_next_logger_knows(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    pid = (await client.status()).pid
    await client.aclose()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: gone(pid))
    (keeper,) = rig.processes()
    for path in (rig.directory / "state").iterdir():
        path.unlink()
    second = rig.client()
    await second.ensure()
    held = [os.readlink(fd) for fd in Path(f"/proc/{keeper}/fd").iterdir()]
    assert not [path for path in held if "std" in path]
    with pytest.raises(BrokenPipeError):
        os.write(out, b"nobody reads it\n")
    os.close(out)


async def test_a_finish_under_way_survives_a_kill(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    os.write(out, b"x")
    waiting = asyncio.create_task(client.finish("c", timeout=20))
    await asyncio.sleep(0)
    await kill(client)
    os.write(out, b"y")
    os.close(out)
    assert (await waiting).known
    assert rig.entries() == [b"stdout P xy"]


async def test_sigterm_leaves_everything_to_the_next(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    pid = (await client.status()).pid
    os.write(out, b"a\nb")
    os.kill(pid, signal.SIGTERM)
    await until(lambda: gone(pid))
    os.write(out, b"c\n")
    await until(lambda: len(rig.entries()) == 2)
    assert rig.entries() == [b"stdout F a", b"stdout F bc"]
    os.close(out)


async def test_where_it_can_t_be_started_the_reason_is_told(rig: Rig) -> None:
    broken = rig.client(sys.executable, "-c", "raise SystemExit('no such luck')")
    with pytest.raises(Unavailable, match="no such luck"):
        await broken.ping()
    rig.clients.clear()
    await broken.aclose()
    absent = rig.client("/nonexistent/program")
    with pytest.raises(Unavailable, match="/nonexistent/program"):
        await absent.ping()
    rig.clients.clear()
    await absent.aclose()


async def test_refusals_come_as_errors(rig: Rig) -> None:
    client = rig.client()
    with pytest.raises(InvalidArgument, match="outside"):
        await client.attach(
            "c",
            log_path=str(rig.directory / "elsewhere"),
            log_root=str(rig.directory / "logs"),
            stdout_fifo=str(rig.directory / "stdout"),
        )
    with pytest.raises(NotFound):
        await client.attach("c", log_path="", stdout_fifo=str(rig.directory / "nothing"))
    await client.ping()


@pytest.mark.parametrize("held", [True, False])
async def test_fifos_that_are_held_open_stay_so_until_the_end(rig: Rig, held: bool) -> None:
    client = rig.client()
    fifo = str(rig.directory / "stdout")
    if held:
        client.hold("c", fifo)
        os.close(rig.writer())  # a shim that is faster than the logger waits for nobody
    with pytest.raises(InvalidArgument, match="outside"):
        await client.attach("c", log_path="/elsewhere", log_root="/logs", stdout_fifo=fifo)
    if held:
        os.close(rig.writer())  # and not for one that refuses, either
        await client.finish("c")
    with pytest.raises(OSError, match="No such device"):
        rig.writer()


async def test_a_tap(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    tap = await client.tap("c")
    read: Awaitable[bytes] = asyncio.create_task(tap.read("stdout", 100))
    await asyncio.sleep(0)
    os.write(out, b"$ ")
    assert await read == b"$ "
    cancelled = asyncio.create_task(tap.read("stdout", 100))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    os.write(out, b"ls\n")
    os.close(out)
    assert await tap.read("stdout", 2) == b"ls"
    assert await tap.read("stdout", 100) == b"\n"
    assert await tap.read("stdout", 100) == b""
    await client.finish("c")
    assert await tap.read("stderr", 100) == b""
    tap.close()
    tap.close()
    with pytest.raises(NotFound):
        await client.tap("c")


async def test_taps_leave_nothing_behind(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    out = rig.writer()
    pid = (await client.status()).pid

    def descriptors(of: int | str) -> int:
        return len(list(Path(f"/proc/{of}/fd").iterdir()))

    before = descriptors(pid), descriptors("self")
    for _ in range(50):
        tap = await client.tap("c", stderr=False)
        os.write(out, b"x\n")
        tap.close()
    await until(lambda: (descriptors(pid), descriptors("self")) <= before)
    assert (await client.status()).taps == 0
    os.close(out)


async def test_a_tap_on_an_ended_container(rig: Rig) -> None:
    client = rig.client()
    await rig.attach(client)
    for name in ("stdout", "stderr"):
        os.close(rig.writer(name))
    deadline = time.monotonic() + 10
    while not (await client.list())[0].ended:
        assert time.monotonic() < deadline
    with pytest.raises(FailedPrecondition):
        await client.tap("c")


@pytest.mark.root
async def test_other_users_are_turned_away(rig: Rig) -> None:
    client = rig.client()
    await client.ping()
    (rig.directory / "logger.sock").chmod(0o777)  # so that only the check of the peer is left
    rig.directory.chmod(0o711)
    fd = os.open(rig.directory, os.O_RDONLY)  # the way there is closed to others
    script = (
        "import os, socket\n"
        f"os.fchdir({fd}); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "s = socket.socket(socket.AF_UNIX); s.connect('logger.sock')\n"
        "try: print(s.recv(1))\n"
        "except ConnectionResetError: print(b'')"
    )
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script), pass_fds=[fd], stdout=subprocess.PIPE
    )
    stdout, _ = await child.communicate()
    os.close(fd)
    assert stdout == b"b''\n"
    await client.ping()


async def test_garbage_costs_the_client_its_connection_alone(rig: Rig) -> None:
    client = rig.client()
    await client.ping()
    path = str(rig.directory / "logger.sock")
    for garbage in (b"\xff\xff\xff\xff", b"\0\0\0\x02{}" * 3, b"\0\0\0"):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(garbage)
        writer.write_eof()
        await reader.read()
        writer.close()
        await writer.wait_closed()
    await client.ping()


@pytest.mark.root
async def test_a_full_file_system(rig: Rig) -> None:
    """ENOSPC itself: nothing torn, nothing lost, and on it goes when there is room."""
    full = rig.directory / "logs"
    full.mkdir()
    await command("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full))
    try:
        client = rig.client()
        await rig.attach(client)
        (full / "ballast").write_bytes(b"x" * 30_000)
        out = rig.writer()
        lines = [b"%d" % n + b"x" * 90 for n in range(500)]
        os.write(out, b"\n".join(lines) + b"\n")
        deadline = time.monotonic() + 10
        while not (failing := (await client.list())[0].failing):
            assert time.monotonic() < deadline
        assert "No space" in failing
        data = rig.log.read_bytes()
        assert not data or data.endswith(b"\n")
        (full / "ballast").unlink()
        await command("mount", "-o", "remount,size=1m", str(full))
        os.close(out)
        finished = await client.finish("c", timeout=10)
        assert finished.dropped == 0
        assert rig.entries() == [b"stdout F " + line for line in lines]
    finally:
        await command("umount", "-l", str(full))
