"""The logger: all containers' streams in one loop, and what may be asked of them."""

from __future__ import annotations

import collections
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import zos_cri
from zos_cri.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from zos_cri.log import get_log
from zos_cri.stdio.background import Background
from zos_cri.stdio.container import Container
from zos_cri.stdio.keeper import Keeper
from zos_cri.stdio.logfile import LOCAL
from zos_cri.stdio.messages import Attached, Finished, LoggerStatus, LogSpec
from zos_cri.stdio.state import Saved, StateDir
from zos_cri.stdio.stream import Outcome, Pipe, Stream
from zos_cri.stdio.tap import Tap
from zos_cri.wire.crilog import MIN_LINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zos_cri.stdio.loop import Loop

    Answer = Callable[[Exception | None], None]

_log = get_log(__name__)

# How long the streams that are ready are served until somebody else is asked for.
_TURN: Final = 0.01
# What a call on a log file's path may take until whoever asked for it is told that the file system
# doesn't answer; under the client's own deadline.
OPEN_TIMEOUT: Final = 5.0
# What a container's end waits for its last entries to be written in the background, once the time
# that it had is over.
LANDING_TIMEOUT: Final = 2.0


class Logger:
    """The containers. One thread, which nothing blocks but the host's own disks."""

    def __init__(
        self,
        *,
        loop: Loop,
        state: StateDir,
        keeper: Keeper | None = None,
        open_timeout: float = OPEN_TIMEOUT,
        local: frozenset[int] = LOCAL,
    ) -> None:
        """
        Args:
            keeper: holds what we have open beyond our own end.
            open_timeout: seconds.
            local: file systems that can't hang, as `LogFile` has them.
        """
        self._loop = loop
        self._state = state
        self._keeper = keeper or Keeper()
        self._open_timeout = open_timeout
        self._local = local
        self._background = Background(loop)
        self._pipe = Pipe()
        self._containers: dict[str, Container] = {}
        self._opening: dict[str, tuple[Container, list[Answer]]] = {}  # attached before long
        self._ready: collections.deque[tuple[Container, Stream]] = collections.deque()
        self._started = time.monotonic()
        self._gone = collections.Counter[str]()  # what forgotten containers had counted
        self.stopping = False

    def take_over(self) -> None:
        """Goes on with the containers of a logger that was killed."""
        self._keeper.begin()
        for saved in self._state.load():
            container = self._new(saved.spec)
            try:
                self._open_streams(container, taken_over=True)
            except (OSError, Error) as error:
                _log.error("container is lost", container=saved.spec.id, error=str(error))
                container.close()
                self._state.remove(saved.spec.id)
                continue
            self._containers[saved.spec.id] = container
            container.sink.open(partial(self._taken_over, container), saved.inode)
        self._keeper.end()
        _log.info("logger serves", containers=len(self._containers))

    def _taken_over(self, container: Container, error: Exception | None) -> None:
        if error is not None:  # tried again with the first entry
            _log.error("log file", container=container.spec.id, error=str(error))
        self._note(container)

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
        self._background.close()
        for container in self._containers.values():
            container.close()
        for container, _ in self._opening.values():
            container.close()
        self._pipe.close()

    # What clients ask for

    def attach(self, spec: LogSpec, answer: Answer) -> None:
        """See `messages.Attach`; `answer` is called once.

        Raises:
            Error: it can't be; `answer` isn't called.
        """
        if 0 < spec.max_line < MIN_LINE:
            raise InvalidArgument(f"{spec.id}: max_line {spec.max_line} is under {MIN_LINE}")
        opening = self._opening.get(spec.id)
        container = opening[0] if opening else self._containers.get(spec.id)
        if container is not None and not container.spec.same_streams(spec):
            raise AlreadyExists(f"{spec.id}: attached already, to something else")
        if opening:
            opening[1].append(answer)
        elif container is not None:
            # A second try at a start reads again. That the first one's writers have gone may not be
            # seen yet, and must not end this one.
            if not container.waiters:
                self._open_streams(container)
            answer(None)
        else:
            self._state.check(spec.id)
            container = self._new(spec)
            self._opening[spec.id] = container, [answer]
            self._loop.call_later(self._open_timeout, partial(self._not_opened, container))
            container.sink.open(partial(self._opened, container))

    def _opened(self, container: Container, error: Exception | None) -> None:
        id_ = container.spec.id
        if error is None:
            try:
                self._state.save(Saved(spec=container.spec, inode=container.sink.inode))
                self._open_streams(container)
            except (OSError, Error) as refused:
                self._state.remove(id_)
                error = refused
        _, answers = self._opening.pop(id_)
        if error is None:
            self._containers[id_] = container
        else:
            container.close()
        for answer in answers:
            answer(error)

    def _not_opened(self, container: Container) -> None:
        opening = self._opening.get(container.spec.id)
        if opening is not None and opening[0] is container:
            self._opened(container, self._silent(container))

    def _silent(self, container: Container) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"log path {container.spec.log_path}: no answer from the file system within "
            f"{self._open_timeout:g} s"
        )

    def reopen(self, container_id: str, answer: Answer) -> None:
        """See `messages.Reopen`; `answer` is called once.

        Raises:
            NotFound: no such container; `answer` isn't called.
        """
        container = self._get(container_id)
        answers = [answer]

        def done(error: Exception | None) -> None:
            if error is None:
                self._note(container)
                self._wake(container)
            if answers:
                answers.pop()(error)

        self._loop.call_later(
            self._open_timeout, lambda: done(self._silent(container)) if answers else None
        )
        container.sink.reopen(done)

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
        opening = self._opening.get(container_id)
        if opening is not None:
            self._opened(opening[0], NotFound(f"{container_id}: detached meanwhile"))
        container = self._containers.get(container_id)
        if container is not None:
            self._cut_off(container)
            self._give_up(container)

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
            waiting=self._background.running,
        )

    # Streams

    def _new(self, spec: LogSpec) -> Container:
        return Container(
            spec,
            pipe=self._pipe,
            state=self._state,
            loop=self._loop,
            background=self._background,
            local=self._local,
            on_change=self._enqueue,
            on_landed=self._wake,
        )

    def _open_streams(self, container: Container, *, taken_over: bool = False) -> None:
        container.open_streams(taken_over=taken_over)
        self._keeper.hold(container.spec.id, [stream.fd for stream in container.streams])

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
            cut_off = any(stream.cut_off for stream in container.streams)
            self._forget(container, complete=not cut_off)

    def _cut_off(self, container: Container) -> None:
        """The time of `finish` is over."""
        now = time.monotonic()
        for stream in container.streams:
            if not stream.ended:
                stream.finish(now)
        if container.ended:
            self._forget(container, complete=False)
        else:  # the rest is being written in the background
            container.deadline = self._loop.call_later(
                LANDING_TIMEOUT, lambda: self._give_up(container)
            )

    def _give_up(self, container: Container) -> None:
        if self._containers.get(container.spec.id) is container:
            for stream in container.streams:
                stream.give_up()
            self._forget(container, complete=False)

    def _forget(self, container: Container, *, complete: bool) -> None:
        container.close()
        self._keeper.drop(container.spec.id)
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
