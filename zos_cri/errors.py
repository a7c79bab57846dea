"""What can go wrong, and the one table that turns it into gRPC codes.

    Error
    ├── InvalidArgument      the caller's configuration is wrong; the message names the field
    ├── NotFound             no such sandbox, container, image, exec
    ├── AlreadyExists        the name is taken by something else
    ├── FailedPrecondition   right call, wrong state (start of a running container, …)
    ├── PermissionDenied     the kernel or a registry refused
    │   └── SignatureValidationFailed   an image isn't signed as the policy asks
    ├── ResourceExhausted    disk, pids, memory, descriptors, tokens
    ├── DeadlineExceeded     a wait of ours ran out; the message names the stage
    ├── Cancelled            the caller went away
    ├── Unavailable          a peer (shim, registry, logger) is not there now; trying again may help
    │   └── RegistryUnavailable         no host answered as a registry does
    ├── Unimplemented        not there; the message says what
    ├── DataLoss             something stored is damaged
    └── Internal             the peer or we broke a rule

Packages derive their own errors from these. A message is one line: what failed, at which stage,
with the path or the id, and what to do about it. Where one error becomes another, it is by
`raise … from`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


class Error(Exception):
    """The root: whatever we raise on purpose."""


class InvalidArgument(Error):
    """The request or the configuration is wrong; trying again won't help."""


class NotFound(Error):
    """What the caller names isn't there."""


class AlreadyExists(Error):
    """The name belongs to something else."""


class FailedPrecondition(Error):
    """The thing is there, but not in a state for this call."""


class PermissionDenied(Error):
    """The kernel or a peer refused."""


class ResourceExhausted(Error):
    """A limit of the host or of ours is reached."""


class DeadlineExceeded(Error):
    """A wait ran out. What was asked for may still happen."""


class Cancelled(Error):
    """The caller went away."""


class Unavailable(Error):
    """A peer isn't there now."""


class RegistryUnavailable(Unavailable):
    """No host answered as a registry does. CRI's name for it begins the message."""


class SignatureValidationFailed(PermissionDenied):
    """An image isn't signed as the policy asks. CRI's name for it begins the message."""


class Unimplemented(Error):
    """Not offered here."""


class DataLoss(Error):
    """Something stored is damaged."""


class Internal(Error):
    """A rule was broken, by a peer or by us."""


_EXHAUSTED: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
_CODES: Final[Mapping[type[BaseException], str]] = {
    InvalidArgument: "INVALID_ARGUMENT",
    NotFound: "NOT_FOUND",
    AlreadyExists: "ALREADY_EXISTS",
    FailedPrecondition: "FAILED_PRECONDITION",
    PermissionDenied: "PERMISSION_DENIED",
    ResourceExhausted: "RESOURCE_EXHAUSTED",
    DeadlineExceeded: "DEADLINE_EXCEEDED",
    TimeoutError: "DEADLINE_EXCEEDED",
    Cancelled: "CANCELLED",
    Unavailable: "UNAVAILABLE",
    # The kubelet looks for CRI's names only in what has no better code.
    RegistryUnavailable: "UNKNOWN",
    SignatureValidationFailed: "UNKNOWN",
    Unimplemented: "UNIMPLEMENTED",
    DataLoss: "DATA_LOSS",
    Internal: "INTERNAL",
}


def grpc_code(error: BaseException) -> str:
    """The name of an error's gRPC code: its nearest listed ancestor's, UNKNOWN where there is none.

    A name, not a `grpc.StatusCode`, so that processes without gRPC (the logger, the pull worker)
    can use these errors.
    """
    if exhausted(error):
        return "RESOURCE_EXHAUSTED"
    for cls in type(error).__mro__:
        if cls in _CODES:
            return _CODES[cls]
    return "UNKNOWN"


def exhausted(error: BaseException) -> bool:
    """Whether the host has run out of what was needed: room on a disk, descriptors, memory."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTED


def one_line(error: BaseException) -> str:
    """An error's message on a single line, or its type's name where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
