"""What comes from peers and administrators: protocols, shims' answers, CNI, CDI, settings."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError

from tests.fuzz.harness import Target, pieces
from zos_cri import config
from zos_cri._pb import cgroups_v2_pb2, nri_pb2
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.errors import Error, Internal, InvalidArgument
from zos_cri.network import conf, result
from zos_cri.nri import adjust, merge
from zos_cri.nri import messages as nri_messages
from zos_cri.oci.container import HandlerSettings
from zos_cri.shim import bootstrap
from zos_cri.stats import messages
from zos_cri.stats.model import PodSample
from zos_cri.stats.told import cgroup_stats
from zos_cri.wire import nrimux, remotecommand, spdyframes, ttrpc

DEEP = b"[" * 100_000
LIST = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "ipam": {"type": "x"}}]}
RESULT = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/n"}],
    "ips": [{"address": "10.0.0.2/24", "gateway": "10.0.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["1.1.1.1"]},
}
OLD = {"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/24"}}
DEVICE = {"name": "a", "containerEdits": {"env": ["A=b"], "deviceNodes": [{"path": "/dev/null"}]}}
SPEC = {"cdiVersion": "0.6.0", "kind": "example.com/gpu", "devices": [DEVICE]}
METRICS = cgroups_v2_pb2.Metrics(
    cpu=cgroups_v2_pb2.CPUStat(usage_usec=2**64 - 1),
    memory=cgroups_v2_pb2.MemoryStat(usage=2**64 - 1, inactive_file=5, usage_limit=2**64 - 1),
)
YAML = b"""
cdiVersion: 0.6.0
kind: example.com/gpu
devices:
- name: a
  containerEdits:
    env: [A=b]
"""
NRI_SPEC = {"process": {"env": ["B=2"]}, "mounts": [], "linux": {"namespaces": [{"type": "pid"}]}}
OCI_FIELDS = frozenset(
    (
        *("process.scheduler", "process.ioPriority", "linux.netDevices", "linux.memoryPolicy"),
        *("linux.intelRdt", "linux.intelRdt.schemata", "linux.intelRdt.enableMonitoring"),
    )
)
SETTINGS = b"""
[server]
socket = "/run/x.sock"
[handlers.runc]
warm_shims = 3
[failpoints]
"cni.add.after" = "error@2"
"""


def read_ttrpc(data: bytes) -> None:
    """Any bytes from a peer end in events, of which a breach of the protocol is one."""
    stream, size = pieces(data)
    client, server = ttrpc.Client(), ttrpc.Server()
    client.request(b"x")
    for core in (client, server):
        for start in range(0, len(stream), size):
            core.receive_data(stream[start : start + size])
        core.receive_eof()
        core.data_to_send()


def read_nrimux(data: bytes) -> None:
    """The same of a connection that holds several, with a ttrpc core on each of them."""
    stream, size = pieces(data)
    mux = nrimux.Mux()
    client = ttrpc.Client()
    client.request(b"x")
    cores = {nrimux.PLUGIN_SERVICE: client, nrimux.RUNTIME_SERVICE: ttrpc.Server()}
    for start in range(0, len(stream), size):
        for event in mux.receive_data(stream[start : start + size]):
            if isinstance(event, nrimux.Received):
                cores[event.channel].receive_data(event.data)
    mux.receive_eof()


def read_nri(data: bytes) -> None:
    """What a plugin answers is done, or is an error that says what is wrong with it."""
    request = nri_pb2.CreateContainerRequest(container=nri_pb2.Container(id="c"))
    facts = adjust.Facts(handler=HandlerSettings(oci_fields=OCI_FIELDS))
    with contextlib.suppress(DecodeError, Error):
        answer = nri_pb2.CreateContainerResponse.FromString(data)
        merged = merge.Creation(request)
        merged.apply(answer, "10-fuzz")
        nri_pb2.OwningPlugins.FromString(merged.owners.message().SerializeToString())
        spec = adjust.adjusted(NRI_SPEC, merged.adjust, facts)
        nri_messages.fill(nri_pb2.Container(), spec)


def _nri_answer() -> bytes:
    """A little of everything."""
    given = nri_pb2.ContainerAdjustment(
        annotations={"a": "b", "-c": ""},
        mounts=[nri_pb2.Mount(destination="/m", source="/s", options=["rshared"])],
        env=[nri_pb2.KeyValue(key="A", value="1"), nri_pb2.KeyValue(key="-B")],
        args=["x"],
        rlimits=[nri_pb2.POSIXRlimit(type="RLIMIT_CORE", soft=1, hard=2)],
    )
    given.hooks.poststop.add(path="/h").timeout.value = 3
    linux = given.linux
    linux.devices.add(path="/dev/x", type="c", major=1).file_mode.value = 0o600
    linux.resources.memory.limit.value = 1 << 20
    linux.resources.cpu.shares.value = 100
    linux.resources.pids.limit = 7
    linux.oom_score_adj.value = 5
    linux.scheduler.policy = nri_pb2.SCHED_RR
    linux.rdt.clos_id.value = "c"
    linux.namespaces.add(type="-pid")
    linux.sysctl["net.x"] = "1"
    linux.net_devices["eth1"].name = "x"
    linux.memory_policy.mode = nri_pb2.MPOL_BIND
    linux.seccomp_policy.syscalls.add(names=["read"], action="SCMP_ACT_ALLOW").args.add(index=1)
    answer = nri_pb2.CreateContainerResponse(adjust=given)
    answer.update.add(container_id="d").linux.resources.CopyFrom(linux.resources)
    return answer.SerializeToString()


def read_spdy(data: bytes) -> None:
    stream, size = pieces(data)
    decoder = spdyframes.Decoder()
    with contextlib.suppress(spdyframes.SpdyError):
        for start in range(0, len(stream), size):
            decoder.feed(stream[start : start + size], lambda _: None)


def read_channels(data: bytes) -> None:
    stream, size = pieces(data)
    for protocol in remotecommand.WEBSOCKET_PROTOCOLS:
        decoder, resizes = remotecommand.ChannelDecoder(protocol), remotecommand.ResizeDecoder()
        with contextlib.suppress(remotecommand.RemoteCommandError):
            for start in range(0, len(stream), size):
                last = start + size >= len(stream)
                for event in decoder.feed(stream[start : start + size], last=last):
                    if isinstance(event, remotecommand.ChannelData):
                        resizes.feed(event.data)


def read_cni(data: bytes) -> None:
    for parse in (conf.parse_list, conf.parse_single):
        with contextlib.suppress(conf.ConfError):
            parse(data, source="x")
    with contextlib.suppress(result.BadResult):
        result.parse(data, ifname="eth0")


def read_cdi(data: bytes) -> None:
    """A file that is wrong is said so, and is no device."""
    with tempfile.TemporaryDirectory() as directory:
        for name in ("a.json", "b.yaml"):
            Path(directory, name).write_bytes(data)
        with contextlib.suppress(InvalidArgument):  # it knows no such device
            CdiSpecs((directory,))._edits([pb.CDIDevice(name="example.com/gpu=a")])


def read_bootstrap(data: bytes) -> None:
    with contextlib.suppress(Internal):
        bootstrap.parse(data)


def read_metrics(data: bytes) -> None:
    """What a shim tells of its sandbox: numbers, or an error of ours."""
    for version in ("v1", "v2"):
        told = any_pb2.Any(type_url=f"io.containerd.cgroups.{version}.Metrics", value=data)
        with contextlib.suppress(Internal):
            stats = cgroup_stats(told, 1)
            assert stats.memory is not None
            assert stats.memory.working_set >= 0
            sample = PodSample(timestamp=1, cpu=stats.cpu, memory=stats.memory)
            messages.pod_stats(b"", sample, [], [])


def read_settings(data: bytes) -> None:
    with contextlib.suppress(InvalidArgument):
        config.parse(data, "x")


def _frames() -> bytes:
    """A request, and a stream's beginning and data."""
    client = ttrpc.Client()
    client.request(b"hello")
    client.request(b"")
    return client.data_to_send()


def _muxed() -> bytes:
    return nrimux.frames(2, _frames()) + nrimux.frames(1, _frames()) + nrimux.frames(3, b"x")


def _spdy_frames() -> bytes:
    encoder = spdyframes.Encoder()
    frames: tuple[spdyframes.Frame, ...] = (
        spdyframes.SynStream(1, {"streamtype": "stdin"}),
        spdyframes.Data(1, b"hello", fin=True),
        spdyframes.Ping(2),
    )
    return b"".join(map(encoder.encode, frames))


TARGETS = (
    Target("ttrpc", read_ttrpc, (b"\xff" + _frames(), b"\x03" + _frames())),
    Target("nrimux", read_nrimux, (b"\xff" + _muxed(), b"\x03" + _muxed())),
    Target("nri", read_nri, (_nri_answer(),)),
    Target("spdy", read_spdy, (b"\xff" + _spdy_frames(), b"\x03" + _spdy_frames())),
    Target(
        "channels",
        read_channels,
        (b"\xff\x04" + b'{"Width": 80, "Height": 24}', b"\x02\x01aGVsbG8=", b"\xff\xff\x01"),
    ),
    Target("cni", read_cni, (*(json.dumps(d).encode() for d in (LIST, RESULT, OLD)), DEEP)),
    Target("cdi", read_cdi, (json.dumps(SPEC).encode(), YAML, DEEP, b"a: &a [*a, *a]")),
    Target(
        "bootstrap",
        read_bootstrap,
        (b'{"version": 3, "address": "unix:///x", "protocol": "ttrpc"}', b"unix:///x", DEEP),
    ),
    Target("metrics", read_metrics, (METRICS.SerializeToString(),)),
    Target("settings", read_settings, (SETTINGS, b"failpoints = 3", b"[a\n", b"a = " + DEEP)),
)
