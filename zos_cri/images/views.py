"""Images that containers mount as volumes: their layers, or a part of them, mounted read-only.

What is to be shown is looked up in the layers (`MergedView`), so no symbolic link of the image
leads out of it, and nothing can change between the look and the mount: layers are immutable and
only root enters the store. Directories become an overlay without an upper one; files are bound.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from zos_cri.linux.mount import Mount, mount, unmount_tree

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.images.merged import MergedView

_PARTS = "parts"  # where layers are mounted for a moment, to have their ids mapped


def mount_view(
    base: Path, name: str, view: MergedView, sub_path: str, *, filler: Path, userns: str = ""
) -> Path | None:
    """Mounts what an image has at `sub_path` below a container's directory. Blocks.

    Args:
        base: where the container's views are: `base`/`name` is made.
        sub_path: "" for all of the image.
        filler: an empty directory: overlayfs wants two.
        userns: path of the user namespace whose ids the files are to have.

    Returns:
        Where it is; None where the image has neither a directory nor a file there.

    Raises:
        MountError, OSError: the kernel refused; nothing is left mounted.
    """
    try:
        found = view.resolve(os.fsencode(sub_path))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return None
    if not found and not sub_path.strip("/."):
        found = (os.fsencode(filler),)
    mode = os.lstat(found[0]).st_mode if found else 0
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return None
    base.mkdir(mode=0o700, exist_ok=True)
    place = base / name
    with contextlib.ExitStack() as stack:
        owner: int | None = None
        if userns:
            owner = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, owner)
        if stat.S_ISREG(mode):
            place.touch()
            bind = Mount(type="bind", source=os.fsdecode(found[0]), options=("bind", "ro"))
            mount(bind, str(place), userns=owner)
            return place
        place.mkdir(exist_ok=True)
        directories = [os.fsdecode(path) for path in found]
        if owner is not None:
            directories = _mapped(base / f"{name}.{_PARTS}", directories, owner, stack)
        lower = ":".join([*directories, str(filler)])
        options = (f"lowerdir={lower}", "index=off", "ro")
        mount(Mount(type="overlay", source="overlay", options=options), str(place))
    return place


def _mapped(
    parts: Path, directories: list[str], userns: int, stack: contextlib.ExitStack
) -> list[str]:
    """The same directories with mapped ids; the overlay keeps them when these mounts go."""
    parts.mkdir(mode=0o700)
    stack.callback(parts.rmdir)
    result = []
    for number, directory in enumerate(directories):
        part = parts / str(number)
        part.mkdir()
        stack.callback(part.rmdir)
        mount(
            Mount(type="bind", source=directory, options=("bind", "ro")), str(part), userns=userns
        )
        stack.callback(unmount_tree, str(part), lazy=True)
        result.append(str(part))
    return result


def unmount_views(base: Path) -> None:
    """Takes down whatever is mounted below a container's directory of views. Blocks.

    Raises:
        MountError: something is mounted still, so nothing there may be removed.
    """
    if base.exists():
        # A shim's or a runtime's copy of our mount namespace may hold one a moment longer.
        unmount_tree(str(base), lazy=True)
