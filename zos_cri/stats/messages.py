"""Samples as CRI's messages, encoded.

A message's fields may stand in its encoding in any number of pieces, and a list is the entries'
encodings one after the other. So each sample is encoded once, in the sampler's thread, and an
answer is made by joining bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zos_cri.linux.cgroupstats import MemoryStats, Pressure
    from zos_cri.linux.netdev import Interface
    from zos_cri.stats.model import ContainerSample, PodSample

DEFAULT_INTERFACE: Final = "eth0"  # as we tell CNI to name it

# Numbers of fields, as in cri.proto.
LIST_STATS: Final = 1  # of all four answers with statistics
LIST_POD_METRICS: Final = 1
CONTAINER_ATTRIBUTES: Final = 1
POD_ATTRIBUTES: Final = 1
_POD_LINUX: Final = 2
_LINUX_CONTAINERS: Final = 5
METRICS_METRICS: Final = 2  # of a pod's and of a container's
POD_CONTAINER_METRICS: Final = 3


def field(number: int, payload: bytes) -> bytes:
    """A field that holds a message, in protobuf's encoding (wire type 2)."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def container_numbers(sample: ContainerSample) -> bytes:
    """A ContainerStats but for its attributes and its writable layer."""
    at = sample.timestamp
    message = pb.ContainerStats(
        cpu=_cpu(at, sample.cpu.usage_ns, sample.nano_cores, sample.pressure),
        io=_io(at, sample.pressure),
    )
    if sample.memory is not None:
        message.memory.CopyFrom(_memory(at, sample.memory, sample.pressure))
        message.swap.CopyFrom(_swap(at, sample.memory))
    return message.SerializeToString()


def writable_layer(timestamp: int, mountpoint: str, used: int, inodes: int) -> bytes:
    """A ContainerStats with nothing but its writable layer."""
    usage = pb.FilesystemUsage(
        timestamp=timestamp,
        fs_id=pb.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=_value(used),
        inodes_used=_value(inodes),
    )
    return pb.ContainerStats(writable_layer=usage).SerializeToString()


def pod_stats(
    attributes: bytes,
    sample: PodSample | None,
    samples: Sequence[ContainerSample],
    containers: Iterable[bytes],
) -> bytes:
    """A PodSandboxStats.

    Args:
        sample: the pod's own; None where there is none yet.
        samples: its containers'; they are summed where the pod has no cgroup to itself.
        containers: its containers' ContainerStats, encoded.
    """
    linux = pb.LinuxPodSandboxStats()
    at = max([sample.timestamp if sample else 0, *(s.timestamp for s in samples)])
    if sample is not None and sample.cpu is not None:
        at = sample.timestamp
        linux.cpu.CopyFrom(_cpu(at, sample.cpu.usage_ns, sample.nano_cores, sample.pressure))
        if sample.memory is not None:
            linux.memory.CopyFrom(_memory(at, sample.memory, sample.pressure))
        io = _io(at, sample.pressure)
        if io is not None:
            linux.io.CopyFrom(io)
    elif samples:
        linux.cpu.CopyFrom(_summed_cpu(at, samples))
        linux.memory.CopyFrom(_summed_memory(at, samples))
    if at:
        count = sum(s.processes for s in samples)
        linux.process.CopyFrom(pb.ProcessUsage(timestamp=at, process_count=_value(count)))
    if sample is not None and sample.interfaces is not None:
        linux.network.CopyFrom(_network(sample.timestamp, sample.interfaces))
    inner = b"".join(field(_LINUX_CONTAINERS, message) for message in containers)
    return field(POD_ATTRIBUTES, attributes) + field(_POD_LINUX, linux.SerializeToString() + inner)


def _summed_cpu(at: int, samples: Sequence[ContainerSample]) -> pb.CpuUsage:
    rates = [s.nano_cores for s in samples if s.nano_cores is not None]
    return _cpu(at, sum(s.cpu.usage_ns for s in samples), sum(rates) if rates else None, {})


def _summed_memory(at: int, samples: Sequence[ContainerSample]) -> pb.MemoryUsage:
    each = [s.memory for s in samples if s.memory is not None]
    return pb.MemoryUsage(
        timestamp=at,
        working_set_bytes=_value(sum(m.working_set for m in each)),
        usage_bytes=_value(sum(m.usage for m in each)),
        rss_bytes=_value(sum(m.rss for m in each)),
        page_faults=_value(sum(m.page_faults for m in each)),
        major_page_faults=_value(sum(m.major_page_faults for m in each)),
    )


def _cpu(
    at: int, usage: int, nano_cores: int | None, pressure: Mapping[str, Pressure]
) -> pb.CpuUsage:
    return pb.CpuUsage(
        timestamp=at,
        usage_core_nano_seconds=_value(usage),
        usage_nano_cores=None if nano_cores is None else _value(nano_cores),
        psi=_psi(pressure.get("cpu")),
    )


def _memory(at: int, memory: MemoryStats, pressure: Mapping[str, Pressure]) -> pb.MemoryUsage:
    limit = memory.limit
    return pb.MemoryUsage(
        timestamp=at,
        working_set_bytes=_value(memory.working_set),
        available_bytes=None if limit is None else _value(max(0, limit - memory.working_set)),
        usage_bytes=_value(memory.usage),
        rss_bytes=_value(memory.rss),
        page_faults=_value(memory.page_faults),
        major_page_faults=_value(memory.major_page_faults),
        psi=_psi(pressure.get("memory")),
    )


def _swap(at: int, memory: MemoryStats) -> pb.SwapUsage:
    limit = memory.swap_limit
    return pb.SwapUsage(
        timestamp=at,
        swap_available_bytes=None if limit is None else _value(max(0, limit - memory.swap)),
        swap_usage_bytes=_value(memory.swap),
    )


def _io(at: int, pressure: Mapping[str, Pressure]) -> pb.IoUsage | None:
    psi = _psi(pressure.get("io"))
    return None if psi is None else pb.IoUsage(timestamp=at, psi=psi)


def _psi(pressure: Pressure | None) -> pb.PsiStats | None:
    if pressure is None:
        return None
    some, full = (
        pb.PsiData(Total=s.total_ns, Avg10=s.avg10, Avg60=s.avg60, Avg300=s.avg300)
        for s in (pressure.some, pressure.full)
    )
    return pb.PsiStats(Some=some, Full=full)


def _network(at: int, interfaces: Sequence[Interface]) -> pb.NetworkUsage:
    """The default interface isn't repeated among the others (cri-api says so)."""
    default = next((i for i in interfaces if i.name == DEFAULT_INTERFACE), None)
    if default is None and interfaces:
        default = interfaces[0]
    return pb.NetworkUsage(
        timestamp=at,
        default_interface=None if default is None else _interface(default),
        interfaces=[_interface(i) for i in interfaces if i is not default],
    )


def _interface(interface: Interface) -> pb.NetworkInterfaceUsage:
    return pb.NetworkInterfaceUsage(
        name=interface.name,
        rx_bytes=_value(interface.rx_bytes),
        rx_errors=_value(interface.rx_errors),
        tx_bytes=_value(interface.tx_bytes),
        tx_errors=_value(interface.tx_errors),
    )


def _value(value: int) -> pb.UInt64Value:
    return pb.UInt64Value(value=value)
