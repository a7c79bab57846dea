"""Tasks over real shims: Debian's (text, Task v2) and the current one (protobuf, v3)."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.shim_harness import Harness, shim_processes
from zos_cri import errors
from zos_cri.shim.status import ShimFailed
from zos_cri.shim.task import TaskStatus

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime]


async def test_a_container_from_start_to_delete(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    assert shim.version == harness.version
    container = await harness.create(shim, ["sleep", "100"])
    assert (await shim.task.state(container)).status is TaskStatus.CREATED

    pid = await shim.task.start(container)
    state = await shim.task.state(container)
    assert (state.status, state.pid) == (TaskStatus.RUNNING, pid)
    assert await shim.task.pids(container) == [pid]
    assert (await shim.task.connect(container)).task_pid == pid

    waiting = asyncio.create_task(shim.task.wait(container))
    await shim.task.kill(container, signal.SIGKILL)
    exit_ = await waiting
    assert exit_.status == 137
    assert exit_.exited_at_ns > 0
    deleted = await shim.task.delete(container)
    assert (deleted.status, deleted.pid) == (137, pid)
    with pytest.raises(errors.NotFound):
        await shim.task.state(container)

    # The current shim may say that a task is deleted before it says that it exited.
    topics = {"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"}
    exited = await harness.event(lambda event: event.topic == "/tasks/exit")
    await harness.event(lambda event: event.topic == "/tasks/delete")
    assert {event.topic for event in harness.events} == topics
    assert {event.message.container_id for event in harness.events} == {container}
    assert (exited.message.exit_status, exited.message.pid) == (137, pid)


async def test_a_container_ends_by_itself_with_its_exit_code(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    container = await harness.create(shim, ["sh", "-c", "exit 7"])
    await shim.task.start(container)
    assert (await shim.task.wait(container, timeout=10)).status == 7
    assert (await shim.task.state(container)).status is TaskStatus.STOPPED
    with pytest.raises(errors.NotFound):
        await shim.task.kill(container, signal.SIGTERM)
    assert (await shim.task.delete(container)).status == 7


async def test_an_exec_with_its_output_over_fifos(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    container = await harness.create(shim, ["sleep", "100"])
    await shim.task.start(container)
    with Fifos(harness.root) as fifos:
        process: dict[str, Any] = {
            "args": ["sh", "-c", "cat; echo wrong >&2; exit 3"],
            "cwd": "/",
            "env": ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
        }
        await shim.task.exec(container, "e1", process, **fifos.stdio())
        with pytest.raises(errors.AlreadyExists):
            await shim.task.exec(container, "e1", process)
        pid = await shim.task.start(container, "e1")
        os.write(fifos.fds["stdin"], b"said to stdin")
        assert (await shim.task.state(container, "e1")).pid == pid
        fifos.close("stdin")
        await shim.task.close_io(container, "e1")
        exit_ = await shim.task.wait(container, "e1", timeout=10)
        assert exit_.status == 3
        assert (await shim.task.delete(container, "e1")).status == 3
        assert (fifos.read("stdout"), fifos.read("stderr")) == (b"said to stdin", b"wrong\n")
    assert (await shim.task.state(container)).status is TaskStatus.RUNNING
    await harness.remove(shim, container)


async def test_a_terminal_is_resized(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    with Fifos(harness.root) as fifos:
        paths = fifos.stdio("stdin", "stdout")
        args = ["sh", "-c", "read line; stty size"]
        (harness.rootfs / "bin" / "stty").symlink_to("busybox")
        container = await harness.create(shim, args, terminal=True, **paths)
        await shim.task.start(container)
        await shim.task.resize_pty(container, width=91, height=37)
        os.write(fifos.fds["stdin"], b"\n")
        await shim.task.wait(container, timeout=10)
        await shim.task.delete(container)
        assert b"37 91" in fifos.read("stdout")


async def test_output_goes_to_a_file_without_us(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    log = harness.root / "log"
    container = await harness.create(
        shim,
        ["sh", "-c", "echo a line; echo another >&2"],
        stdout=f"file://{log}",
        stderr=f"file://{log}",
    )
    await shim.task.start(container)
    await shim.task.wait(container, timeout=10)
    await shim.task.delete(container)
    assert sorted(log.read_text().splitlines()) == ["a line", "another"]
    with pytest.raises(errors.InvalidArgument, match="go together"):  # would kill the shim
        await harness.create(shim, ["true"], stdout=f"file://{log}")


async def test_pause_update_stats(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    container = await harness.create(shim, ["sleep", "100"])
    await shim.task.start(container)
    await shim.task.pause(container)
    assert (await shim.task.state(container)).status is TaskStatus.PAUSED
    await shim.task.resume(container)
    assert (await shim.task.state(container)).status is TaskStatus.RUNNING
    await shim.task.update(container, {"pids": {"limit": 77}})
    stats = await shim.task.stats(container)
    assert stats.type_url.endswith(".Metrics")
    assert stats.value
    await harness.remove(shim, container)


async def test_the_second_container_needs_no_new_process(harness: Harness) -> None:
    group = harness.new_group()
    starts = [harness.manager.start(group, harness.handler) for _ in range(5)]
    shim, *others = await asyncio.gather(*starts)
    assert all(other is shim for other in others)
    containers = [await harness.create(shim, ["sleep", "100"]) for _ in range(2)]
    for container in containers:
        await shim.task.start(container)
    assert len(shim_processes(group)) == 1
    for container in containers:
        await harness.remove(shim, container)


async def test_a_container_may_have_the_group_s_own_id(harness: Harness) -> None:
    """The init of a pod with a shared pid namespace: its bundle is the group's, its spec stays."""
    group = harness.new_group()
    shim = await harness.manager.start(group, harness.handler)
    await harness.create(shim, ["sleep", "100"], container=group)
    config = (shim.bundle / "config.json").read_bytes()
    await shim.task.start(group)
    assert await harness.manager.start(group, harness.handler) is shim
    assert (shim.bundle / "config.json").read_bytes() == config
    await shim.task.kill(group, signal.SIGKILL)
    await shim.task.wait(group, timeout=10)
    await shim.task.delete(group)


async def test_a_failing_create_says_why_and_leaves_nothing(harness: Harness) -> None:
    shim = await harness.manager.start(harness.new_group(), harness.handler)
    with pytest.raises(ShimFailed, match="no-such-program"):
        await harness.create(shim, ["/no-such-program"])
    with pytest.raises(errors.NotFound):
        await shim.task.state(harness.containers[-1])


async def test_features(harness: Harness) -> None:
    features = await harness.manager.features(harness.handler)
    if harness.version == 2:
        assert features is None
    else:
        assert features is not None
        assert features.version.startswith("2.4")
        assert "ociVersionMax" in features.oci


class Fifos:
    """stdin, stdout and stderr, with our ends open."""

    def __init__(self, directory: Path) -> None:
        self.paths = {}
        self.fds = {}
        for name in ("stdin", "stdout", "stderr"):
            path = directory / f"fifo-{name}"
            os.mkfifo(path)
            self.paths[name] = str(path)
            # the write end of stdin can't be opened before its reader is there, except so
            mode = os.O_RDWR if name == "stdin" else os.O_RDONLY
            self.fds[name] = os.open(path, mode | os.O_NONBLOCK)

    def stdio(self, *names: str) -> dict[str, Any]:
        """Arguments of create and exec; all three by default."""
        return {name: self.paths[name] for name in names or self.paths}

    def read(self, name: str) -> bytes:
        return os.read(self.fds[name], 65536)

    def close(self, name: str) -> None:
        os.close(self.fds.pop(name))

    def __enter__(self) -> Fifos:
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.fds):
            self.close(name)
        for path in self.paths.values():
            os.unlink(path)
