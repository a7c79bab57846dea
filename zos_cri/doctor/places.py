"""The directories that the server keeps things in, and the server itself."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from zos_cri.doctor.finding import Finding, fail, ok, warn
from zos_cri.linux.mount import mount_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zos_cri.config import Config

FREE_BYTES: Final = 5 << 30  # the kubelet's default imageGCHighThresholdPercent acts before that
FREE_SHARE: Final = 0.15
CONNECT_TIMEOUT: Final = 2.0
# On these an overlay's upper directory can't be.
NO_UPPER: Final = frozenset({"overlay", "nfs", "nfs4", "cifs", "vfat", "9p", "fuse", "squashfs"})


def existing(path: Path) -> Path:
    """A directory, or the nearest one above that is there."""
    for each in (path, *path.parents):
        if each.exists():
            return each
    return path


def check(config: Config) -> Iterator[Finding]:
    """Judges the directories."""
    yield _state(config.state_dir)
    yield _run(config.run_dir)
    yield server(config.socket)


def _state(path: Path) -> Finding:
    place = existing(path)
    filesystem = mount_of(os.path.realpath(place)).type
    if filesystem in NO_UPPER:
        return fail(
            "server.state",
            f"{path} is on {filesystem}, where containers' layers can't be",
            "set server.state to a directory on ext4, xfs or btrfs",
        )
    found = os.statvfs(place)
    free, size = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    shown = f"{path} on {filesystem}, {free / (1 << 30):.1f} of {size / (1 << 30):.1f} GiB free"
    if free < FREE_BYTES or free < size * FREE_SHARE:
        return warn("server.state", shown, "free some: zos-cri gc, or a larger disk")
    return ok("server.state", shown)


def _run(path: Path) -> Finding:
    filesystem = mount_of(os.path.realpath(existing(path))).type
    if filesystem == "tmpfs":
        return ok("server.run", f"{path} on tmpfs")
    return warn(
        "server.run",
        f"{path} on {filesystem}: what a reboot makes stale stays there",
        "set server.run to a directory on a tmpfs, as /run is",
    )


def server(path: Path) -> Finding:
    """Whether a server answers; that none does is nothing wrong before the first start."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONNECT_TIMEOUT)
            connection.connect(str(path))
    except FileNotFoundError:
        return ok("server", f"not started: {path} isn't there")
    except OSError as error:
        return warn(
            "server",
            f"{path}: {error.strerror or error}",
            "systemctl status zos-cri, journalctl -u zos-cri",
        )
    return ok("server", f"listens at {path}")
