"""SELinux labels of files: a volume that asks for it gets the label of its container's mounts."""

from __future__ import annotations

import errno
import os
from typing import Final

from zos_cri.errors import InvalidArgument, PermissionDenied

_ATTRIBUTE: Final = "security.selinux"
# Relabelled, one of these would take the host down; and no volume is meant by any.
_NEVER: Final = frozenset(
    (
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/lib64",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/srv",
        "/sys",
        "/tmp",
        "/usr",
        "/var",
        "/var/lib",
        "/var/log",
    )
)


def relabel(top: str, label: str) -> None:
    """Gives a file, or a directory with all in it, a label; symbolic links are not followed.

    Stays on the file system of `top`. Blocks, and takes long with many files. A file system that
    knows no labels is left as it is.

    Raises:
        InvalidArgument: `top` is a directory of the system.
        PermissionDenied: the kernel's policy has no such label, or doesn't let us set it.
    """
    if os.path.realpath(top) in _NEVER:
        raise InvalidArgument(f"selinux_relabel: {top} is the system's, and isn't relabelled")
    value = label.encode() + b"\0"
    try:
        device = os.lstat(top).st_dev
        _set(top, value)
        if not os.path.isdir(top) or os.path.islink(top):
            return
        for parent, directories, files in os.walk(top):
            for name in [*directories, *files]:
                _set(os.path.join(parent, name), value)
            directories[:] = [
                name for name in directories if _device(os.path.join(parent, name)) == device
            ]
    except PermissionError as error:
        raise PermissionDenied(f"selinux_relabel: {error.filename}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EINVAL:
            what = f'the kernel\'s policy has no label "{label}"'
            raise PermissionDenied(f"selinux_relabel: {top}: {what}") from error
        if error.errno != errno.EOPNOTSUPP:
            raise


def _set(path: str, value: bytes) -> None:
    try:
        os.setxattr(path, _ATTRIBUTE, value, follow_symlinks=False)
    except FileNotFoundError:
        return  # gone meanwhile


def _device(path: str) -> int:
    try:
        return os.lstat(path).st_dev
    except FileNotFoundError:
        return -1
