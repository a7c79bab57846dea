"""Pulls, from the server's side: who waits for which, how far they are, what becomes of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from zos_cri.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument
from zos_cri.failpoints import step
from zos_cri.images import workers
from zos_cri.images.jobs import (
    Fetching,
    FlistJob,
    LayerProgress,
    LoadJob,
    Progress,
    PullJob,
    Resolved,
)
from zos_cri.log import get_log
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from zos_cri.images.catalog import Catalog
    from zos_cri.images.jobs import AnyEvent, AnyJob, Done
    from zos_cri.images.layout import Layout
    from zos_cri.images.model import Auth, Image, NewImage

_log = get_log(__name__)


class PullReport(msgspec.Struct, frozen=True):
    """How a pull ended, for metrics.

    Attributes:
        seconds: it took, from the first caller's request.
        bytes: of archives that were fetched; layers: how many the image has.
        error: the error's class name; empty where it succeeded.
    """

    ref: str
    seconds: float
    bytes: int
    layers: int
    error: str = ""


class PullProgress(msgspec.Struct, frozen=True):
    """How far a pull is."""

    ref: str
    seconds: float
    layers: tuple[LayerProgress, ...]

    def summary(self) -> str:
        """`3 of 8 layers, 12.0 of 64.5 MiB`."""
        done = sum(layer.state == "done" for layer in self.layers)
        fetched = sum(layer.fetched for layer in self.layers) / (1 << 20)
        size = sum(layer.size for layer in self.layers) / (1 << 20)
        return f"{done} of {len(self.layers)} layers, {fetched:.1f} of {size:.1f} MiB"


class Holder(Protocol):
    """What pulls need of the store."""

    layout: Layout

    @property
    def catalog(self) -> Catalog: ...

    async def commit(self, new: NewImage) -> Image:
        """Takes an image over."""

    async def add_names(self, image_id: str, names: tuple[str, ...]) -> Image:
        """Further names for an image."""

    async def lease_all(self, key: object) -> dict[str, int]:
        """Keeps all layers there are from being collected; answers their numbers by chain id."""

    def lease(self, key: object, what: frozenset[str]) -> None:
        """Changes the lease: keeps chain ids and blobs' digests from being collected."""

    async def end_job(self, staging: str, *, drop_partials: bool) -> None:
        """Ends the lease, and removes the staging directory; with `drop_partials` also what of
        the lease's archives nobody names."""


class Pulls:
    """All pulls under way."""

    def __init__(
        self,
        holder: Holder,
        *,
        fetching: Fetching,
        certs_dirs: Sequence[Path],
        on_report: Callable[[PullReport], None] | None = None,
    ) -> None:
        self._holder = holder
        self._fetching = fetching
        self._certs_dirs = tuple(str(path) for path in certs_dirs)
        self._on_report = on_report
        self._running: dict[tuple[str, bytes], _Pull] = {}
        self._workers = workers.Workers()
        self._tokens: dict[str, tuple[str, float]] = {}

    async def pull(self, ref: str, auth: Auth | None, timeout: float | None) -> str:
        """Pulls an image, or waits for who is pulling it with the same credentials.

        Returns:
            The image's id.

        Raises:
            Error: what the pull ended with.
            DeadlineExceeded: this caller's `timeout` ran out.
        """
        try:
            key = reference.parse(ref).key
        except reference.InvalidReference as error:
            raise InvalidArgument(str(error)) from error
        identity = (key, msgspec.json.encode(auth))
        return await self._join(identity, timeout, lambda pull: self._run(pull, ref, auth))

    async def _join(
        self,
        identity: tuple[str, bytes],
        timeout: float | None,
        work: Callable[[_Pull], Awaitable[str]],
    ) -> str:
        """Waits for the pull of that identity, which is begun where it isn't under way."""
        running = self._running.get(identity)
        if running is None or running.given_up:
            pull = running = _Pull(identity[0])
            self._running[identity] = pull
            pull.task = asyncio.ensure_future(self._reported(pull, lambda: work(pull)))
            pull.task.add_done_callback(lambda _: self._ended(identity, pull))
        return await running.wait(timeout)

    def _ended(self, identity: tuple[str, bytes], pull: _Pull) -> None:
        if self._running.get(identity) is pull:
            del self._running[identity]
        if pull.task is not None and not pull.task.cancelled():
            pull.task.exception()  # seen, even where every caller has left

    async def flist(self, key: str, timeout: float | None) -> str:
        """Makes an image of an flist, or waits for who does. `key` is `flist:<path or URL>`."""
        location = key.partition(":")[2]
        return await self._join((key, b""), timeout, lambda pull: self._make_flist(pull, location))

    async def _make_flist(self, pull: _Pull, location: str) -> str:
        def make(common: dict[str, Any]) -> FlistJob:
            return FlistJob(**common, ref=pull.key, location=location)

        _, ids = await self._staged(pull, make)
        return ids[0]

    async def load(
        self, path: Path, on_progress: Callable[[PullProgress], None] | None
    ) -> tuple[str, ...]:
        """Takes in the images of an archive; answers their ids."""
        pull = _Pull(str(path), on_progress)
        _, ids = await self._staged(pull, lambda common: LoadJob(**common, path=str(path)))
        return tuple(dict.fromkeys(ids))

    async def _staged(
        self, pull: _Pull, make: Callable[[dict[str, Any]], AnyJob]
    ) -> tuple[Done, tuple[str, ...]]:
        """Runs a job with a staging directory of its own, and takes over what it made.

        Whatever happens, the staging directory is gone afterwards. Where the caller is cancelled,
        so is what was fetched for it alone.

        Args:
            make: from what all jobs are told, this job.
        """
        holder = self._holder
        staging = holder.layout.ingest / f"job-{secrets.token_hex(8)}"
        drop = False
        try:
            common = {
                "root": str(holder.layout.root),
                "staging": str(staging),
                "layers": await holder.lease_all(str(staging)),
                "fetching": self._fetching,
            }
            async with step("pull.stage"):
                staging.mkdir(mode=0o700)
            async with step("pull.fetch"):
                done = await self._workers.run(make(common), pull.listener(holder, str(staging)))
            async with step("pull.commit"):
                made = [(await holder.commit(image)).id for image in done.images]
            return done, tuple(made)
        except asyncio.CancelledError:
            drop = True
            raise
        finally:
            await asyncio.shield(holder.end_job(str(staging), drop_partials=drop))

    def progress(self, ref: str) -> PullProgress | None:
        """How far the pull of a reference or an flist is; None where none is under way."""
        try:
            key = reference.parse(ref).key
        except reference.InvalidReference:
            key = ref  # an flist's, or nothing's
        return next((p.progress() for p in self._running.values() if p.key == key), None)

    def all_progress(self) -> tuple[PullProgress, ...]:
        """Of every pull under way. Any thread may ask."""
        return tuple(pull.progress() for pull in list(self._running.values()))

    async def aclose(self) -> None:
        """Ends all pulls; who waits for them is told that they are cancelled."""
        tasks = [pull.task for pull in self._running.values() if pull.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._workers.aclose()

    async def _run(self, pull: _Pull, ref: str, auth: Auth | None) -> str:
        try:
            return await self._once(pull, ref, auth)
        except FailedPrecondition as gone:  # a layer was removed under the worker's feet
            _log.info("pull begins again", image=pull.key, why=gone)
            return await self._once(pull, ref, auth)

    async def _reported(self, pull: _Pull, work: Callable[[], Awaitable[str]]) -> str:
        """The work's result; how it ended goes to the log and to the metrics."""
        error = ""
        try:
            return await work()
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            now = pull.progress()
            fetched = sum(layer.fetched for layer in now.layers)
            if self._on_report is not None:
                self._on_report(PullReport(pull.key, now.seconds, fetched, len(now.layers), error))
            _log.info(
                "pull ended",
                image=pull.key,
                seconds=round(now.seconds, 3),
                how_far=now.summary(),
                error=error,
            )

    async def _once(self, pull: _Pull, ref: str, auth: Auth | None) -> str:
        parsed = reference.parse(ref)
        known = _known_digests(self._holder.catalog, parsed.name)
        if parsed.digest and parsed.digest not in known:
            known = {}
        tokens = {k: t for k, t in self._tokens.items() if t[1] > time.time()}

        def make(common: dict[str, Any]) -> PullJob:
            return PullJob(
                **common,
                ref=ref,
                certs_dirs=self._certs_dirs,
                auth=auth,
                known=tuple(known),
                tokens=tokens,
            )

        done, image_ids = await self._staged(pull, make)
        self._tokens = done.tokens
        if done.unchanged:
            image_id = known[done.unchanged]
            if image_id not in self._holder.catalog.images:
                raise FailedPrecondition(f"image {image_id}: removed meanwhile")
            names = [parsed.key, parsed.with_digest(done.unchanged)]
            return (await self._holder.add_names(image_id, tuple(names))).id
        return image_ids[0]


class _Pull:
    """One pull and those who wait for it."""

    def __init__(self, key: str, on_progress: Callable[[PullProgress], None] | None = None) -> None:
        self.key = key
        self._on_progress = on_progress
        self.task: asyncio.Task[str] | None = None
        self.layers: tuple[LayerProgress, ...] = ()
        self._began = time.monotonic()
        self._waiters = 0
        self.given_up = False

    def listener(self, holder: Holder, lease: str) -> Callable[[AnyEvent], None]:
        """Hears a worker's events: keeps what it needs from being collected, and how far it is."""

        def on_event(event: AnyEvent) -> None:
            if isinstance(event, Resolved):
                holder.lease(lease, frozenset((*event.chain_ids, *event.blobs)))
            elif isinstance(event, Progress):
                self.layers = event.layers
                if self._on_progress is not None:
                    self._on_progress(self.progress())

        return on_event

    def progress(self) -> PullProgress:
        return PullProgress(self.key, time.monotonic() - self._began, self.layers)

    async def wait(self, timeout: float | None) -> str:
        """The result. The last who leaves without it ends the work."""
        task = self.task
        assert task is not None  # made together
        self._waiters += 1
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # not this caller was cancelled, but the pull (we are closing)
                raise Cancelled(f"{self.key}: the pull was ended") from None
            raise
        except TimeoutError:
            if task.done():
                raise
            raise DeadlineExceeded(
                f"{self.key}: not pulled within {timeout:g} s: {self.progress().summary()}"
            ) from None
        finally:
            self._waiters -= 1
            if self._waiters == 0 and not task.done():
                self.given_up = True
                task.cancel()


def _known_digests(catalog: Catalog, name: str) -> dict[str, str]:
    """Digests of a repository whose images are here with all their layers, and their ids."""
    known = {}
    for key, image_id in list(catalog.names.items()):
        repository, at, digest = key.partition("@")
        image = catalog.images.get(image_id)
        if not at or repository != name or image is None:
            continue
        if all(chain_id in catalog.layers for chain_id in image.chain_ids):
            known[digest] = image_id
    return known
