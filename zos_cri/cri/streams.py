"""What exec, attach and port-forward stream: the streaming server's backend."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

from zos_cri.cri.taps import Taps
from zos_cri.errors import NotFound
from zos_cri.oci import process
from zos_cri.streaming.dial import dial
from zos_cri.streaming.pipes import FdReader, FdWriter, PipeProcess

if TYPE_CHECKING:
    from zos_cri.cri.creation import Creation
    from zos_cri.cri.output import Output
    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.cri.views import Views
    from zos_cri.module.containers import Containers
    from zos_cri.module.execs import Execs
    from zos_cri.streaming.backend import (
        AttachRequest,
        Connection,
        ExecRequest,
        ProcessIO,
    )


class Streams:
    """Joins clients to processes and ports."""

    def __init__(
        self,
        *,
        containers: Containers,
        sandboxes: Sandboxes,
        creation: Creation,
        execs: Execs,
        output: Output,
        views: Views,
    ) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._creation = creation
        self._execs = execs
        self._output = output
        self._views = views

    async def exec(self, request: ExecRequest) -> ProcessIO:
        """Starts a command in a running container.

        Raises:
            NotFound, FailedPrecondition, Error: as `Execs.open`.
        """
        wanted = {"stdin": request.stdin, "stdout": request.stdout, "stderr": request.stderr}
        if request.tty:
            wanted |= {"stdout": True, "stderr": False}  # the terminal's one output

        def of(spec: dict[str, Any]) -> dict[str, Any]:
            return process.exec_process(spec, list(request.cmd), tty=request.tty)

        streams = [name for name, there in wanted.items() if there]
        exec_ = await self._execs.open(
            request.container_id, of, streams=streams, terminal=request.tty
        )
        return PipeProcess(
            stdin=(
                FdWriter(exec_.take("stdin"), exec_.take("stdin_guard")) if request.stdin else None
            ),
            stdout=FdReader(exec_.take("stdout")) if wanted["stdout"] else None,
            stderr=FdReader(exec_.take("stderr")) if wanted["stderr"] else None,
            wait=exec_.wait,
            resize=exec_.resize,
            on_stdin_closed=exec_.end_stdin,
            release=exec_.aclose,
        )

    async def attach(self, request: AttachRequest) -> ProcessIO:
        """Joins the streams of a running container: its output from now on.

        Raises:
            NotFound: no such container.
            FailedPrecondition: it doesn't run.
            Error: the logger can't hand its output on.
        """
        record = self._containers.running(request.container_id)
        meta = record.meta
        _, config = self._views.parts(record)
        shim = self._containers.shim(meta.id)
        with_stdin = request.stdin and bool(meta.stdio.stdin)
        outputs = {
            "stdout": request.stdout or request.tty,
            "stderr": request.stderr and not meta.stdio.terminal,
        }
        # A terminal's input can't be ended and begun again.
        once = with_stdin and config.stdin_once and not meta.stdio.terminal
        taps = Taps(self._output, meta.id, [name for name, on in outputs.items() if on])
        await taps.open()
        try:
            # In the loop: it takes no time, and a thread's descriptor would be lost to a cancel.
            stdin = _open_stdin(meta.stdio.stdin) if with_stdin else -1
        except BaseException:
            taps.close()
            raise

        async def wait() -> int:
            while not await self._containers.exits.wait(meta.id, timeout=None):
                pass
            ended = self._containers.get(meta.id)
            return ended.status.exit_code if ended is not None else 0

        async def end_stdin() -> None:
            with contextlib.suppress(NotFound):  # the container has ended
                await shim.task.close_io(meta.id)

        async def release() -> None:
            taps.close()
            if once:  # a client that was killed has not said that it sends no more
                await end_stdin()

        async def resize(width: int, height: int) -> None:
            await shim.task.resize_pty(meta.id, width=width, height=height)

        return PipeProcess(
            stdin=FdWriter(stdin) if stdin >= 0 else None,
            stdout=taps.reader("stdout"),
            stderr=taps.reader("stderr"),
            wait=wait,
            resize=resize,
            on_stdin_closed=end_stdin,
            keep_stdin=not once,
            release=release,
        )

    async def port_forward(self, pod_id: str, port: int) -> Connection:
        """Connects to a port in a pod's network: 127.0.0.1, then ::1.

        Raises:
            NotFound: no such pod.
            FailedPrecondition: it isn't ready.
            Unavailable: nobody listens there.
        """
        return await dial(port, netns=self._sandboxes.ready(pod_id).meta.netns)


def _open_stdin(path: str) -> int:
    """The writing end of a running container's input; -1 where it has been closed."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return -1
