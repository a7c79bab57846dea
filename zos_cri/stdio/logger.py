"""The logger: all containers' streams in one loop, and what may be asked of them."""

from __future__ import annotations

import collections
import os
import time
from typing import TYPE_CHECKING, Final

import zos_cri
from zos_cri.errors import AlreadyExists, Error, FailedPrecondition, InvalidArgument, NotFound
from zos_cri.log import get_log
from zos_cri.stdio.container import Container
from zos_cri.stdio.messages import Attached, Finished, LoggerStatus, LogSpec
from zos_cri.stdio.state import Saved, StateDir
from zos_cri.stdio.stream import Outcome, Pipe, Stream
from zos_cri.stdio.tap import Tap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zos_cri.stdio.loop import Loop

_log = get_log(__name__)

# How long the streams that are ready are served until somebody else is asked for.
_TURN: Final = 0.01
_MIN_LINE: Final = 64  # a shorter limit would make a log of prefixes; 0 and less is no limit


class Logger:
    """The containers. One thread, never blocked but by the log files' file systems."""

    def __init__(self, *, loop: Loop, state: StateDir) -> None:
        self._loop = loop
        self._state = state
        self._pipe = Pipe()
        self._containers: dict[str, Container] = {}
        self._ready: collections.deque[tuple[Container, Stream]] = collections.deque()
        self._started = time.monotonic()
        self._gone = collections.Counter[str]()  # what forgotten containers had counted
        self.stopping = False

    def take_over(self) -> None:
        """Goes on with the containers of a logger that was killed."""
        for saved in self._state.load():
            container = self._new(saved.spec)
            try:
                container.sink.open(saved.inode)
            except (OSError, Error) as error:  # tried again with the first entry
                _log.error("log file", container=saved.spec.id, error=str(error))
            try:
                container.open_streams(taken_over=True)
            except (OSError, Error) as error:
                _log.error("container is lost", container=saved.spec.id, error=str(error))
                container.close()
                self._state.remove(saved.spec.id)
                continue
            self._containers[saved.spec.id] = container
            self._note(container)
        _log.info("logger serves", containers=len(self._containers))

    def run(self) -> None:
        """Until `stopping`. What is in the FIFOs then waits for the next logger."""
        while not self.stopping:
            self.turn()

    def turn(self, *, block: bool = True) -> None:
        """Handles what there is; where that is nothing, waits for something (with `block`)."""
        self._loop.poll(block=block and not self._ready)
        end = time.monotonic() + _TURN
        while self._ready and (now := time.monotonic()) < end:
            self._step(*self._ready.popleft(), now)

    def close(self) -> None:
        for container in self._containers.values():
            container.close()
        self._pipe.close()

    # What clients ask for

    def attach(self, spec: LogSpec) -> None:
        """See `messages.Attach`."""
        if 0 < spec.max_line < _MIN_LINE:
            raise InvalidArgument(f"{spec.id}: max_line {spec.max_line} is under {_MIN_LINE}")
        container = self._containers.get(spec.id)
        if container is not None:
            if not container.spec.same_streams(spec):
                raise AlreadyExists(f"{spec.id}: attached already, to something else")
            container.open_streams()  # a second try at a start reads again
            return
        container = self._new(spec)
        try:
            container.sink.open()
            self._state.save(Saved(spec=spec, inode=container.sink.inode))
            container.open_streams()
        except BaseException:
            container.close()
            self._state.remove(spec.id)
            raise
        self._containers[spec.id] = container

    def reopen(self, container_id: str) -> None:
        """See `messages.Reopen`."""
        container = self._get(container_id)
        container.sink.reopen()
        self._note(container)
        self._wake(container)

    def finish(self, container_id: str, timeout: float, answer: Callable[[Finished], None]) -> None:
        """See `messages.Finish`; `answer` is called once."""
        container = self._containers.get(container_id)
        if container is None:
            answer(Finished(known=False))
            return
        container.waiters.append(answer)
        for stream in container.streams:
            if not stream.ended:
                stream.finishing = True
                stream.poke()
        self._wake(container)
        self._loop.hurry()
        if container.deadline is None:
            container.deadline = self._loop.call_later(timeout, lambda: self._cut_off(container))
        self._check_end(container)

    def detach(self, container_id: str) -> None:
        """See `messages.Detach`."""
        container = self._containers.get(container_id)
        if container is not None:
            self._cut_off(container)

    def tap(self, container_id: str, fds: Sequence[tuple[str, int]]) -> None:
        """See `messages.Tap`. Owns the descriptors from the moment on that nothing is wrong.

        Args:
            fds: by the stream's name. One for a stream that the container doesn't have is closed.
        """
        container = self._get(container_id)
        streams = {stream.name: stream for stream in container.streams}
        if container.ended:
            raise FailedPrecondition(f"{container_id}: its output has come to its end")
        for name, fd in fds:
            stream = streams.get(name)
            if stream is None or stream.ended:
                os.close(fd)
            else:
                self._add_tap(container, stream, fd)

    def list(self) -> list[Attached]:
        return [container.attached() for container in self._containers.values()]

    def status(self) -> LoggerStatus:
        counted = self._gone + collections.Counter[str]()
        for container in self._containers.values():
            counted.update(_counters(container))
        return LoggerStatus(
            pid=os.getpid(),
            version=zos_cri.__version__,
            uptime=time.monotonic() - self._started,
            containers=len(self._containers),
            taps=sum(len(s.taps) for c in self._containers.values() for s in c.streams),
            bytes_in=counted["in"],
            bytes_out=counted["out"],
            bytes_dropped=counted["dropped"],
            write_errors=counted["errors"],
            cpu_seconds=time.process_time(),
        )

    # Streams

    def _new(self, spec: LogSpec) -> Container:
        return Container(
            spec, pipe=self._pipe, state=self._state, loop=self._loop, on_change=self._enqueue
        )

    def _enqueue(self, container: Container, stream: Stream) -> None:
        if not stream.queued and not stream.waiting and not stream.ended:
            stream.queued = True
            self._ready.append((container, stream))

    def _wake(self, container: Container) -> None:
        for stream in container.streams:
            stream.waiting = False
            self._enqueue(container, stream)

    def _step(self, container: Container, stream: Stream, now: float) -> None:
        stream.queued = False
        try:
            outcome = stream.pump(now)
        except Exception:
            # One container's trouble must not be all the others'. It is tried again when more
            # comes.
            _log.exception("a stream's step failed", container=container.spec.id, fifo=stream.path)
            return
        if outcome is Outcome.MORE:
            self._enqueue(container, stream)
        elif outcome is Outcome.WAIT:
            self._wait(container, stream, container.sink.retry_at - now)
        elif outcome is Outcome.ENDED:
            self._check_end(container)

    def _wait(self, container: Container, stream: Stream, delay: float) -> None:
        def again() -> None:
            stream.waiting = False
            self._enqueue(container, stream)

        stream.waiting = True
        self._loop.call_later(max(0.0, delay), again)

    def _add_tap(self, container: Container, stream: Stream, fd: int) -> None:
        def changed() -> None:
            stream.taps = [other for other in stream.taps if not other.gone]
            self._enqueue(container, stream)

        stream.tap(Tap(fd, self._loop, changed))

    # A container's end

    def _check_end(self, container: Container) -> None:
        if container.ended and container.waiters:
            self._forget(container, complete=True)

    def _cut_off(self, container: Container) -> None:
        """The time of `finish` is over."""
        now = time.monotonic()
        for stream in container.streams:
            if not stream.ended:
                stream.finish(now)
        self._forget(container, complete=False)

    def _forget(self, container: Container, *, complete: bool) -> None:
        container.close()
        self._gone.update(_counters(container))
        self._state.remove(container.spec.id)
        del self._containers[container.spec.id]
        for answer in container.waiters:
            answer(container.finished(complete=complete))

    def _get(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise NotFound(f"logger: no container {container_id}") from None

    def _note(self, container: Container) -> None:
        try:
            self._state.save(Saved(spec=container.spec, inode=container.sink.inode))
        except OSError as error:  # the inode is only for mending a rotated file
            _log.error("state file", container=container.spec.id, error=str(error))


def _counters(container: Container) -> dict[str, int]:
    return {
        "in": sum(stream.bytes_in for stream in container.streams),
        "out": container.sink.written,
        "dropped": container.sink.dropped,
        "errors": container.sink.errors,
    }
