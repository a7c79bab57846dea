from __future__ import annotations

from typing import Any

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import devices
from zos_cri.oci.base import DeviceNode
from zos_cri.oci.devices import DeviceFacts

FUSE = DeviceNode(path="/dev/fuse", type="c", major=10, minor=229)
DISK = DeviceNode(path="/dev/disk", type="b", major=8, minor=0, uid=0, gid=6, mode=0o660)


def device(**fields: Any) -> cri_pb2.Device:
    return cri_pb2.Device(**({"host_path": "/dev/fuse"} | fields))


def test_a_device_under_another_name() -> None:
    made = devices.plan(
        [device(container_path="/dev/mine", permissions="mr")],
        [DeviceFacts(path="/dev/fuse", nodes=(FUSE,))],
    )
    assert made.entries == (
        {
            "path": "/dev/mine",
            "type": "c",
            "major": 10,
            "minor": 229,
            "fileMode": 0o666,
            "uid": 0,
            "gid": 0,
        },
    )
    assert made.rules == (
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 229, "access": "rm"},
    )


def test_a_directory_of_devices_keeps_its_form() -> None:
    nodes = (
        DeviceNode(path="/dev/snd/c0", type="c", major=116, minor=1),
        DeviceNode(path="/dev/snd/by/x", type="c", major=116, minor=2),
    )
    made = devices.plan(
        [device(host_path="/dev/sound", container_path="/dev/audio")],
        [DeviceFacts(path="/dev/snd", nodes=nodes)],
    )
    assert [entry["path"] for entry in made.entries] == ["/dev/audio/c0", "/dev/audio/by/x"]


def test_without_a_container_path_it_is_the_hosts() -> None:
    made = devices.plan([device()], [DeviceFacts(path="/dev/fuse", nodes=(FUSE,))])
    assert made.entries[0]["path"] == "/dev/fuse"
    assert made.rules[1]["access"] == "rwm"


def test_the_user_owns_them_where_the_handler_says_so() -> None:
    made = devices.plan(
        [device(host_path="/dev/disk")],
        [DeviceFacts(path="/dev/disk", nodes=(DISK,))],
        owner=(1000, 0),
    )
    assert (made.entries[0]["uid"], made.entries[0]["gid"]) == (1000, 6)


def test_privileged_containers_have_the_hosts_and_may_use_any() -> None:
    made = devices.plan([], [], host_devices=(FUSE, DISK), all_allowed=True)
    assert [entry["path"] for entry in made.entries] == ["/dev/fuse", "/dev/disk"]
    assert made.rules == ({"allow": True, "access": "rwm"},)


def test_none_by_default() -> None:
    assert devices.plan([], []).rules == ({"allow": False, "access": "rwm"},)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (device(permissions="rx"), r"permissions: \"rx\" is not of r, w and m"),
        (device(host_path=""), r"host_path: is empty"),
        (device(host_path="fuse"), r"host_path: \"fuse\" is not an absolute path"),
        (device(container_path="x"), r"container_path: \"x\" is not an absolute path"),
    ],
)
def test_bad_devices(given: cri_pb2.Device, message: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^devices\[0\]\." + message):
        devices.plan([given], [DeviceFacts(path="/dev/fuse", nodes=(FUSE,))])


def test_what_is_no_device() -> None:
    with pytest.raises(InvalidArgument, match=r"^devices\[0\]\.host_path: .* is no device"):
        devices.plan([device()], [DeviceFacts(path="/dev/fuse")])
    with pytest.raises(ValueError, match="facts of 0"):
        devices.plan([device()], [])
