"""Shims and their tasks in memory, for tests of what stands above them.

    shims = FakeShims(tmp_path / "bundles")
    shims.tasks.fail("start", Unavailable("…"))      # the next call raises
    gate = shims.tasks.hold("create")                # calls wait until gate.set()
    shims.tasks.end("id", 3)                         # the container's init exits
    assert ("kill", "id", 15) in shims.tasks.calls

Tasks of one `FakeShims` are in one `FakeTasks`, whichever shim they belong to. Execs are real
processes of this host, which write into the FIFOs that they are given.
"""

# ruff: noqa: A002 - id and all are the protocol's names

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from google.protobuf import any_pb2

from zos_cri.errors import FailedPrecondition, NotFound, Unavailable
from zos_cri.shim.bundle import Record
from zos_cri.shim.sandbox import SandboxState, Started
from zos_cri.shim.task import Exit, TaskState, TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import DeadShim

KEY = tuple[str, str]


class FakeTask:
    """A container's init, or an exec."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status = TaskStatus.CREATED
        self.exit = Exit(0, 0)
        self.ended = asyncio.Event()
        self.exec: dict[str, Any] = {}
        self.process: subprocess.Popen[bytes] | None = None


class FakeTasks:
    """The Task API.

    Attributes:
        calls: the method, the container's id and what else tells one call from another.
        ignored: signals that no process ends by.
        exit_at_start: exit code of what ends before its start is answered; None = it runs.
        resources: by container, as updated.
        used: by container, what Stats answers.
    """

    def __init__(self) -> None:
        self.tasks: dict[KEY, FakeTask] = {}
        self.calls: list[tuple[Any, ...]] = []
        self.ignored: set[int] = set()
        self.exit_at_start: int | None = None
        self.resources: dict[str, Mapping[str, Any]] = {}
        self.used: dict[str, any_pb2.Any] = {}
        self.created: dict[str, dict[str, Any]] = {}
        self._failures: dict[str, list[BaseException]] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._pids = 1000

    # ---- scripts

    def fail(self, method: str, error: BaseException, *, times: int = 1) -> None:
        """The next calls of a method raise."""
        self._failures.setdefault(method, []).extend([error] * times)

    def heal(self) -> None:
        self._failures.clear()

    def hold(self, method: str) -> asyncio.Event:
        """Calls of a method wait for the event."""
        self._gates[method] = asyncio.Event()
        return self._gates[method]

    def add(self, id: str, *, status: TaskStatus = TaskStatus.RUNNING, pid: int = 77) -> FakeTask:
        """A task from before."""
        self.tasks[id, ""] = task = FakeTask(pid)
        task.status = status
        if status is TaskStatus.STOPPED:
            task.ended.set()
        return task

    def end(self, id: str, code: int = 0, exec_id: str = "", *, at: int | None = None) -> None:
        """A process exits."""
        task = self.tasks[id, exec_id]
        task.status = TaskStatus.STOPPED
        task.exit = Exit(code, time.time_ns() if at is None else at)
        task.ended.set()

    def running(self, id: str) -> bool:
        task = self.tasks.get((id, ""))
        return task is not None and task.status is TaskStatus.RUNNING

    def count(self, *call: Any) -> int:
        """How often a call was made whose beginning is this."""
        return sum(made[: len(call)] == call for made in self.calls)

    async def _enter(self, method: str, id: str, *rest: Any) -> None:
        self.calls.append((method, id, *rest))
        gate = self._gates.get(method)
        if gate is not None:
            await gate.wait()
        await asyncio.sleep(0)
        failures = self._failures.get(method)
        if failures:
            raise failures.pop(0)

    def _task(self, id: str, exec_id: str = "") -> FakeTask:
        try:
            return self.tasks[id, exec_id]
        except KeyError:
            raise NotFound(f"no task {id} {exec_id}".rstrip()) from None

    # ---- the API

    async def create(self, id: str, bundle: str, rootfs: object, **fields: Any) -> int:
        self.created[id] = {"bundle": bundle, "rootfs": rootfs, **fields}
        await self._enter("create", id)
        self._pids += 1
        self.tasks[id, ""] = FakeTask(self._pids)
        return self._pids

    async def start(self, id: str, exec_id: str = "", *, timeout: float = 0) -> int:
        task = self._task(id, exec_id)
        if exec_id:
            # Before the gate: the process runs before its start is answered.
            self._spawn(id, exec_id, task)
        await self._enter("start", id)
        if not exec_id:
            task.status = TaskStatus.RUNNING
            if self.exit_at_start is not None:
                self.end(id, self.exit_at_start)
                await asyncio.sleep(0.01)  # whoever waits is told first
        return task.pid

    def _spawn(self, id: str, exec_id: str, task: FakeTask) -> None:
        streams = {
            name: os.open(task.exec[name] or "/dev/null", os.O_WRONLY | os.O_CLOEXEC)
            for name in ("stdout", "stderr")
        }
        task.process = subprocess.Popen(
            task.exec["process"]["args"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            stdout=streams["stdout"],
            stderr=streams["stderr"],
        )
        for descriptor in streams.values():
            os.close(descriptor)
        task.pid = task.process.pid
        task.status = TaskStatus.RUNNING
        loop = asyncio.get_running_loop()
        waiting = loop.run_in_executor(None, task.process.wait)

        def ended(_: object) -> None:
            assert task.process is not None
            code = task.process.returncode
            self.end(id, code if code >= 0 else 128 - code, exec_id)

        waiting.add_done_callback(ended)

    async def state(self, id: str, exec_id: str = "", *, timeout: float = 0) -> TaskState:
        await self._enter("state", id)
        task = self._task(id, exec_id)
        return TaskState(
            id, exec_id, task.pid, task.status, task.exit.status, task.exit.exited_at_ns
        )

    async def wait(self, id: str, exec_id: str = "", *, timeout: float | None = None) -> Exit:
        await self._enter("wait", id)
        task = self._task(id, exec_id)
        async with asyncio.timeout(timeout):
            await task.ended.wait()
        return task.exit

    async def kill(
        self, id: str, signal: int, exec_id: str = "", *, all: bool = False, timeout: float = 0
    ) -> None:
        await self._enter("kill", id, int(signal), *(["all"] if all else []))
        task = self._task(id, exec_id)
        if task.status is TaskStatus.STOPPED:
            raise NotFound("process already finished")
        if task.process is not None:
            task.process.send_signal(signal)
        elif signal not in self.ignored:
            self.end(id, 128 + signal, exec_id)

    async def delete(self, id: str, exec_id: str = "", *, timeout: float = 0) -> Exit:
        await self._enter("delete", id, *([exec_id] if exec_id else []))
        task = self._task(id, exec_id)
        if task.status is TaskStatus.RUNNING:
            raise FailedPrecondition(f"{id} runs")
        del self.tasks[id, exec_id]
        return task.exit

    async def exec(self, id: str, exec_id: str, process: dict[str, Any], **fields: Any) -> None:
        await self._enter("exec", id)
        self.tasks[id, exec_id] = task = FakeTask(0)
        task.exec = {"process": process, **fields}

    async def connect(self, id: str, *, timeout: float = 0) -> None:
        await self._enter("connect", id)

    async def resume(self, id: str) -> None:
        await self._enter("resume", id)
        self._task(id).status = TaskStatus.RUNNING

    async def stats(self, id: str, *, timeout: float = 0) -> any_pb2.Any:
        await self._enter("stats", id)
        return self.used.get(id, any_pb2.Any())

    async def update(self, id: str, resources: Mapping[str, Any]) -> None:
        await self._enter("update", id)
        self.resources[id] = resources


class FakeSandbox:
    """The sandbox API.

    Attributes:
        calls: the methods, in their order; `created` has what CreateSandbox was told.
        ended: the sandbox has ended.
        forgotten: the shim knows no sandbox.
        told: its metrics.
        PID, FAILS: of those to come: the process that StartSandbox tells, and by method what the
            first call raises.
    """

    PID = 99
    FAILS: ClassVar[dict[str, BaseException]] = {}

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.created: dict[str, Any] = {}
        self.pid = self.PID
        self.ended = asyncio.Event()
        self.forgotten = False
        self.told = any_pb2.Any()
        self._failures = {method: [error] for method, error in self.FAILS.items()}

    def fail(self, method: str, error: BaseException, *, times: int = 1) -> None:
        """The next calls of a method raise."""
        self._failures.setdefault(method, []).extend([error] * times)

    async def _enter(self, method: str) -> None:
        self.calls.append(method)
        await asyncio.sleep(0)
        if failures := self._failures.get(method):
            raise failures.pop(0)
        if self.forgotten:
            raise NotFound("no sandbox")

    async def create(self, id_: str, bundle: str, **told: Any) -> None:
        self.created = {"id": id_, "bundle": bundle, **told}
        await self._enter("create")

    async def start(self, id_: str) -> Started:
        await self._enter("start")
        return Started(self.pid, 5)

    async def wait(self, id_: str) -> Exit:
        await self._enter("wait")
        await self.ended.wait()
        return Exit(1, 6)

    async def status(self, id_: str, *, verbose: bool = False, timeout: float = 0) -> SandboxState:
        await self._enter("status")
        state = "SANDBOX_NOTREADY" if self.ended.is_set() else "SANDBOX_READY"
        return SandboxState(self.pid, state, {"kernel": "6.1"} if verbose else {})

    async def metrics(self, id_: str, *, timeout: float = 0) -> any_pb2.Any:
        await self._enter("metrics")
        return self.told


class FakeShim:
    """A shim process."""

    version = 3
    address = "unix:///fake"
    killed = False

    def __init__(self, group: str, handler: Handler, tasks: FakeTasks) -> None:
        self.group = group
        self.handler = handler
        self.task = tasks
        self.pid = 4242
        self.silent = False
        self.stopping = False
        self.sandbox = FakeSandbox() if handler.makes_sandboxes else None
        self.bundle = Path("/bundles") / group
        self.record = Record(group=group, handler=handler, binary="/bin/a-shim")
        self.cleaned = asyncio.Event()
        self._death = asyncio.Event()

    @property
    def alive(self) -> bool:
        return not self._death.is_set()

    async def gone(self, timeout: float | None = None) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._death.wait()
        return not self.alive

    def kill(self) -> None:
        self.killed = True
        self.die()

    def die(self, *, cleaned: bool = True) -> None:
        self._death.set()
        if cleaned:
            self.cleaned.set()


class FakeShims:
    """The shims' manager."""

    def __init__(self, bundles: Path) -> None:
        self.bundles = bundles
        self.tasks = FakeTasks()
        self.shims: dict[str, FakeShim] = {}
        self.calls: list[tuple[str, str]] = []
        self.dead: list[DeadShim] = []
        self.cut_off: set[str] = set()  # containers whose start was killed halfway
        self.begun: set[int] = set()  # first processes that are the program already
        self.outdated: set[str] = set()  # groups whose shim's file was replaced
        self._failures: dict[str, list[BaseException]] = {}

    def fail(self, method: str, error: BaseException, *, times: int = 1) -> None:
        """The next calls of a method raise."""
        self._failures.setdefault(method, []).extend([error] * times)

    def _enter(self, method: str, group: str) -> None:
        self.calls.append((method, group))
        failures = self._failures.get(method)
        if failures:
            raise failures.pop(0)

    def get(self, group: str) -> FakeShim | None:
        return self.shims.get(group)

    def add(self, group: str, handler: Handler) -> FakeShim:
        self.shims[group] = shim = FakeShim(group, handler, self.tasks)
        return shim

    async def start(self, group: str, handler: Handler, *, timeout: float = 0) -> FakeShim:
        self._enter("start", group)
        await asyncio.sleep(0)
        return self.shims.get(group) or self.add(group, handler)

    async def stop(self, group: str) -> None:
        self._enter("stop", group)
        await asyncio.sleep(0)
        shim = self.shims.pop(group, None)
        if shim is not None:
            shim.die()

    async def discard(self, group: str, id: str) -> None:
        self._enter("discard", id)

    async def start_was_cut_off(self, group: str, id: str) -> bool:
        return id in self.cut_off

    async def has_begun(self, group: str, pid: int) -> bool:
        return pid in self.begun

    async def recover(self) -> list[FakeShim | DeadShim]:
        self._enter("recover", "")
        return [*self.shims.values(), *self.dead]

    async def is_current(self, shim: FakeShim) -> bool:
        return shim.group not in self.outdated

    def lose(self, group: str) -> None:
        """A shim dies; whoever waits for its tasks is told that it is gone."""
        self.shims.pop(group).die()
        lost = Unavailable("the connection is gone")
        for task in self.tasks.tasks.values():
            if not task.ended.is_set():
                self.tasks.fail("wait", lost)
