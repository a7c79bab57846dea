"""What exists: read from the directories of an installation, /proc and the cgroups. Blocks.

Nothing is asked of a server, a shim or a plugin, so that the answer is the same whether they run,
hang or are gone; and no file below a path that a user names is touched.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.audit.expected import OUR_CGROUPS
from zos_cri.audit.model import TEMPORARY, Kind, Thing
from zos_cri.config import warm_shims
from zos_cri.errors import DataLoss
from zos_cri.linux.mount import mounts_below
from zos_cri.linux.pidfd import start_time
from zos_cri.network.conf import ConfDir, ConfError, NoConf
from zos_cri.network.record import Records as NetworkRecords
from zos_cri.shim import bundle as bundles
from zos_cri.shim.pool import SURPLUS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri.audit.expected import Records
    from zos_cri.config import Config
    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.network.conf import NetworkConf

_ID: Final = re.compile(r"[0-9a-f]{64}")
_PASSING: Final = ("start", "delete")  # commands of a shim's binary that end by themselves
_LISTENING: Final = 0x10000  # __SO_ACCEPTCON in /proc/net/unix
_ADDRESSES: Final = "/var/lib/cni/networks"  # host-local's dataDir where none is given
_SMALL: Final = 1 << 20  # bytes: states of OCI runtimes are a few KiB
_NAMESPACES: Final = ("net", "ipc", "uts", "user")


class Look:
    """One installation, to be looked at as often as one likes."""

    def __init__(self, config: Config, cgroups: Cgroups) -> None:
        self._run = Path(os.path.realpath(config.run_dir))
        self._state = Path(os.path.realpath(config.state_dir))
        self._socket = str(config.socket)
        self._confs = ConfDir(config.cni.conf_dir, 0)
        self._cgroups = cgroups
        # Shims that may wait for a pod.
        self.warm = SURPLUS * sum(warm_shims(config).values())

    def things(self, records: Records) -> list[Thing]:
        """Everything there is of pods and containers.

        Args:
            records: tell of processes and cgroups where to look for them.
        """
        found = [
            *self._shims(),
            *_processes(records),
            *self._tasks(),
            *self._network(),
            *self._mounts(),
            *self._in_cgroups(records),
            *self._named(Kind.SANDBOX, self._run / "sandboxes"),
            *self._named(Kind.FIFO, self._run / "fifo"),
            *self._named(Kind.BUNDLE, self._run / "bundles"),
            *self._named(Kind.LAYER, self._state / "images" / "containers"),
            *self._named(Kind.LAYER, self._state / "rootfs"),
            *self._execs(),
            *self._logs(),
            *self._sockets(),
        ]
        groups = {
            id_: group
            for group, ids in bundles.containers(self._run / "bundles").items()
            for id_ in ids
        }
        return [msgspec.structs.replace(each, group=groups.get(each.id, "")) for each in found]

    def _named(self, kind: Kind, directory: Path) -> Iterator[Thing]:
        for name in _names(directory):  # one with a dot is being made or removed
            yield Thing(kind, name.lstrip("."), str(directory / name))

    def _shims(self) -> Iterator[Thing]:
        """Processes that were told our socket's path: no other installation's shims are."""
        for pid in filter(str.isdigit, _names(Path("/proc"))):
            words = _command(pid)
            if words[-1:] and words[-1] in _PASSING:
                continue
            if _after(words, "-address") == self._socket and (id_ := _after(words, "-id")):
                yield Thing(Kind.SHIM, id_, f"pid {pid}", live=True)

    def _tasks(self) -> Iterator[Thing]:
        """`<root>/<namespace>/<id>`, as runc and those made after it have them."""
        root = self._run / "runtime"
        for namespace in _names(root):
            for id_ in _names(root / namespace):
                path = root / namespace / id_
                if path.is_dir():
                    yield Thing(Kind.TASK, id_, str(path), live=_task_lives(path))

    def _network(self) -> Iterator[Thing]:
        records = NetworkRecords(self._state / "cni")
        networks: dict[str, NetworkConf] = {}
        with contextlib.suppress(NoConf, ConfError):
            networks = {network.name: network for network in self._confs.networks()}
        known = set()
        for id_ in records.ids():
            known.add(id_)
            yield Thing(Kind.NETWORK, id_, str(self._state / "cni" / id_))
            for attachment in records.of(id_):
                if attachment.conf is not None:
                    networks.setdefault(attachment.network, attachment.conf)
        known |= set(_names(self._run / "sandboxes"))
        for network in networks.values():
            for path in _address_directories(network):
                yield from _addresses(path, known)

    def _mounts(self) -> Iterator[Thing]:
        places = {
            self._run / "bundles": 1,
            self._run / "sandboxes": 1,
            self._state / "images" / "containers": 1,
            self._state / "rootfs": 1,
            self._run / "tmp": 0,
        }
        for top, depth in places.items():
            for info in mounts_below(str(top)):
                parts = Path(info.target).relative_to(top).parts
                if len(parts) < 1 + depth:
                    continue  # an administrator's own, of a file system for all of it
                id_ = parts[0].lstrip(".") if depth else TEMPORARY
                pinned = top.name == "sandboxes" and parts[1] in _NAMESPACES
                yield Thing(Kind.NAMESPACE if pinned else Kind.MOUNT, id_, info.target)

    def _in_cgroups(self, records: Records) -> Iterator[Thing]:
        named = {id_: path for id_, path in records.cgroups().items() if path.startswith("/")}
        for bundle in self._run.glob("bundles/*"):
            if bundle.name not in named and (cgroup := _cgroup_of(bundle)):
                named[bundle.name] = cgroup
        for id_, path in named.items():
            if self._cgroups.exists(path):
                yield Thing(Kind.CGROUP, id_, path, live=bool(self._cgroups.pids(path)))
        pods = records.cgroup_parents()
        for parent in sorted({*pods, *OUR_CGROUPS, *map(posixpath.dirname, named.values())}):
            for name in self._children(parent):
                match = _ID.search(name)
                path = posixpath.join(parent, name)
                if match and match[0] not in named:
                    live = bool(self._cgroups.pids(path))
                    # Others name cgroups by such ids too, where they are told the same parent.
                    yield Thing(Kind.CGROUP, match[0], path, live=live, proved=parent in pods)

    def _children(self, parent: str) -> set[str]:
        found: set[str] = set()
        for directory in self._cgroups.paths(parent).directories:
            with contextlib.suppress(OSError), os.scandir(directory) as entries:
                found.update(e.name for e in entries if e.is_dir(follow_symlinks=False))
        return found

    def _execs(self) -> Iterator[Thing]:
        for id_ in _names(self._run / "exec"):
            yield Thing(Kind.EXEC, id_, str(self._run / "exec" / id_))

    def _logs(self) -> Iterator[Thing]:
        for name in _names(self._run / "logger"):
            if name.endswith(".json"):
                yield Thing(Kind.LOG, name.removesuffix(".json"), str(self._run / "logger" / name))

    def _sockets(self) -> Iterator[Thing]:
        """Shims' sockets that nobody listens on."""
        directory = self._run / "s"
        names = _names(directory)
        listening = _listening() if names else set()
        for name in names:
            path = str(directory / name)
            if path not in listening:
                yield Thing(Kind.SOCKET, name, path)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _command(pid: str) -> list[str]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read(65536).decode(errors="replace").rstrip("\0").split("\0")
    return []


def _after(words: list[str], flag: str) -> str:
    with contextlib.suppress(ValueError, IndexError):
        return words[words.index(flag) + 1]
    return ""


def _processes(records: Records) -> Iterator[Thing]:
    for id_, pid in records.pids().items():
        if os.path.exists(f"/proc/{pid}"):
            yield Thing(Kind.PROCESS, id_, f"pid {pid}", live=True)


def _task_lives(path: Path) -> bool:
    """Whether the first process of what a runtime notes runs; one that can't be read may do so."""
    for name, pid, begun in (
        ("state.json", "init_process_pid", "init_process_start"),  # runc
        ("status", "pid", "process-start-time"),  # crun
    ):
        with contextlib.suppress(OSError, msgspec.MsgspecError, TypeError, ValueError):
            with (path / name).open("rb") as file:
                state = msgspec.json.decode(file.read(_SMALL), type=dict[str, Any])
            number = int(state[pid])
            if not number:
                return False
            try:
                return start_time(number) == int(state[begun])
            except (OSError, ProcessLookupError):
                return False
    return bool(_names(path))  # none where it has just gone


def _address_directories(network: NetworkConf) -> Iterator[Path]:
    for plugin in network.plugins:
        if plugin.ipam == "host-local":
            raw: dict[str, Any] = msgspec.json.decode(plugin.raw)
            yield Path(raw.get("ipam", {}).get("dataDir") or _ADDRESSES, network.name)


def _addresses(directory: Path, known: set[str]) -> Iterator[Thing]:
    """host-local's reservations: files named for the address, with the id in the first line."""
    for name in _names(directory):
        with contextlib.suppress(OSError, ValueError):
            ipaddress.ip_address(name)
            id_ = (directory / name).read_text(errors="replace").split("\n")[0].strip()
            # Another runtime may use the same network, and name its pods the same way.
            yield Thing(Kind.ADDRESS, id_, str(directory / name), proved=id_ in known)


def _cgroup_of(bundle: Path) -> str:
    with contextlib.suppress(OSError, DataLoss, AttributeError):
        path = str(bundles.read_config(bundle).get("linux", {}).get("cgroupsPath", ""))
        if path.startswith("/") and bundle.name in posixpath.basename(path):
            return path
    return ""


def _listening() -> set[str]:
    found = set()
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        next(file, None)
        for line in file:
            fields = line.split(maxsplit=7)
            if len(fields) == 8 and int(fields[3], 16) & _LISTENING:
                found.add(fields[7].rstrip("\n"))
    return found
