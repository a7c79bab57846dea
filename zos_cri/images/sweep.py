"""What nothing needs any more goes: layers, archives, leftovers of work that was cut off.

A thing leaves the catalogue first; then its directory is renamed into the trash, which makes it
gone for everyone; removing the tree takes as long as it takes, elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.images.model import Usage
from zos_cri.images.trees import remove
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from zos_cri.images.catalog import Catalog
    from zos_cri.images.layout import Layout

_log = get_log(__name__)

# A kubelet tries a failed pull again within minutes; so long its archives may save it the way.
GRACE: Final = 3600.0
# Images that share files come and go in days; what was left alone for so long is seldom asked for.
BLOCKS_GRACE: Final = 7 * 86400.0
_PARTIAL: Final = ".part"


class GcReport(msgspec.Struct, frozen=True):
    """What went: counts, and the bytes of archives, blocks and (as recorded) of layers.

    Attributes:
        archives: whole and partly fetched ones.
        blocks: of flists, from the cache.
    """

    layers: int = 0
    archives: int = 0
    bytes: int = 0
    blocks: int = 0


def collect(
    catalog: Catalog,
    layout: Layout,
    leased: Collection[str],
    grace: float,
    *,
    dry_run: bool = False,
) -> GcReport:
    """Removes what neither an image nor a container nor a lease names. In the writer's thread.

    Args:
        grace: seconds that archives are kept which no manifest names.
        dry_run: only say what would go.
    """
    unused = [layer for layer in catalog.unused_layers() if layer.chain_id not in leased]
    if unused and not dry_run:
        catalog.drop_layers([layer.chain_id for layer in unused])
        for layer in unused:
            discard(layout, layout.layer(layer.n))
    removed, freed = 0, sum(layer.bytes for layer in unused)
    used = catalog.used_blobs()
    now = time.time()
    for path, digest in [*_archives(layout), *_partials(layout)]:
        if digest in leased or (digest in used and path.parent != layout.ingest):
            continue
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if now - status.st_mtime >= grace:
                if not dry_run:
                    path.unlink()
                removed += 1
                freed += status.st_size
    return GcReport(len(unused), removed, freed)


def collect_blocks(
    layout: Layout, grace: float, *, dry_run: bool = False
) -> tuple[GcReport, Usage]:
    """Removes flists' blocks that weren't used for `grace` seconds. May take its time.

    Returns:
        What went, and what all blocks that are left take.
    """
    removed = freed = kept = count = 0
    now = time.time()
    for directory in os.scandir(layout.blocks):
        for entry in os.scandir(directory.path):
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                # One that is being written has a name that begins with a dot.
                bound = max(grace, GRACE) if entry.name.startswith(".") else grace
                if now - status.st_mtime < bound:
                    kept, count = kept + status.st_blocks * 512, count + 1
                    continue
                if not dry_run:
                    os.unlink(entry.path)
                removed, freed = removed + 1, freed + status.st_blocks * 512
    return GcReport(bytes=freed, blocks=removed), Usage(kept, count)


def drop_archives(catalog: Catalog, layout: Layout, digests: Collection[str]) -> None:
    """Removes archives, whole or not, unless a manifest names them. In the writer's thread."""
    used = catalog.used_blobs()
    for path, digest in [*_archives(layout), *_partials(layout)]:
        if digest in digests and (digest not in used or path.parent == layout.ingest):
            path.unlink(missing_ok=True)


def discard_strays(catalog: Catalog, layout: Layout) -> None:
    """At start: moves away what a kill left without a record, before anyone can come upon it.

    Containers' directories without a record are left to the module, which knows its containers and
    releases those that it doesn't.
    """
    known = {str(layer.n) for layer in catalog.layers.values()} | {"0"}
    for name in set(os.listdir(layout.layers)) - known:
        discard(layout, layout.layers / name)
    for name in os.listdir(layout.ingest):
        if not name.endswith(_PARTIAL):
            discard(layout, layout.ingest / name)


def discard(layout: Layout, path: Path) -> None:
    """Moves a tree into the trash, which is one rename; `empty_trash` does the work."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, layout.trash / f"{time.monotonic_ns()}-{path.name}")


def empty_trash(layout: Layout) -> None:
    """Removes all that is in the trash; what can't be removed now is tried again next time."""
    for entry in os.scandir(layout.trash):
        try:
            remove(entry.path)
        except OSError as error:
            _log.warning("can't remove", path=entry.path, error=error)


def _archives(layout: Layout) -> Iterator[tuple[Path, str]]:
    for algorithm in layout.blobs.iterdir():
        for path in algorithm.iterdir():
            yield path, f"{algorithm.name}:{path.name}"


def _partials(layout: Layout) -> Iterator[tuple[Path, str]]:
    for path in layout.ingest.iterdir():
        if path.name.endswith(_PARTIAL):
            algorithm, _, encoded = path.name.removesuffix(_PARTIAL).partition("-")
            yield path, f"{algorithm}:{encoded}"
