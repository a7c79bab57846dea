"""Captures running containers: all are paused, then each is dumped by CRIU, then all go on."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from google.protobuf import json_format

from zos_cri._pb import runc_options_pb2
from zos_cri.checkpoint import criu, jobs, layout
from zos_cri.errors import (
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    one_line,
)
from zos_cri.images import trees
from zos_cri.linux import blocking
from zos_cri.log import get_log
from zos_cri.shim import bundle as bundles
from zos_cri.shim.handler import pack
from zos_cri.shim.task import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zos_cri.cri.views import Views
    from zos_cri.images.store import ImageStore
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerRecord
    from zos_cri.shim.manager import Shim

_log = get_log(__name__)

DEFAULT_TIMEOUT: Final = 120.0  # seconds; 1 GiB of memory takes 2
MAX_TIMEOUT: Final = 3600.0
PAUSE_TIMEOUT: Final = 10.0
# Asked until then, for a container must not stay frozen; the shim answers when CRIU has ended.
RESUME_TIMEOUT: Final = 30.0
RESUME_TRIES: Final = 3


class Checkpoints:
    """Makes archives of running containers."""

    def __init__(
        self,
        *,
        containers: Containers,
        images: ImageStore,
        views: Views,
        metrics: Metrics,
        criu: criu.Criu,
        directory: Path,
    ) -> None:
        """
        Args:
            directory: for what is being captured; the disk must have room for the memory.
        """
        self._containers = containers
        self._images = images
        self._views = views
        self._metrics = metrics
        self._criu = criu
        self._directory = directory
        self._captured: set[str] = set()

    async def capture(self, targets: Mapping[str, Path], *, timeout: float) -> None:
        """Writes an archive of each container, all as they were at one moment.

        They go on before this returns, however it ends.

        Args:
            targets: where each one's archive is to be, by the containers' ids.
            timeout: seconds, for all together; 0 = the default.

        Raises:
            FailedPrecondition: one doesn't run or is being captured, or CRIU can't do it here; the
                message has what CRIU says.
            InvalidArgument: an archive can't be written there.
            DeadlineExceeded: it took longer than `timeout`.
        """
        seconds = min(timeout or DEFAULT_TIMEOUT, MAX_TIMEOUT)
        records = [self._containers.running(id_) for id_ in targets]
        for record in records:
            if record.meta.root_uid:
                raise FailedPrecondition(
                    f"container {record.meta.id}: CRIU can't restore user namespaces"
                )
        await self._criu.check()
        busy = self._captured & targets.keys()
        if busy:
            raise FailedPrecondition(f"container {min(busy)}: it is being captured already")
        self._captured |= targets.keys()
        try:
            async with asyncio.timeout(seconds):
                await self._capture(records, targets, time.monotonic() + seconds)
        except TimeoutError:
            raise DeadlineExceeded(f"checkpoint: not done within {seconds:g} s") from None
        finally:
            self._captured -= targets.keys()

    async def _capture(
        self, records: Sequence[ContainerRecord], targets: Mapping[str, Path], end: float
    ) -> None:
        directories = {r.meta.id: self._directory / f"new-{secrets.token_hex(8)}" for r in records}
        written: list[Path] = []
        try:
            async with AsyncExitStack() as running_again:
                with self._metrics.stage("checkpoint", "pause"):
                    for record in records:
                        shim = self._containers.shim(record.meta.id)
                        # Before it is done: a pause whose answer is late is one all the same.
                        running_again.push_async_callback(_resume, shim, record.meta.id)
                        await shim.task.pause(record.meta.id, timeout=PAUSE_TIMEOUT)
                for record in records:
                    await self._dump(record, directories[record.meta.id], end)
            for record in records:
                await self._describe(record, directories[record.meta.id])
                with self._metrics.stage("checkpoint", "archive"):
                    written.append(targets[record.meta.id])
                    job = jobs.Pack(str(directories[record.meta.id]), str(written[-1]))
                    await jobs.run(job, timeout=end - time.monotonic())
        except BaseException:
            for path in written:
                await asyncio.shield(blocking.call_abandonable(_unlink, path, timeout=10))
            raise
        finally:
            for directory in directories.values():
                await asyncio.shield(blocking.call(trees.remove, str(directory)))
        _log.info("containers captured", containers=",".join(targets))

    async def _dump(self, record: ContainerRecord, directory: Path, end: float) -> None:
        id_ = record.meta.id
        await blocking.call(_make, directory)
        options = runc_options_pb2.CheckpointOptions(
            work_path=str(directory), terminal=record.meta.stdio.terminal, file_locks=True
        )
        try:
            with self._metrics.stage("checkpoint", "dump"):
                await self._containers.shim(id_).task.checkpoint(
                    id_,
                    str(directory / layout.IMAGES),
                    pack(options),
                    timeout=end - time.monotonic(),
                )
        except DeadlineExceeded:
            raise
        except Error as error:
            said = await blocking.call(criu.errors_in, directory / layout.CRIU_LOG)
            raise FailedPrecondition(
                f"container {id_}: CRIU can't capture it: {'; '.join(said) or one_line(error)}"
            ) from error
        extra, _ = self._views.parts(record)
        upper = str(self._images.layout.container(id_) / "fs")
        with self._metrics.stage("checkpoint", "diff"):
            await jobs.run(
                jobs.Diff(str(directory), upper, extra.log_path), timeout=end - time.monotonic()
            )

    async def _describe(self, record: ContainerRecord, directory: Path) -> None:
        spec = await blocking.call(bundles.read_config, Path(record.meta.bundle))
        await blocking.call(_write, directory, self._documents(record, spec))

    def _documents(self, record: ContainerRecord, spec: dict[str, Any]) -> dict[str, bytes]:
        meta, status = record
        extra, config = self._views.parts(record)
        image = config.image.user_specified_image or extra.image_ref
        dump = layout.Config(
            id=meta.id,
            name=config.metadata.name,
            rootfs_image=image,
            rootfs_image_ref=extra.image_id,
            rootfs_image_name=image,
            runtime=meta.handler,
            created_time=layout.time_text(meta.created_at),
            checkpointed_time=layout.time_text(time.time_ns()),
        )
        told = layout.spec_with_origin(
            spec,
            name=config.metadata.name,
            attempt=config.metadata.attempt,
            image=image,
            config={"labels": dict(config.labels), "annotations": dict(config.annotations)},
        )
        own = {
            "CreatedAt": meta.created_at,
            "StartedAt": status.started_at,
            "FinishedAt": status.finished_at,
            "ExitCode": status.exit_code,
            "Pid": status.pid,
            "Reason": status.reason,
            "Message": status.message,
        }
        shown = json_format.MessageToDict(
            self._views.container_status(record), preserving_proto_field_name=True
        )
        return {
            layout.CONFIG: msgspec.json.encode(dump),
            layout.SPEC: json.dumps(told).encode(),
            layout.STATUS: json.dumps(shown).encode(),
            layout.CONTAINERD_STATUS: json.dumps(own).encode(),
        }


async def _resume(shim: Shim, id_: str) -> None:
    """Lets a container go on; one that isn't paused any more is left as it is."""
    await asyncio.shield(asyncio.ensure_future(resume(shim, id_)))


async def resume(shim: Shim, id_: str) -> None:
    """Lets a container go on, where it is paused. Never raises: it is done on the way out."""
    for _ in range(RESUME_TRIES):
        try:
            await shim.task.resume(id_, timeout=RESUME_TIMEOUT)
        except NotFound:
            return
        except Error as error:
            try:
                state = await shim.task.state(id_)
            except Error:
                return  # it is gone, or the recovery sees to it
            if state.status not in (TaskStatus.PAUSED, TaskStatus.PAUSING):
                return
            _log.error("container stays paused", container=id_, error=one_line(error))
        else:
            return


def check_target(field: str, path: str) -> Path:
    """Where an archive is to be.

    Raises:
        InvalidArgument: no absolute path.
    """
    if not path.startswith("/") or "\0" in path or path.endswith("/"):
        raise InvalidArgument(f'{field}: "{path}" is not the absolute path of a file')
    return Path(path)


def _make(directory: Path) -> None:
    (directory / layout.IMAGES).mkdir(parents=True, mode=0o700)
    directory.chmod(0o700)


def _write(directory: Path, documents: Mapping[str, bytes]) -> None:
    for name, content in documents.items():
        (directory / name).write_bytes(content)


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def sweep(directory: Path, known: set[str]) -> list[str]:
    """Removes what an earlier server was capturing, and what was to be restored and is gone.

    Blocks.

    Args:
        known: ids of the containers that there are.
    """
    if not directory.exists():
        return []
    strays = [name for name in os.listdir(directory) if name not in known]
    for name in strays:
        trees.remove(str(directory / name))
    return strays
