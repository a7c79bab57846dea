"""Running containers' root filesystems are taken out of the host's mounts (decision 0019)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from zos_cri.failpoints import step
from zos_cri.linux import blocking, mount
from zos_cri.log import get_log
from zos_cri.oci.base import ROOTFS
from zos_cri.shim import bundle as bundles

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

_log = get_log(__name__)

# Many at once cost less than each by itself, and who has ended by then costs nothing.
DELAY: Final = 1.0  # seconds


class Hiding:
    """Unmounts `<bundle>/rootfs` of what runs; the container has a mount of its own.

    Only for runtimes that are `Handler.on_host`: a virtual machine's or gVisor's files are served
    from the host's mount for as long as it runs. One that isn't hidden loses nothing by it: the
    shim takes its mount down with the task.

    Args:
        later: does something in the background.
        delay: seconds after a start.
    """

    def __init__(
        self, later: Callable[[Coroutine[Any, Any, None]], None], *, delay: float = DELAY
    ) -> None:
        self._later = later
        self._delay = delay
        self._waiting: list[Path] = []

    def soon(self, bundle: str) -> None:
        """A container runs, whose bundle this is."""
        self._waiting.append(Path(bundle))
        if len(self._waiting) == 1:
            self._later(self._hide())

    async def _hide(self) -> None:
        await asyncio.sleep(self._delay)
        waiting, self._waiting = self._waiting, []
        async with step("rootfs.hide"):
            await blocking.call(hide, waiting)


def hide(paths: Iterable[Path]) -> None:
    """Hides the root filesystems of these bundles' containers; blocks."""
    for path in paths:
        try:
            # A poststop hook may want to look at it, and comes before the shim takes it down.
            if not bundles.mentions(path, "poststop"):
                mount.unmount(str(path / ROOTFS), lazy=True)
        except FileNotFoundError:
            continue  # removed meanwhile
        except (OSError, mount.MountError) as error:
            _log.warning("root filesystem not hidden", bundle=str(path), error=error)
