"""What comes from peers and administrators: protocols, shims' answers, CNI, CDI, settings."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from google.protobuf import any_pb2

from tests.fuzz.harness import Target, pieces
from zos_cri import config
from zos_cri._pb import cgroups_v2_pb2
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.cdi import CdiSpecs
from zos_cri.errors import Internal, InvalidArgument
from zos_cri.network import conf, result
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
