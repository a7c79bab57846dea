"""The counters of network interfaces, in any network namespace.

Source: /proc/net/dev (proc_pid_net(5)), whose columns are fixed since Linux 2.2.
"""

from __future__ import annotations

import os
from typing import Final

import msgspec

from zos_cri.errors import NotFound
from zos_cri.linux import syscalls

_CLONE_NEWNET: Final = 0x40000000
_READ_MAX: Final = 1 << 20  # bytes; a line for each interface has about 130


class Interface(msgspec.Struct, frozen=True):
    """What an interface has received (rx) and sent (tx) so far."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


def parse(text: str) -> tuple[Interface, ...]:
    """The interfaces of a /proc/net/dev, the loopback left out."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(":")
        name, values = name.strip(), rest.split()
        if name and name != "lo" and len(values) >= 12:
            found.append(Interface(name, *map(int, values[0:4]), *map(int, values[8:12])))
    return tuple(found)


def interfaces(path: str) -> tuple[Interface, ...]:
    """The interfaces in the network namespace pinned at `path`.

    The calling thread goes into the namespace and comes back: it must be a worker of our own, where
    nobody minds for these microseconds.

    Raises:
        NotFound: none is pinned there.
        OSError: the kernel refused.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(path)
        try:
            return parse(_own_interfaces())
        finally:
            syscalls.setns(home, _CLONE_NEWNET)
    finally:
        os.close(home)


def _enter(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{path}: no network namespace there") from None
    try:
        syscalls.setns(fd, _CLONE_NEWNET)
    finally:
        os.close(fd)


def _own_interfaces() -> str:
    # Not /proc/net: that is the main thread's.
    fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = b""
        while len(text) < _READ_MAX and (more := os.read(fd, 16384)):
            text += more
        return text.decode()
    finally:
        os.close(fd)
