"""Real shims and runc in a directory of their own, and the proof that nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri.linux.mount import Mount, unmount_tree
from zos_cri.shim import bundle
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.events import Event, EventServer
from zos_cri.shim.handler import Handler
from zos_cri.shim.launch import Launcher
from zos_cri.shim.manager import DeadShim, Shim, ShimManager

if TYPE_CHECKING:
    from collections.abc import Callable

TOOLS = Path(__file__).parents[2] / ".cache" / "tools" / "bin"
# name → shim, runc, Task API version
RUNTIMES = {
    "debian": ("/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc", 2),
    "current": (str(TOOLS / "containerd-shim-runc-v2"), str(TOOLS / "runc"), 3),
}
LEGACY_SOCKETS = Path("/run/containerd/s")


class Harness:
    """One installation. Use `manager`; call `restart` for what a restart of the server is.

    Args:
        root: of an installation that is there; a new one by default.
    """

    def __init__(self, runtime: str, *, root: Path | None = None) -> None:
        self.runtime = runtime
        self.shim_binary, self.runc, self.version = RUNTIMES[runtime]
        for needed in (self.shim_binary, self.runc):
            if not os.path.exists(needed):
                pytest.fail(f"{needed} isn't there: run hack/tools/build, or install containerd")
        # Short, as a socket's path has to be.
        self.root = root or Path(tempfile.mkdtemp(prefix="zos-shim-", dir="/tmp"))
        self.rootfs = self.root / "image"
        if root is None:
            self._make_rootfs()
        self.handler = Handler(
            name="test", shim=self.shim_binary, runtime=self.runc, root=str(self.root / "runc")
        )
        self.events: list[Event] = []
        self.event_arrived = asyncio.Condition()
        self.lost: list[DeadShim] = []
        self.lost_arrived = asyncio.Event()
        self.connect_timeout = 5.0
        self.groups: list[str] = []
        self.containers: list[str] = []
        self._legacy_before = _names(LEGACY_SOCKETS)

    def _make_rootfs(self) -> None:
        for directory in ("bin", "proc", "tmp", "dev"):
            (self.rootfs / directory).mkdir(parents=True)
        busybox = shutil.which("busybox")
        assert busybox is not None, "busybox-static is needed"
        shutil.copy(busybox, self.rootfs / "bin" / "busybox")
        for applet in ("sh", "sleep", "cat", "echo", "true"):
            (self.rootfs / "bin" / applet).symlink_to("busybox")

    async def start(self) -> None:
        self.event_server = EventServer(self._on_event)
        await self.event_server.start(str(self.root / "events.sock"))
        self.manager = self.new_manager()

    def new_manager(self) -> ShimManager:
        launcher = Launcher(
            namespace="zos",
            events_address=str(self.root / "events.sock"),
            grpc_address=str(self.root / "zos-cri.sock"),
            publish_binary="/bin/false",
            socket_dir=str(self.root / "s"),
            dialects=DialectCache(self.root / "dialects.json"),
        )
        return ShimManager(
            bundles=self.root / "bundles",
            launcher=launcher,
            on_lost=self._on_lost,
            connect_timeout=self.connect_timeout,
        )

    async def restart(self) -> list[Shim | DeadShim]:
        """As a server that was killed and started again: only the files and processes remain."""
        await self.manager.close()
        self.manager = self.new_manager()
        return await self.manager.recover()

    def _on_event(self, event: Event) -> None:
        self.events.append(event)
        asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self.event_arrived:
            self.event_arrived.notify_all()

    async def _on_lost(self, dead: DeadShim) -> None:
        self.lost.append(dead)
        self.lost_arrived.set()

    async def event(self, matches: Callable[[Event], bool], timeout: float = 10) -> Event:
        """The first event that matches, waiting for it."""
        async with asyncio.timeout(timeout), self.event_arrived:
            while not any(map(matches, self.events)):
                await self.event_arrived.wait()
        return next(filter(matches, self.events))

    def new_group(self) -> str:
        group = uuid.uuid4().hex * 2
        self.groups.append(group)
        return group

    def spec(self, container: str, group: str, args: list[str], **process: Any) -> dict[str, Any]:
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": args,
                "env": ["PATH=/bin"],
                "cwd": "/",
                **process,
            },
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {
                    "destination": "/dev/pts",
                    "type": "devpts",
                    "source": "devpts",
                    "options": ["newinstance", "ptmxmode=0666"],
                },
            ],
            "annotations": {bundle.GROUP_ANNOTATION: group},
            "linux": {
                "cgroupsPath": f"/zos-test-{container}",
                "namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")],
            },
        }

    async def create(
        self,
        shim: Shim,
        args: list[str],
        *,
        container: str = "",
        terminal: bool = False,
        hooks: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Creates a container in a sibling bundle; returns its id."""
        container = container or uuid.uuid4().hex * 2
        self.containers.append(container)
        path = self.manager.bundles / container
        path.mkdir(exist_ok=True)
        bundle.write_config(
            path,
            {**self.spec(container, shim.group, args, terminal=terminal), "hooks": hooks or {}},
        )
        rootfs = Mount(type="bind", source=str(self.rootfs), options=("rbind", "rw"))
        await shim.task.create(
            container,
            str(path),
            [rootfs],
            terminal=terminal,
            options=shim.handler.task_options(),
            **options,
        )
        return container

    async def remove(self, shim: Shim, container: str) -> None:
        """Kills and deletes a container, and its bundle."""
        await shim.task.kill(container, 9, all=True)
        await shim.task.wait(container, timeout=10)
        await shim.task.delete(container)
        bundle.remove(self.manager.bundles / container)

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:  # all of it, whatever fails
            stack.callback(self._remove_root)
            stack.callback(self.assert_nothing_left)
            stack.push_async_callback(self.event_server.close)
            stack.push_async_callback(self.manager.close)
            for container in self.containers:
                stack.callback(bundle.remove, self.manager.bundles / container)
            for group in self.groups:
                stack.push_async_callback(self.manager.stop, group)

    def _remove_root(self) -> None:
        unmount_tree(str(self.root))
        shutil.rmtree(self.root)

    def assert_nothing_left(self) -> None:
        assert _names(self.manager.bundles) == set()
        assert _names(self.root / "s") == set(), "sockets"
        assert not (_names(LEGACY_SOCKETS) - self._legacy_before) & self._own_legacy(), "sockets"
        assert _names(self.root / "runc" / "zos") == set(), "runc state"
        mounts = Path("/proc/self/mountinfo").read_text()
        assert str(self.root) not in mounts, "mounts"
        for process in processes_about(str(self.root), *self.groups, *self.containers):
            raise AssertionError(f"left running: {process}")
        for container in self.containers:
            assert not list(Path("/sys/fs/cgroup").glob(f"**/zos-test-{container}")), "cgroup"

    def _own_legacy(self) -> set[str]:
        import hashlib

        names = (f"{self.root}/zos-cri.sock/zos/{group}" for group in self.groups)
        return {hashlib.sha256(name.encode()).hexdigest() for name in names}


def shim_processes(group: str) -> list[str]:
    """The command lines of a group's shims."""
    return [line for line in processes_about(group) if f"-id {group}" in line]


def processes_about(*words: str) -> list[str]:
    """The command lines in which one of the words stands, zombies aside."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            continue
        if int(pid) != os.getpid() and any(word in line or word in where for word in words):
            found.append(f"{pid}: {line} in {where}")
    return found


def _names(directory: Path) -> set[str]:
    try:
        return set(os.listdir(directory))
    except FileNotFoundError:
        return set()
