"""A container as the logger has it: its streams, its sink, and who waits for its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.stdio.logfile import LogFile
from zos_cri.stdio.messages import Attached, Finished, LogSpec
from zos_cri.stdio.sink import Sink
from zos_cri.stdio.stream import Pipe, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.stdio.background import Background
    from zos_cri.stdio.loop import Loop, Timer
    from zos_cri.stdio.state import StateDir


class Container:
    """One container's log. Opens nothing yet."""

    def __init__(
        self,
        spec: LogSpec,
        *,
        pipe: Pipe,
        state: StateDir,
        loop: Loop,
        background: Background,
        local: frozenset[int],
        on_change: Callable[[Container, Stream], None],
        on_landed: Callable[[Container], None],
    ) -> None:
        log = LogFile(spec.log_path, spec.log_root, local=local) if spec.log_path else None
        self.spec = spec
        self.sink = Sink(
            spec.id,
            log,
            spec.drop_after,
            background=background,
            on_landed=lambda: on_landed(self),
        )
        self.streams = [
            Stream(
                name=name,
                path=path,
                pipe=pipe,
                sink=self.sink,
                part=state.part(spec.id, name),
                max_line=spec.max_line,
                loop=loop,
                on_change=lambda stream: on_change(self, stream),
            )
            for name, path in (("stdout", spec.stdout), ("stderr", spec.stderr))
            if path
        ]
        self.waiters: list[Callable[[Finished], None]] = []
        self.deadline: Timer | None = None

    @property
    def ended(self) -> bool:
        return all(stream.ended for stream in self.streams)

    def finished(self, *, complete: bool) -> Finished:
        return Finished(known=True, complete=complete, dropped=self.sink.dropped)

    def attached(self) -> Attached:
        return Attached(
            spec=self.spec,
            ended=self.ended,
            taps=sum(len(stream.taps) for stream in self.streams),
            bytes_in=sum(stream.bytes_in for stream in self.streams),
            bytes_dropped=self.sink.dropped,
            failing=self.sink.failing,
        )

    def open_streams(self, *, taken_over: bool = False) -> None:
        """Opens them, or raises as `Stream.open` does."""
        for stream in self.streams:
            stream.open(taken_over=taken_over)

    def close(self) -> None:
        """Lets go of everything; what is in the FIFOs stays there."""
        if self.deadline is not None:
            self.deadline.cancel()
        for stream in self.streams:
            stream.close()
        self.sink.close()
