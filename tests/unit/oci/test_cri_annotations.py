from __future__ import annotations

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.oci import cri_annotations

POD = cri_pb2.PodSandboxConfig(
    metadata=cri_pb2.PodSandboxMetadata(name="web-1", uid="u-1", namespace="prod"),
    log_directory="/var/log/pods/x",
    linux=cri_pb2.LinuxPodSandboxConfig(
        resources=cri_pb2.LinuxContainerResources(cpu_period=1, memory_limit_in_bytes=5)
    ),
)


def test_of_a_container() -> None:
    made = cri_annotations.of_container("s1", POD, name="app", image="nginx:1")
    assert made == {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.sandbox-id": "s1",
        "io.kubernetes.cri.sandbox-name": "web-1",
        "io.kubernetes.cri.sandbox-namespace": "prod",
        "io.kubernetes.cri.sandbox-uid": "u-1",
        "io.kubernetes.cri.container-name": "app",
        "io.kubernetes.cri.image-name": "nginx:1",
    }


def test_of_a_sandbox() -> None:
    made = cri_annotations.of_sandbox("s1", POD)
    assert made["io.kubernetes.cri.container-type"] == "sandbox"
    assert made["io.kubernetes.cri.sandbox-log-directory"] == "/var/log/pods/x"
    assert made["io.kubernetes.cri.sandbox-memory"] == "5"
    assert made["io.kubernetes.cri.sandbox-cpu-quota"] == "0"
    assert len(cri_annotations.of_sandbox("s1", cri_pb2.PodSandboxConfig())) == 6


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("io.kata.*", "io.kata.vcpus", True),
        ("io.kata.*", "io.kata.a/b", False),
        ("io.kata.*/*", "io.kata.a/b", True),
        ("io.kata", "io.kata.vcpus", False),
        ("io?kata", "io.kata", True),
        ("io?kata", "io/kata", False),
        ("a[bc]d", "acd", True),
        ("a[^b]d", "abd", False),
        ("a[b-d]", "ac", True),
        ("a.b", "axb", False),
        ("a[", "a[", True),
        ("*", "io.kubernetes.cri.sandbox-id", False),
    ],
)
def test_globs(pattern: str, key: str, matches: bool) -> None:
    assert (cri_annotations.passed_on({key: "v"}, [pattern]) == {key: "v"}) == matches


def test_none_without_a_pattern() -> None:
    assert cri_annotations.passed_on({"a": "b"}, []) == {}


def test_classes_the_containers_own_first() -> None:
    pod = {
        "rdt.resources.beta.kubernetes.io/pod": "gold",
        "rdt.resources.beta.kubernetes.io/container.app": "silver",
    }
    find = cri_annotations.resource_class
    assert find("rdt", "app", {"io.kubernetes.cri.rdt-class": "bronze"}, pod) == "bronze"
    assert find("rdt", "app", {"io.kubernetes.cri.rdt-class": ""}, pod) == ""
    assert find("rdt", "app", {}, pod) == "silver"
    assert find("rdt", "other", {}, pod) == "gold"
    assert find("blockio", "app", {}, pod) == ""
