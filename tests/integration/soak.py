"""A soak: clients live pods' lives at random while the server is killed again and again.

    hack/soak [--minutes N] [--clients N] [--kill-every SECONDS] [--seed N]

Each client makes a pod, runs a container that writes numbered lines and ends with a code of its
own, rotates its log, executes in it, pulls images, now and then kills its shim, and removes all of
it; whatever fails because the server was killed is asked again, as a kubelet does. At the end:
every exit code is the container's own, every log has every line once and in order, the audit finds
nothing, and the server's and the logger's memory and descriptors are what they were.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tests.fakes.registry import Registry, tar_of
from tests.integration.server import UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGES = 5  # that are pulled and removed
ENDING = 180.0  # seconds that a client may take for its last pod when the time is over
ENDS = 10.0  # an exec that fails because its container is gone does so before the exit is told
GROWTH = 8 << 20  # bytes, from the first third of the soak to the last
SPARE = 20  # descriptors: what is under way at the one moment and not at the other
SHIM_KILLS = 0.05  # of the pods
PADDING = "x" * 300


@dataclass
class Sample:
    """What the processes that stay hold at one moment."""

    server_rss: int
    server_fds: int
    logger_rss: int
    logger_fds: int


@dataclass
class Figures:
    """What was done and what it took."""

    done: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    starts: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str, lines: int = 0) -> None:
        with self.lock:
            self.done[what] += 1
            self.lines += lines

    def median(self, name: str, *, last: bool) -> float:
        """Of the samples in the first or last third."""
        third = max(len(self.samples) // 3, 1)
        chosen = self.samples[-third:] if last else self.samples[:third]
        return float(statistics.median(getattr(sample, name) for sample in chosen))

    def report(self) -> Iterator[str]:
        yield ", ".join(f"{number} {what}" for what, number in sorted(self.done.items()))
        yield f"{self.lines} log lines, every one there and in order"
        yield (
            f"from kill to ready: median {statistics.median(self.starts):.2f} s,"
            f" longest {max(self.starts):.2f} s"
        )
        for name in ("server_rss", "logger_rss"):
            first, last = (self.median(name, last=last) / 2**20 for last in (False, True))
            yield f"{name}: {first:.1f} MiB in the first third, {last:.1f} MiB in the last"
        for name in ("server_fds", "logger_fds"):
            first, last = (self.median(name, last=last) for last in (False, True))
            yield f"{name}: {first:.0f} in the first third, {last:.0f} in the last"


class Soak:
    """One soak of one server."""

    def __init__(
        self, server: Server, registry: Registry, *, seconds: float, clients: int, seed: int
    ) -> None:
        self.server = server
        self.registry = registry
        self.figures = Figures()
        self.until = time.monotonic() + seconds
        self.images = []
        for number in range(IMAGES):
            content = random.Random(number).randbytes(300_000)
            registry.add_image(f"soak{number}", "1", [tar_of({f"file{number}": content})])
            self.images.append(f"{registry.address}/soak{number}:1")
        self._clients = [Client(self, number, seed) for number in range(clients)]

    def run(self, kill_every: float) -> Figures:
        """Goes on until the time is over and all clients have come to an end."""
        for client in self._clients:
            client.start()
        killed = time.monotonic()
        last = self.until + ENDING
        while any(client.is_alive() for client in self._clients):
            time.sleep(0.5)
            now = time.monotonic()
            if now - killed > kill_every and now < self.until:
                self.figures.samples.append(self._sample())
                self.server.kill()
                killed = time.monotonic()
                self.server.start()
                self.figures.starts.append(time.monotonic() - killed)
                self.figures.count("kills of the server")
                print(
                    f"{killed - self.until:.0f} s: ready after {self.figures.starts[-1]:.2f} s,"
                    f" {self.figures.done['pods']} pods, {self.figures.samples[-1]}",
                    flush=True,
                )
            if now > last:
                alive = [client.name for client in self._clients if client.is_alive()]
                self.figures.problems.append(f"no end of: {', '.join(alive)}")
                break
        return self.figures

    def _sample(self) -> Sample:
        assert self.server.process is not None
        server, logger = self.server.process.pid, self.server.logger_pid()
        return Sample(rss(server), descriptors(server), rss(logger), descriptors(logger))


class Client(threading.Thread):
    """One of the clients."""

    def __init__(self, soak: Soak, number: int, seed: int) -> None:
        super().__init__(name=f"client {number}", daemon=True)
        self._soak = soak
        self._number = number
        self._random = random.Random(seed * 1000 + number)
        self._server = soak.server

    def run(self) -> None:
        turn = 0
        try:
            while time.monotonic() < self._soak.until:
                self._live(f"c{self._number}-{turn}")
                turn += 1
        except BaseException as error:
            text = f"{self.name}, turn {turn}: {type(error).__name__}: {error}"
            self._soak.figures.problems.append(text)
            raise

    def _live(self, name: str) -> None:
        chance = self._random
        server, ask = self._server, self._server.ask
        config = server.pod(name, host_network=chance.random() < 0.7)
        pod = ask("RunPodSandbox", pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        lines, code = chance.randrange(1, 400), chance.randrange(256)
        chunk = chance.randrange(1, 100)
        script = (
            f"i=0; while [ $i -lt {lines} ]; do echo $i {PADDING}; i=$((i+1));"
            f" [ $((i % {chunk})) = 0 ] && sleep 0.1; done; exit {code}"
        )
        container = ask(
            "CreateContainer",
            pb.CreateContainerRequest(
                pod_sandbox_id=pod, config=server.container("sh", "-c", script)
            ),
        ).container_id
        self._start(container)
        # Where a kill cuts a start off, these may be the runtime's own codes: told as StartError.
        expected = {code, 128} if code in (1, 255) else {code}
        rotations = 0
        if chance.random() < SHIM_KILLS and self._kill_shim(pod):
            expected |= {137, 255}
            lines = 0  # what was in the container's hands is gone with it
        while (status := self._status(container)).state != pb.CONTAINER_EXITED:
            match chance.randrange(6):
                case 0:
                    rotations += self._rotate(name, container, rotations)
                case 1:
                    self._exec(container)
                case 2:
                    self._pull()
                case _:
                    time.sleep(chance.random() * 0.3)
        told = f"{status.exit_code} {status.reason} {status.message}"
        assert status.exit_code in expected, f"{name}: {told}, not {expected}"
        self._soak.figures.count("exit codes")
        if status.exit_code != code:
            lines = 0  # it may never have begun
        if lines:
            self._check_log(name, lines, rotations)
        if chance.random() < 0.5:
            ask("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
        ask("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        ask("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        self._soak.figures.count("pods", lines)
        for path in (server.logs / name).iterdir():
            path.unlink()

    def _start(self, id_: str) -> None:
        """Starts the container; an answer that was lost may have been a yes."""
        try:
            self._server.ask("StartContainer", pb.StartContainerRequest(container_id=id_))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            assert self._status(id_).state in (pb.CONTAINER_RUNNING, pb.CONTAINER_EXITED)

    def _status(self, id_: str) -> pb.ContainerStatus:
        request = pb.ContainerStatusRequest(container_id=id_)
        status: pb.ContainerStatus = self._server.ask("ContainerStatus", request).status
        return status

    def _kill_shim(self, pod: str) -> bool:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
        told = json.loads(self._server.ask("PodSandboxStatus", request).info["info"])["shim"]
        shims = [pid for pid, line in self._server.processes() if "-shim-" in line and told in line]
        for pid in shims:
            with contextlib.suppress(ProcessLookupError):  # one that only started or deleted
                os.kill(pid, signal.SIGKILL)
                self._soak.figures.count("kills of shims")
        return bool(shims)

    def _rotate(self, name: str, id_: str, number: int) -> int:
        """As the kubelet: the file gets another name, and the logger a new one."""
        log = self._server.logs / name / "main.log"
        if not log.exists():
            return 0  # the last rotation's new file isn't made yet
        log.rename(log.with_name(f"rotated.{number}"))
        try:
            self._server.ask("ReopenContainerLog", pb.ReopenContainerLogRequest(container_id=id_))
            self._soak.figures.count("log rotations")
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:  # it has ended
                raise
        return 1

    def _exec(self, id_: str) -> None:
        code = self._random.randrange(100)
        script = f"echo {code} {PADDING}; exit {code}"
        request = pb.ExecSyncRequest(container_id=id_, cmd=["sh", "-c", script], timeout=60)
        try:
            answer = self._server.ask("ExecSync", request)
        except grpc.RpcError as error:
            if self._ends(id_):
                return
            raise AssertionError(f"exec in {id_}: {error.details()}") from error
        if answer.exit_code == 137 and self._ends(id_):
            return  # it was killed with the container
        assert answer.exit_code == code
        assert answer.stdout == f"{code} {PADDING}\n".encode()
        self._soak.figures.count("execs")

    def _ends(self, id_: str) -> bool:
        """Whether the container is about to be known to have ended."""
        deadline = time.monotonic() + ENDS
        while self._status(id_).state != pb.CONTAINER_EXITED:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def _pull(self) -> None:
        image = pb.ImageSpec(image=self._random.choice(self._soak.images))
        self._server.ask("PullImage", pb.PullImageRequest(image=image))
        self._soak.figures.count("pulls")
        if self._random.random() < 0.3:
            self._server.ask("RemoveImage", pb.RemoveImageRequest(image=image))

    def _check_log(self, name: str, lines: int, rotations: int) -> None:
        directory = self._server.logs / name
        paths = [directory / f"rotated.{number}" for number in range(rotations)]
        paths += [path for path in (directory / "main.log",) if path.exists()]
        found = [line for path in paths for line in path.read_text().splitlines()]
        wanted = [f"stdout F {number} {PADDING}" for number in range(lines)]
        got = [line.partition(" ")[2] for line in found]
        assert got == wanted, f"{name}: its log has {_difference(got, wanted)}"


def _difference(got: list[str], wanted: list[str]) -> str:
    short = [re.sub("x+", "x", line) for line in got]
    for number, (one, other) in enumerate(zip(got, wanted, strict=False)):
        if one != other:
            return f"at line {number} {short[number : number + 3]}, of {len(got)}"
    return f"{len(got)} lines of {len(wanted)}"


def rss(pid: int) -> int:
    """Resident memory in bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) * 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def soak(*, seconds: float, clients: int, kill_every: float, seed: int) -> Figures:
    """A whole soak, with a server of its own; raises AssertionError where something was lost."""
    with Registry() as registry, serving(UPSTREAM, cni=True, warm=2) as server:
        server.config.write_text(server.config.read_text().replace('"debug"', '"info"'))
        server.restart()
        with server.cri() as cri:
            pod = server.run_pod(cri, "bystander")
            script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"
            container = server.run_container(cri, pod, "sh", "-c", script)
            request = pb.ContainerStatusRequest(container_id=container)
            begun = cri.ContainerStatus(request).status.started_at
        whole = Soak(server, registry, seconds=seconds, clients=clients, seed=seed)
        figures = whole.run(kill_every)
        assert figures.problems == [], figures.problems
        status = server.ask("ContainerStatus", request).status
        assert (status.state, status.started_at) == (pb.CONTAINER_RUNNING, begun)
        text = (server.logs / "bystander" / "main.log").read_text()
        numbers = [int(line.split()[-1]) for line in text.splitlines()]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > seconds
        _nothing(server.audit())
        server.remove_pods()
        server.stop()  # ends the warm shims
        _nothing(server.leftovers())
        _nothing(server.audit())
    for name in ("server_rss", "logger_rss"):
        grown = figures.median(name, last=True) - figures.median(name, last=False)
        assert grown < GROWTH, f"{name} has grown by {grown / 2**20:.1f} MiB"
    for name in ("server_fds", "logger_fds"):
        grown = figures.median(name, last=True) - figures.median(name, last=False)
        assert grown < SPARE + 8 * clients, f"{name} has grown by {grown:.0f}"
    return figures


def _nothing(found: list[Any]) -> None:
    assert found == [], found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="hack/soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, metavar="N")
    parser.add_argument("--clients", type=int, default=10, metavar="N")
    parser.add_argument("--kill-every", type=float, default=20.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1, 10**6))
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    figures = soak(
        seconds=options.minutes * 60,
        clients=options.clients,
        kill_every=options.kill_every,
        seed=options.seed,
    )
    print("\n".join(figures.report()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
