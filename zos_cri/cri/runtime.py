"""The tables of RPCs: what isn't in them answers UNIMPLEMENTED with its name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.attach import attach
from zos_cri.cri.checkpoint_container import checkpoint_container
from zos_cri.cri.checkpoint_pod import checkpoint_pod
from zos_cri.cri.container_stats import container_stats
from zos_cri.cri.container_status import container_status
from zos_cri.cri.create_container import create_container
from zos_cri.cri.exec import exec_
from zos_cri.cri.exec_sync import exec_sync
from zos_cri.cri.get_container_events import get_container_events
from zos_cri.cri.image_fs_info import image_fs_info
from zos_cri.cri.image_status import image_status
from zos_cri.cri.list_container_stats import list_container_stats
from zos_cri.cri.list_containers import list_containers
from zos_cri.cri.list_images import list_images
from zos_cri.cri.list_metric_descriptors import list_metric_descriptors
from zos_cri.cri.list_pod_sandbox import list_pod_sandbox
from zos_cri.cri.list_pod_sandbox_metrics import list_pod_sandbox_metrics
from zos_cri.cri.list_pod_sandbox_stats import list_pod_sandbox_stats
from zos_cri.cri.pod_sandbox_stats import pod_sandbox_stats
from zos_cri.cri.pod_sandbox_status import pod_sandbox_status
from zos_cri.cri.port_forward import port_forward
from zos_cri.cri.pull_image import pull_image
from zos_cri.cri.remove_container import remove_container
from zos_cri.cri.remove_image import remove_image
from zos_cri.cri.remove_pod_sandbox import remove_pod_sandbox
from zos_cri.cri.reopen_container_log import reopen_container_log
from zos_cri.cri.restore_pod import restore_pod
from zos_cri.cri.run_pod_sandbox import run_pod_sandbox
from zos_cri.cri.runtime_config import runtime_config
from zos_cri.cri.start_container import start_container
from zos_cri.cri.status import status
from zos_cri.cri.stop_container import stop_container
from zos_cri.cri.stop_pod_sandbox import stop_pod_sandbox
from zos_cri.cri.stream_container_stats import stream_container_stats
from zos_cri.cri.stream_containers import stream_containers
from zos_cri.cri.stream_images import stream_images
from zos_cri.cri.stream_pod_sandbox_metrics import stream_pod_sandbox_metrics
from zos_cri.cri.stream_pod_sandbox_stats import stream_pod_sandbox_stats
from zos_cri.cri.stream_pod_sandboxes import stream_pod_sandboxes
from zos_cri.cri.update_container_resources import update_container_resources
from zos_cri.cri.update_pod_sandbox_resources import update_pod_sandbox_resources
from zos_cri.cri.update_runtime_config import update_runtime_config
from zos_cri.cri.version import version

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    import grpc

    from zos_cri.cri.rpc import Rpcs
    from zos_cri.cri.services import Services

RUNTIME: Final[Mapping[str, Callable[[Services, Any], Awaitable[Any]]]] = {
    "Version": version,
    "Status": status,
    "RuntimeConfig": runtime_config,
    "UpdateRuntimeConfig": update_runtime_config,
    "UpdatePodSandboxResources": update_pod_sandbox_resources,
    "RunPodSandbox": run_pod_sandbox,
    "StopPodSandbox": stop_pod_sandbox,
    "RemovePodSandbox": remove_pod_sandbox,
    "PodSandboxStatus": pod_sandbox_status,
    "ListPodSandbox": list_pod_sandbox,
    "CreateContainer": create_container,
    "StartContainer": start_container,
    "StopContainer": stop_container,
    "RemoveContainer": remove_container,
    "ListContainers": list_containers,
    "ContainerStatus": container_status,
    "UpdateContainerResources": update_container_resources,
    "ReopenContainerLog": reopen_container_log,
    "ExecSync": exec_sync,
    "Exec": exec_,
    "Attach": attach,
    "PortForward": port_forward,
    "CheckpointContainer": checkpoint_container,
    "CheckpointPod": checkpoint_pod,
    "RestorePod": restore_pod,
    "ContainerStats": container_stats,
    "ListContainerStats": list_container_stats,
    "PodSandboxStats": pod_sandbox_stats,
    "ListPodSandboxStats": list_pod_sandbox_stats,
    "ListMetricDescriptors": list_metric_descriptors,
    "ListPodSandboxMetrics": list_pod_sandbox_metrics,
}

IMAGE: Final[Mapping[str, Callable[[Services, Any], Awaitable[Any]]]] = {
    "ListImages": list_images,
    "ImageStatus": image_status,
    "PullImage": pull_image,
    "RemoveImage": remove_image,
    "ImageFsInfo": image_fs_info,
}

RUNTIME_STREAMS: Final[Mapping[str, Callable[[Services, Any], AsyncGenerator[Any, None]]]] = {
    "StreamPodSandboxes": stream_pod_sandboxes,
    "StreamContainers": stream_containers,
    "StreamContainerStats": stream_container_stats,
    "StreamPodSandboxStats": stream_pod_sandbox_stats,
    "StreamPodSandboxMetrics": stream_pod_sandbox_metrics,
    "GetContainerEvents": get_container_events,
}

IMAGE_STREAMS: Final[Mapping[str, Callable[[Services, Any], AsyncGenerator[Any, None]]]] = {
    "StreamImages": stream_images,
}

READS: Final = frozenset(
    {
        "Version",
        "Status",
        "RuntimeConfig",
        "PodSandboxStatus",
        "ListPodSandbox",
        "ListContainers",
        "ContainerStatus",
        "ContainerStats",
        "ListContainerStats",
        "PodSandboxStats",
        "ListPodSandboxStats",
        "ListMetricDescriptors",
        "ListPodSandboxMetrics",
        "ListImages",
        "ImageStatus",
        "ImageFsInfo",
        *RUNTIME_STREAMS,
        *IMAGE_STREAMS,
    }
)
"""Answered from memory at any time; all others wait for the end of the recovery."""


def handlers(services: Services, rpcs: Rpcs) -> list[grpc.GenericRpcHandler]:
    """CRI's two services."""
    return [
        rpcs.service(
            pb.DESCRIPTOR.services_by_name[name],
            {method: partial(function, services) for method, function in table.items()},
            {method: partial(function, services) for method, function in streams.items()},
            reads=READS,
        )
        for name, table, streams in (
            ("RuntimeService", RUNTIME, RUNTIME_STREAMS),
            ("ImageService", IMAGE, IMAGE_STREAMS),
        )
    ]
