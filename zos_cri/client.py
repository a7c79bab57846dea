"""The Python API: a server's images and containers, without Kubernetes.

    from zos_cri.client import Client, Container, Network

    with Client() as client:
        client.pull("docker.io/library/redis:alpine")
        id_ = client.run(Container(name="redis", flist=..., network=Network("redis"), ...))

docs/module.md has a whole example. A client is one connection, and may be used by threads together.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

from zos_cri._pb import container_pb2, container_pb2_grpc, cri_pb2, cri_pb2_grpc
from zos_cri._pb import image_pb2 as images_pb2
from zos_cri._pb import image_pb2_grpc as images_pb2_grpc
from zos_cri.cli.client import DEFAULT_SOCKET, TIMEOUT, error_of
from zos_cri.module.model import Container, Inspection, MountInfo, Network, Usage
from zos_cri.module.service import inspection_from_pb, to_pb
from zos_cri.module.types import ExecResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Self

__all__ = [
    "DEFAULT_SOCKET",
    "Client",
    "Container",
    "ExecResult",
    "Inspection",
    "MountInfo",
    "Network",
    "Usage",
]


class Client:
    """A connection to a server. Use it by `with`, or `close` it.

    Every call raises the errors of `zos_cri.errors` that the server answers with, and Unavailable
    where there is no server.
    """

    def __init__(self, socket: str = DEFAULT_SOCKET, *, ns: str = "default") -> None:
        """
        Args:
            socket: the server's.
            ns: the namespace of the containers.
        """
        self._path = socket
        self._ns = ns
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._module: Any = container_pb2_grpc.ContainerModuleStub(self._channel)  # type: ignore[no-untyped-call]
        self._images: Any = images_pb2_grpc.ImageModuleStub(self._channel)  # type: ignore[no-untyped-call]
        self._cri: Any = cri_pb2_grpc.ImageServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the connection; containers run on."""
        self._channel.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise error_of(error, self._path) from error

    # ---- images

    def pull(
        self,
        image: str,
        *,
        username: str = "",
        password: str = "",
        on_progress: Callable[[Sequence[Any]], None] | None = None,
    ) -> str:
        """Pulls an image, or makes one of an flist (`flist:PATH`, `flist:URL`); its id.

        Args:
            on_progress: gets the state of all layers, again and again.

        Raises:
            NotFound: the registry has no such image.
        """
        request = images_pb2.PullRequest(image=image, username=username, password=password)
        id_ = ""
        with self._errors():
            for answer in self._images.Pull(request):
                if on_progress is not None and answer.layers:
                    on_progress(answer.layers)
                id_ = answer.image_id or id_
        return id_

    def remove_image(self, image: str) -> None:
        """Removes an image; nothing to do where there is none."""
        request = cri_pb2.RemoveImageRequest(image=cri_pb2.ImageSpec(image=image))
        with self._errors():
            self._cri.RemoveImage(request, timeout=TIMEOUT)

    # ---- containers; an id is the id, its beginning, or the name

    def run(self, container: Container) -> str:
        """Creates and starts a container; its id. One that can't be started leaves nothing.

        Raises:
            InvalidArgument: a field is wrong; the message names it.
            NotFound: the image, the network namespace or a mount's source isn't there.
            AlreadyExists: the name is taken in this namespace.
        """
        request = container_pb2.RunRequest(ns=self._ns, container=to_pb(container))
        with self._errors():
            return str(self._module.Run(request, timeout=TIMEOUT).id)

    def inspect(self, id_: str) -> Inspection:
        """A container, as it was given and as it is now.

        Raises:
            NotFound: there is none.
        """
        request = container_pb2.InspectRequest(ns=self._ns, id=id_)
        with self._errors():
            return inspection_from_pb(self._module.Inspect(request, timeout=TIMEOUT))

    def wait(self, id_: str, *, timeout: float | None = None) -> Inspection:
        """Waits until a container has exited; then it has `exit_code` and `finished_at`.

        Args:
            timeout: seconds; None is for ever.

        Raises:
            NotFound: there is none.
            DeadlineExceeded: it still runs.
        """
        # The log ends with the container.
        request = container_pb2.LogsRequest(ns=self._ns, id=id_, follow=True, tail_lines=0)
        with self._errors():
            for _ in self._module.Logs(request, timeout=timeout):
                pass
        return self.inspect(id_)

    def signal(self, id_: str, signal: str | int) -> None:
        """Sends a signal, by its name or number, to the first process.

        Raises:
            NotFound: there is no such container.
            FailedPrecondition: it doesn't run.
        """
        request = container_pb2.SignalRequest(ns=self._ns, id=id_, signal=str(signal))
        with self._errors():
            self._module.Signal(request, timeout=TIMEOUT)

    def exec(self, id_: str, argv: Sequence[str], *, timeout: float = 0) -> ExecResult:
        """Runs a command in a container to its end.

        Args:
            timeout: seconds after which it is killed; 0 is never.

        Raises:
            NotFound: there is no such container, or no such program in it.
            FailedPrecondition: it doesn't run.
            DeadlineExceeded: the timeout ran out.
        """
        request = container_pb2.ExecRequest(ns=self._ns, id=id_, argv=argv, timeout=timeout)
        with self._errors():
            answer = self._module.Exec(request)
        return ExecResult(answer.stdout, answer.stderr, answer.exit_code)

    def logs(
        self, id_: str, *, follow: bool = False, tail_lines: int | None = None
    ) -> Iterator[bytes]:
        """What a container wrote, oldest first.

        Args:
            follow: go on until it ends.
            tail_lines: begin with the last lines.

        Raises:
            NotFound: there is none.
        """
        request = container_pb2.LogsRequest(
            ns=self._ns, id=id_, follow=follow, tail_lines=tail_lines
        )
        with self._errors():
            for answer in self._module.Logs(request):
                yield answer.data

    def stats(self, id_: str) -> Usage:
        """What a running container uses.

        Raises:
            NotFound: there is no such container.
            FailedPrecondition: it doesn't run.
        """
        request = container_pb2.StatsRequest(ns=self._ns, id=id_)
        with self._errors():
            found = self._module.Stats(request, timeout=TIMEOUT)
        return Usage(timestamp=found.timestamp, cpu=found.cpu, memory=found.memory, pids=found.pids)

    def list(self) -> list[Inspection]:
        """The containers of this namespace."""
        with self._errors():
            found = self._module.List(container_pb2.ListRequest(ns=self._ns), timeout=TIMEOUT)
        return [inspection_from_pb(each) for each in found.containers]

    def delete(self, id_: str) -> None:
        """Stops a container, with its `shutdown_timeout`, and removes all of it but its log.

        Raises:
            NotFound: there is none.
        """
        request = container_pb2.DeleteRequest(ns=self._ns, id=id_)
        with self._errors():
            self._module.Delete(request, timeout=TIMEOUT)
