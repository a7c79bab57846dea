"""Pulls, side by side: two images made here, from a registry on loopback."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from hack.benchmark.main import make_target
from hack.benchmark.place import placed
from hack.benchmark.targets import ROOT, TOOLS, Setting
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hack.benchmark.targets import Target

MIB: Final = 1 << 20
LAYERS, LAYER_MIB = 8, 32
FILES: Final = 20_000
TIMEOUT: Final = 300.0
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"


def layer(files: Iterator[tuple[str, bytes]]) -> tuple[bytes, str]:
    """A compressed layer and its diff id."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            tar.addfile(info, io.BytesIO(content))
    data = plain.getvalue()
    return gzip.compress(data, 6, mtime=0), digest(data)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def large(chance: random.Random) -> list[tuple[bytes, str]]:
    """Layers of one file each, half of it incompressible."""
    half = LAYER_MIB * MIB // 2
    return [
        layer(iter([(f"layer{n}", chance.randbytes(half) + bytes([n]) * half)]))
        for n in range(LAYERS)
    ]


def small(chance: random.Random) -> list[tuple[bytes, str]]:
    """One layer of many small files."""
    names = (f"d{n // 200:03}/file{n}" for n in range(FILES))
    return [layer((name, chance.randbytes(chance.randrange(100, 3000))) for name in names)]


class Registry:
    """Uploads images to the registry on loopback."""

    def __init__(self, address: str) -> None:
        self._address = address

    def push(self, name: str, layers: list[tuple[bytes, str]]) -> str:
        """Pushes an image; its reference."""
        config = {
            "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        }
        encoded = json.dumps(config).encode()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._blob(name, encoded, CONFIG_TYPE),
            "layers": [self._blob(name, data, LAYER_TYPE) for data, _ in layers],
        }
        self._request("PUT", f"/v2/{name}/manifests/1", json.dumps(manifest).encode())
        return f"{self._address}/{name}:1"

    def _blob(self, name: str, data: bytes, kind: str) -> dict[str, Any]:
        where = self._request("POST", f"/v2/{name}/blobs/uploads/", b"", kind)
        path = where.split(self._address, 1)[-1]
        joint = "&" if "?" in path else "?"
        self._request("PUT", f"{path}{joint}digest={digest(data)}", data, kind)
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    def _request(self, method: str, path: str, data: bytes, kind: str = MANIFEST_TYPE) -> str:
        request = urllib.request.Request(f"http://{self._address}{path}", data, method=method)
        sort = "application/octet-stream" if "/blobs/" in path else kind
        request.add_header("Content-Type", sort)
        with urllib.request.urlopen(request, timeout=60) as reply:
            return str(reply.headers.get("Location", ""))


def pull(target: Target, reference: str, *, keep: bool) -> tuple[float, float]:
    """Seconds that a pull took, and CPU seconds; unless `keep`, the image is removed again."""
    with grpc.insecure_channel(target.endpoint) as channel:
        stub = cri_pb2_grpc.ImageServiceStub(channel)  # type: ignore[no-untyped-call]
        image = pb.ImageSpec(image=reference)
        before = target.cpu() or 0.0
        begun = time.perf_counter()
        stub.PullImage(pb.PullImageRequest(image=image), timeout=TIMEOUT)
        seconds = time.perf_counter() - begun
        cpu = (target.cpu() or 0.0) - before
        if not keep:
            stub.RemoveImage(pb.RemoveImageRequest(image=image), timeout=TIMEOUT)
    time.sleep(1.0)  # both collect what was removed in the background
    os.sync()
    return seconds, cpu


@contextlib.contextmanager
def serving(options: argparse.Namespace, certs_d: Path) -> Iterator[dict[str, Target]]:
    """Ours and containerd, each in a place of its own."""
    setting = Setting(shim=options.shim, runtime=options.runtime, certs_d=certs_d)
    with placed() as place, contextlib.ExitStack() as stack:
        targets = {}
        for number, name in enumerate(("zos-cri", "containerd")):
            targets[name] = make_target(name, number, place, setting)
            stack.callback(targets[name].stop)
            targets[name].start()
        yield targets


def main(argv: list[str]) -> int:
    """Runs it; 0 where everything could be measured, whatever the figures are."""
    parser = argparse.ArgumentParser(prog="hack/bench-pull", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shim", type=Path, default=TOOLS / "containerd-shim-runc-v2")
    parser.add_argument("--runtime", type=Path, default=TOOLS / "runc")
    parser.add_argument("--json", type=Path, help="write all measurements there")
    parser.add_argument("--only", choices=("large", "small"), help="one of the two images")
    options = parser.parse_args(argv)
    if os.environ.get("REGISTRY") is None:
        # In namespaces of our own, beside a registry that ends with us.
        own = [sys.executable, str(ROOT / "hack" / "bench-pull"), *argv]
        command = [str(ROOT / "hack" / "netns"), "run", "--pids", str(ROOT / "hack/images/serve")]
        return subprocess.run([*command, *own], check=False).returncode
    chance = random.Random(1)
    registry = Registry(os.environ["REGISTRY"])
    # The first round warms both up, and doesn't count.
    images: dict[str, list[str]] = {}
    if options.only != "small":
        reference = registry.push("bench/large", large(chance))
        images[f"{LAYERS} layers of {LAYER_MIB} MiB"] = [reference] * (options.rounds + 1)
    if options.only != "large":
        # Each round has an image of its own, which stays: ext4 takes long to make files where
        # others were removed in the last minutes, and nodes don't pull what they removed just now.
        images[f"1 layer of {FILES} files"] = [
            registry.push(f"bench/small{n}", small(chance)) for n in range(options.rounds + 1)
        ]
    measured: dict[str, dict[str, list[float]]] = {}
    with serving(options, Path(os.environ["CERTS_D"])) as targets:
        for what, references in images.items():
            times: dict[str, list[float]] = {name: [] for name in targets}
            cpu: dict[str, list[float]] = {name: [] for name in targets}
            for round_, reference in enumerate(references):
                for name, target in targets.items():
                    took, used = pull(target, reference, keep=len(set(references)) > 1)
                    if round_ > 0:
                        times[name].append(took)
                        cpu[name].append(used)
            for kind, unit, found in ((what, "s", times), ("", "CPU s", cpu)):
                _print(kind, unit, found)
                measured[f"{what}, {unit}"] = found
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1))
    return 0


def _print(what: str, unit: str, found: dict[str, list[float]]) -> None:
    ours, peers = found["zos-cri"], found["containerd"]
    pairs = sorted(a / b for a, b in zip(ours, peers, strict=True))
    print(
        f"{what:<22} zos-cri {statistics.median(ours):6.2f} {unit:<5}  containerd"
        f" {statistics.median(peers):6.2f} {unit:<5}  ratio of medians"
        f" {statistics.median(ours) / statistics.median(peers):.2f}"
        f"  pairs {pairs[0]:.2f} to {pairs[-1]:.2f}",
        flush=True,
    )
