"""A pull, in the worker: from a reference to an image in the staging directory."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zos_cri.errors import DataLoss, InvalidArgument
from zos_cri.images import manifest as manifests
from zos_cri.images.assemble import Assembler, Parts, Tracker
from zos_cri.images.fetch import BlobFile, Fetcher, Verified
from zos_cri.images.hosts import hosts_for
from zos_cri.images.jobs import Done, Progress, Resolved
from zos_cri.images.layout import Layout
from zos_cri.images.model import Blob, NewImage, diff_ids, parse_config
from zos_cri.images.registry import Document, Repository
from zos_cri.images.tokens import Token, Tokens
from zos_cri.wire import reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.images.decompress import Source
    from zos_cri.images.jobs import AnyEvent, PullJob
    from zos_cri.images.signatures import Checker


def pull(job: PullJob, emit: Callable[[AnyEvent], None]) -> Done:
    """Pulls an image.

    Args:
        emit: told what the image consists of, and how far it is.

    Raises:
        Error: one line that says what failed, of which host or layer, and why.
    """
    try:
        ref = reference.parse(job.ref)
    except reference.InvalidReference as error:
        raise InvalidArgument(str(error)) from error
    tokens = Tokens({key: Token(*value) for key, value in job.tokens.items()})
    directories = [Path(path) for path in job.certs_dirs]
    repository = Repository(
        ref,
        hosts_for(ref.domain, directories),
        auth=job.auth,
        tokens=tokens,
        floor=job.fetching.floor,
    )
    checker = _checker(job, repository)
    # What is here may have come before there was a policy: then it is asked for as if it weren't.
    top = repository.document(ref.digest or ref.tag, known=() if checker else job.known)
    if not top.body:
        return Done(unchanged=top.digest, tokens=_out(tokens))
    image = _Image(job, repository, top)
    if checker is not None:
        checker.check(tuple(dict.fromkeys((top.digest, image.document.digest))))
    emit(image.resolved)
    tracker = Tracker(image.parts.blobs)
    archives = _Downloads(job, repository, image.parts.blobs)
    layers = Assembler(job, image.parts, tracker).run(archives, lambda now: emit(Progress(now)))
    names = [ref.key]
    if not ref.digest:
        names.append(ref.with_digest(top.digest))
    new = NewImage(
        id=image.id,
        config=image.config,
        manifest_digest=image.document.digest,
        manifest_type=image.document.media_type,
        manifest=image.document.body,
        chain_ids=image.parts.chain_ids,
        layers=layers,
        blobs=image.parts.blobs,
        names=tuple(names),
    )
    return Done(images=(new,), tokens=_out(tokens))


def _checker(job: PullJob, repository: Repository) -> Checker | None:
    """What checks the image's signatures; None where the policy asks for none."""
    if not job.fetching.policy:
        return None
    from zos_cri.images.signatures import Checker  # noqa: PLC0415 a worker's start is part of a pull

    checker = Checker(repository, job.fetching, Path(job.staging))
    return checker if checker.asks else None


class _Image:
    """The documents of an image: manifest and configuration, chosen from an index if need be."""

    def __init__(self, job: PullJob, repository: Repository, top: Document) -> None:
        platforms = manifests.platforms_of(os.uname().machine)
        name = str(repository.ref)
        self.document = top
        if manifests.kind_of(top.body, top.media_type) == "index":
            chosen = manifests.choose(top.body, platforms, name)
            self.document = repository.document(chosen.digest)
            if manifests.kind_of(self.document.body, chosen.media_type) != "manifest":
                raise DataLoss(f"{name}: {chosen.digest} in its index is no image manifest")
        manifest = manifests.parse_manifest(self.document.body)
        self.id = manifest.config.digest
        self.config = repository.small_blob(self.id, manifest.config.size)
        try:
            _, document = parse_config(self.config)
            found = diff_ids(document)
        except ValueError as error:
            raise DataLoss(f"{name}: configuration {self.id}: {error}") from error
        manifests.check_platform(document, platforms, name)
        if len(found) != len(manifest.layers):
            raise DataLoss(
                f"{name}: the manifest has {len(manifest.layers)} layers,"
                f" the configuration {len(found)}"
            )
        self.parts = Parts(
            blobs=manifest.layers, diff_ids=found, chain_ids=manifests.chain_ids(found)
        )
        self.resolved = Resolved(
            self.id,
            top.digest,
            self.parts.chain_ids,
            tuple(blob.digest for blob in manifest.layers),
        )


class _Downloads:
    """The layers' archives, from the registry or from among the blobs."""

    def __init__(self, job: PullJob, repository: Repository, blobs: tuple[Blob, ...]) -> None:
        self._job = job
        self._layout = Layout(Path(job.root))
        self._repository = repository
        self._blobs = blobs
        self._slots = threading.Semaphore(job.fetching.connections)

    def share(self, parts: int) -> None:
        self._repository.forget_connections()
        self._slots = threading.Semaphore(max(1, self._job.fetching.connections // parts))

    def open(self, index: int, tracker: Tracker) -> _Download:
        return _Download(
            self._layout,
            self._repository,
            self._blobs[index],
            connections=self._job.fetching.blob_connections,
            slots=self._slots,
            on_progress=lambda fetched: tracker.update(index, fetched=fetched, state="fetching"),
        )


class _Download:
    """One archive: while it comes, or where it lies already."""

    def __init__(
        self,
        layout: Layout,
        repository: Repository,
        blob: Blob,
        *,
        connections: int,
        slots: threading.Semaphore,
        on_progress: Callable[[int], None],
    ) -> None:
        self._layout = layout
        self._repository = repository
        self._blob = blob
        self._connections = connections
        self._slots = slots
        self._on_progress = on_progress
        self._place = layout.blob(blob.digest)
        self._resumed = True  # it may hold what an earlier attempt left
        self._avoid: set[str] = set()
        self._fetcher: Fetcher | None = None
        # The lock on the partial file also keeps a second fetch of this digest waiting.
        self._file = BlobFile(layout.ingest / f"{blob.digest.replace(':', '-')}.part", blob.size)
        self._there = _size(self._place) == blob.size
        self._reader: Verified | None = None

    def source(self) -> Source:
        if self._there:
            self._reader = Verified(_Stored(self._place), self._blob, self._progressed)
            return self._reader
        self._resumed = self._file.complete > 0
        self._fetcher = Fetcher(
            self._repository,
            self._blob,
            self._file,
            connections=self._connections,
            slots=self._slots,
            avoid=self._avoid,
        )
        self._fetcher.start()
        self._reader = Verified(self._file, self._blob, self._progressed)
        return self._reader

    def _progressed(self, _count: int) -> None:
        self._on_progress(self._blob.size if self._there else self._file.total)

    def verify(self) -> None:
        assert self._reader is not None  # `source` comes first
        self._reader.check()

    def retry(self) -> bool:
        """Once more from the beginning if it began with leftovers, or from hosts not asked yet."""
        self._stop()
        if self._there:
            self._there = False
            self._place.unlink(missing_ok=True)
        elif not self._resumed:
            used = self._fetcher.used if self._fetcher is not None else set()
            self._avoid |= used
            others = {host.host for host in self._repository.pull_hosts()} - self._avoid
            if not others:
                return False
        self._file.restart()
        return True

    def keep(self) -> None:
        if not self._there:
            os.rename(self._file.path, self._place)

    def close(self) -> None:
        self._stop()
        if self._there:
            with suppress(FileNotFoundError):
                os.unlink(self._file.path)
        self._file.close()

    def _stop(self) -> None:
        if self._fetcher is not None:
            self._file.fail(DataLoss("no longer wanted"))
            self._fetcher.join()


class _Stored:
    """A blob's file, as a source."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115

    def read(self, size: int) -> bytes:
        data = b"" if self._file.closed else self._file.read(size)
        if not data:
            self._file.close()
        return data


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _out(tokens: Tokens) -> dict[str, tuple[str, float]]:
    return {key: (token.value, token.expires) for key, token in tokens.known.items()}
