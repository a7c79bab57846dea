"""What comes from registries, archives and administrators: the parsers of images."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import tempfile
from pathlib import Path

from tests.fakes import tars
from tests.fakes.registry import MANIFEST, digest_of
from tests.fuzz.harness import Target, pieces
from zos_cri.errors import DataLoss, FailedPrecondition, NotFound, Unimplemented
from zos_cri.images import manifest
from zos_cri.images.decompress import CompressionError, decompressed
from zos_cri.images.hosts import hosts_for
from zos_cri.images.model import diff_ids, parse_config
from zos_cri.wire import reference, wwwauth
from zos_cri.wire.tarheader import Entry, TarError
from zos_cri.wire.tarstream import TarReader

MOST = 1 << 22  # bytes of a decompressed stream that are looked at

ARCHIVE = b"".join(
    (
        tars.pax(("path", b"long/name"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"1")),
        tars.file(b"a", b"data" * 200),
        tars.longname(b"n" * 150),
        tars.file(b"b", b"x"),
        tars.directory(b"d"),
        tars.symlink(b"s", b"../b"),
        tars.hardlink(b"h", b"a"),
        tars.pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")),
        tars.file(b"sparse", b"1\n0\n4\n".ljust(512, b"\0") + b"data"),
        tars.end(),
    )
)
# The library's own decompressor of zstd is fuzzed by its makers; a frame of one raw block will do.
ZSTD = bytes.fromhex("28b52ffd2005290000") + b"hello"
DIGEST = digest_of(b"")
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": DIGEST, "size": 3}
IMAGE = {"mediaType": MANIFEST, "config": LAYER | {"mediaType": ""}, "layers": [LAYER]}
ARM = {"os": "linux", "architecture": "arm64", "variant": "v8"}
INDEX = {"manifests": [LAYER | {"platform": ARM}, LAYER]}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "User": "1",
        "Env": ["A=b"],
        "Cmd": ["sh"],
        "Volumes": {"/v": {}},
        "Labels": {"a": "b"},
        "StopSignal": "TERM",
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
}
DEEP = b'{"a":' + b"[" * 100_000
HOSTS = b"""
server = "https://registry.example"
[host."https://mirror.example/v2/x"]
capabilities = ["pull", "resolve"]
skip_verify = true
ca = ["a.crt"]
client = [["c.crt", "c.key"]]
override_path = true
dial_timeout = "3s"
[host."https://mirror.example/v2/x".header]
x-a = ["1", "2"]
"""


def read_tar(data: bytes) -> None:
    """The first byte says how many bytes come at once: how they are cut must change nothing."""
    data, size = pieces(data)
    whole, cut = _read_tar(data, len(data) or 1), _read_tar(data, size)
    assert whole == cut


def _read_tar(data: bytes, size: int) -> list[object]:
    reader = TarReader()
    seen: list[object] = []
    last: tuple[int, bytes] | None = None
    try:
        for start in range(0, len(data), size):
            for event in reader.feed(data[start : start + size]):
                if isinstance(event, Entry):
                    assert event.size >= 0
                    assert event.path
                    seen.append((event.path, event.kind, event.size, event.link))
                    last = None
                elif last is not None and last[0] + len(last[1]) == event.offset:
                    last = (last[0], last[1] + bytes(event.data))
                    seen[-1] = last
                else:
                    last = (event.offset, bytes(event.data))
                    seen.append(last)
        reader.close()
    except TarError as error:
        seen.append(str(error))
    return seen


def decompress(data: bytes) -> None:
    """Whatever comes, no more comes out at once than was asked for."""
    data, size = pieces(data)
    total = 0
    with contextlib.suppress(CompressionError):
        stream = decompressed(_Short(data, size))
        while (piece := stream.read(1000)) and total < MOST:
            assert len(piece) <= 1000
            total += len(piece)


class _Short(io.BytesIO):
    """Gives a few bytes at a time, as networks do."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


def read_manifest(data: bytes) -> None:
    """As a pull does it: which kind, then what it names."""
    with contextlib.suppress(DataLoss, Unimplemented, NotFound):
        if manifest.kind_of(data, "") == "index":
            chosen = manifest.choose(data, manifest.platforms_of("aarch64"), "x")
            assert reference.is_digest(chosen.digest)
        else:
            found = manifest.parse_manifest(data)
            assert all(layer.size >= 0 for layer in found.layers)


def read_config(data: bytes) -> None:
    """As a pull does it, up to the chain ids."""
    with contextlib.suppress(ValueError, DataLoss, NotFound):
        config, document = parse_config(data)
        assert all(isinstance(path, str) for path in config.volumes)
        manifest.check_platform(document, manifest.platforms_of("x86_64"), "x")
        manifest.chain_ids(diff_ids(document))


def read_hosts(data: bytes) -> None:
    """A folder with these bytes as its hosts.toml."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        folder = Path(name, "registry.example")
        folder.mkdir()
        (folder / "hosts.toml").write_bytes(data)
        with contextlib.suppress(FailedPrecondition):
            assert hosts_for("registry.example", [Path(name)])


def read_reference(data: bytes) -> None:
    """A reference means itself, written out in full."""
    with contextlib.suppress(reference.InvalidReference):
        found = reference.parse(data.decode(errors="replace"))
        assert reference.parse(found.key).key == found.key


def read_challenge(data: bytes) -> None:
    """A header is latin-1."""
    for challenge in wwwauth.parse(data.decode("latin-1")):
        assert challenge.scheme


TARGETS = (
    Target("tar", read_tar, (b"\xff" + ARCHIVE, b"\x0a" + tars.file(b"a", b"x") + tars.end())),
    Target(
        "decompress",
        decompress,
        tuple(
            b"\xff" + data
            for data in (
                gzip.compress(b"hello" * 100) + gzip.compress(b"more") + bytes(3),
                ZSTD + b"\x50\x2a\x4d\x18\x01\0\0\0x" + ZSTD,
                b"plain",
            )
        ),
    ),
    Target(
        "manifest",
        read_manifest,
        (*(json.dumps(d).encode() for d in (IMAGE, INDEX)), DEEP, b'{"\x80": 1}'),
    ),
    Target(
        "config",
        read_config,
        (json.dumps(CONFIG).encode(), DEEP, b'{"config": {"Volumes": [1, "a"]}}'),
    ),
    Target("hosts", read_hosts, (HOSTS,)),
    Target("reference", read_reference, (b"docker.io/a/b:1@" + DIGEST.encode(), b"busybox")),
    Target("challenge", read_challenge, (b'Bearer realm="https://a/t",scope="b",Basic x=y',)),
)
