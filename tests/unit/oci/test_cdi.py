from __future__ import annotations

import copy
from typing import Any

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument
from zos_cri.oci import cdi
from zos_cri.oci.base import DeviceNode

FILE: dict[str, Any] = {
    "cdiVersion": "1.0.0",
    "kind": "vendor.com/gpu",
    "annotations": {"note": "x"},
    "devices": [
        {
            "name": "gpu0",
            "containerEdits": {
                "deviceNodes": [
                    {"path": "/dev/gpu0", "hostPath": "/dev/vendor/0", "permissions": "rw"},
                    {"path": "/dev/ctl", "type": "c", "major": 5, "minor": 6, "uid": 1, "gid": 2},
                ],
                "mounts": [
                    {"hostPath": "/lib/gpu", "containerPath": "/usr/lib/gpu", "options": ["ro"]}
                ],
            },
        },
        {"name": "gpu1", "containerEdits": {"env": ["GPU=1"]}},
    ],
    "containerEdits": {
        "env": ["VENDOR=yes"],
        "hooks": [
            {
                "hookName": "createContainer",
                "path": "/usr/bin/hook",
                "args": ["hook", "-x"],
                "env": ["H=1"],
                "timeout": 5,
            }
        ],
        "additionalGids": [44],
        "intelRdt": {"closID": "gold"},
    },
}
SPEC: dict[str, Any] = {
    "process": {"env": ["PATH=/x"], "user": {"uid": 10, "gid": 20, "additionalGids": [20]}},
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/usr/lib/gpu/deep", "type": "bind", "source": "/d", "options": []},
    ],
    "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
}


def changed(**fields: Any) -> dict[str, Any]:
    return copy.deepcopy(FILE) | fields


def known(*documents: dict[str, Any]) -> cdi.Catalogue:
    return cdi.catalogue([[cdi.parse_spec(document, "/etc/cdi/x.json") for document in documents]])


def ask(*names: str) -> list[cri_pb2.CDIDevice]:
    return [cri_pb2.CDIDevice(name=name) for name in names]


def test_edits_in_a_spec() -> None:
    edits = cdi.edits_for(ask("vendor.com/gpu=gpu0", "vendor.com/gpu=gpu1"), known(FILE))
    assert edits is not None
    assert cdi.unresolved(edits) == ("/dev/vendor/0",)
    node = DeviceNode(path="/dev/vendor/0", type="c", major=195, minor=0, mode=0o660)
    before = copy.deepcopy(SPEC)
    made = cdi.apply(SPEC, cdi.resolve(edits, {"/dev/vendor/0": node}))
    assert before == SPEC
    assert made["process"]["env"] == ["PATH=/x", "VENDOR=yes", "GPU=1"]
    assert made["process"]["user"]["additionalGids"] == [20, 44]
    assert made["linux"]["devices"] == [
        {
            "path": "/dev/gpu0",
            "type": "c",
            "major": 195,
            "minor": 0,
            "fileMode": 0o660,
            "uid": 10,
            "gid": 20,
        },
        {
            "path": "/dev/ctl",
            "type": "c",
            "major": 5,
            "minor": 6,
            "fileMode": 0o666,
            "uid": 1,
            "gid": 2,
        },
    ]
    assert made["linux"]["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 195, "minor": 0, "access": "rw"},
        {"allow": True, "type": "c", "major": 5, "minor": 6, "access": "rwm"},
    ]
    assert [mount["destination"] for mount in made["mounts"]] == [
        "/proc",
        "/usr/lib/gpu",
        "/usr/lib/gpu/deep",
    ]
    assert made["mounts"][1]["options"] == ["rbind", "ro"]
    assert made["hooks"] == {
        "createContainer": [
            {"path": "/usr/bin/hook", "args": ["hook", "-x"], "env": ["H=1"], "timeout": 5}
        ]
    }
    assert made["linux"]["intelRdt"] == {"closID": "gold"}


def test_a_files_own_edits_come_once() -> None:
    edits = cdi.edits_for(
        ask("vendor.com/gpu=gpu1", "vendor.com/gpu=gpu1", "vendor.com/gpu=gpu0"), known(FILE)
    )
    assert edits is not None
    assert edits.env == ("VENDOR=yes", "GPU=1")
    assert len(edits.hooks) == 1


def test_none_asked_for() -> None:
    assert cdi.edits_for([], known(FILE)) is None


def test_names_that_are_not_there() -> None:
    with pytest.raises(InvalidArgument, match=r"^CDI_devices\[1\]\.name: no CDI spec file has"):
        cdi.edits_for(ask("vendor.com/gpu=gpu0", "vendor.com/gpu=gpu9"), known(FILE))


def test_two_files_of_one_directory_with_one_name() -> None:
    catalogue = known(FILE, FILE)
    assert "vendor.com/gpu=gpu0" in catalogue.conflicts
    with pytest.raises(InvalidArgument, match="is in more than one CDI spec file"):
        cdi.edits_for(ask("vendor.com/gpu=gpu0"), catalogue)


def test_a_later_directory_comes_first_and_settles_conflicts() -> None:
    one = cdi.parse_spec(FILE, "a")
    edits = {"env": ["LATER=1"]}
    other = cdi.parse_spec(changed(devices=[{"name": "gpu0", "containerEdits": edits}]), "b")
    catalogue = cdi.catalogue([[one, one], [other]])
    found = cdi.edits_for(ask("vendor.com/gpu=gpu0"), catalogue)
    assert found is not None
    assert "LATER=1" in found.env
    assert "vendor.com/gpu=gpu1" in catalogue.conflicts


@pytest.mark.parametrize("version", cdi.VERSIONS)
def test_all_versions(version: str) -> None:
    assert cdi.parse_spec(changed(cdiVersion=version), "x").kind == "vendor.com/gpu"


def edits(**fields: Any) -> dict[str, Any]:
    return changed(containerEdits=fields)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "not a CDI spec"),
        ({}, "not a CDI spec"),
        (changed(cdiVersion="0.2.0"), r"cdiVersion: version \"0\.2\.0\" is none of"),
        (changed(kind="gpu"), r"kind: \"gpu\" is not vendor/class"),
        (changed(kind="1v/gpu"), r"kind: "),
        (changed(kind="v/g/u"), r"kind: "),
        (changed(devices=[]), r"devices: there is none"),
        (changed(devices=[{"name": ".x"}]), r"devices: \"\.x\" is no name"),
        (changed(devices=[{"name": "a"}, {"name": "a"}]), r"devices: \"a\" is no name, or is tw"),
        (changed(surprise=1), "unknown field `surprise`"),
        (edits(env=["NOEQUALS"]), r"env: \"NOEQUALS\""),
        (edits(deviceNodes=[{"path": "gpu"}]), r"deviceNodes\.path: "),
        (edits(deviceNodes=[{"path": "/dev/../x"}]), r"deviceNodes\.path: .* has a '\.\.'"),
        (edits(deviceNodes=[{"path": "/dev/x", "permissions": "x"}]), r"permissions"),
        (edits(deviceNodes=[{"path": "/dev/x", "type": "z"}]), "not a CDI spec"),
        (edits(mounts=[{"hostPath": "/x", "containerPath": "x"}]), r"containerPath: "),
        (edits(mounts=[{"hostPath": "", "containerPath": "/x"}]), r"hostPath: is empty"),
        (edits(hooks=[{"hookName": "never", "path": "/x"}]), r"hookName: \"never\""),
        (edits(hooks=[{"hookName": "poststop", "path": "x"}]), r"hooks\.path: "),
        (edits(additionalGids=[0]), r"additionalGids: 0"),
    ],
)
def test_files_that_are_refused(document: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^/etc/cdi/x\.json: .*" + message):
        cdi.parse_spec(document, "/etc/cdi/x.json")


def test_a_node_that_is_not_there() -> None:
    found = cdi.edits_for(ask("vendor.com/gpu=gpu0"), known(FILE))
    assert found is not None
    with pytest.raises(InvalidArgument, match=r"^CDI_devices: \"/dev/vendor/0\" is not such a dev"):
        cdi.resolve(found, {})


def test_a_node_of_another_type_than_the_file_says() -> None:
    asked = cdi.Edits(device_nodes=(cdi.DeviceNode(path="/dev/x", type="b"),))
    node = DeviceNode(path="/dev/x", type="c", major=1, minor=1)
    with pytest.raises(InvalidArgument, match="is not such a device"):
        cdi.resolve(asked, {"/dev/x": node})


def test_a_device_that_the_container_has_is_replaced() -> None:
    spec = copy.deepcopy(SPEC)
    spec["linux"]["devices"] = [{"path": "/dev/x", "type": "b"}]
    node = cdi.DeviceNode(path="/dev/x", type="c", major=1, minor=2)
    made = cdi.apply(spec, cdi.Edits(device_nodes=(node,)))
    assert [entry["type"] for entry in made["linux"]["devices"]] == ["c"]


def test_a_mount_that_the_container_has_is_replaced() -> None:
    mount = cdi.Mount(host_path="/new", container_path="/usr/lib/gpu/deep", type="tmpfs")
    made = cdi.apply(SPEC, cdi.Edits(mounts=(mount,)))
    assert made["mounts"][-1]["source"] == "/new"
    assert len(made["mounts"]) == 2
