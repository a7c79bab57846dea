"""What we serve under containerd's names is what a real containerd serves."""

from __future__ import annotations

import io
import re
import socket
import tarfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hack.benchmark.place import placed
from hack.benchmark.targets import PAUSE, TOOLS, Containerd, Ours, Setting, Started
from hack.benchmark.workload import CALL_TIMEOUT, Cri
from tests.conftest import ROOT
from tests.fakes.registry import Registry
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import Metric

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

BUSYBOX = Path("/bin/busybox")
# Of containerd's: what it measures and we don't, as docs/metrics.md says.
NOT_OURS = re.compile(
    r"containerd_(gc|nri|erofs|build_info|cri_(input|output)_(entries|bytes)|cri_split)"
)


class OursNamed(Ours):
    """With the setting, as the benchmark's target has it otherwise."""

    def __init__(self, *arguments: Any, address: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        text = self._config.read_text().replace('"127.0.0.1:0"', f'"{address}"')
        self._config.write_text(f"{text}\n[metrics]\ncontainerd_names = true\n")


class ContainerdMeasured(Containerd):
    """With its metrics served, and a pod's image of the test's."""

    def __init__(self, *arguments: Any, address: str, pause: str, **rest: Any) -> None:
        super().__init__(*arguments, **rest)
        text = self._config.read_text().replace(PAUSE, pause)
        self._config.write_text(f'{text}\n[metrics]\naddress = "{address}"\n')


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def busybox() -> bytes:
    """A layer with a busybox that sleeps."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
    return archive.getvalue()


def live(target: Started, image: str) -> None:
    """A pod's life, and lists, and pulls good and bad: all that either counts."""
    cri = Cri(target.endpoint)
    try:
        cri.ensure_image(image)
        for missing in ("missing", "missing-too"):
            with pytest.raises(grpc.RpcError):
                cri.ensure_image(f"{image.rpartition('/')[0]}/{missing}:1")
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name="pod", namespace="n", uid=f"u-{target.name}"),
            linux=pb.LinuxPodSandboxConfig(cgroup_parent=target.pods_cgroup),
        )
        run = cri.runtime.RunPodSandbox(
            pb.RunPodSandboxRequest(config=config), timeout=CALL_TIMEOUT
        )
        pod = run.pod_sandbox_id
        container = cri.runtime.CreateContainer(
            pb.CreateContainerRequest(
                pod_sandbox_id=pod,
                config=pb.ContainerConfig(
                    metadata=pb.ContainerMetadata(name="c"), image=pb.ImageSpec(image=image)
                ),
                sandbox_config=config,
            ),
            timeout=CALL_TIMEOUT,
        ).container_id
        cri.runtime.StartContainer(pb.StartContainerRequest(container_id=container))
        cri.runtime.ListPodSandbox(pb.ListPodSandboxRequest())
        cri.runtime.ListContainers(pb.ListContainersRequest())
        cri.runtime.StopContainer(pb.StopContainerRequest(container_id=container, timeout=0))
        cri.runtime.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        cri.runtime.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        cri.runtime.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
    finally:
        cri.close()


def scraped(url: str) -> dict[str, Metric]:
    """The families of a scrape that have numbers, by the names that are printed.

    Without any Go prints nothing at all, and Python the name.
    """
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    # Python's parser takes a counter's ending for its own: types are read by themselves.
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    found: dict[str, Metric] = {}
    for family in text_string_to_metric_families(text):
        printed = family.name if family.name in types else f"{family.name}_total"
        family.type = types.get(printed, family.type)
        found[printed] = family
    return {
        name: family
        for name, family in found.items()
        if name.startswith(("containerd_", "grpc_server_"))
        and family.samples
        and not (name.endswith("_created") or NOT_OURS.match(name))
    }


def shape(family: Metric) -> tuple[str, frozenset[str], frozenset[str]]:
    """Type, labels' names, and buckets."""
    labels = {label for sample in family.samples for label in sample.labels}
    buckets = {sample.labels["le"] for sample in family.samples if "le" in sample.labels}
    numbers = {str(float(bucket)) for bucket in buckets}
    return family.type, frozenset(labels), frozenset(numbers)


@pytest.fixture
def images() -> Iterator[tuple[str, str]]:
    """A pod's and a container's, in a registry."""
    with Registry() as registry:
        config = {"Cmd": ["/bin/busybox", "sleep", "1000"]}
        for name in ("pause", "main"):
            registry.add_image(name, "1", [busybox()], config=config, compress=bytes)
        yield f"{registry.address}/pause:1", f"{registry.address}/main:1"


def test_names_types_labels_and_buckets_are_containerds(
    own_network: None, images: tuple[str, str]
) -> None:
    pause, image = images
    addresses = [free_address(), free_address()]
    with placed() as place:
        setting = Setting(
            shim=TOOLS / "containerd-shim-runc-v2",
            runtime=TOOLS / "runc",
            certs_d=place.state / "certs.d",
        )
        registry = pause.partition("/")[0]
        (setting.certs_d / registry).mkdir(parents=True)
        (setting.certs_d / registry / "hosts.toml").write_text(f'server = "http://{registry}"\n')
        theirs: Started = ContainerdMeasured(
            "containerd",
            place.spot("c"),
            setting,
            runtime=setting.runtime,
            address=addresses[0],
            pause=pause,
        )
        ours: Started = OursNamed(
            "ours",
            place.spot("z"),
            setting,
            tree=ROOT,
            runtime=setting.runtime,
            address=addresses[1],
        )
        found = []
        for target, url in (
            (theirs, f"http://{addresses[0]}/v1/metrics"),
            (ours, f"http://{addresses[1]}/metrics"),
        ):
            target.start()
            try:
                live(target, image)
                found.append(scraped(url))
            finally:
                target.stop()
    upstream, served = found
    # Nothing of ours is without one of theirs, and what theirs has besides is known.
    assert served.keys() == upstream.keys()
    for name, family in upstream.items():
        assert shape(served[name]) == shape(family), name
    for name in ("container_start_seconds", "sandbox_create_network_seconds"):
        counts = [
            [s.value for s in each[f"containerd_cri_{name}"].samples if s.name.endswith("_count")]
            for each in found
        ]
        assert counts == [[1], [1]], name
