from __future__ import annotations

import pytest

from zos_cri.config import Config
from zos_cri.cri.features import handler_features, handler_settings
from zos_cri.shim.launch import Features

ALL = Features(
    oci={
        "mountOptions": ["ro", "rro"],
        "linux": {"mountExtensions": {"idmap": {"enabled": True}}},
    }
)


def test_what_the_runtime_says_it_can():
    told = handler_features({"new": ALL, "old": None}, release="6.1.0-13-amd64")
    assert (told["new"].recursive_read_only_mounts, told["new"].user_namespaces) == (True, True)
    assert (told["old"].recursive_read_only_mounts, told["old"].user_namespaces) == (False, False)


@pytest.mark.parametrize(
    ("release", "able"),
    [("5.15.0-91-generic", False), ("5.19.0", True), ("10.0-rc1", True), ("odd", False)],
)
def test_layers_are_id_mapped_by_newer_kernels_only(release, able):
    assert handler_features({"": ALL}, release=release)[""].user_namespaces is able


@pytest.mark.parametrize(
    "oci",
    [
        {},
        {"linux": None},
        {"linux": {"mountExtensions": []}},
        {"linux": {"mountExtensions": {"idmap": {"enabled": "yes"}}}},
        {"mountOptions": "rro"},
    ],
)
def test_nothing_is_taken_for_granted(oci):
    told = handler_features({"": Features(oci=oci)}, release="6.1.0")[""]
    assert not told.recursive_read_only_mounts
    assert not told.user_namespaces


def test_specs_depend_on_the_same():
    config = Config()
    name = next(iter(config.handlers))
    settings = handler_settings(config, {name: ALL})[name]
    assert settings.recursive_read_only
    assert settings.id_mapped_mounts
    assert settings.seccomp


def fields(**oci):
    config = Config()
    name = next(iter(config.handlers))
    return handler_settings(config, {name: Features(oci=oci)})[name].oci_fields


def test_younger_fields_that_a_runtime_knows():
    linux = {
        "netDevices": {"enabled": True},
        "memoryPolicy": {"modes": ["MPOL_BIND"]},
        "intelRdt": {"enabled": True, "schemata": True, "monitoring": True},
    }
    assert fields(ociVersionMax="1.3.0", linux=linux) == {
        *("process.scheduler", "process.ioPriority", "linux.netDevices", "linux.memoryPolicy"),
        *("linux.intelRdt", "linux.intelRdt.schemata", "linux.intelRdt.enableMonitoring"),
    }


@pytest.mark.parametrize(
    ("version", "known"),
    [("1.1.0", True), ("1.2.0-rc.1", True), ("1.0.2-dev", False), ("x", False)],
)
def test_scheduling_is_known_since_a_version(version, known):
    assert ("process.scheduler" in fields(ociVersionMax=version)) is known


@pytest.mark.parametrize(
    "linux", [{}, {"netDevices": {"enabled": "yes"}, "memoryPolicy": [], "intelRdt": {}}]
)
def test_fields_that_a_runtime_does_not_speak_of_are_not_known(linux):
    assert fields(linux=linux) == frozenset()


def test_a_runtime_without_seccomp_says_so() -> None:
    config = Config()
    name = next(iter(config.handlers))
    for said, able in (({"enabled": False}, False), ({"enabled": True}, True), ({}, True)):
        features = Features(oci={"linux": {"seccomp": said}})
        assert handler_settings(config, {name: features})[name].seccomp is able
    assert handler_settings(config, {name: None})[name].seccomp
