"""Containers that write log lines as fast as they can, by zos-cri and by containerd in turn.

What is timed goes from the word to start until the last line of each is in its log file. CPU is
that of who writes the files (containerd; our logger, and our server too), from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hack.benchmark.main import IMAGE, make_target
from hack.benchmark.place import placed, processes
from hack.benchmark.targets import ROOT, TOOLS, Setting, Target
from hack.benchmark.workload import CALL_TIMEOUT, Cri
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from hack.benchmark.place import Place

MIB: Final = 1 << 20
BLOCK: Final = 16 * MIB  # the file that containers write out again and again
END: Final = b"that is all\n"
WAIT: Final = 240.0  # seconds for one measurement
POLL: Final = 0.005
TICK: Final = os.sysconf("SC_CLK_TCK")
SCRIPT: Final = (
    "until [ -e /bench/go ]; do usleep 1000; done; i=0; "
    "while [ $i -lt {times} ]; do cat /bench/lines; i=$((i+1)); done; printf '{end}'"
)


@dataclass(frozen=True)
class Measured:
    """One run: bytes that containers wrote, seconds, CPU seconds of who wrote the files."""

    size: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.size / self.seconds / 1e6

    @property
    def cost(self) -> float:
        """CPU seconds for each GB."""
        return self.cpu / self.size * 1e9


def writers(target: Target) -> list[int]:
    """The processes that have to do with the log files."""
    found = []
    for pid in processes(target.spot.cgroup):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if pid == target.pid or b"zos_cri.stdio" in arguments:
            found.append(pid)
    return found


def cpu(pids: list[int]) -> float:
    """User and system time so far, in seconds."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICK


class Bench:
    """A target, and what its containers write."""

    def __init__(self, target: Target, *, tag: str, line: int) -> None:
        self.target = target
        self.cri = Cri(target.endpoint)
        self._tag = tag
        self._count = 0
        self._shared = target.spot.state / "bench"
        self._shared.mkdir()
        text = b"x" * (line - 1) + b"\n"
        (self._shared / "lines").write_bytes(text * (BLOCK // line))
        self._block = BLOCK // line * line

    def run(self, number: int, mib: int) -> Measured:
        """`number` containers that write `mib` in all."""
        times = max(1, mib * MIB // number // self._block)
        go = self._shared / "go"
        go.unlink(missing_ok=True)
        pods = [self._start(times) for _ in range(number)]
        pids = writers(self.target)
        before, begun = cpu(pids), time.perf_counter()
        go.touch()
        left = [log for _, log in pods]
        while left:
            if time.perf_counter() - begun > WAIT:
                raise RuntimeError(f"{self.target.name}: {len(left)} logs don't come to their end")
            time.sleep(POLL)
            left = [log for log in left if not ended(log)]
        seconds, spent = time.perf_counter() - begun, cpu(pids) - before
        for pod, log in pods:
            self._remove(pod)
            log.unlink()
        return Measured(number * times * self._block, seconds, spent)

    def _start(self, times: int) -> tuple[str, Path]:
        self._count += 1
        name = f"logs-{self._count}"
        directory = self.target.spot.state / "logs" / name
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="bench", uid=self._tag + name),
            log_directory=str(directory),
            linux=pb.LinuxPodSandboxConfig(
                cgroup_parent=self.target.pods_cgroup,
                security_context=pb.LinuxSandboxSecurityContext(
                    namespace_options=pb.NamespaceOption(network=pb.NamespaceMode.NODE)
                ),
            ),
        )
        call = self.cri.runtime
        run = pb.RunPodSandboxRequest(config=config)
        pod = call.RunPodSandbox(run, timeout=CALL_TIMEOUT).pod_sandbox_id
        script = SCRIPT.format(times=times, end=END.decode().replace("\n", "\\n"))
        container = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=IMAGE),
            command=["sh", "-c", script],
            mounts=[pb.Mount(container_path="/bench", host_path=str(self._shared))],
            log_path="0.log",
        )
        create = pb.CreateContainerRequest(
            pod_sandbox_id=pod, config=container, sandbox_config=config
        )
        id_ = call.CreateContainer(create, timeout=CALL_TIMEOUT).container_id
        call.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=CALL_TIMEOUT)
        return pod, directory / "0.log"

    def _remove(self, pod: str) -> None:
        call = self.cri.runtime
        # Ten containers that end at once keep containerd busy beyond the usual time.
        call.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod), timeout=WAIT)
        call.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod), timeout=WAIT)


def ended(log: Path) -> bool:
    """Whether the last line is there."""
    with log.open("rb") as file:
        file.seek(-min(len(END), os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read() == END


def measure(options: argparse.Namespace, place: Place) -> dict[str, dict[int, list[Measured]]]:
    """All rounds, both in turn; by name and by number of containers."""
    setting = Setting(
        shim=options.shim, runtime=options.runtime, certs_d=Path(os.environ["CERTS_D"])
    )
    with ExitStack() as stack:
        benches = []
        for number, name in enumerate(("zos-cri", "containerd")):
            target = make_target(name, number, place, setting)
            stack.callback(target.stop)
            target.start()
            bench = Bench(target, tag=place.tag, line=options.line)
            stack.callback(bench.cri.close)
            for image in (*target.images, IMAGE):
                bench.cri.ensure_image(image)
            bench.run(1, 1)  # doesn't count
            benches.append(bench)
        found: dict[str, dict[int, list[Measured]]] = {b.target.name: {} for b in benches}
        for _ in range(options.rounds):
            for number in options.containers:
                for bench in benches:
                    measured = bench.run(number, options.mib)
                    found[bench.target.name].setdefault(number, []).append(measured)
                    _say(
                        f"{bench.target.name}, {number} containers: {measured.rate:.0f} MB/s, "
                        f"{measured.cost:.2f} CPU s/GB"
                    )
        return found


def report(found: dict[str, dict[int, list[Measured]]], line: int) -> str:
    """A table: medians, and the ratios of the pairs of rounds."""
    rows = ["| | zos-cri | containerd | ratio (least-most) | goal | |", "|---|---|---|---|---|---|"]
    for number, peers in found["containerd"].items():
        ours = found["zos-cri"][number]
        who = "one container" if number == 1 else f"{number} containers"
        for what, key, goal in (("MB/s", "rate", 4.0), ("CPU s a GB", "cost", 0.3)):
            mine, other = ([getattr(m, key) for m in each] for each in (ours, peers))
            pairs = [a / b for a, b in zip(mine, other, strict=True)]
            middle = statistics.median(pairs)
            holds = middle >= goal if key == "rate" else middle <= goal
            rows.append(
                f"| {line}-byte lines, {who}, {what} | {statistics.median(mine):.3g} "
                f"| {statistics.median(other):.3g} "
                f"| {middle:.2f} ({min(pairs):.2f}-{max(pairs):.2f}) "
                f"| {'≥' if key == 'rate' else '≤'} {goal:g} "
                f"| {'holds' if holds else '**missed**'} |"
            )
    return "\n".join(rows)


def main(argv: list[str]) -> int:
    """Runs it; 0 where everything could be measured, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="hack/bench-logs beside", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=512, help="written in all, each time (512)")
    parser.add_argument("--line", type=int, default=100, help="bytes, with the newline (100)")
    parser.add_argument("--containers", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--shim", type=Path, default=TOOLS / "containerd-shim-runc-v2")
    parser.add_argument("--runtime", type=Path, default=TOOLS / "runc")
    parser.add_argument("--json", type=Path, help="write all measurements there")
    options = parser.parse_args(argv)
    if os.environ.get("CERTS_D") is None:
        # In namespaces of our own, beside a registry that ends with us.
        own = [sys.executable, str(ROOT / "hack" / "bench-logs"), "beside", *argv]
        command = [str(ROOT / "hack" / "netns"), "run", "--pids", str(ROOT / "hack/images/serve")]
        return subprocess.run([*command, *own], check=False).returncode
    with placed() as place:
        found = measure(options, place)
    if options.json:
        plain = {
            name: {number: [asdict(m) for m in each] for number, each in by_number.items()}
            for name, by_number in found.items()
        }
        options.json.write_text(json.dumps(plain, indent=1))
    print(report(found, options.line))
    return 0


def _say(text: str) -> None:
    print(f"hack/bench-logs: {text}", file=sys.stderr, flush=True)
