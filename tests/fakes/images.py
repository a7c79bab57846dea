"""Images that are on this host, as the layer above containers sees them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zos_cri.images.model import Image, ImageConfig
from zos_cri.linux.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zos_cri.linux.idmap import IdMappings

BUSYBOX = Image(
    id="sha256:" + "1" * 64,
    repo_tags=("docker.io/library/busybox:latest",),
    repo_digests=(),
    size=7,
    config=ImageConfig(env=("A=b",), cmd=("sh",), stop_signal="SIGQUIT"),
    chain_ids=("sha256:" + "2" * 64,),
)


class FakeImages:
    """One image; root filesystems are noted while they are prepared."""

    def __init__(self) -> None:
        self.image = BUSYBOX
        self.rootfs: dict[str, str] = {}
        self.id_mappings: dict[str, IdMappings | None] = {}
        self.failures: dict[str, BaseException] = {}

    def _enter(self, name: str) -> None:
        if name in self.failures:
            raise self.failures[name]

    async def status(self, ref: str) -> Image | None:
        known = (self.image.id, *self.image.repo_tags, "busybox")
        return self.image if ref in known else None

    async def prepare_rootfs(
        self,
        image_id: str,
        container_id: str,
        *,
        id_mappings: IdMappings | None = None,
        options: Sequence[str] = (),
    ) -> tuple[Mount, ...]:
        self._enter("prepare_rootfs")
        self.rootfs[container_id] = image_id
        self.id_mappings[container_id] = id_mappings
        return (Mount(type="overlay", source="overlay", options=("lowerdir=/x", *options)),)

    async def prepare_volumes(
        self, image_id: str, container_id: str, targets: Sequence[str]
    ) -> dict[str, str]:
        self._enter("prepare_volumes")
        assert self.rootfs[container_id] == image_id
        return {target: f"/volumes{target}" for target in targets}

    async def mount_view(
        self, image_id: str, container_id: str, name: str, sub_path: str = "", *, userns: str = ""
    ) -> Path | None:
        self._enter("mount_view")
        assert self.rootfs[container_id]
        return None if sub_path == "absent" else Path(f"/views/{container_id}/{name}")

    async def release_rootfs(self, container_id: str) -> None:
        self._enter("release_rootfs")
        self.rootfs.pop(container_id, None)

    async def read_files(
        self, image_id: str, paths: Sequence[str], limit: int
    ) -> dict[str, bytes | None]:
        self._enter("read_files")
        return dict.fromkeys(paths) | {"etc/passwd": b"root:x:0:0::/root:/bin/sh\n"}


class FakeOutput:
    """Streams that lead nowhere."""

    def __init__(self) -> None:
        self.attached: dict[str, str] = {}
        self.finished: list[str] = []
        self.failures: dict[str, BaseException] = {}

    def stdio(self, id_: str, *, stdin: bool, terminal: bool) -> object:
        from zos_cri.store.model import Stdio

        return Stdio(stdout=f"/fifo/{id_}/stdout", terminal=terminal)

    async def make(self, meta: object) -> None:
        if "make" in self.failures:
            raise self.failures["make"]

    async def attach(self, meta: object, *, log_path: str, log_root: str) -> None:
        if "attach" in self.failures:
            raise self.failures["attach"]
        assert not log_path or log_path.startswith(f"{log_root}/")
        self.attached[meta.id] = log_path  # type: ignore[attr-defined]

    async def finish(self, id_: str) -> None:
        self.finished.append(id_)

    async def detach(self, id_: str) -> None:
        if "detach" in self.failures:
            raise self.failures["detach"]
        self.attached.pop(id_, None)
