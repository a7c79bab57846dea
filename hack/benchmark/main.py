"""The command line of hack/bench, and the order in which things are measured."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hack.benchmark import figure, report
from hack.benchmark.place import placed, times
from hack.benchmark.targets import ROOT, TOOLS, Containerd, Ours, Setting, Target, settle
from hack.benchmark.workload import Cri, Recorder, Workload
from zos_cri.linux import dynmods
from zos_cri.linux.mount import Mount, mount, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

    from hack.benchmark.place import Place

IMAGE: Final = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
WARM_UP: Final = 2  # cycles that don't count
TURN: Final = 5  # cycles until it is the next one's turn
AMONG: Final = 20  # cycles while many pods run
# Of cycles at once: all begin together, and the last ones have the machine for themselves.
WAVES: Final = 5
FILL_AT_ONCE: Final = 10
MIB: Final = 1 << 20
UNIFIED: Final = Path("/sys/fs/cgroup/unified")  # version 2 beside version 1
RSS_STEADY: Final = 64 << 10  # bytes that the idle server may still grow in a second
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
RSS_TIMEOUT: Final = 15.0


def main(argv: list[str]) -> int:
    """Runs it; 0 where everything could be measured, whatever the figures are."""
    options = _options(argv)
    if options.mode == "report":
        return _report(options, load(Path(options.targets[0]).read_text()))
    _isolate(argv, options.targets)
    for number in SIGNALS:
        signal.signal(number, _exit_on_signal)
    prepare_host(options)
    with placed() as place:
        if options.mode == "rss":
            print(f"{idle_rss(place, options) / MIB:.1f}")
            return 0
        return _report(options, measure(place, options))


def _options(argv: list[str]) -> argparse.Namespace:
    assert sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(
        prog="hack/bench",
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--rounds", type=int, help="of all targets in turn (5)")
    parser.add_argument("--cycles", type=int, default=20, help="one after another, a round (20)")
    parser.add_argument("--at-once", type=_numbers, default=[10, 50], help="10,50")
    parser.add_argument(
        "--pods", type=_numbers, default=[100], help="to fill and drain: 100 or 100,400"
    )
    parser.add_argument(
        "--fills", type=int, help="and drains, a round: they differ most (1; 3 with --goals)"
    )
    parser.add_argument(
        "--reads", type=int, default=300, help="of each kind with those pods, for 1 s each (300)"
    )
    parser.add_argument("--quick", action="store_true", help="1 round of 3 cycles: does it work?")
    parser.add_argument(
        "--goals", action="store_true", help="what there are goals for: 5 rounds are 8 minutes"
    )
    parser.add_argument(
        "--favordynmods",
        action="store_true",
        help="the kernel moves processes into cgroups at once, FOR THE HOST UNTIL IT RESTARTS",
    )
    parser.add_argument("--no-bridge", action="store_true", help="host network only")
    parser.add_argument(
        "--image", default=IMAGE, help="of the containers; it must have sleep and true"
    )
    parser.add_argument("--shim", type=Path, default=TOOLS / "containerd-shim-runc-v2")
    parser.add_argument("--runtime", type=Path, default=TOOLS / "runc")
    parser.add_argument("--json", type=Path, help="write all measurements there")
    parser.add_argument("--svg", type=Path, help="draw the ratios there")
    options = parser.parse_args(argv)
    options.mode = "bench"
    if options.targets and options.targets[0] in ("rss", "report"):
        options.mode, *options.targets = options.targets
    if options.mode == "report" and len(options.targets) != 1:
        parser.error("report: one file that --json has written")
    options.targets = options.targets or (
        ["zos-cri"] if options.mode == "rss" else ["zos-cri", "containerd"]
    )
    options.rounds = options.rounds or 5
    options.fills = options.fills or (3 if options.goals else 1)
    if options.goals:
        options.at_once, options.pods = [10], [100]
    if options.quick:
        options.rounds, options.cycles, options.at_once, options.pods = 1, 3, [3], [3]
        options.reads = 3
    return options


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def _exit_on_signal(number: int, _frame: FrameType | None) -> None:
    # Not twice, as when a terminal and hack/netns both tell us: it would cut the cleaning up off.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _isolate(argv: list[str], targets: list[str]) -> None:
    """Goes on in namespaces of our own, with which all that is started here ends."""
    started = [target for target in targets if "=" not in target]
    if started and os.environ.get("ZOS_CRI_OWN_NETWORK") != "1":
        netns = str(ROOT / "hack" / "netns")
        script = str(ROOT / "hack" / "bench")
        os.execv(netns, [netns, "run", "--pids", sys.executable, script, *argv])


def make_target(argument: str, number: int, place: Place, setting: Setting) -> Target:
    """A target from its name on the command line.

    Raises:
        SystemExit: there is no such target.
    """
    spot = place.spot(str(number))
    name, given, address = argument.partition("=")
    if given:
        endpoint = address if ":" in address else f"unix:{address}"
        return Target(name, endpoint=endpoint, spot=spot)
    kind, _, rest = argument.partition(":")
    runtime, _, variant = rest.partition(":")
    path = find_runtime(runtime) if runtime else setting.runtime
    if kind == "containerd" and not variant:
        return Containerd(argument, spot, setting, runtime=path)
    name, _, tree = kind.partition("@")
    if name == "zos-cri" and (variant in {"", "rs"} or variant.isdecimal()):
        directory = Path(tree).resolve() if tree else ROOT
        return Ours(argument, spot, setting, tree=directory, runtime=path, variant=variant)
    raise SystemExit(
        f"hack/bench: {argument}: not zos-cri[@TREE][:[RUNTIME][:rs|:NUMBER]],"
        " containerd[:RUNTIME] or NAME=SOCKET"
    )


def find_runtime(name: str) -> Path:
    """An OCI runtime by its name, those of hack/tools first, or by its path.

    Raises:
        SystemExit: there is none.
    """
    folders = (TOOLS, TOOLS.parent / "crun" / "bin", os.environ.get("PATH", os.defpath))
    found = shutil.which(name, path=":".join(map(str, folders)))
    if found is None:
        raise SystemExit(f"hack/bench: there is no runtime {name}")
    return Path(found)


def prepare_host(options: argparse.Namespace) -> None:
    """Changes what has to be changed before anything is started.

    Raises:
        SystemExit: this host can't have it.
    """
    if options.favordynmods and not asyncio.run(dynmods.favor()):
        raise SystemExit("hack/bench: --favordynmods: this kernel doesn't do it")
    if any(map(report.has_crun, options.targets)) and UNIFIED.is_mount():
        # crun refuses hybrid cgroups; the mount is our namespace's own. What it makes there all the
        # same must not stay below the host's mount.
        unmount(str(UNIFIED), lazy=True)
        mount(Mount(type="tmpfs", source="tmpfs"), str(UNIFIED))


@contextlib.contextmanager
def registry(certs_d: Path, *, needed: bool) -> Iterator[None]:
    """Serves the tests' images from loopback, where a target is started here."""
    if not needed:
        yield
        return
    serve = subprocess.Popen(
        [sys.executable, ROOT / "hack/images/serve", "--certs-d", certs_d],
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,  # signals to ours are for us: we end it when it isn't needed any more
    )
    try:
        assert serve.stdout is not None
        if not serve.stdout.readline():
            raise RuntimeError(f"hack/images/serve ended with exit code {serve.wait()}")
        yield
    finally:
        serve.terminate()
        serve.communicate()


@contextlib.contextmanager
def running(place: Place, options: argparse.Namespace) -> Iterator[list[Target]]:
    """The targets, serving and with the images; what was started here ends afterwards."""
    setting = Setting(shim=options.shim, runtime=options.runtime, certs_d=place.state / "certs.d")
    targets = [
        make_target(argument, number, place, setting)
        for number, argument in enumerate(options.targets)
    ]
    with contextlib.ExitStack() as stack:
        for target in targets:
            _say(f"starting {target.name}")
            stack.callback(target.stop)
            target.start()
        yield targets


def idle_rss(place: Place, options: argparse.Namespace) -> int:
    """Resident memory of a server that has only been asked for its status, in bytes."""
    with running(place, options) as (target,):
        return _settled_rss(target)


def _settled_rss(target: Target) -> int:
    cri = Cri(target.endpoint)
    cri.version()
    cri.conditions()
    cri.close()
    deadline = time.monotonic() + RSS_TIMEOUT
    last, now = 0, target.rss()
    while now > last + RSS_STEADY and time.monotonic() < deadline:
        time.sleep(1)
        last, now = now, target.rss()
    return now


def measure(place: Place, options: argparse.Namespace) -> report.Result:
    """All rounds of all targets, in turn."""
    names: list[str] = options.targets
    with running(place, options) as targets, contextlib.ExitStack() as stack:
        about = _about(options)
        result = report.Result(
            targets=[target.name for target in targets],
            rounds={target.name: [] for target in targets},
            errors={target.name: {} for target in targets},
            about=about,
        )
        idle = {target.name: _settled_rss(target) for target in targets}
        workloads = {}
        with registry(place.state / "certs.d", needed=any("=" not in name for name in names)):
            for target in targets:
                cri = Cri(target.endpoint)
                stack.callback(cri.close)
                stack.callback(cri.remove_pods, place.tag)
                for image in (*target.images, options.image):
                    cri.ensure_image(image)
                about["versions"][target.name] = cri.version()
                workloads[target.name] = Workload(
                    cri,
                    tag=place.tag,
                    image=options.image,
                    cgroup_parent=target.pods_cgroup,
                    directory=target.spot.state,
                )
        for number in range(options.rounds):
            _say(f"round {number + 1} of {options.rounds}")
            measured = [Measured(target, workloads[target.name], Recorder()) for target in targets]
            for each in measured:
                each.recorder.add("rss/idle", idle[each.target.name] / MIB)
            one_round(measured if number % 2 == 0 else measured[::-1], options)
            for each in measured:
                result.rounds[each.target.name].append(each.recorder.samples)
                result.errors[each.target.name].update(each.recorder.errors)
        about["load_after"] = os.getloadavg()
        return result


@dataclass
class Measured:
    """A target, and what was measured of it in this round."""

    target: Target
    workload: Workload
    recorder: Recorder
    stolen: float = 0.0  # seconds of the CPUs that the hypervisor took, of `passed`
    passed: float = 0.0

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While it is this one's turn."""
        before = times()
        yield
        after = times()
        self.stolen += after.stolen - before.stolen
        self.passed += after.passed - before.passed
        self.recorder.samples["steal"] = [self.stolen / self.passed * 100]


def one_round(measured: Sequence[Measured], options: argparse.Namespace) -> None:
    """Everything once. What is compared is measured within seconds: the machine's speed changes."""
    networks = [("host", False)] if options.no_bridge else [("host", False), ("bridge", True)]
    for prefix, bridge in networks:
        for each in measured:
            for _ in range(WARM_UP):
                each.workload.cycle(Recorder(), prefix, bridge=bridge)
        for part in _parts(options.cycles):
            for each in measured:
                with each.at_work():
                    _cycles(each, prefix, part, bridge=bridge)
    for number in options.at_once:
        for each in measured:
            with each.at_work():
                each.workload.at_once(each.recorder, number, max(WAVES * number, options.cycles))
                settle()
    for number in options.pods:
        for again in range(options.fills):
            for each in measured:
                with each.at_work():
                    _with_pods(each, number, reads=0 if again else options.reads)
                    settle()


def _parts(cycles: int) -> Iterator[int]:
    """Cycles in parts of about `TURN`."""
    for begin in range(0, cycles, TURN):
        yield min(TURN, cycles - begin)


def _cycles(each: Measured, prefix: str, number: int, *, bridge: bool) -> None:
    settle()
    before = each.target.cpu()
    for _ in range(number):
        each.workload.cycle(each.recorder, prefix, bridge=bridge)
    settle()
    after = each.target.cpu()
    if before is not None and after is not None:
        each.recorder.add(f"{prefix}/cpu", (after - before) / number * 1000)


def _with_pods(each: Measured, number: int, *, reads: int) -> None:
    """Fills and drains; the rest, of so many pods that run, is measured where there are reads."""
    pods = each.workload.fill(each.recorder, number, at_once=FILL_AT_ONCE)
    if reads:
        each.workload.reads(each.recorder, pods, reads)
        prefix = f"pods/{number}"
        settle()
        for _ in range(AMONG):
            each.workload.cycle(each.recorder, f"{prefix}/among")
        settle()
        pss = each.target.pss()
        for kind, size in pss.items():
            each.recorder.add(f"{prefix}/pss/{kind}", size / MIB)
        total = sum(size for kind, size in pss.items() if kind != "pause")
        each.recorder.add(f"{prefix}/pss", total / MIB)
    each.workload.drain(each.recorder, pods, at_once=FILL_AT_ONCE)


def _about(options: argparse.Namespace) -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "loop": "asyncio" if importlib.util.find_spec("uvloop") is None else "uvloop",
        "cpus": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30)),
        "cgroup": "v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        "favordynmods": asyncio.run(dynmods.favored()),
        "load_before": os.getloadavg(),
        "rounds": options.rounds,
        "cycles": options.cycles,
        "at_once": options.at_once,
        "pods": options.pods,
        "versions": {},
    }


def load(text: str) -> report.Result:
    """What `--json` wrote."""
    return report.Result(**json.loads(text))


def _report(options: argparse.Namespace, result: report.Result) -> int:
    if options.json:
        options.json.write_text(json.dumps(asdict(result)) + "\n")
    if options.svg:
        if len(result.targets) < 2:
            raise SystemExit("hack/bench: --svg: there is nothing to compare with")
        options.svg.write_text(figure.svg(result))
    about = result.about
    load = " to ".join(f"{about[key][0]:.1f}" for key in ("load_before", "load_after"))
    print(
        f"{about['rounds']} rounds of {about['cycles']} cycles; {about['cpus']} CPUs, "
        f"{about['memory_gib']} GiB, Linux {about['kernel']}, cgroup {about['cgroup']}, "
        f"favordynmods {'on' if about.get('favordynmods') else 'off'}, "
        f"load average {load}, {about['date']}."
    )
    print(", ".join(f"{name} is {version}" for name, version in about["versions"].items()), end="")
    # Files of earlier runs don't say it.
    print(f"; Python {about['python']}, {about['loop']}." if "python" in about else "")
    print()
    print(report.table(result), end="")
    return 0


def _say(text: str) -> None:
    print(f"hack/bench: {text}", file=sys.stderr, flush=True)
