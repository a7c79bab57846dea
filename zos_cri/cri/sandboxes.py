"""Pod sandboxes: made, stopped, removed, found again.

A sandbox is a record, a directory of pinned namespaces and files, an address from CNI, a shim, and
for pods that share a pid namespace an init container; or what the shim makes of these, where the
handler says so (`shim_sandboxes`). `_release` undoes all of these in any state: it serves a failed
RunPodSandbox, StopPodSandbox, RemovePodSandbox and the recovery alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri import pods, userns
from zos_cri.cri.pods import PodFiles
from zos_cri.cri.sandbox_parts import pin, pins, pod_network, sandbox_name
from zos_cri.errors import (
    AlreadyExists,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    one_line,
)
from zos_cri.failpoints import step
from zos_cri.linux import blocking, namespaces
from zos_cri.log import bind, get_log
from zos_cri.oci import sysctls
from zos_cri.oci.namespaces import pod_plan
from zos_cri.shim.handler import SHIM
from zos_cri.store.joins import Joins
from zos_cri.store.lifecycle import SANDBOX, SandboxEvent, SandboxState, advance, allows
from zos_cri.store.model import SandboxMeta, SandboxStatus
from zos_cri.together import together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Container, Mapping, Sequence
    from pathlib import Path

    from zos_cri.cri.sandbox_parts import PodInit, PodPlugins
    from zos_cri.cri.shim_sandboxes import ShimSandboxes
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.network.cni import Network
    from zos_cri.shim.handler import Handler
    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.places import Places
    from zos_cri.store.db import Record, Table

_log = get_log(__name__)

SHIM_TIMEOUT: Final = 30.0
_FACTS: Final = (SandboxEvent.CREATE_FAILED, SandboxEvent.STOPPED, SandboxEvent.LOST)


class Sandboxes:
    """The pod sandboxes of this host."""

    def __init__(
        self,
        *,
        table: Table[SandboxMeta, SandboxStatus],
        containers: Containers,
        shims: ShimManager,
        places: Places,
        handlers: Mapping[str, Handler],
        default_handler: str,
        network: Network,
        init: PodInit,
        by_shims: ShimSandboxes,
        directory: Path,
        metrics: Metrics,
        nri: PodPlugins,
        user_namespaces: Container[str] = (),
    ) -> None:
        """
        Args:
            places: where new sandboxes find a shim, and leave it.
            by_shims: makes those sandboxes that are their shims' to make.
            directory: each sandbox's own is `<directory>/<id>`.
            user_namespaces: the handlers whose pods can have one.
        """
        self.table = table
        self._containers = containers
        self._shims = shims
        self.places = places
        self._handlers = handlers
        self._default_handler = default_handler
        self._network = network
        self._init = init
        self.by_shims = by_shims
        self._directory = directory
        self._metrics = metrics
        self._nri = nri
        self._user_namespaces = user_namespaces
        self._running: Joins[str] = Joins()
        self._ending: Joins[None] = Joins()
        self._released: set[str] = set()  # by this process, wholly: there is nothing to look for

    def find(self, id_: str) -> Record[SandboxMeta, SandboxStatus]:
        """The sandbox with this id or unambiguous beginning of one.

        Raises:
            NotFound: there is none.
        """
        return self.table.find(id_)

    def ready(self, id_: str) -> Record[SandboxMeta, SandboxStatus]:
        """The same, where it is ready.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it isn't ready.
        """
        record = self.table.find(id_)
        if record.status.state is not SandboxState.READY:
            raise FailedPrecondition(
                f"pod sandbox {record.meta.id} is {record.status.state}, not ready"
            )
        return record

    def files(self, id_: str) -> PodFiles:
        """The sandbox's directory."""
        return PodFiles(self._directory / id_)

    # ---- run

    async def run(self, config: pb.PodSandboxConfig, handler: str) -> str:
        """Makes a pod sandbox, or finds the one of the same name and configuration.

        Raises:
            InvalidArgument: the configuration is wrong.
            AlreadyExists: the name belongs to another sandbox.
            Error: a stage failed; what was made is undone.
        """
        handler = handler or self._default_handler
        if handler not in self._handlers:
            raise InvalidArgument(
                f'runtime_handler: "{handler}" is not configured, only '
                + ", ".join(sorted(self._handlers))
            )
        name = sandbox_name(config.metadata)
        encoded = config.SerializeToString(deterministic=True)
        return await self._running.run(
            name, handler.encode() + encoded, lambda: self._run(name, config, encoded, handler)
        )

    async def _run(
        self, name: str, config: pb.PodSandboxConfig, encoded: bytes, handler: str
    ) -> str:
        present = self.table.by_key(name)
        if present is not None and present.status.state is SandboxState.REMOVING:
            await self.remove(present.meta.id)  # an earlier failure's remains
            present = None
        if present is not None:
            same = present.meta.config == encoded and present.meta.handler == handler
            if same and present.status.state is SandboxState.READY:
                return present.meta.id
            raise AlreadyExists(
                f'pod sandbox "{name}" exists: {present.meta.id} is {present.status.state}'
                + ("" if same else " and has another configuration")
            )
        pods.check(config, systemd=self._handlers[handler].systemd_cgroup)
        self._containers.soon()
        with self.places.warm.making():
            id_, group = self.places.take(handler)
            try:
                meta = self._meta(id_, name, config, encoded=encoded, handler=handler, group=group)
                # What is wrong with it is said before anything is made, and never when it is
                # taken back.
                pod_network(meta, config).check()
                parameters = sysctls.of_pod(config.linux.sysctls, pod_plan(config))
                await self.table.insert(meta, SandboxStatus())
            except BaseException:
                self.places.give_back(id_, group)
                raise
            with bind(pod=id_):
                await self._create(meta, config, parameters)
        return id_

    def _meta(
        self,
        id_: str,
        name: str,
        config: pb.PodSandboxConfig,
        *,
        encoded: bytes,
        handler: str,
        group: str,
    ) -> SandboxMeta:
        files = self.files(id_)
        plan = pod_plan(config)
        userns.check(plan, handler, self._user_namespaces)
        return SandboxMeta(
            id=id_,
            name=name,
            config=encoded,
            handler=handler,
            created_at=time.time_ns(),
            netns=files.namespace("net") if "net" in plan.pinned else "",
            ipcns=files.namespace("ipc") if "ipc" in plan.pinned else "",
            utsns=files.namespace("uts") if "uts" in plan.pinned else "",
            userns=files.namespace("user") if plan.user_namespace else "",
            shared_pid=plan.shared_pid,
            cgroup=config.linux.cgroup_parent,
            sandboxer=self._handlers[handler].sandboxer,
            shim="" if group == id_ else group,
        )

    async def _create(
        self, meta: SandboxMeta, config: pb.PodSandboxConfig, parameters: Mapping[str, str]
    ) -> None:
        try:
            ips, _, _ = await together(
                self._connect(meta, config, parameters),
                self._timed("files", self._make_files(meta, config)),
                self._timed("shim", self._start_shim(meta)),
            )
            pid = 0
            if meta.sandboxer == SHIM:
                with self._metrics.stage("run_pod_sandbox", "sandbox"):
                    pid = await self.by_shims.start(meta, config)
            elif meta.shared_pid:
                await self._timed("init", self._init.start(meta, config))
            await self._nri.run_pod(meta, ips)
            if self._shims.get(meta.group) is None:
                raise Unavailable(f"pod sandbox {meta.id}: its shim died while it was made")
            await self._change(meta.id, SandboxEvent.CREATED, ips=ips, pid=pid)
            if meta.sandboxer == SHIM:
                self.by_shims.watch(meta.id, self.lost)
        except BaseException as error:
            _log.warning("pod sandbox failed", error=one_line(error))
            await asyncio.shield(self._undo(meta))
            raise
        _log.info("pod sandbox ready", name=meta.name, ips=",".join(ips or ()))

    async def _connect(
        self, meta: SandboxMeta, config: pb.PodSandboxConfig, parameters: Mapping[str, str]
    ) -> tuple[str, ...]:
        with self._metrics.stage("run_pod_sandbox", "netns"):
            async with step("netns.pin"):
                await pin(meta, config, parameters)
        if not meta.netns:
            return ()
        with self._metrics.stage("run_pod_sandbox", "cni"):
            result = await self._network.add(pod_network(meta, config))
        return result.ips

    async def _make_files(self, meta: SandboxMeta, config: pb.PodSandboxConfig) -> None:
        async with step("sandbox.files"):
            await blocking.call(self.files(meta.id).create, config)

    async def _start_shim(self, meta: SandboxMeta) -> None:
        await self._shims.start(meta.group, self._handlers[meta.handler], timeout=SHIM_TIMEOUT)

    async def _timed(self, stage: str, work: Awaitable[object]) -> None:
        with self._metrics.stage("run_pod_sandbox", stage):
            await work

    async def _undo(self, meta: SandboxMeta) -> None:
        """Takes back a sandbox that didn't become ready; its remains stay listed where it fails."""
        try:
            await self._change(meta.id, SandboxEvent.CREATE_FAILED)
            await self._release(meta)
            await self._nri.remove_pod(meta)
            await self._forget(meta)
        except (Error, OSError) as error:
            _log.error("pod sandbox not undone", pod=meta.id, error=one_line(error))

    # ---- stop, remove

    async def stop(self, id_: str) -> None:
        """Ends the pod's containers and releases its network; may be called again at any time.

        Nothing to do where there is no such sandbox (CRI: StopPodSandbox is idempotent).

        Raises:
            Error: something could not be released; a further call tries again.
        """
        try:
            record = self.table.find(id_)
        except NotFound:
            return
        meta = record.meta
        if record.status.state is SandboxState.REMOVING:
            return
        with bind(pod=meta.id):
            await self._ending.run(f"stop {meta.id}", b"", lambda: self._stop(meta))

    async def _stop(self, meta: SandboxMeta) -> None:
        await self._running.ended(meta.name)
        record = self.table.get(meta.id)
        if record is None or not allows(SANDBOX, record.status.state, SandboxEvent.STOP):
            return
        if record.status.released:
            await self._stop_containers(meta)
            return
        await self._change(meta.id, SandboxEvent.STOP)
        await self._release(meta)
        await self._change(meta.id, SandboxEvent.STOPPED)
        _log.info("pod sandbox stopped", name=meta.name)

    async def remove(self, id_: str) -> None:
        """Stops a sandbox where it isn't, and removes it with its containers.

        Nothing to do where there is no such sandbox (CRI: RemovePodSandbox is idempotent).

        Raises:
            Error: something could not be released; a further call tries again.
        """
        try:
            meta = self.table.find(id_).meta
        except NotFound:
            return
        with bind(pod=meta.id):
            await self._ending.run(f"remove {meta.id}", b"", lambda: self._remove(meta))

    async def _remove(self, meta: SandboxMeta) -> None:
        await self.stop(meta.id)
        if self.table.get(meta.id) is None:
            return
        # The init last, by `_release`: with it the shim goes, which the others need.
        ids = [id_ for id_ in self.containers(meta.id) if id_ != meta.id]
        await together(*(self._containers.remove(id_) for id_ in ids))
        await self._change(meta.id, SandboxEvent.REMOVE)
        if meta.id not in self._released:
            await self._release(meta)
        await self._nri.remove_pod(meta)
        await self._forget(meta)
        _log.info("pod sandbox removed", name=meta.name)

    async def _forget(self, meta: SandboxMeta) -> None:
        await self.table.delete(meta.id)
        self._released.discard(meta.id)

    def containers(self, id_: str) -> list[str]:
        """The ids of the pod's containers, its init among them."""
        return [record.meta.id for record in self._containers if record.meta.ns == id_]

    async def _stop_containers(self, meta: SandboxMeta) -> None:
        with self._metrics.stage("stop_pod_sandbox", "containers"):
            ids = [id_ for id_ in self.containers(meta.id) if id_ != meta.id]
            await together(*map(self._stop_container, ids))

    async def _stop_container(self, id_: str) -> None:
        with contextlib.suppress(NotFound):  # removed meanwhile
            await self._containers.stop(id_, timeout=0)

    async def _release(self, meta: SandboxMeta) -> None:
        """Gives back all that a sandbox holds but its containers' records. Idempotent."""
        if meta.sandboxer == SHIM:
            self.by_shims.forget(meta.id)
            try:
                await self._stop_containers(meta)
            except Error as error:
                await self.by_shims.give_up(meta.id, error)
            await self._nri.stop_pod(meta)
            await self._release_shim(meta)  # it uses its network for as long as it runs
            await self._release_network(meta)
        else:
            await self._stop_containers(meta)
            await self._nri.stop_pod(meta)
            await together(self._release_shim(meta), self._release_network(meta))
        with self._metrics.stage("stop_pod_sandbox", "files"):
            async with step("sandbox.remove"):
                await blocking.call(self.files(meta.id).remove)
        self._released.add(meta.id)

    async def _release_shim(self, meta: SandboxMeta) -> None:
        with self._metrics.stage("stop_pod_sandbox", "shim"):
            # The shim ends only without tasks: those of exited containers are being deleted.
            await together(*(self._containers.exits.settled(i) for i in self.containers(meta.id)))
            await self._containers.remove(meta.id)  # the init, where there is one
            await self.places.leave(meta.id, meta.group, self.containers(meta.id))

    async def _release_network(self, meta: SandboxMeta) -> None:
        record = self.table.get(meta.id)
        if record is not None and record.status.network_released:
            return
        if meta.netns:
            config = pb.PodSandboxConfig.FromString(meta.config)
            pinned = namespaces.is_pinned(meta.netns)
            with self._metrics.stage("stop_pod_sandbox", "cni"):
                await self._network.delete(
                    pod_network(meta, config, netns=meta.netns if pinned else "")
                )
        with self._metrics.stage("stop_pod_sandbox", "netns"):
            for path in pins(meta).values():
                async with step("netns.unpin"):
                    await namespaces.unpin(path)
        await self.table.note(
            meta.id, lambda s: msgspec.structs.replace(s, network_released=True, ips=())
        )

    # ---- recovery

    async def recover(self) -> None:
        """Looks after a start at what became of the sandboxes; call it after the containers'."""
        for record in self.table:
            if not record.status.released:
                meta = record.meta
                self.places.hold(meta.id, meta.group, meta.handler)
                if self._shims.get(meta.group) is None:
                    self.places.lost(meta.group)
        await asyncio.gather(*(self._recover(record.meta) for record in self.table))

    async def _recover(self, meta: SandboxMeta) -> None:
        record = self.table.get(meta.id)
        if record is None:
            return
        with bind(pod=meta.id):
            try:
                if record.status.state is SandboxState.CREATING:
                    await self._undo(meta)
                elif record.status.state is SandboxState.REMOVING:
                    await self._release(meta)
                    await self._forget(meta)
                elif record.status.state is SandboxState.READY:
                    await self._recover_ready(meta)
                elif meta.sandboxer == SHIM and self._shims.get(meta.group) is not None:
                    self._containers.later(self.by_shims.ended(meta))
            except (Error, OSError) as error:
                _log.error("pod sandbox not recovered", error=one_line(error))

    async def _recover_ready(self, meta: SandboxMeta) -> None:
        by_shim = meta.sandboxer == SHIM
        pinned = all(map(namespaces.is_pinned, pins(meta).values()))
        intact = pinned and self._shims.get(meta.group) is not None
        if intact and (not by_shim or await self.by_shims.survives(meta)):
            if by_shim:
                self.by_shims.watch(meta.id, self.lost)
            return
        _log.warning("pod sandbox lost", name=meta.name)
        await self._change(meta.id, SandboxEvent.LOST)
        if intact:
            self._containers.later(self.by_shims.ended(meta))

    async def retry_releases(self) -> None:
        """Once more for those whose stop or removal has failed: a CNI DEL must succeed one day."""
        for record in self.table:
            id_ = record.meta.id
            try:
                if record.status.state is SandboxState.STOPPING:
                    await self.stop(id_)
                elif record.status.state is SandboxState.REMOVING:
                    await self.remove(id_)
            except (Error, OSError) as error:
                _log.warning("pod sandbox not released", pod=id_, error=one_line(error))

    async def shim_lost(self, group: str) -> None:
        """A shim is gone, and with it the containers of the pods that it held."""
        for record in list(self.table):
            if record.meta.group == group:
                await self.lost(record.meta.id)

    async def lost(self, id_: str) -> None:
        """What a sandbox consisted of is gone: it isn't ready."""
        record = self.table.get(id_)
        if record is not None and allows(SANDBOX, record.status.state, SandboxEvent.LOST):
            await self._change(id_, SandboxEvent.LOST)

    async def settle(self) -> None:
        """Waits for what is under way, at shutdown."""
        await self._running.settle()
        await self._ending.settle()

    async def _change(
        self, id_: str, event: SandboxEvent, *, ips: Sequence[str] | None = None, pid: int = 0
    ) -> None:
        def change(status: SandboxStatus) -> SandboxStatus:
            try:
                state = advance(SANDBOX, status.state, event)
            except FailedPrecondition as error:
                raise FailedPrecondition(f"pod sandbox {id_}: {error}") from None
            kept = status.ips if ips is None else tuple(ips)
            return msgspec.structs.replace(status, state=state, ips=kept, pid=pid)

        # What was meant to happen doesn't where it can't be recorded; what has happened has.
        write = self.table.note if event in _FACTS else self.table.update
        await write(id_, change)
