"""Containers' logs over a real server: every byte, whoever is killed; and the end before the exit.

Sizes are small by default. Issue-sized runs: ZOS_CRI_LOG_MIB (of each of three containers),
ZOS_CRI_LOG_ROTATIONS, ZOS_CRI_LOG_KILLS (of the server).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.streaming_clients import PATIENCE, wait_state
from tests.integration.test_crictl import wait_for
from tests.integration.test_logger_kill import compare, entries, pieces
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime]

MIB = float(os.environ.get("ZOS_CRI_LOG_MIB", "6"))
ROTATIONS = int(os.environ.get("ZOS_CRI_LOG_ROTATIONS", "30"))
KILLS = int(os.environ.get("ZOS_CRI_LOG_KILLS", "3"))
WRITERS = 3
PAUSES = 40  # of 0.1 s: so long a writer lasts at least
SIZES = (10, 100, 100, 100, 1000, 1000, 16384, 20000)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PATIENCE_FOR_ALL = 240.0 + 4 * MIB

# Numbered lines of random lengths, to both streams in turn.
WRITER = """
BEGIN {
    split(all_sizes, sizes, " ")
    while (length(pad) < 20100) pad = pad letters
    n = 0
    for (x = seed; written < total; n++) {
        x = (x * 16807) % 2147483647
        line = n ":" substr(pad, n % 26 + 1, x % (sizes[x % 8 + 1] + 1))
        if (n % 2) print line > "/dev/stderr"; else print line
        written += length(line) + 1
        if (written > (paused + 1) * total / pauses) { paused++; system("usleep 100000") }
        if (paused == pauses - 4) while (system("test -e /go")) system("usleep 100000")
    }
}
"""


def expected(seed: int, total: int) -> dict[bytes, list[bytes]]:
    """The writer's lines, by stream."""
    pad = (LETTERS * (20100 // 26 + 1)).encode()
    lines: dict[bytes, list[bytes]] = {b"stdout": [], b"stderr": []}
    x, n, written = seed, 0, 0
    while written < total:
        x = x * 16807 % 2147483647
        line = b"%d:" % n + pad[n % 26 : n % 26 + x % (SIZES[x % 8] + 1)]
        lines[b"stderr" if n % 2 else b"stdout"].append(line)
        written += len(line) + 1
        n += 1
    return lines


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as server:
        yield server


class Writer:
    """A container that writes, and its rotated logs."""

    def __init__(self, server: Server, cri: Any, pod: str, seed: int) -> None:
        self.seed = seed
        self.ended = False
        self._server = server
        self.name = f"writer{seed}"
        self.log = server.logs / "logs" / f"{self.name}.log"
        self.rotated: list[Path] = []
        total = int(MIB * (1 << 20))
        self._expected = expected(seed, total)
        settings = {
            "seed": seed,
            "total": total,
            "all_sizes": " ".join(map(str, SIZES)),
            "letters": LETTERS,
            "pauses": PAUSES,
        }
        assignments = (word for key, value in settings.items() for word in ("-v", f"{key}={value}"))
        command = ("awk", *assignments, WRITER)
        self.id = server.run_container(cri, pod, *command, name=self.name)

    def let_end(self) -> None:
        """It holds its last tenth back until now."""
        touch(self._server, self.id, "/go")

    def rotate(self) -> None:
        """As a kubelet does it: moves the file away and tells the server."""
        aside = self.log.with_name(f"{self.log.name}.{len(self.rotated):06d}")
        self.log.rename(aside)
        self.rotated.append(aside)
        try:
            with self._server.cri() as cri:
                cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=self.id))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            self.ended = True

    def check(self) -> int:
        """Compares every byte; how many were written again."""
        status = wait_state(self._server, self.id, pb.CONTAINER_EXITED)
        assert (status.exit_code, status.reason) == (0, "Completed")
        got = entries([*self.rotated, *([self.log] if self.log.exists() else [])])
        return sum(compare(got[name], pieces(lines)) for name, lines in self._expected.items())


def logger_pid(server: Server) -> int:
    lines = subprocess.run(["pgrep", "-f", str(server.run / "logger.sock")], capture_output=True)
    # Whoever started it may not have ended yet; the logger itself leads a session.
    (pid,) = [pid for pid in map(int, lines.stdout.split()) if os.getsid(pid) == pid]
    return pid


def start_writers(server: Server) -> list[Writer]:
    with server.cri() as cri:
        pod = server.run_pod(cri, "logs")
        return [Writer(server, cri, pod, seed) for seed in range(1, WRITERS + 1)]


@pytest.mark.timeout(PATIENCE_FOR_ALL + 60)
def test_rotations_and_killed_servers_lose_and_repeat_nothing(node: Server) -> None:
    writers = start_writers(node)
    logger = logger_pid(node)
    rotations = kills = 0
    deadline = time.monotonic() + PATIENCE_FOR_ALL
    per_kill = max(1, ROTATIONS // (KILLS * WRITERS))
    while not all(writer.ended for writer in writers):
        assert time.monotonic() < deadline
        for writer in writers:
            if not writer.ended:
                writer.rotate()
                rotations += not writer.ended
        if kills < KILLS and rotations >= (kills + 1) * per_kill * WRITERS:
            node.restart()
            kills += 1
            if kills == KILLS:
                for writer in writers:
                    writer.let_end()
        time.sleep(0.02)
    assert logger_pid(node) == logger, "the logger isn't the servers' to end"
    print(f"{rotations} rotations, {kills} kills of the server, {WRITERS} times {MIB:g} MiB")
    assert kills == KILLS
    assert [writer.check() for writer in writers] == [0] * WRITERS
    node.remove_pods()
    assert node.leftovers() == []


def test_a_killed_logger_loses_nothing(node: Server) -> None:
    writers = start_writers(node)
    for writer in writers:
        wait_for(lambda log=writer.log: log.stat().st_size > MIB * (1 << 20) / 4, PATIENCE)
        writer.rotate()
    before = logger_pid(node)
    os.kill(before, signal.SIGKILL)
    for writer in writers:
        writer.rotate()  # answered by the next logger
    assert logger_pid(node) != before
    for writer in writers:
        writer.let_end()
    again = [writer.check() for writer in writers]
    print(f"bytes written again: {again}")


def test_a_logger_and_a_server_killed_together(node: Server) -> None:
    writers = start_writers(node)
    for writer in writers:
        wait_for(lambda log=writer.log: log.stat().st_size > MIB * (1 << 20) / 4, PATIENCE)
    assert node.process is not None
    node.process.kill()
    os.kill(logger_pid(node), signal.SIGKILL)
    node.kill()
    node.start()
    for writer in writers:
        writer.let_end()
    again = [writer.check() for writer in writers]
    print(f"bytes written again: {again}")


def test_the_exit_is_told_after_the_logs_end(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        for number in range(5):
            script = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end >&2; exit 3"
            id_ = node.run_container(cri, pod, "sh", "-c", script, name=f"n{number}")
            request = pb.ContainerStatusRequest(container_id=id_)
            while (status := cri.ContainerStatus(request).status).state != pb.CONTAINER_EXITED:
                pass
            got = entries([node.logs / "logs" / f"n{number}.log"])
            assert status.exit_code == 3
            assert b"".join(data for _, data in got[b"stdout"]) == b"x" * 3_000_000
            assert got[b"stdout"][-1][0] == b"F"
            assert got[b"stderr"] == [(b"F", b"end")]


def test_an_unterminated_last_line(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        id_ = node.run_container(cri, pod, "printf", "one\\ntwo")
        wait_state(node, id_, pb.CONTAINER_EXITED)
    got = entries([node.logs / "logs" / "main.log"])
    assert got[b"stdout"] == [(b"F", b"one"), (b"P", b"two")]


def test_the_line_limit_is_configured_and_told() -> None:
    with serving(UPSTREAM, extra="[container_log]\nmax_line_size = 64\n") as node:
        with node.cri() as cri:
            info = cri.Status(pb.StatusRequest(verbose=True)).info
            assert json.loads(info["config"])["container_log"]["max_line_size"] == 64
            pod = node.run_pod(cri, "logs")
            id_ = node.run_container(cri, pod, "printf", "%070d\\n", "7")
            wait_state(node, id_, pb.CONTAINER_EXITED)
        got = entries([node.logs / "logs" / "main.log"])
        assert got[b"stdout"] == [(b"P", b"0" * 64), (b"F", b"000007")]


def test_output_kept_open_holds_the_exit_back_for_two_seconds(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        script = "echo said; until [ -e /go ]; do usleep 10000; done; exit 3"
        id_ = node.run_container(cri, pod, "sh", "-c", script)
        request = pb.ContainerStatusRequest(container_id=id_, verbose=True)
        pid = json.loads(cri.ContainerStatus(request).info["info"])["pid"]
        # A child of its own couldn't: shims kill what is left in a container whose init has ended.
        with Path(f"/proc/{pid}/fd/1").open("wb"):
            touch(node, id_, "/go")
            status = wait_state(node, id_, pb.CONTAINER_EXITED)
            held = time.time() - status.finished_at / 1e9
    print(f"exit told after {held:.2f} s")
    assert status.exit_code == 3
    assert held > 1.5  # that it was told at all, with the pipe held open, is the bound
    assert entries([node.logs / "logs" / "main.log"])[b"stdout"] == [(b"F", b"said")]


def test_without_a_log_path_output_is_dropped(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        config = node.container("head", "-c", "5000000", "/dev/zero")
        config.ClearField("log_path")
        id_ = create(cri, pod, config)
        cri.StartContainer(pb.StartContainerRequest(container_id=id_))
        assert wait_state(node, id_, pb.CONTAINER_EXITED).exit_code == 0
        assert [path for path in node.logs.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("path", ["../out.log", "a/../../out.log", "/tmp/out.log"])
def test_a_log_path_that_leaves_its_directory_is_refused(node: Server, path: str) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        config = node.container("true")
        config.log_path = path
        with refused(grpc.StatusCode.INVALID_ARGUMENT):
            create(cri, pod, config)


def test_a_link_out_of_the_log_directory_is_refused(node: Server, tmp_path: Path) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        directory = node.logs / "logs"
        directory.mkdir(exist_ok=True)
        (directory / "link").symlink_to(tmp_path)
        (directory / "file.log").symlink_to(tmp_path / "out.log")
        for path in ("link/out.log", "file.log"):
            config = node.container("true", name=path.replace("/", "-"))
            config.log_path = path
            id_ = create(cri, pod, config)
            with refused(grpc.StatusCode.INVALID_ARGUMENT):
                cri.StartContainer(pb.StartContainerRequest(container_id=id_))
    assert list(tmp_path.iterdir()) == []


def test_reopening_the_log_of_what_does_not_run(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "logs")
        id_ = node.run_container(cri, pod, "true")
        wait_state(node, id_, pb.CONTAINER_EXITED)
        with refused(grpc.StatusCode.FAILED_PRECONDITION):
            cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id=id_))
        with refused(grpc.StatusCode.NOT_FOUND):
            cri.ReopenContainerLog(pb.ReopenContainerLogRequest(container_id="nobody"))


def touch(server: Server, container: str, path: str) -> None:
    """Makes a file in a container."""
    with server.cri() as cri:
        request = pb.ExecSyncRequest(container_id=container, cmd=["touch", path], timeout=60)
        assert cri.ExecSync(request).exit_code == 0


def create(cri: Any, pod: str, config: pb.ContainerConfig) -> str:
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    return str(cri.CreateContainer(request).container_id)


@contextlib.contextmanager
def refused(code: grpc.StatusCode) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as raised:
        yield
    assert raised.value.code() is code, raised.value
