"""Bundles on disk."""

from __future__ import annotations

import json
import os
import stat
from typing import TYPE_CHECKING

import pytest

from zos_cri import errors
from zos_cri.linux import mount
from zos_cri.shim import bundle
from zos_cri.shim.bundle import GROUP_ANNOTATION, Record
from zos_cri.shim.handler import Handler

if TYPE_CHECKING:
    from pathlib import Path

RECORD = Record(
    group="g", handler=Handler(name="h", options={"no_pivot_root": True}), binary="/bin/shim"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_group_s_bundle(tmp_path: Path) -> None:
    path = bundle.create(tmp_path / "bundles", "g", group="g")
    assert path == tmp_path / "bundles" / "g"
    assert (mode(path.parent), mode(path), mode(path / "rootfs")) == (0o711, 0o700, 0o711)
    assert stat.S_ISFIFO((path / "log").stat().st_mode)
    config = json.loads((path / "config.json").read_text())
    assert config == {"ociVersion": "1.0.2", "annotations": {GROUP_ANNOTATION: "g"}}


def test_a_bundle_is_never_seen_without_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, data: bytes, mode: int = 0) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bundle, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            bundle.create(tmp_path, "g", group="g", record=RECORD)
    assert os.listdir(tmp_path) == [".g"]
    path = bundle.create(tmp_path, "g", group="g", record=RECORD)
    assert bundle.read_record(path) == RECORD
    assert os.listdir(tmp_path) == ["g"]


def test_an_existing_config_stays_and_a_minimal_one_is_replaced(tmp_path: Path) -> None:
    path = bundle.create(tmp_path, "g", group="g")
    bundle.write_config(path, {"process": {"args": ["a"]}})
    assert bundle.create(tmp_path, "g", group="g") == path
    assert json.loads((path / "config.json").read_text()) == {"process": {"args": ["a"]}}
    assert bundle.read_config(path) == {"process": {"args": ["a"]}}


def test_a_config_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bundle.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(errors.DataLoss, match=r"config\.json"):
        bundle.read_config(tmp_path)


def test_records(tmp_path: Path) -> None:
    assert bundle.read_record(tmp_path) is None
    bundle.write_record(tmp_path, RECORD)
    assert bundle.read_record(tmp_path) == RECORD
    assert mode(tmp_path / "shim.json") == 0o600
    assert os.listdir(tmp_path) == ["shim.json"]


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"schema":2,"group":"g","handler":{},"binary":""}']
)
def test_damaged_and_foreign_records(tmp_path: Path, content: str) -> None:
    (tmp_path / "shim.json").write_text(content)
    with pytest.raises(errors.DataLoss, match=r"shim\.json"):
        bundle.read_record(tmp_path)


def test_whose_containers_the_bundles_are(tmp_path: Path) -> None:
    bundles = tmp_path / "bundles"
    assert bundle.containers(bundles) == {}
    assert bundle.groups(bundles) == []
    for group in ("g", "h"):
        bundle.write_record(bundle.create(bundles, group, group=group), RECORD)
    for container, group in (("c1", "g"), ("c2", "g"), ("h", "h")):
        path = bundles / container
        path.mkdir(exist_ok=True)
        spec = {"process": {}, "annotations": {GROUP_ANNOTATION: group}}
        bundle.write_config(path, spec)
    (bundles / "alone").mkdir()
    bundle.write_config(bundles / "alone", {"process": {}})
    (bundles / "empty").mkdir()
    (bundles / "broken").mkdir()
    (bundles / "broken" / "config.json").write_text("{")
    (bundles / ".hidden").mkdir()
    assert bundle.containers(bundles) == {"g": ["c1", "c2"], "h": ["h"], "alone": ["alone"]}
    assert [path.name for path in bundle.groups(bundles)] == ["g", "h"]


def test_remove(tmp_path: Path) -> None:
    path = bundle.create(tmp_path, "g", group="g")
    (tmp_path / ".g").mkdir()  # of a removal that was interrupted
    bundle.remove(path)
    bundle.remove(path)
    assert os.listdir(tmp_path) == []


def test_leftovers(tmp_path: Path) -> None:
    bundle.remove_leftovers(tmp_path / "absent")
    (tmp_path / ".g" / "rootfs").mkdir(parents=True)
    bundle.create(tmp_path, "h", group="h")
    bundle.remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["h"]


@pytest.mark.root
def test_what_is_mounted_in_a_bundle_is_not_deleted(tmp_path: Path) -> None:
    source = tmp_path / "volume"
    source.mkdir()
    (source / "precious").write_text("data")
    for number in range(2):  # by name, and as a leftover
        path = bundle.create(tmp_path / "bundles", "g", group="g")
        mount.mount(
            mount.Mount(type="bind", source=str(source), options=("rbind",)), str(path / "rootfs")
        )
        if number:
            path.rename(path.with_name(".g"))
            bundle.remove_leftovers(path.parent)
        else:
            bundle.remove(path)
        assert (source / "precious").read_text() == "data"
        assert mount.mounts_below(str(tmp_path)) == []
        assert os.listdir(tmp_path / "bundles") == []


@pytest.mark.root
def test_a_bundle_with_a_busy_mount_stays_as_it_is(tmp_path: Path) -> None:
    path = bundle.create(tmp_path, "g", group="g")
    mount.mount(mount.Mount(type="tmpfs", source="tmpfs"), str(path / "rootfs"))
    try:
        with (path / "rootfs" / "file").open("w"), pytest.raises(errors.FailedPrecondition):
            bundle.remove(path)
        assert os.listdir(tmp_path) == ["g"]
        bundle.remove(path)
        assert os.listdir(tmp_path) == []
    finally:
        mount.unmount_tree(str(tmp_path))
