"""How commands reach the server: gRPC on its unix socket, errors as ours."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import grpc

from zos_cri import config, errors
from zos_cri._pb import container_pb2_grpc

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

DEFAULT_SOCKET: Final = str(config.Config().socket)
# A call that the server has no deadline for: Run waits for the runtime, Delete for the timeout.
TIMEOUT: Final = 300.0

_ERRORS: Final = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: errors.Unavailable,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unimplemented,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


def add_socket(parser: argparse.ArgumentParser) -> None:
    """The option that every client command has."""
    parser.add_argument(
        "--socket",
        default=DEFAULT_SOCKET,
        metavar="PATH",
        help="the server's socket (default: %(default)s)",
    )


@contextmanager
def channel(path: str) -> Iterator[grpc.Channel]:
    """A connection to the server.

    Raises:
        Error: what an RPC inside failed with, or Unavailable where no server is there.
    """
    with grpc.insecure_channel(f"unix:{path}") as connection:
        try:
            yield connection
        except grpc.RpcError as error:
            raise error_of(error, path) from error


@contextmanager
def module(path: str) -> Iterator[Any]:
    """The module's stub."""
    with channel(path) as connection:
        yield container_pb2_grpc.ContainerModuleStub(connection)  # type: ignore[no-untyped-call]


def error_of(error: grpc.RpcError, path: str) -> errors.Error:
    """What a server answered, as ours.

    Args:
        error: as gRPC raises it.
        path: of the socket, for the message where nobody answers.
    """
    code, details = error.code(), error.details() or ""
    if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
        if "permission denied" in details.lower():
            return errors.PermissionDenied(
                f"{path}: permission denied: be root, or in the group of server.socket_gid"
            )
        return errors.Unavailable(
            f"no server answers at {path}: is `zos-cri serve` running? (systemctl status zos-cri;"
            " --socket names another)"
        )
    return _ERRORS.get(code, errors.Internal)(details or code.name)
