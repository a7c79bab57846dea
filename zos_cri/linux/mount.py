"""Mounts: fstab-style descriptions made real, taken down again, and listed.

Three ways to mount, each for its reason:
- Binds are cloned detached (`open_tree`), given their attributes (`mount_setattr`), then attached:
  a read-only bind is never seen writable, and what fails leaves nothing behind. Linux 5.12 has it
  all; the oldest supported distribution has 5.15.
- Everything else is one mount(2).
- Overlays whose options don't fit the page that mount(2) reads: each layer by itself (`lowerdir+`,
  Linux 6.7), and on older kernels by short names (`/proc/self/fd/N`) of opened layers.

Every function here blocks; unmounting an overlay may sync its upper directory. Use
`zos_cri.linux.blocking` on the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import FailedPrecondition, Internal, InvalidArgument
from zos_cri.linux import syscalls

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# mount(2) reads at most one page of options, its last byte being the terminator. Pages are larger
# on some machines; the smallest one there is fits all.
_DATA_MAX: Final = 4095
# A tree that somebody keeps mounting into is not ours to win against.
_TREE_PASSES: Final = 8

_FLAGS: Final = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "mand": syscalls.MS_MANDLOCK,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "relatime": syscalls.MS_RELATIME,
    "strictatime": syscalls.MS_STRICTATIME,
    "lazytime": syscalls.MS_LAZYTIME,
    "nosymfollow": syscalls.MS_NOSYMFOLLOW,
    "silent": syscalls.MS_SILENT,
    "remount": syscalls.MS_REMOUNT,
}
_CLEARED: Final = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "async": "sync",
    "nomand": "mand",
    "atime": "noatime",
    "diratime": "nodiratime",
    "norelatime": "relatime",
    "nostrictatime": "strictatime",
    "nolazytime": "lazytime",
    "symfollow": "nosymfollow",
    "loud": "silent",
}
# Those of them that belong to the file system, not to the mount.
_SUPERBLOCK_FLAGS: Final = ("ro", "sync", "dirsync", "lazytime")
_PROPAGATION: Final = {
    "private": syscalls.MS_PRIVATE,
    "slave": syscalls.MS_SLAVE,
    "shared": syscalls.MS_SHARED,
    "unbindable": syscalls.MS_UNBINDABLE,
}
# An attribute of one mount, as mount_setattr(2) sets and clears it.
_ATTRIBUTES: Final = {
    "ro": (syscalls.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, syscalls.MOUNT_ATTR_RDONLY),
    "nosuid": (syscalls.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, syscalls.MOUNT_ATTR_NOSUID),
    "nodev": (syscalls.MOUNT_ATTR_NODEV, 0),
    "dev": (0, syscalls.MOUNT_ATTR_NODEV),
    "noexec": (syscalls.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, syscalls.MOUNT_ATTR_NOEXEC),
    "nodiratime": (syscalls.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, syscalls.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (syscalls.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, syscalls.MOUNT_ATTR_NOSYMFOLLOW),
    "noatime": (syscalls.MOUNT_ATTR_NOATIME, syscalls.MOUNT_ATTR__ATIME),
    "strictatime": (syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MOUNT_ATTR__ATIME),
    "relatime": (0, syscalls.MOUNT_ATTR__ATIME),
}


class MountError(Internal):
    """The kernel refused a mount or an unmount; `errno` says how."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.errno = number


class Busy(FailedPrecondition):
    """A mount can't be taken down because something uses it."""


class Mount(msgspec.Struct, frozen=True):
    """A mount as fstab(5), the OCI spec and the shims describe it.

    Attributes:
        type: the file system's; "" or "none" or "bind" with the option `bind` or `rbind`.
        target: where it goes below some root that the reader knows; "" is the root itself.
    """

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True):
    """Options, sorted by who has to be told.

    Attributes:
        flags: MS_* of mount(2), without binds and propagation.
        attributes: what to set and what to clear on a bind's topmost mount.
        recursive: likewise on all its mounts (`rro` and its like).
        propagation: MS_* to apply in this order, MS_REC where recursive.
        data: what only the file system understands.
    """

    flags: int = 0
    bind: bool = False
    rbind: bool = False
    attributes: tuple[int, int] = (0, 0)
    recursive: tuple[int, int] = (0, 0)
    propagation: tuple[int, ...] = ()
    data: tuple[str, ...] = ()


class MountInfo(msgspec.Struct, frozen=True):
    """A line of /proc/self/mountinfo (proc(5)).

    Attributes:
        root: the directory of the file system that is mounted.
        shared: its peer group, None where it isn't shared.
        master: the peer group it receives from, None where it is no slave.
    """

    id: int
    parent: int
    root: str
    target: str
    options: tuple[str, ...]
    type: str
    source: str
    super_options: tuple[str, ...]
    shared: int | None = None
    master: int | None = None
    unbindable: bool = False


def parse_options(options: Sequence[str]) -> Options:
    """Sorts options; the later of two that contradict each other wins, as in mount(8).

    On a new bind, a plain `rw`, `suid`, `dev` or `exec` changes nothing: it must not open up a
    source that is mounted with less. With `remount`, and in the recursive form (`rrw`), it does.
    """
    flags = 0
    bind = rbind = False
    top, recursive = (0, 0), (0, 0)
    propagation: list[int] = []
    data: list[str] = []
    for option in options:
        base, rec = (option[1:], syscalls.MS_REC) if option[:1] == "r" else (option, 0)
        if option in ("bind", "rbind"):
            bind, rbind = True, rbind or option == "rbind"
        elif option in _FLAGS:
            flags |= _FLAGS[option]
            top = _merge(top, option)
        elif option in _CLEARED:
            flags &= ~_FLAGS[_CLEARED[option]]
            top = _merge(top, option)
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif rec and base in _PROPAGATION:
            propagation.append(_PROPAGATION[base] | rec)
        elif rec and base in _ATTRIBUTES:
            recursive = _merge(recursive, base)
        elif option not in ("", "defaults"):
            data.append(option)
    return Options(flags, bind, rbind, top, recursive, tuple(propagation), tuple(data))


def _merge(attributes: tuple[int, int], option: str) -> tuple[int, int]:
    """`attributes` (set, clear) with one more option applied."""
    on, off = _ATTRIBUTES.get(option, (0, 0))
    # mount_setattr wants the whole atime field cleared, and nothing else both set and cleared
    return (attributes[0] & ~off) | on, (attributes[1] & ~on) | off


def mount(m: Mount, target: str, *, userns: int | None = None) -> None:
    """Mounts `m` at `target` (`m.target` isn't looked at). On failure nothing is left mounted.

    Args:
        userns: descriptor of a user namespace whose mapping the bind's files shall show
            (an id-mapped mount).

    Raises:
        MountError: the kernel refused; the message names source, target and type.
        InvalidArgument: the options can't be had.
    """
    options = parse_options(m.options)
    if userns is not None and not options.bind:
        raise InvalidArgument(f"mount {_names(m, target)}: only binds can be id-mapped")
    with _naming(m, target):
        if options.bind and options.flags & syscalls.MS_REMOUNT:
            on, off = options.attributes
            syscalls.mount_setattr(syscalls.AT_FDCWD, target, 0, attr_set=on, attr_clr=off)
        elif options.bind:
            _bind(m.source, target, options, userns)
        else:
            _mount(m, target, options)
        try:
            for propagation in options.propagation:
                syscalls.mount(None, target, None, propagation)
        except OSError:
            if not options.flags & syscalls.MS_REMOUNT:
                syscalls.umount2(target, syscalls.MNT_DETACH)
            raise


def set_propagation(target: str, mode: str) -> None:
    """Makes the mount at `target` `private`, `slave`, `shared` or `unbindable`.

    With an `r` in front, all mounts below it too.

    Raises:
        MountError: it is no mount.
    """
    propagation = parse_options((mode,)).propagation
    if not propagation:
        raise InvalidArgument(f"set propagation of {target}: no such mode {mode!r}")
    with _naming(Mount(type="none", source="propagation"), target):
        syscalls.mount(None, target, None, propagation[0])


def make_private_dir(path: str) -> None:
    """Makes a directory a private mount of its own: what is mounted below stays in our namespace.

    The directory is made where it is missing. Nothing to do where it is so already.
    """
    os.makedirs(path, exist_ok=True)
    place = os.path.realpath(path)
    here = [m for m in mounts_below(place) if m.target == place]
    if not here:
        mount(Mount(type="none", source=place, options=("bind",)), place)
    set_propagation(place, "private")


def _bind(source: str, target: str, options: Options, userns: int | None) -> None:
    recursive = syscalls.AT_RECURSIVE if options.rbind else 0
    tree = syscalls.open_tree(syscalls.AT_FDCWD, source, syscalls.OPEN_TREE_CLONE | recursive)
    try:
        on, off = options.attributes
        off &= syscalls.MOUNT_ATTR__ATIME  # nothing else is opened up: see parse_options
        if on or off:
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=on, attr_clr=off)
        on, off = options.recursive
        if userns is not None:
            on |= syscalls.MOUNT_ATTR_IDMAP
        if on or off:
            syscalls.mount_setattr(
                tree,
                "",
                syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE,
                attr_set=on,
                attr_clr=off,
                userns_fd=userns or 0,
            )
        syscalls.move_mount(tree, target)
    finally:
        os.close(tree)


def _mount(m: Mount, target: str, options: Options) -> None:
    data = ",".join(options.data)
    if len(os.fsencode(data)) <= _DATA_MAX:
        syscalls.mount(m.source, target, m.type, options.flags, data or None)
    elif m.type == "overlay":
        _mount_long_overlay(m, target, options)
    else:
        raise InvalidArgument(
            f"mount {_names(m, target)}: {len(data)} bytes of options, a page holds {_DATA_MAX}"
        )


def _mount_long_overlay(m: Mount, target: str, options: Options) -> None:
    """Mounts an overlay of more layers than mount(2) can be told of."""
    lower = next((o for o in options.data if o.startswith("lowerdir=")), "lowerdir=")
    layers = split_layers(lower.removeprefix("lowerdir="))
    others = [o for o in options.data if not o.startswith("lowerdir=")]
    if not _overlay_by_layer(m, target, options.flags, layers, others):
        with contextlib.ExitStack() as stack:
            names = list(_short_names(layers, stack))
            data = ",".join([*others, "lowerdir=" + ":".join(names)])
            if len(os.fsencode(data)) > _DATA_MAX:
                raise InvalidArgument(
                    f"mount {_names(m, target)}: {len(layers)} layers don't fit a page of options, "
                    "and this kernel doesn't take them one by one (Linux 6.7 does)"
                )
            syscalls.mount(m.source, target, m.type, options.flags, data)


def _overlay_by_layer(
    m: Mount, target: str, flags: int, layers: Sequence[str], others: Sequence[str]
) -> bool:
    """Mounts through the mount API, layer by layer; False where the kernel has no `lowerdir+`."""
    context = syscalls.fsopen("overlay")
    try:
        with _explained(context):
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", m.source)
            for number, layer in enumerate(layers):
                try:
                    syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "lowerdir+", layer)
                except OSError as error:
                    if number == 0 and error.errno == errno.EINVAL:
                        return False
                    raise
            for option in others:
                key, equals, value = option.partition("=")
                command = syscalls.FSCONFIG_SET_STRING if equals else syscalls.FSCONFIG_SET_FLAG
                syscalls.fsconfig(context, command, key, value if equals else None)
            for name in _SUPERBLOCK_FLAGS:
                if flags & _FLAGS[name]:
                    syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, name)
            syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
            mounted = syscalls.fsmount(context, _mount_attributes(flags))
        try:
            syscalls.move_mount(mounted, target)
        finally:
            os.close(mounted)
    finally:
        os.close(context)
    return True


def _mount_attributes(flags: int) -> int:
    """The MS_* flags that belong to the mount, not to the file system, as MOUNT_ATTR_*."""
    found = 0
    for name, flag in _FLAGS.items():
        if flags & flag:
            found |= _ATTRIBUTES.get(name, (0, 0))[0]
    return found


@contextlib.contextmanager
def _explained(context: int) -> Iterator[None]:
    """Adds to an error what the kernel says about it on the configuration's descriptor."""
    try:
        yield
    except OSError as error:
        messages: list[str] = []
        with contextlib.suppress(OSError):  # ENODATA: no more of them
            while len(messages) < 16:
                messages.append(os.read(context, 4096).decode(errors="replace").strip())
        if messages:
            raise OSError(error.errno, f"{error.strerror} ({'; '.join(messages)})") from None
        raise


def _short_names(layers: Sequence[str], stack: contextlib.ExitStack) -> Iterator[str]:
    for layer in layers:
        fd = os.open(layer, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        yield f"/proc/self/fd/{fd}"


def split_layers(lowerdir: str) -> list[str]:
    r"""The directories of a `lowerdir`: a colon parts them, `\:` and `\\` are literal."""
    parts = re.findall(r"(?:[^:\\]|\\.)+", lowerdir)
    return [re.sub(r"\\(.)", r"\1", part) for part in parts]


def unmount(target: str, *, lazy: bool = False) -> None:
    """Takes the topmost mount at `target` down; nothing to do where none is, or no such path.

    Args:
        lazy: take it out of sight at once and let it end when its last user does (MNT_DETACH).

    Raises:
        Busy: something uses it (never with `lazy`).
        MountError: the kernel refused for another reason.
    """
    try:
        syscalls.umount2(target, syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return
        if error.errno == errno.EBUSY:
            raise Busy(f"unmount {target}: something still uses it") from error
        raise MountError(f"unmount {target}: {error.strerror}", error.errno or 0) from error


def unmount_tree(path: str, *, lazy: bool = False) -> None:
    """Takes down all mounts at and below `path`, the deepest first, stacked ones too.

    Raises:
        Busy, MountError: as `unmount`.
    """
    for _ in range(_TREE_PASSES):
        found = mounts_below(path)
        if not found:
            return
        # Of two mounts at one place the later has the higher id, mostly; it doesn't matter, since
        # unmounting goes by place and takes the topmost.
        for info in sorted(found, key=lambda m: m.target.count("/"), reverse=True):
            unmount(info.target, lazy=lazy)
    raise Busy(f"unmount {path}: {len(mounts_below(path))} mounts keep coming back below it")


def mounts_below(path: str) -> list[MountInfo]:
    """The mounts at and below `path`, in the kernel's order. Symbolic links in its parent count."""
    # No mount is touched, so one on a dead server doesn't hold this up.
    parent, name = os.path.split(os.path.abspath(path))
    place = os.path.join(os.path.realpath(parent), name) if name else "/"
    below = place.rstrip("/") + "/"
    # Hosts have thousands of mounts: only lines that name the place at all are taken apart.
    escaped = re.sub(r"[ \t\n\\]", lambda match: f"\\{ord(match[0]):03o}", place.rstrip("/"))
    named = os.fsencode(" " + escaped)
    found = [parse_mountinfo(os.fsdecode(line)) for line in _mountinfo() if named in line]
    return [m for m in found if m.target == place or m.target.startswith(below)]


def mount_of(path: str) -> MountInfo:
    """The mount that `path` (absolute, without symbolic links) lies on; for propagation checks."""
    best: MountInfo | None = None
    for m in all_mounts():
        inside = path == m.target or path.startswith(m.target.rstrip("/") + "/")
        # of mounts stacked on one place the last one listed is on top
        if inside and (best is None or len(m.target) >= len(best.target)):
            best = m
    if best is None:  # we run in an unmounted root
        raise Internal(f"no mount holds {path}")
    return best


def all_mounts() -> list[MountInfo]:
    """Every mount of our mount namespace that can be reached from our root."""
    return [parse_mountinfo(os.fsdecode(line)) for line in _mountinfo()]


def _mountinfo() -> list[bytes]:
    with open("/proc/self/mountinfo", "rb") as file:
        return file.read().splitlines()


def parse_mountinfo(line: str) -> MountInfo:
    """One line of mountinfo: `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`."""
    fields = line.split(" ")
    dash = fields.index("-", 6)
    tags = dict(tag.partition(":")[::2] for tag in fields[6:dash])
    return MountInfo(
        id=int(fields[0]),
        parent=int(fields[1]),
        root=_unescape(fields[3]),
        target=_unescape(fields[4]),
        options=tuple(fields[5].split(",")),
        type=fields[dash + 1],
        source=_unescape(fields[dash + 2]),
        super_options=tuple(_unescape(fields[dash + 3]).split(",")),
        shared=int(tags["shared"]) if "shared" in tags else None,
        master=int(tags["master"]) if "master" in tags else None,
        unbindable="unbindable" in tags,
    )


def _unescape(text: str) -> str:
    r"""Undoes the octal escapes of space, tab, newline and backslash (`\040`)."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


@contextlib.contextmanager
def _naming(m: Mount, target: str) -> Iterator[None]:
    """Turns an OSError into one that names source, target and type."""
    try:
        yield
    except OSError as error:
        at = f" ({error.filename})" if error.filename not in (None, "", target, m.source) else ""
        raise MountError(
            f"mount {_names(m, target)}: {error.strerror}{at}", error.errno or 0
        ) from error


def _names(m: Mount, target: str) -> str:
    return f"{m.source or 'none'} at {target} (type {m.type or 'none'})"
