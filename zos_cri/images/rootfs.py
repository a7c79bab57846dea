"""Containers' root filesystems: an overlay of an image's layers below a directory of its own."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import TYPE_CHECKING

import msgspec

from zos_cri.images import trees
from zos_cri.images.merged import is_opaque
from zos_cri.linux.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zos_cri.linux.idmap import IdMappings


def prepare(
    base: Path, lowers: Sequence[Path], id_mappings: IdMappings | None = None
) -> tuple[Mount, ...]:
    """Makes a container's directories `base`/fs and `base`/work, and says what to mount.

    Args:
        lowers: the layers' directories, the base layer's first; at least one.
        id_mappings: of the container's user namespace: the layers' files are to have its ids.
    """
    upper, work = base / "fs", base / "work"
    base.mkdir(mode=0o700, exist_ok=True)
    work.mkdir(mode=0o700, exist_ok=True)
    # An earlier `volatile` mount that was never used to an end would forbid this one.
    trees.remove(str(work / "work"))
    if not upper.exists():
        _make_upper(upper, lowers[-1], id_mappings)
    options = (
        f"lowerdir={':'.join(str(path) for path in visible(lowers))}",
        f"upperdir={upper}",
        f"workdir={work}",
        *overlay_options(),
        *(id_mappings.mount_options() if id_mappings is not None else ()),
    )
    return (Mount(type="overlay", source="overlay", options=options),)


def with_options(mounts: Sequence[Mount], options: Sequence[str]) -> tuple[Mount, ...]:
    """The same mounts with more options each."""
    return tuple(
        msgspec.structs.replace(mount, options=(*mount.options, *options)) for mount in mounts
    )


def visible(lowers: Sequence[Path]) -> tuple[Path, ...]:
    """The directories to stack, the uppermost first, as overlayfs wants them.

    A layer whose root is opaque hides all below it; overlayfs looks at no root's attribute.
    """
    shown = []
    for path in reversed(lowers):
        shown.append(path)
        if is_opaque(os.fsencode(path)):
            break
    return tuple(shown)


def overlay_options() -> tuple[str, ...]:
    """What every overlay of a container is mounted with.

    `index=off`: an upper directory may be seen from two mounts for a moment (shim and debugger),
    which an index forbids. `volatile` (Linux 5.10): a container's layer needs no sync at unmount;
    it doesn't outlive a crash of the host anyway.
    """
    options: tuple[str, ...] = ("index=off",)
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if release is not None and (int(release[1]), int(release[2])) >= (5, 10):
        options += ("volatile",)
    return options


def _make_upper(upper: Path, top: Path, id_mappings: IdMappings | None) -> None:
    """The upper directory's owner and mode are those that the merged root shows: the image's.

    Upper directories aren't mapped: the owner is the host's id of the image's.
    """
    status = os.stat(top)
    upper.mkdir(mode=0o700)
    owner = status.st_uid, status.st_gid
    os.chown(upper, *(id_mappings.owner(*owner) if id_mappings is not None else owner))
    os.chmod(upper, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(top):
        if not name.startswith("trusted.overlay."):
            with contextlib.suppress(OSError):  # a label that this filesystem doesn't take
                os.setxattr(upper, name, os.getxattr(top, name))
