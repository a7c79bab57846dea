"""Directories and a cgroup of a run's own, so that everything of it can be found and removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri.linux.mount import Mount, mount, mounts_below, unmount

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "zos-b"
END_TIMEOUT: Final = 10.0  # seconds that processes get between SIGTERM and SIGKILL, and after it
CGROUPS: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Spot:
    """Where one target of a run is: directories, and a cgroup as the kernel writes its path."""

    run: Path
    state: Path
    cgroup: str


@dataclass(frozen=True)
class Place:
    """Where one run is: /run/TAG, /var/lib/TAG and the cgroup /TAG."""

    tag: str

    @property
    def run(self) -> Path:
        return Path("/run") / self.tag

    @property
    def state(self) -> Path:
        return Path("/var/lib") / self.tag

    def spot(self, name: str) -> Spot:
        """A part of it; the name is short, for unix sockets' paths are."""
        spot = Spot(self.run / name, self.state / name, f"/{self.tag}/{name}")
        spot.run.mkdir(mode=0o711)
        spot.state.mkdir(mode=0o711)
        return spot

    def clear(self) -> None:
        """Ends every process in the cgroup, then removes all there is. Idempotent."""
        end_processes(self.tag)
        for directory in (self.run, self.state):
            for each in reversed(mounts_below(str(directory))):
                unmount(each.target, lazy=True)
            shutil.rmtree(directory, ignore_errors=True)
        for path in cgroup_directories(self.tag):
            # It can be busy for an instant after its last process's end.
            deadline = time.monotonic() + END_TIMEOUT
            while True:
                try:
                    path.rmdir()
                except FileNotFoundError:
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
                else:
                    break


@contextlib.contextmanager
def placed() -> Iterator[Place]:
    """A new place, and nothing of it afterwards. What killed runs have left goes first."""
    for path in Path("/run").glob(f"{PREFIX}[0-9a-f]*"):
        with _locked(path) as free:
            if free:
                Place(path.name).clear()
    place = Place(f"{PREFIX}{secrets.token_hex(3)}")
    place.run.mkdir(mode=0o711)
    place.state.mkdir(mode=0o711)
    with _locked(place.run):  # what is below the mount that follows: other runs see that
        try:
            if os.environ.get("ZOS_CRI_OWN_NETWORK") == "1":  # so are our mounts
                # As a host's /run is, whatever this machine's is; alike for all targets.
                mount(Mount(type="tmpfs", source="tmpfs", options=("mode=711",)), str(place.run))
            yield place
        finally:
            place.clear()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Holds a directory's lock, unless another does."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def hierarchies() -> list[Path]:
    """The roots of all cgroup hierarchies: one with v2, one for each controller with v1."""
    if (CGROUPS / "cgroup.controllers").exists():
        return [CGROUPS]
    # Version 2's may be out of sight: a plain directory then.
    found = [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").exists()]
    return [path for path in found if not path.is_symlink()]


def accounting() -> Path:
    """The hierarchy that counts CPU time; a run's processes are found in it too."""
    for name in ("cpuacct", "cpu,cpuacct"):
        if (CGROUPS / name).is_dir():
            return (CGROUPS / name).resolve()
    return CGROUPS


def cpu_seconds(cgroup: str) -> float:
    """CPU time of a cgroup and those below it, gone ones too."""
    directory = accounting() / cgroup.lstrip("/")
    usage = directory / "cpuacct.usage"
    if usage.exists():
        return int(usage.read_text()) / 1e9
    lines = (line.split() for line in (directory / "cpu.stat").read_text().splitlines())
    return next(int(value) for name, value in lines if name == "usage_usec") / 1e6


def cgroup_directories(cgroup: str) -> list[Path]:
    """A cgroup and those below it, deepest first, in every hierarchy."""
    return [
        Path(parent)
        for root in hierarchies()
        for parent, _, _ in os.walk(root / cgroup.lstrip("/"), topdown=False)
    ]


def processes(cgroup: str) -> list[int]:
    """The processes in a cgroup and those below it."""
    found: list[int] = []
    for parent, _, _ in os.walk(accounting() / cgroup.lstrip("/")):
        with contextlib.suppress(OSError):  # gone meanwhile
            found += [int(pid) for pid in (Path(parent) / "cgroup.procs").read_text().split()]
    return [pid for pid in found if pid]  # 0: of another PID namespace


def end_processes(cgroup: str) -> None:
    """SIGTERM, and SIGKILL to what doesn't go; in the end none is left.

    Raises:
        RuntimeError: one is left all the same.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + END_TIMEOUT
        signalled: set[int] = set()
        while left := processes(cgroup):
            for pid in set(left) - signalled:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                signalled.add(pid)
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"left in cgroup {cgroup}: {processes(cgroup)}")


class Times(NamedTuple):
    """What the CPUs did since boot, in seconds of one CPU (proc_stat(5))."""

    idle: float
    stolen: float  # by the hypervisor, for others
    passed: float


def times() -> Times:
    """The host's."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(each) for each in file.readline().split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    return Times((ticks[3] + ticks[4]) / hertz, ticks[7] / hertz, sum(ticks) / hertz)


def memory(pid: int, file: str, name: str) -> int:
    """A figure of /proc/PID/smaps_rollup or /proc/PID/status, in bytes; 0 where it is gone."""
    try:
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
