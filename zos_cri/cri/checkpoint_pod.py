"""CheckpointPod."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from google.protobuf import json_format

from zos_cri._pb import cri_pb2 as pb
from zos_cri.checkpoint import layout
from zos_cri.cri.checkpoints import MAX_TIMEOUT, check_target
from zos_cri.errors import FailedPrecondition, InvalidArgument
from zos_cri.linux import blocking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri.cri.services import Services

PATH_TIMEOUT: Final = 20.0  # for a path that the caller names


async def checkpoint_pod(
    services: Services, request: pb.CheckpointPodRequest
) -> pb.CheckpointPodResponse:
    """Writes a checkpoint of a pod's containers, all as they were at one moment, to a directory.

    All are paused before the first is captured, and go on before this returns, however it ends.
    The directory gets an archive for each container and the pod's configuration; what is in the
    pod's /dev/shm and its SysV IPC is not among it. No options are known.

    Raises:
        NotFound: no such pod or container.
        FailedPrecondition: the pod isn't ready, a container doesn't run, or CRIU can't do it.
        InvalidArgument: the containers aren't this pod's, or the directory can't be used.
        DeadlineExceeded: the caller's deadline; nothing stays in the directory.
    """
    if request.options:
        raise InvalidArgument(f"options: {min(request.options)}: no option is known")
    pod = services.sandboxes.ready(request.pod_sandbox_id)
    names = _names(services, pod.meta.id, request.container_ids)
    directory = check_target("output_path", request.output_path.rstrip("/"))
    await blocking.call_abandonable(_check_empty, directory, timeout=PATH_TIMEOUT)
    files = {id_: f"container-{n}.tar" for n, id_ in enumerate(names)}
    options = layout.PodOptions(
        layout.POD_VERSION, {names[id_]: file for id_, file in files.items()}
    )
    config = json_format.MessageToJson(
        services.views.pod_config(pod), preserving_proto_field_name=True
    )
    try:
        await services.checkpoints.capture(
            {id_: directory / file for id_, file in files.items()}, timeout=MAX_TIMEOUT
        )
        documents = {
            layout.POD: config.encode(),
            layout.POD_OPTIONS: msgspec.json.encode(options),
        }
        await blocking.call_abandonable(_write, directory, documents, timeout=PATH_TIMEOUT)
    except BaseException:
        written = [*files.values(), layout.POD, layout.POD_OPTIONS]
        cleaning = blocking.call_abandonable(_remove, directory, written, timeout=PATH_TIMEOUT)
        await asyncio.shield(asyncio.ensure_future(cleaning))
        raise
    return pb.CheckpointPodResponse()


def _names(services: Services, pod: str, ids: Sequence[str]) -> dict[str, str]:
    """The containers' names by their ids."""
    if not ids:
        raise InvalidArgument("container_ids: is empty")
    names: dict[str, str] = {}
    for id_ in ids:
        record = services.creation.container(id_)
        if record.meta.ns != pod:
            raise InvalidArgument(f"container_ids: {id_} is a container of another pod")
        if record.meta.id in names:
            raise InvalidArgument(f"container_ids: {id_} is there twice")
        services.containers.running(record.meta.id)
        names[record.meta.id] = services.views.parts(record)[1].metadata.name
    if len(set(names.values())) != len(names):
        raise FailedPrecondition("container_ids: two have the same name")
    return names


def _check_empty(directory: Path) -> None:
    try:
        if os.listdir(directory):
            raise InvalidArgument(f"output_path: {directory} is not empty")
    except OSError as error:
        raise InvalidArgument(f"output_path: {directory}: {error.strerror}") from error


def _write(directory: Path, documents: dict[str, bytes]) -> None:
    for name, content in documents.items():
        fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(content)


def _remove(directory: Path, names: Sequence[str]) -> None:
    for name in names:
        Path(directory, name).unlink(missing_ok=True)
