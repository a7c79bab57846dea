"""The gRPC service zos.image.v1: pulls that can be watched, archives, garbage."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zos_cri._pb import image_pb2 as pb
from zos_cri.errors import InvalidArgument
from zos_cri.images.model import Auth

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from zos_cri.images.store import ImageStore

PROGRESS_INTERVAL: Final = 0.2  # seconds between two messages; more is no use to a person


class ImageService:
    """Translates between the service's messages and the store."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    @property
    def unary(self) -> Mapping[str, Callable[[Any], Awaitable[Any]]]:
        return {"Load": self._load, "Save": self._save, "Collect": self._collect}

    @property
    def streams(self) -> Mapping[str, Callable[[Any], AsyncGenerator[Any, None]]]:
        return {"Pull": self._pull}

    async def _pull(self, request: pb.PullRequest) -> AsyncGenerator[pb.PullResponse, None]:
        if not request.image:
            raise InvalidArgument("image: is empty")
        auth = Auth(username=request.username, password=request.password)
        given = auth if request.username else None
        pull = asyncio.create_task(self._images.pull(request.image, given))
        try:
            while not (await asyncio.wait((pull,), timeout=PROGRESS_INTERVAL))[0]:
                yield pb.PullResponse(layers=self._layers(request.image))
            yield pb.PullResponse(image_id=pull.result())
        finally:
            pull.cancel()  # where the caller has left

    def _layers(self, reference: str) -> list[pb.Layer]:
        progress = self._images.progress(reference)
        layers = progress.layers if progress is not None else ()
        return [
            pb.Layer(digest=each.digest, size=each.size, fetched=each.fetched, state=each.state)
            for each in layers
        ]

    async def _load(self, request: pb.LoadRequest) -> pb.LoadResponse:
        images = await self._images.load(_absolute(request.path))
        return pb.LoadResponse(
            images=[pb.Image(id=image.id, repo_tags=image.repo_tags) for image in images]
        )

    async def _save(self, request: pb.SaveRequest) -> pb.SaveResponse:
        if not request.images:
            raise InvalidArgument("images: none is named")
        await self._images.save(list(request.images), _absolute(request.path))
        return pb.SaveResponse()

    async def _collect(self, request: pb.CollectRequest) -> pb.CollectResponse:
        report = await self._images.gc(dry_run=request.dry_run)
        return pb.CollectResponse(
            layers=report.layers,
            archives=report.archives,
            bytes=report.bytes,
            blocks=report.blocks,
        )


def _absolute(path: str) -> Path:
    if not path.startswith("/"):
        raise InvalidArgument(f'path: "{path}" is not an absolute path')
    return Path(path)
