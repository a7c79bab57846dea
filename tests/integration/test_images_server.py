"""Images through a whole server: what a person, the kubelet and Prometheus see of a pull."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import re
import subprocess
import sys
import threading
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.registry import Fault, Registry, tar_of
from tests.integration.server import IMAGE, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2, cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime]

SIZE = 1_000_000  # of each layer, about; it doesn't compress
PATIENCE = 60.0  # seconds


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as running:
        yield running


def image(registry: Registry) -> str:
    bits = [tar_of({f"file{n}": random.Random(n).randbytes(SIZE)}) for n in range(2)]
    registry.add_image("a", "1", bits)
    return f"{registry.address}/a:1"


def metrics(server: Server) -> dict[str, float]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.metrics_url(), timeout=20) as reply:
        lines = reply.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if line.startswith("zos_cri_image"))
    return {name: float(value) for name, value in samples}


@contextlib.contextmanager
def images(server: Server) -> Iterator[Any]:
    """The stub of ImageService."""
    with server.channel() as channel:
        yield cri_pb2_grpc.ImageServiceStub(channel)


class Watched:
    """`zos-cri pull` by a person: standard error is a terminal."""

    def __init__(self, server: Server, ref: str) -> None:
        self._terminal, theirs = pty.openpty()
        argv = [sys.executable, "-m", "zos_cri", "pull", "--socket", str(server.socket), ref]
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=theirs, text=True)
        os.close(theirs)
        self.seen = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: all others have closed it
            while data := os.read(self._terminal, 4096):
                self.seen += data.decode()

    def wait(self) -> str:
        """Its standard output; the exit code must be 0."""
        assert self.process.stdout is not None
        output = self.process.stdout.read()
        assert self.process.wait(60) == 0, self.seen
        self._reader.join()
        self.process.stdout.close()
        os.close(self._terminal)
        return output


def test_a_pull_under_way(server: Server, registry: Registry) -> None:
    ref = image(registry)
    first, second = registry.layers_of("a", "1")
    sizes = sum(len(registry.blobs[digest]) for digest in (first, second))
    gate = threading.Event()
    registry.faults[second] = [Fault(stall_after=SIZE // 2, gate=gate)]
    watched = Watched(server, ref)
    try:
        half = rf"{second[7:19]} \[#+ +\] +0\.[1-5] of 1\.0 MiB +\w+"
        wait_for(lambda: re.search(half, watched.seen), PATIENCE)
        wait_for(lambda: re.search(rf"{first[7:19]} \[#+\] .* done", watched.seen), PATIENCE)
        now = metrics(server)
        assert now['zos_cri_image_pulls_in_progress{from="registry"}'] == 1
        assert now['zos_cri_image_layers_in_progress{state="done"}'] == 1
        with images(server) as stub:
            request = cri_pb2.ImageStatusRequest(image=cri_pb2.ImageSpec(image=ref), verbose=True)
            answer = stub.ImageStatus(request)
            assert not answer.HasField("image")
            pull = json.loads(answer.info["pull"])
            assert pull["ref"] == ref
            assert [layer["state"] == "done" for layer in pull["layers"]] == [True, False]
            assert 0 < pull["layers"][1]["fetched"] < pull["layers"][1]["size"]
            assert (
                "pull" not in stub.ImageStatus(cri_pb2.ImageStatusRequest(image=request.image)).info
            )
    finally:
        gate.set()
        image_id = watched.wait().strip()
    assert re.fullmatch("sha256:[0-9a-f]{64}", image_id)
    assert watched.seen.endswith("\x1b[J"), "the bars are taken away"
    now = metrics(server)
    assert now.get('zos_cri_image_pulls_in_progress{from="registry"}', 0) == 0
    assert now['zos_cri_image_pulls_total{error=""}'] == 1
    assert now["zos_cri_image_pulled_bytes_total"] == sizes
    assert now["zos_cri_image_pulled_layers_total"] == 2
    assert now["zos_cri_image_pull_duration_seconds_count"] == 1
    assert now["zos_cri_image_pull_throughput_bytes_per_second"] > 0


def test_failures_are_counted_by_reason(server: Server, registry: Registry) -> None:
    registry.faults["2"] = [Fault(status=403)] * 10
    for tag in ("1", "2"):
        done = server.cli("pull", f"{registry.address}/none:{tag}")
        assert done.returncode != 0
        assert done.stderr.startswith("zos-cri: ")
        assert done.stderr.count("\n") == 1
    now = metrics(server)
    assert now['zos_cri_image_pulls_total{error="NotFound"}'] == 1
    assert now['zos_cri_image_pulls_total{error="PermissionDenied"}'] == 1
    assert 'zos_cri_image_pulls_total{error=""}' not in now


def test_the_limit_of_a_layer_is_configured(registry: Registry) -> None:
    ref = image(registry)
    with serving(UPSTREAM, extra=f"[images]\nmax_layer_bytes = {SIZE // 2}\n") as server:
        done = server.cli("pull", ref)
        assert done.returncode != 0
        assert f"larger than {SIZE // 2} bytes" in done.stderr


def test_what_images_and_containers_take(server: Server, registry: Registry) -> None:
    """ImageFsInfo counts archives, layers and what containers have written."""
    ref = image(registry)

    def usage() -> tuple[Any, Any]:
        with images(server) as stub:
            info = stub.ImageFsInfo(cri_pb2.ImageFsInfoRequest())
        return info.image_filesystems[0], info.container_filesystems[0]

    with server.cri() as cri:
        pod = server.run_pod(cri)
        server.run_container(cri, pod, "sh", "-c", "head -c 3000000 /dev/zero >f; exec sleep 1000")
        before = usage()[0].used_bytes.value
        with images(server) as stub:
            stub.PullImage(cri_pb2.PullImageRequest(image=cri_pb2.ImageSpec(image=ref)))
        added = wait_for(
            lambda: (n := usage()[0].used_bytes.value - before) >= 4 * SIZE and n, PATIENCE
        )
        assert added < 5 * SIZE, "each layer twice: its archive and its files"
        stats = cri_pb2.ListContainerStatsRequest()

        def written() -> bool:
            cri.ListContainerStats(stats)
            return int(usage()[1].used_bytes.value) >= 3_000_000

        wait_for(written, PATIENCE)
        server.remove_pods()
        assert usage()[1].used_bytes.value == 0


def test_gc(server: Server, registry: Registry) -> None:
    """What a failed pull has left is kept to go on with, until it is asked to go."""
    folders = [server.state / "images" / name for name in ("blobs/sha256", "ingest")]

    def stored() -> set[Path]:
        return {path for folder in folders for path in folder.iterdir()}

    assert server.cli("pull", IMAGE).returncode == 0  # the built-in one is complete
    before = stored()
    ref = image(registry)
    digest = registry.layers_of("a", "1")[1]
    registry.faults[digest] = [Fault(status=404)] * 20
    assert server.cli("pull", ref).returncode != 0
    would = server.cli("gc", "--dry-run")
    assert would.returncode == 0, would.stderr
    said = re.match(r"would remove 0 layers, (\d+) archives and 0 blocks of flists", would.stdout)
    assert said
    assert int(said[1]) == len(stored() - before) > 0
    done = server.cli("gc")
    assert done.stdout == would.stdout.replace("would remove", "removed")
    assert stored() == before
    assert "removed 0 layers, 0 archives" in server.cli("gc").stdout
    registry.faults.clear()
    assert server.cli("pull", ref).returncode == 0
