"""RestorePod."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri._pb import cri_pb2 as pb
from zos_cri.checkpoint import layout
from zos_cri.cri.checkpoints import check_target
from zos_cri.cri.sandbox_parts import sandbox_name
from zos_cri.errors import AlreadyExists, DataLoss, InvalidArgument
from zos_cri.linux import blocking

if TYPE_CHECKING:
    from zos_cri.cri.services import Services

PATH_TIMEOUT: Final = 20.0  # for a path that the caller names


async def restore_pod(services: Services, request: pb.RestorePodRequest) -> pb.RestorePodResponse:
    """Makes a pod and its containers from a checkpoint; StartContainer lets each of them go on.

    A container's configuration must describe the one that was captured: its image, command,
    directory and user are compared. IPC objects and the host name are the captured ones. No
    options are known. Where it fails, nothing stays.

    Raises:
        InvalidArgument: the directory has no checkpoint, or not of these containers.
        FailedPrecondition: a container's configuration describes another process, or CRIU can't
            work on this host.
        AlreadyExists: there is a pod of this name.
        Error: as RunPodSandbox and CreateContainer.
    """
    if request.options:
        raise InvalidArgument(f"options: {min(request.options)}: no option is known")
    directory = check_target("checkpoint_path", request.checkpoint_path.rstrip("/"))
    configs = _by_name(request)
    archives = await blocking.call_abandonable(_archives, directory, timeout=PATH_TIMEOUT)
    if archives.keys() != configs.keys():
        raise InvalidArgument(
            f"container_configs: {', '.join(sorted(configs))} are not the checkpoint's containers:"
            f" {', '.join(sorted(archives))}"
        )
    present = services.sandboxes.table.by_key(sandbox_name(request.config.metadata))
    if present is not None:
        raise AlreadyExists(f"pod sandbox {present.meta.id} has this name already")
    pod = await services.sandboxes.run(request.config, request.runtime_handler)
    try:
        restored = [
            pb.RestoredContainer(
                name=name,
                container_id=await services.creation.create(pod, config, captured=archives[name]),
            )
            for name, config in configs.items()
        ]
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(services.sandboxes.remove(pod)))
        services.views.forget(pod)
        raise
    return pb.RestorePodResponse(pod_sandbox_id=pod, restored_containers=restored)


def _by_name(request: pb.RestorePodRequest) -> dict[str, pb.ContainerConfig]:
    configs: dict[str, pb.ContainerConfig] = {}
    for index, config in enumerate(request.container_configs):
        name = config.metadata.name
        if not name or name in configs:
            wrong = f'"{name}" is there twice' if name else "is empty"
            raise InvalidArgument(f"container_configs[{index}].metadata.name: {wrong}")
        configs[name] = config
    if not configs:
        raise InvalidArgument("container_configs: is empty")
    return configs


def _archives(directory: Path) -> dict[str, Path]:
    """The containers' archives by the containers' names."""
    path = directory / layout.POD_OPTIONS
    try:
        with path.open("rb") as file:
            options = msgspec.json.decode(file.read(layout.DOCUMENT_LIMIT), type=layout.PodOptions)
    except OSError as error:
        raise InvalidArgument(f"checkpoint_path: {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise DataLoss(f"{path}: {error}") from error
    if options.version != layout.POD_VERSION:
        raise InvalidArgument(f"{path}: version {options.version}, not {layout.POD_VERSION}")
    for file_name in options.containers.values():
        if file_name != Path(file_name).name:
            raise DataLoss(f'{path}: "{file_name}" is no name of a file')
    return {name: directory / file_name for name, file_name in options.containers.items()}
