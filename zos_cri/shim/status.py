"""The one place where a ttrpc status becomes an error of ours, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri import errors
from zos_cri._pb import status_pb2

if TYPE_CHECKING:
    from collections.abc import Mapping

OK: Final = 0
_UNKNOWN: Final = 2


class ShimFailed(errors.Error):
    """A peer failed and gave no code, as shims do for whatever the OCI runtime says."""


# google.rpc.Code: numbers fixed by gRPC. Codes that our tree has no word for stand by what a
# caller can do about them.
_ERRORS: Final[Mapping[int, type[errors.Error]]] = {
    1: errors.Cancelled,
    _UNKNOWN: ShimFailed,
    3: errors.InvalidArgument,
    4: errors.DeadlineExceeded,
    5: errors.NotFound,
    6: errors.AlreadyExists,
    7: errors.PermissionDenied,
    8: errors.ResourceExhausted,
    9: errors.FailedPrecondition,
    10: errors.Unavailable,  # ABORTED: a conflict with another call; trying again may help
    11: errors.InvalidArgument,  # OUT_OF_RANGE
    12: errors.Unimplemented,
    13: errors.Internal,
    14: errors.Unavailable,
    15: errors.DataLoss,
    16: errors.PermissionDenied,  # UNAUTHENTICATED
}
_NUMBERS: Final[Mapping[str, int]] = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
}


def to_error(status: status_pb2.Status, what: str) -> errors.Error | None:
    """The error that a status stands for, None for OK.

    Args:
        what: the call and its peer, for the message.
    """
    if status.code == OK:
        return None
    kind = _ERRORS.get(status.code, ShimFailed)
    message = " ".join(status.message.split()) or f"status {status.code} without a message"
    return kind(f"{what}: {message}")


def from_error(error: BaseException) -> status_pb2.Status:
    """The status that a peer of ours is given for an error."""
    return status_pb2.Status(
        code=_NUMBERS.get(errors.grpc_code(error), _UNKNOWN), message=errors.one_line(error)
    )
