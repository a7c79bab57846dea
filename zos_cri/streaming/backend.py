"""What the streaming server asks of the rest: processes' standard streams and pods' ports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ExecRequest:
    """CRI's ExecRequest."""

    container_id: str
    cmd: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """CRI's AttachRequest."""

    container_id: str
    tty: bool = False
    stdin: bool = False
    stdout: bool = False
    stderr: bool = False


@dataclass(frozen=True, slots=True)
class PortForwardRequest:
    """CRI's PortForwardRequest. SPDY clients name ports themselves; `ports` may then be empty."""

    pod_id: str
    ports: tuple[int, ...] = ()


class ProcessIO(Protocol):
    """A process, or an attachment to one, for as long as one client is connected.

    The server reads each output by one task and writes stdin by another; none is called after
    `aclose`, and `aclose` is called exactly once, whatever happened. Methods of streams that the
    request didn't ask for aren't called. Cancelling any call is safe and loses only that call.
    """

    async def read_stdout(self, limit: int) -> bytes:
        """1 to `limit` bytes as soon as there are any; b"" at the end."""
        ...

    async def read_stderr(self, limit: int) -> bytes:
        """As `read_stdout`. Not called with a terminal."""
        ...

    async def write_stdin(self, data: bytes) -> None:
        """Returns when all of it is in the pipe.

        Raises:
            BrokenPipeError: nobody reads it any more; the rest is then dropped, which isn't an
                error of the session.
        """
        ...

    async def close_stdin(self) -> None:
        """The client sends no more. For an attachment this ends the container's stdin only where
        the container is configured so (`stdin_once`)."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Sets the terminal's size. Called with a terminal only."""
        ...

    async def wait(self) -> int:
        """The exit code, when the process has ended: the one that was exec'd, or for an
        attachment the container's first."""
        ...

    async def aclose(self) -> None:
        """Releases everything. An exec'd process that still runs is killed, a container that was
        attached to is not."""
        ...


class Connection(Protocol):
    """One connection to a port of a pod."""

    async def read(self, limit: int) -> bytes:
        """1 to `limit` bytes as soon as there are any; b"" when the pod sends no more.

        Raises:
            OSError: the connection broke.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Returns when it may take more.

        Raises:
            OSError: the connection broke.
        """
        ...

    async def write_eof(self) -> None:
        """Ends our direction; the pod's goes on."""
        ...

    async def aclose(self) -> None:
        """Releases everything. Called exactly once."""
        ...


class Backend(Protocol):
    """What runs containers. A call that is cancelled (its client went away) or that raises has
    left nothing behind. Errors are `zos_cri.errors.Error`s; their message goes to the client.
    """

    async def exec(self, request: ExecRequest) -> ProcessIO:
        """Starts a command in a running container."""
        ...

    async def attach(self, request: AttachRequest) -> ProcessIO:
        """Joins the standard streams of a running container: output from now on."""
        ...

    async def port_forward(self, pod_id: str, port: int) -> Connection:
        """Connects to a port inside a pod's network: IPv4, then IPv6."""
        ...
