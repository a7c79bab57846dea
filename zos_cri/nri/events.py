"""What plugins are told of: the events, and the call that each of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri._pb import nri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

SERVICE: Final = "nri.pkg.api.v1alpha1.Plugin"
RUNTIME: Final = "nri.pkg.api.v1alpha1.Runtime"
ALL_EVENTS: Final = (1 << (pb.LAST - 1)) - 1


class Rpc(NamedTuple):
    """A call to plugins.

    Attributes:
        name: the method's.
        event: its bit in ConfigureResponse.events is `mask`.
        response: the answer's type.
        told_by_state_change: a plugin before NRI 0.12 is told of it by StateChange only.
    """

    name: str
    event: pb.Event.ValueType
    response: type[Message]
    told_by_state_change: bool

    @property
    def mask(self) -> int:
        return 1 << (self.event - 1)


_EVENTS: Final[Mapping[str, tuple[pb.Event.ValueType, bool]]] = {
    "RunPodSandbox": (pb.RUN_POD_SANDBOX, True),
    "StopPodSandbox": (pb.STOP_POD_SANDBOX, True),
    "RemovePodSandbox": (pb.REMOVE_POD_SANDBOX, True),
    "UpdatePodSandbox": (pb.UPDATE_POD_SANDBOX, False),
    "PostUpdatePodSandbox": (pb.POST_UPDATE_POD_SANDBOX, True),
    "CreateContainer": (pb.CREATE_CONTAINER, False),
    "PostCreateContainer": (pb.POST_CREATE_CONTAINER, True),
    "StartContainer": (pb.START_CONTAINER, True),
    "PostStartContainer": (pb.POST_START_CONTAINER, True),
    "UpdateContainer": (pb.UPDATE_CONTAINER, False),
    "PostUpdateContainer": (pb.POST_UPDATE_CONTAINER, True),
    "StopContainer": (pb.STOP_CONTAINER, False),
    "RemoveContainer": (pb.REMOVE_CONTAINER, True),
    "ValidateContainerAdjustment": (pb.VALIDATE_CONTAINER_ADJUSTMENT, False),
}

RPCS: Final[Mapping[str, Rpc]] = {
    name: Rpc(name, event, getattr(pb, f"{name}Response"), old)
    for name, (event, old) in _EVENTS.items()
}

RUN_POD: Final = RPCS["RunPodSandbox"]
STOP_POD: Final = RPCS["StopPodSandbox"]
REMOVE_POD: Final = RPCS["RemovePodSandbox"]
UPDATE_POD: Final = RPCS["UpdatePodSandbox"]
POD_UPDATED: Final = RPCS["PostUpdatePodSandbox"]
CREATE: Final = RPCS["CreateContainer"]
CREATED: Final = RPCS["PostCreateContainer"]
START: Final = RPCS["StartContainer"]
STARTED: Final = RPCS["PostStartContainer"]
UPDATE: Final = RPCS["UpdateContainer"]
UPDATED: Final = RPCS["PostUpdateContainer"]
STOP: Final = RPCS["StopContainer"]
REMOVE: Final = RPCS["RemoveContainer"]
VALIDATE: Final = RPCS["ValidateContainerAdjustment"]


def state_change(rpc: Rpc, request: Message) -> pb.StateChangeEvent:
    """What a plugin before NRI 0.12 is sent instead of a request."""
    event = pb.StateChangeEvent(event=rpc.event, pod=getattr(request, "pod"))  # noqa: B009 any of ten
    if "container" in request.DESCRIPTOR.fields_by_name:
        event.container.CopyFrom(getattr(request, "container"))  # noqa: B009
    return event
