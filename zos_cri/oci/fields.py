"""Checks of what a caller wrote, shared by all of `oci`: each error names the field."""

from __future__ import annotations

import json
import posixpath
from typing import Final

from zos_cri.errors import InvalidArgument

MAX_QUOTED: Final = 128
"""Characters of a caller's own text that an error repeats: enough to recognise it in one line."""
PATH_MAX: Final = 4096
"""linux/limits.h: the kernel takes no longer path."""


def bad(field: str, message: str) -> InvalidArgument:
    """The error for a field, to be raised by the caller: `field: message`."""
    return InvalidArgument(f"{field}: {message}")


def quote(text: str) -> str:
    """A caller's text between double quotes, on one line, cut to a readable length."""
    return json.dumps(text if len(text) <= MAX_QUOTED else text[:MAX_QUOTED] + "…")


def text(field: str, value: str) -> str:
    """A string that becomes part of execve's arguments or a path: no NUL can be in it.

    Raises:
        InvalidArgument: it has a NUL, which would cut it short for the kernel.
    """
    if "\0" in value:
        raise bad(field, "has a NUL byte")
    return value


def absolute_path(field: str, value: str) -> str:
    """An absolute path, without `//`, `.` and a trailing slash; `..` only as far as it is there.

    Raises:
        InvalidArgument: it is empty, relative, longer than the kernel takes, or has a NUL.
    """
    if not value:
        raise bad(field, "is empty")
    text(field, value)
    if not value.startswith("/"):
        raise bad(field, f"{quote(value)} is not an absolute path")
    if len(value.encode()) >= PATH_MAX:
        raise bad(field, f"is longer than {PATH_MAX - 1} bytes")
    # normpath keeps two leading slashes, as POSIX allows it to.
    return "/" + posixpath.normpath(value).lstrip("/")


def mount_target(field: str, value: str, *, dotdot: bool = False) -> str:
    """Where something is mounted inside a container, as a clean absolute path.

    `dotdot` lets `..` stand and be taken out, as for Kubernetes, whose API allows it.

    Raises:
        InvalidArgument: not absolute, the root itself, or with `..` where that isn't allowed.
    """
    clean = absolute_path(field, value)
    if not dotdot and ".." in value.split("/"):
        raise bad(field, f"{quote(value)} has a '..' in it")
    if clean == "/":
        raise bad(field, "the root of the container is not for mounting over")
    return clean


def depth(path: str) -> int:
    """How many names a clean absolute path has: mounts are made in this order."""
    return 0 if path == "/" else path.count("/")


def is_below(path: str, parent: str) -> bool:
    """Whether a clean path is `parent` itself or something under it."""
    return path == parent or path.startswith(parent.rstrip("/") + "/")
