"""The system calls that Python 3.11 has no function for: one function each, nothing else.

Every function raises `OSError` (the subclass that fits the errno) with the path that the call was
about as its `filename`. Descriptors made here are close-on-exec. The GIL is released during the
call, and what the kernel keeps for each thread (namespaces) is changed for the calling one.

The numbers of calls newer than Linux 5.0 are the same on every architecture but alpha; older calls
go through libc's own functions.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

# mount(2)
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_SYNCHRONOUS: Final = 0x10
MS_REMOUNT: Final = 0x20
MS_MANDLOCK: Final = 0x40
MS_DIRSYNC: Final = 0x80
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SILENT: Final = 0x8000
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

# umount2(2)
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

# clone(2), unshare(2), setns(2)
CLONE_FS: Final = 0x200
CLONE_NEWNS: Final = 0x20000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

# openat2(2)
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# the mount API of Linux 5.2; mount_setattr(2) of 5.12
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000
OPEN_TREE_CLONE: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_SYMLINKS: Final = 0x10
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR__ATIME: Final = 0x70  # the mask of the three below; relatime is 0
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000

_CLOEXEC: Final = os.O_CLOEXEC
_FSOPEN_CLOEXEC: Final = 1
_FSMOUNT_CLOEXEC: Final = 1

_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_PR_SET_PDEATHSIG: Final = 1
_SYS_SETRESUID: Final = {"x86_64": 117, "aarch64": 147, "riscv64": 147}


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _check(result: int, path: str | None = None, path2: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path, None, path2)
    return result


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _long(value: int) -> ctypes.c_long:
    """An argument of syscall(2): variadic, so each must have the width of a register."""
    return ctypes.c_long(value)


def mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2)."""
    result = _libc.mount(
        _bytes(source),
        _bytes(target),
        _bytes(fstype),
        ctypes.c_ulong(flags),
        _bytes(data),
    )
    _check(result, target)


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(_bytes(target), flags), target)


def unshare(flags: int) -> None:
    """unshare(2), for the calling thread."""
    _check(_libc.unshare(flags))


def setns(fd: int, kind: int = 0) -> None:
    """setns(2), for the calling thread; `kind` is a CLONE_NEW* that the descriptor must be of."""
    _check(_libc.setns(fd, kind))


def sethostname(name: str) -> None:
    """sethostname(2), in the calling thread's uts namespace."""
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, ctypes.c_size_t(len(encoded))))


def syncfs(fd: int) -> None:
    """syncfs(2): writes out the file system that `fd` lies on."""
    _check(_libc.syncfs(fd))


def filesystem_type(fd: int) -> int:
    """fstatfs(2): what kind of file system a file lies on, by its magic number."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes; its first is a word
    _check(_libc.fstatfs(fd, buffer))
    return ctypes.c_ulong.from_buffer(buffer).value


def set_parent_death_signal(sig: int) -> None:
    """prctl(PR_SET_PDEATHSIG): a signal to this process when the thread that forked it ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(sig), *[ctypes.c_ulong(0)] * 3))


def tee(source: int, sink: int, count: int, flags: int = 0) -> int:
    """tee(2): copies up to `count` bytes from pipe to pipe without consuming them."""
    _libc.tee.restype = ctypes.c_ssize_t
    return _check(_libc.tee(source, sink, ctypes.c_size_t(count), ctypes.c_uint(flags)))


def set_thread_euid(uid: int) -> None:
    """Sets the effective user of the calling thread alone; it can't be taken back (nor should it).

    libc's own seteuid would change all threads. For a thread that ends soon after.
    """
    number = _SYS_SETRESUID[os.uname().machine]
    _check(_libc.syscall(_long(number), _long(-1), _long(uid), _long(-1)))


def openat2(dir_fd: int, path: str, *, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2): a descriptor.

    EAGAIN (a rename elsewhere in the tree raced a `..`) is passed on as BlockingIOError.
    """
    how = _OpenHow(flags | _CLOEXEC, mode, resolve)
    result = _libc.syscall(
        _long(_SYS_OPENAT2),
        _long(dir_fd),
        _bytes(path),
        ctypes.byref(how),
        _long(ctypes.sizeof(how)),
    )
    return _check(result, path)


def open_tree(dir_fd: int, path: str, flags: int) -> int:
    """open_tree(2): a descriptor of a mount, with OPEN_TREE_CLONE of a detached copy."""
    result = _libc.syscall(
        _long(_SYS_OPEN_TREE), _long(dir_fd), _bytes(path), _long(flags | _CLOEXEC)
    )
    return _check(result, path)


def move_mount(fd: int, target: str) -> None:
    """move_mount(2): attaches a detached mount at `target`, following its symbolic links."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS
    result = _libc.syscall(
        _long(_SYS_MOVE_MOUNT),
        _long(fd),
        b"",
        _long(AT_FDCWD),
        _bytes(target),
        _long(flags),
    )
    _check(result, target)


def fsopen(fstype: str) -> int:
    """fsopen(2): a descriptor of a file system still to be configured."""
    result = _libc.syscall(_long(_SYS_FSOPEN), _bytes(fstype), _long(_FSOPEN_CLOEXEC))
    return _check(result, fstype)


def fsconfig(fd: int, command: int, key: str | None = None, value: str | None = None) -> None:
    """fsconfig(2), for flags, strings (at most 255 bytes) and commands."""
    result = _libc.syscall(
        _long(_SYS_FSCONFIG), _long(fd), _long(command), _bytes(key), _bytes(value), _long(0)
    )
    _check(result, value)


def fsmount(fd: int, attributes: int = 0) -> int:
    """fsmount(2): a descriptor of the detached mount of a created file system."""
    result = _libc.syscall(
        _long(_SYS_FSMOUNT), _long(fd), _long(_FSMOUNT_CLOEXEC), _long(attributes)
    )
    return _check(result)


def mount_setattr(
    dir_fd: int,
    path: str,
    flags: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2); `flags` are AT_EMPTY_PATH and AT_RECURSIVE."""
    attr = _MountAttr(attr_set, attr_clr, propagation, userns_fd)
    result = _libc.syscall(
        _long(_SYS_MOUNT_SETATTR),
        _long(dir_fd),
        _bytes(path),
        _long(flags),
        ctypes.byref(attr),
        _long(ctypes.sizeof(attr)),
    )
    _check(result, path)


def malloc_trim() -> None:
    """Gives freed memory back to the kernel (glibc's; other libcs don't hold it)."""
    trim = getattr(_libc, "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))
