"""What is sampled, and what a sample holds."""

from __future__ import annotations

from typing import Protocol

import msgspec

from zos_cri.linux.cgroupstats import CgroupStats, CpuStats, MemoryStats, Pressure
from zos_cri.linux.netdev import Interface


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a container was given; 0 where nothing was set. Times in µs, memory in bytes."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    memory: int = 0
    memory_reservation: int = 0
    memory_swap: int = 0


class ContainerTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A running container.

    Attributes:
        cgroup: its logical path.
        pid: its first process.
        started_at: ns since the epoch.
        attributes: runtime.v1.ContainerAttributes, encoded.
        labels: the values of `metrics.BASE_LABELS`.
    """

    id: str
    cgroup: str
    pid: int
    started_at: int
    attributes: bytes
    labels: tuple[str, ...]
    limits: Limits = Limits()


class PodTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A pod that is ready.

    Attributes:
        cgroup: its logical path where it has one to itself, else "".
        netns: where its network namespace is pinned; "" on the host's network.
        attributes: runtime.v1.PodSandboxAttributes, encoded.
        labels: the values of `metrics.BASE_LABELS`.
    """

    id: str
    cgroup: str
    netns: str
    attributes: bytes
    labels: tuple[str, ...]


class Targets(Protocol):
    """What there is to sample, from memory."""

    def containers(self) -> list[ContainerTarget]: ...

    def container(self, id_: str) -> ContainerTarget | None:
        """None where it doesn't run."""

    def pods(self) -> list[PodTarget]: ...

    def layers(self) -> dict[str, bool]:
        """All containers with a writable layer, and whether something may be writing to it."""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """What only metrics need, and what costs more to read.

    Attributes:
        stats: the whole cgroup.
        file_limit: the first process's soft limit of open files; None without a limit.
    """

    stats: CgroupStats
    descriptors: int
    sockets: int
    file_limit: int | None


class ContainerSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a container.

    Attributes:
        timestamp: ns since the epoch; never goes back.
        nano_cores: what it used of the CPUs between two readings, in billionths of one; None
            before the second one.
        processes: in its cgroup; `threads` counts each of their threads.
    """

    timestamp: int
    cpu: CpuStats
    nano_cores: int | None
    memory: MemoryStats | None
    pressure: dict[str, Pressure]
    processes: int
    threads: int
    detail: Detail | None = None


class PodSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of a pod.

    Attributes:
        cpu: None where the pod has no cgroup to itself; likewise what follows it.
        interfaces: None on the host's network.
    """

    timestamp: int
    cpu: CpuStats | None = None
    nano_cores: int | None = None
    memory: MemoryStats | None = None
    pressure: dict[str, Pressure] = {}
    interfaces: tuple[Interface, ...] | None = None
