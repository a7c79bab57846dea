"""Where the store keeps what, below its root directory (`/var/lib/zos-cri/images`).

    images.db              the catalogue
    blobs/<algorithm>/<hex>  layers' archives as the registry serves them
    l/<n>/                 unpacked layers; short names, so that many fit into a mount's options
    containers/<id>/       fs/ and work/: one container's overlay upper and work directories;
                           volumes/: its copies of what the image has in its VOLUMEs;
                           views/: where images are mounted that it has as volumes
    blocks/                flists' blocks
    ingest/                what workers are about; nothing in it is ever listed or mounted
    trash/                 on its way out

Whatever the catalogue doesn't name is garbage and is found by listing these directories.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri.linux.fsattr import spread_subdirectories

if TYPE_CHECKING:
    from pathlib import Path

# Only root enters the store: layers hold setuid programs that other users of the host must not
# reach. Containers see them through their mounts, which need no way through here.
_MODE: Final = 0o700


class Layout:
    """Paths of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.database = root / "images.db"
        self.lock = root / "lock"
        self.blobs = root / "blobs"
        self.layers = root / "l"
        self.containers = root / "containers"
        self.blocks = root / "blocks"
        self.ingest = root / "ingest"
        self.trash = root / "trash"

    def create(self) -> None:
        """Makes the directories that aren't there."""
        self.root.mkdir(mode=_MODE, parents=True, exist_ok=True)
        for path in (self.layers, self.containers, self.blocks, self.ingest, self.trash):
            path.mkdir(mode=_MODE, exist_ok=True)
        for algorithm in ("sha256", "sha384", "sha512"):
            (self.blobs / algorithm).mkdir(mode=_MODE, parents=True, exist_ok=True)
        # The lowest directory of an image without any layer, and the filler of a view of one.
        (self.layers / "0").mkdir(mode=0o755, exist_ok=True)
        spread_subdirectories(self.containers)

    def blob(self, digest: str) -> Path:
        """The archive of that digest (`sha256:…`)."""
        algorithm, _, encoded = digest.partition(":")
        return self.blobs / algorithm / encoded

    def layer(self, n: int) -> Path:
        return self.layers / str(n)

    def container(self, container_id: str) -> Path:
        return self.containers / container_id
