"""Namespaces without a process in them: made, set up, and held by a bind mount on a file.

A namespace is made by a fresh thread that leaves the ones it shares with us, sets the new ones up,
and binds `/proc/thread-self/ns/<kind>` onto a file; then the thread ends and the file is all that
holds the namespace. A pool's thread is never used: it could not be put back with certainty.

Who else sees a pin. A mount namespace made later (each container's) copies all mounts, pins too; a
runtime's `pivot_root` and lazy unmount of the old root drop those copies at once. A container that
binds a host directory above the pins (`/run`) would keep copies as long as it lives, and with them
the namespaces. So pins are unbindable: `rbind` leaves them out. Where the pins' directory lies on a
shared mount, namespaces that are its peers or slaves see a pin come, and go when it is unpinned.
Where it is private they don't see it come; `mount.make_private_dir` makes it so.

A pin is always taken down lazily (as containerd does): whoever has the file open, a plugin that
runs too long, keeps the namespace only until it closes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from zos_cri.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from zos_cri.linux import blocking, spawn, syscalls
from zos_cri.linux.pidfd import readable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

T = TypeVar("T")

KINDS: Final = {
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "user": syscalls.CLONE_NEWUSER,
    "mnt": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
# What `pin` can make. A pid namespace without a process is dead; the others nobody needs pinned.
_PINNABLE: Final = ("net", "ipc", "uts")
# ioctl_nsfs(2)
_NS_GET_NSTYPE: Final = 0xB703
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_HOSTNAME_MAX: Final = 64  # __NEW_UTS_LEN
_MAPPINGS_MAX: Final = 340  # user_namespaces(7)
_ID_MAX: Final = 1 << 32


class NamespaceError(Internal):
    """The kernel refused a step; the message says which."""


class IdMap(msgspec.Struct, frozen=True):
    """`size` ids from `container_id` on are `host_id` and the following outside."""

    container_id: int
    host_id: int
    size: int


async def pin(
    paths: Mapping[str, str],
    *,
    hostname: str | None = None,
    sysctls: Mapping[str, str] | None = None,
    timeout: float,
) -> None:
    """Makes namespaces and pins them. On failure, timeout or cancellation nothing is left.

    Args:
        paths: the kinds to make (`net`, `ipc`, `uts`) and the file to make for each. Directories
            above are made as needed.
        hostname: set in the new uts namespace. `lo` is brought up in a new network namespace.
        sysctls: set inside; only those that belong to one of the new namespaces.
        timeout: seconds.

    Raises:
        InvalidArgument: a kind, hostname or sysctl that can't be had; the message names it.
        AlreadyExists: a path is there already.
        DeadlineExceeded: the kernel took longer (a network namespace waits for others being torn
            down).
        ResourceExhausted: a limit on the number of namespaces is reached.
        NamespaceError: the kernel refused otherwise.
    """
    sysctls = sysctls or {}
    for kind in paths:
        if kind not in _PINNABLE:
            raise InvalidArgument(f"namespace kind {kind!r} can't be pinned")
    _check_setup(paths, hostname, sysctls)

    def make(made: _Pins) -> None:
        flags = 0
        for kind in paths:
            flags |= KINDS[kind]
        syscalls.unshare(flags)
        _set_up(paths, hostname, sysctls)
        for kind, path in paths.items():
            made.bind(f"/proc/thread-self/ns/{kind}", path)

    await _in_thread(make, f"pin namespaces {', '.join(paths.values())}", timeout)


async def pin_user(
    paths: Mapping[str, str],
    *,
    uid_mappings: Sequence[IdMap],
    gid_mappings: Sequence[IdMap],
    hostname: str | None = None,
    sysctls: Mapping[str, str] | None = None,
    timeout: float,
) -> None:
    """Makes a user namespace, and other namespaces that it owns, and pins them; else like `pin`.

    A process with threads can't enter a new user namespace, so util-linux's `unshare` does, and
    holds them until we have pinned them through its /proc entry.

    Args:
        paths: as `pin`, with `user` too.
        uid_mappings: at least one; likewise gid_mappings.

    Raises:
        As `pin`.
    """
    sysctls = sysctls or {}
    others = {kind: path for kind, path in paths.items() if kind != "user"}
    if "user" not in paths:
        raise InvalidArgument("pin_user without a path for the user namespace")
    for kind in others:
        if kind not in _PINNABLE:
            raise InvalidArgument(f"namespace kind {kind!r} can't be pinned")
    _check_setup(others, hostname, sysctls)
    maps = {
        "uid_map": _id_map("uid_mappings", uid_mappings),
        "gid_map": _id_map("gid_mappings", gid_mappings),
    }
    ns_root = next((m.host_id for m in uid_mappings if m.container_id == 0), None)
    deadline = asyncio.get_running_loop().time() + timeout
    async with contextlib.AsyncExitStack() as stack:
        pid = await _start_holder(tuple(paths), timeout, stack)

        def make(made: _Pins) -> None:
            for name, text in maps.items():
                try:
                    _write(f"/proc/{pid}/{name}", text)
                except OSError as error:
                    raise InvalidArgument(f"{name}: refused: {error.strerror}") from error
            for kind, path in paths.items():
                made.bind(f"/proc/{pid}/ns/{kind}", path)
            for kind, path in others.items():
                _enter(path, kind)
            _set_up(others, hostname, sysctls, ns_root=ns_root)

        left = max(0.001, deadline - asyncio.get_running_loop().time())
        await _in_thread(make, f"pin namespaces {', '.join(paths.values())}", left)


async def unpin(path: str) -> None:
    """Takes a pin down and removes its file; nothing to do where there is none."""
    await blocking.call(unpin_now, path)


def unpin_now(path: str) -> None:
    """`unpin`, blocking for some 0.1 ms."""
    while True:  # one pin; more only where somebody mounted on top of it
        try:
            syscalls.umount2(path, syscalls.UMOUNT_NOFOLLOW | syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOENT):
                raise
            break
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


async def in_network(path: str, fn: Callable[..., T], *args: Any, timeout: float) -> T:
    """The result of `fn(*args)`, run in a thread of its own inside a network namespace.

    Sockets made there stay in that namespace.

    Raises:
        NotFound: nothing is pinned at `path`.
        DeadlineExceeded: it took longer than `timeout` seconds; the thread is left behind.
    """

    def enter_and_run() -> T:
        _enter(path, "net")
        return fn(*args)

    return await blocking.call_abandonable(
        enter_and_run, timeout=timeout, what=f"{fn.__qualname__} in the network namespace {path}"
    )


def kind_of(path: str) -> str | None:
    """The kind of namespace pinned at `path`; None where none is (any more, after a reboot)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        number = fcntl.ioctl(fd, _NS_GET_NSTYPE)
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return None
        raise
    finally:
        os.close(fd)
    return next((kind for kind, flag in KINDS.items() if flag == number), None)


def is_pinned(path: str) -> bool:
    """Whether a namespace is pinned at `path`."""
    return kind_of(path) is not None


def inode(path: str) -> int:
    """The inode number that names a namespace, as in the link `net:[4026531840]`.

    Raises:
        NotFound: nothing is pinned at `path`.
    """
    if not is_pinned(path):
        raise NotFound(f"no namespace is pinned at {path}")
    return os.stat(path).st_ino


def sysctl_kind(name: str) -> str | None:
    """The kind of namespace that a sysctl belongs to; None where it is the whole host's."""
    path = sysctl_path(name).removeprefix("/proc/sys/")
    first, _, rest = path.partition("/")
    if first == "net":
        return "net"
    if (first == "kernel" and (rest.startswith(("shm", "msg")) or rest == "sem")) or (
        path.startswith("fs/mqueue/")
    ):
        return "ipc"
    return "uts" if path in ("kernel/domainname", "kernel/hostname") else None


def sysctl_path(name: str) -> str:
    """The file of a sysctl: `net.ipv4.conf.eth0/1.forwarding` or with the two separators swapped.

    As sysctl(8) has it: whichever of `.` and `/` comes first parts the name, the other is literal.

    Raises:
        InvalidArgument: it is no sysctl's name.
    """
    slash, dot = name.find("/"), name.find(".")
    swap = slash < 0 or 0 <= dot < slash
    path = name.translate({ord("."): "/", ord("/"): "."}) if swap else name
    parts = path.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InvalidArgument(f"sysctl {name!r}: not a sysctl's name")
    return "/proc/sys/" + path


class _Pins:
    """The pins of one call, and what takes them down again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: list[str] = []
        self._directories: list[str] = []
        self._given_up = False
        self._finished = False

    def bind(self, source: str, path: str) -> None:
        """Makes the file and binds a namespace onto it."""
        self._make_directories(os.path.dirname(path))
        try:
            flags = os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(path, flags, 0o444))
        except FileExistsError:
            raise AlreadyExists(f"pin namespace at {path}: the file is there already") from None
        self._files.append(path)
        syscalls.mount(source, path, None, syscalls.MS_BIND)
        syscalls.mount(None, path, None, syscalls.MS_UNBINDABLE)

    def _make_directories(self, path: str) -> None:
        missing = []
        while path and not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for directory in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o755)
                self._directories.append(directory)

    def undo(self) -> None:
        for path in reversed(self._files):
            with contextlib.suppress(OSError):
                unpin_now(path)
        for path in reversed(self._directories):
            with contextlib.suppress(OSError):  # not empty: somebody uses it meanwhile
                os.rmdir(path)

    def finish(self) -> None:
        """The thread's last step: the pins stay, or go where nobody waits for them any more."""
        with self._lock:
            self._finished = True
            if self._given_up:
                self.undo()

    def give_up(self) -> None:
        """The waiter's: whoever comes second, this or `finish`, undoes."""
        with self._lock:
            self._given_up = True
            if self._finished:
                self.undo()


async def _in_thread(make: Callable[[_Pins], None], what: str, timeout: float) -> None:
    made = _Pins()

    def body() -> None:
        try:
            make(made)
        except BaseException:
            made.undo()
            raise
        made.finish()

    try:
        await blocking.call_abandonable(body, timeout=timeout, what=what)
    except (DeadlineExceeded, asyncio.CancelledError):
        made.give_up()
        raise
    except OSError as error:
        raise _explained(what, error) from error


def _explained(what: str, error: OSError) -> Error:
    detail = f"{error.filename}: {error.strerror}" if error.filename else f"{error.strerror}"
    if error.errno == errno.ENOSPC:
        return ResourceExhausted(
            f"{what}: {detail} (a limit in /proc/sys/user/max_*_namespaces is reached)"
        )
    return NamespaceError(f"{what}: {detail}")


def _check_setup(
    kinds: Mapping[str, str], hostname: str | None, sysctls: Mapping[str, str]
) -> None:
    """Refuses what isn't for the new namespaces, before anything is made."""
    if hostname is not None:
        if "uts" not in kinds:
            raise InvalidArgument("hostname: the pod has no uts namespace of its own")
        if not 0 < len(os.fsencode(hostname)) <= _HOSTNAME_MAX or "\0" in hostname:
            raise InvalidArgument(f"hostname {hostname!r}: 1 to {_HOSTNAME_MAX} bytes are allowed")
    for name in sysctls:
        kind = sysctl_kind(name)
        if kind is None:
            raise InvalidArgument(f"sysctl {name}: it belongs to no namespace but the whole host")
        if kind not in kinds:
            raise InvalidArgument(f"sysctl {name}: the pod has no {kind} namespace of its own")


def _set_up(
    kinds: Mapping[str, str],
    hostname: str | None,
    sysctls: Mapping[str, str],
    *,
    ns_root: int | None = None,
) -> None:
    """Sets up the calling thread's new namespaces."""
    if "net" in kinds:
        _loopback_up()
    if hostname is not None:
        syscalls.sethostname(hostname)
    # Those of ipc last: a user namespace's own may be written by its root alone, and a thread that
    # has become that can't do anything else any more.
    for name in sorted(sysctls, key=lambda name: sysctl_kind(name) == "ipc"):
        if ns_root and sysctl_kind(name) == "ipc":
            syscalls.set_thread_euid(ns_root)
        _write_sysctl(name, sysctls[name])


def _write_sysctl(name: str, value: str) -> None:
    try:
        _write(sysctl_path(name), value)
    except FileNotFoundError:
        raise InvalidArgument(f"sysctl {name}: this kernel doesn't have it") from None
    except OSError as error:
        raise InvalidArgument(f"sysctl {name}={value!r}: {error.strerror}") from error


def _write(path: str, text: str) -> None:
    """One write(2), as /proc's files want it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack("16sh22x", b"lo", 0)
        reply = fcntl.ioctl(control, _SIOCGIFFLAGS, request)
        flags = struct.unpack_from("h", reply, 16)[0]
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))


def _enter(path: str, kind: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        raise NotFound(f"no {kind} namespace is pinned at {path}") from None
    try:
        syscalls.setns(fd, KINDS[kind])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise NotFound(f"no {kind} namespace is pinned at {path}") from None
    finally:
        os.close(fd)


def _id_map(field: str, mappings: Sequence[IdMap]) -> str:
    """The text of /proc/<pid>/uid_map or gid_map (user_namespaces(7))."""
    if not 0 < len(mappings) <= _MAPPINGS_MAX:
        raise InvalidArgument(f"{field}: 1 to {_MAPPINGS_MAX} mappings are allowed")
    for m in mappings:
        ends = (m.container_id + m.size, m.host_id + m.size)
        if m.size <= 0 or min(m.container_id, m.host_id) < 0 or max(ends) >= _ID_MAX:
            raise InvalidArgument(
                f"{field}: {m.container_id}:{m.host_id}:{m.size} is out of the range of ids"
            )
    return "".join(f"{m.container_id} {m.host_id} {m.size}\n" for m in mappings)


async def _start_holder(
    kinds: Sequence[str], timeout: float, stack: contextlib.AsyncExitStack
) -> int:
    """The pid of a child that sits in new namespaces until `stack` is closed.

    It is `unshare … cat`: once it echoes what we sent, it has left our namespaces.
    """
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    for fd in (ours_out, ours_in):
        stack.callback(os.close, fd)
    try:
        child = await spawn.start(
            ["unshare", *(f"--{kind}" for kind in kinds), "cat"],
            stdin=theirs_in,
            stdout=theirs_out,
            stderr=theirs_out,
        )
    finally:
        os.close(theirs_in)
        os.close(theirs_out)

    async def stop() -> None:
        child.kill()
        await child.wait(spawn.KILL_GRACE)

    stack.push_async_callback(stop)
    with contextlib.suppress(BrokenPipeError):  # it failed already, and has said why
        os.write(ours_out, b"?")
    if not await readable(ours_in, timeout):
        raise DeadlineExceeded(f"unshare: no new namespaces within {timeout:g} s")
    said = os.read(ours_in, 512)
    if said != b"?":
        text = " ".join(said.decode(errors="replace").split())
        raise InvalidArgument(f"user namespace can't be made: {text or 'unshare ended'}")
    return child.pid
