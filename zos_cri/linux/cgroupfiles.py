"""Cgroup files kept open, for cgroups that are read again and again.

Opening a cgroup file costs ten to thirty times as much as reading it (the walk down the path, and
the kernel's bookkeeping for each open file): on an open one, `pread` at 0 makes the kernel write
the text anew. Each costs a descriptor and up to two pages of the kernel's memory, so there is a
budget, and beyond it files are opened for each reading.
"""

from __future__ import annotations

import errno
import os
import resource
from typing import TYPE_CHECKING, Final

from zos_cri.errors import NotFound
from zos_cri.linux import cgroupstats as stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.linux.cgroup import CgroupPaths

_CHUNK: Final = 16384  # bytes; the largest file, memory.stat, has 2 KiB
_GONE: Final = (errno.ENODEV, errno.EOPNOTSUPP)

# What every reading takes. Only these are worth a descriptor. Not cgroup.procs: version 1 lists
# the processes once for an open file, and keeps the list until nobody has read it for a second.
_KEPT: Final = frozenset(
    {
        "cpu.pressure",
        "cpu.stat",
        "cpuacct.usage",
        "io.pressure",
        "memory.current",
        "memory.events",
        "memory.failcnt",
        "memory.kmem.usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.max",
        "memory.max_usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.peak",
        "memory.pressure",
        "memory.stat",
        "memory.swap.current",
        "memory.swap.max",
        "memory.usage_in_bytes",
        "pids.current",
    }
)


class Budget:
    """How many cgroup files may be open at once, over all cgroups."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0

    @classmethod
    def of_process(cls, limit: int) -> Budget:
        """`limit`, or a quarter of the descriptors that this process may have, if that is less."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(limit if soft == resource.RLIM_INFINITY else min(limit, soft // 4))

    def take(self) -> bool:
        if self.used >= self.limit:
            return False
        self.used += 1
        return True


class CgroupFiles:
    """One directory of one hierarchy. Not for two threads at once."""

    def __init__(self, directory: str, budget: Budget) -> None:
        self.directory = directory
        self._budget = budget
        self._open: dict[str, int] = {}
        # Which files a cgroup has is decided when it is made.
        self._missing: set[str] = set()

    def read(self, name: str) -> str | None:
        """A file's text; None where it isn't there, or its cgroup isn't any more."""
        fd = self._open.get(name)
        if fd is None:
            if name not in _KEPT:
                return stats.read_text(self.directory, name)
            if name in self._missing:
                return None
            if not self._budget.take():
                return stats.read_text(self.directory, name)
            fd = self._keep(name)
            if fd is None:
                return None
        try:
            return _read(fd)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def _keep(self, name: str) -> int | None:
        try:
            fd = os.open(f"{self.directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._budget.used -= 1
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise
            self._missing.add(name)
            return None
        self._open[name] = fd
        return fd

    def close(self) -> None:
        """Gives the descriptors back. Idempotent; a later reading opens them again."""
        self._budget.used -= len(self._open)
        while self._open:
            os.close(self._open.popitem()[1])
        self._missing.clear()


class CgroupReader:
    """Reads one cgroup again and again. Not for two threads at once; `close` it."""

    def __init__(self, paths: CgroupPaths, budget: Budget) -> None:
        self._paths = paths
        self._files = {path: CgroupFiles(path, budget) for path in paths.directories}

    def read(self) -> stats.CgroupStats:
        """What costs little: CPU usage, memory, pids and pressure. `timestamp_ns` is 0.

        Raises:
            NotFound: the cgroup isn't there.
        """
        pids = self._of("pids")
        return stats.CgroupStats(
            timestamp_ns=0,
            cpu=self._cpu(),
            memory=self._memory(),
            pids=stats.read_int(pids, "pids.current") if pids else None,
            pressure=stats.pressure(self._files[self._paths.v2]) if self._paths.v2 else {},
        )

    def processes(self) -> int:
        """How many processes are in the cgroup itself."""
        where = self._of("pids") or next(iter(self._files.values()), None)
        return 0 if where is None else (where.read("cgroup.procs") or "").count("\n")

    def close(self) -> None:
        """Closes its files. Idempotent."""
        for files in self._files.values():
            files.close()

    def _of(self, controller: str) -> CgroupFiles | None:
        directory = self._paths.of(controller)
        return None if directory is None else self._files[directory]

    def _cpu(self) -> stats.CpuStats:
        cpuacct = self._paths.v1.get("cpuacct")
        if cpuacct is not None:
            usage = stats.read_int(self._files[cpuacct], "cpuacct.usage")
            if usage is None:
                raise self._gone()
            return stats.CpuStats(usage_ns=usage)
        if self._paths.v2 is None:
            raise self._gone()
        if self._files[self._paths.v2].read("cpu.stat") is None:
            raise self._gone()
        return stats.cpu_v2(self._files[self._paths.v2])

    def _memory(self) -> stats.MemoryStats | None:
        files = self._of("memory")
        if files is None:
            return None
        read: Callable[[stats.Files], stats.MemoryStats] = (
            stats.memory_v2 if files.directory == self._paths.v2 else stats.memory_v1
        )
        return read(files)

    def _gone(self) -> NotFound:
        return NotFound(f"cgroup {self._paths.path}: not there")


def _read(fd: int) -> str:
    data = os.pread(fd, _CHUNK, 0)
    if len(data) == _CHUNK:
        while more := os.pread(fd, _CHUNK, len(data)):
            data += more
    return data.decode()
