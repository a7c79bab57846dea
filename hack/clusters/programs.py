"""Programs that run until they are told to end, and the namespaces they run in."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

END_TIMEOUT = 60.0
READY = "ready"
UNSHARE = ("unshare", "--net", "--mount", "--propagation", "slave", "--")
# Places that are the host's alone otherwise: mounted over, empty, where they exist.
PRIVATE = ("/var/log/containers", "/var/log/pods", "/run/netns", "/var/lib/cni", "/etc/cni/net.d")


class Program:
    """One process with a log file."""

    def __init__(self, log: Path, *command: str | Path) -> None:
        self.command = [str(word) for word in command]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )

    def check(self) -> None:
        """Raises SystemExit where it has ended by itself."""
        code = self.process.poll() if self.process else None
        if code is not None:
            end = self.log.read_text(errors="replace")[-3000:]
            raise SystemExit(f"{Path(self.command[0]).name} ended with {code}: {self.log}:\n{end}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Sends a signal and waits; SIGKILL when it takes too long."""
        if self.process is None:
            return
        self.process.send_signal(number)
        try:
            self.process.wait(END_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(END_TIMEOUT)
        self.process = None


class Space:
    """A network and a mount namespace, which a process of ours holds."""

    def __init__(self, scratch: Path) -> None:
        mounts = []
        for place in PRIVATE:
            Path(place).mkdir(parents=True, exist_ok=True)
            mine = scratch / place.lstrip("/").replace("/", "-")
            mine.mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {mine} {place}")
        # Shared below, as a host's is: volumes may be mounted so that both sides see them.
        script = ["mount --make-rshared /", *mounts, "ip link set lo up"]
        script += ["echo 1 >/proc/sys/net/ipv4/ip_forward", f"echo {READY}", "exec sleep infinity"]
        with ExitStack() as undo:
            holder = subprocess.Popen(
                [*UNSHARE, "sh", "-euc", "\n".join(script)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            undo.callback(holder.wait)
            undo.callback(holder.kill)
            assert holder.stdout is not None
            undo.callback(holder.stdout.close)
            if holder.stdout.readline().strip() != READY.encode():
                raise SystemExit("the namespaces of a node could not be made: see above")
            self.pid = holder.pid
            self._undo = undo.pop_all()

    def entered(self, *command: str | Path) -> list[str]:
        """The command that runs another one inside."""
        return ["nsenter", "--target", str(self.pid), "--net", "--mount", "--", *map(str, command)]

    def close(self) -> None:
        self._undo.close()


def run(*command: str | Path, timeout: float = 60, stdin: str = "") -> str:
    """Runs a command that ends by itself; its output.

    Raises:
        SystemExit: it failed; with what it said.
    """
    words = [str(word) for word in command]
    done = subprocess.run(
        words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def wait_until(
    done: Callable[[], bool], timeout: float, what: str, programs: Sequence[Program] = ()
) -> None:
    """Asks every so often, and whether the programs still run.

    Raises:
        SystemExit: it took too long, or a program has ended.
    """
    deadline = time.monotonic() + timeout
    while not done():
        for program in programs:
            program.check()
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout:g} s: {what}")
        time.sleep(0.25)
