from __future__ import annotations

import msgspec
import pytest

from tests.fakes.images import BUSYBOX
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.creation_parts import cgroup_of, image_volumes, log_file, slice_path
from zos_cri.errors import InvalidArgument
from zos_cri.store.model import SandboxMeta


@pytest.mark.parametrize(
    ("named", "mounted", "result"),
    [
        ("/data", "/other", "/data"),
        ("data/", "/", "/data"),
        ("//a/../data/.", "", "/data"),
        ("/data", "/data/", ""),
        ("/data/", "//data", ""),
        ("/data", "/data/sub", "/data"),
    ],
)
def test_the_images_volumes_but_those_that_are_mounted(named, mounted, result):
    settings = msgspec.structs.replace(BUSYBOX.config, volumes=(named,))
    image = msgspec.structs.replace(BUSYBOX, config=settings)
    config = pb.ContainerConfig(mounts=[pb.Mount(container_path=mounted, host_path="/tmp")])
    assert image_volumes(config, image) == ((result,) if result else ())


@pytest.mark.parametrize(
    ("directory", "path", "result"),
    [
        ("/var/log", "a/0.log", "/var/log/a/0.log"),
        ("", "a.log", ""),
        ("/var/log", "", ""),
    ],
)
def test_log_files(directory, path, result):
    assert log_file(directory, path) == result


@pytest.mark.parametrize(
    ("directory", "path"), [("/var", "../x"), ("/var", "a/../../x"), ("/var", "/x"), ("var", "x")]
)
def test_log_files_that_lead_elsewhere(directory, path):
    with pytest.raises(InvalidArgument):
        log_file(directory, path)


def in_cgroup(path, parent, *, systemd=True):
    meta = SandboxMeta(id="p", name="p", config=b"", handler="runc", created_at=1, cgroup=parent)
    return cgroup_of({"linux": {"cgroupsPath": path}}, meta, systemd=systemd)


def test_where_the_cgroup_is():
    assert in_cgroup("/pods/c", "/pods", systemd=False) == "/pods/c"
    assert in_cgroup("a-b.slice:zos-cri:c", "/a.slice/a-b.slice") == (
        "/a.slice/a-b.slice/zos-cri-c.scope"
    )
    assert in_cgroup("system.slice:zos-cri:c", "") == "/system.slice/zos-cri-c.scope"


def test_where_it_is_in_another_slice_than_the_pods():
    assert in_cgroup("x-y-z.slice:p:c", "/a.slice") == "/x.slice/x-y.slice/x-y-z.slice/p-c.scope"


@pytest.mark.parametrize(("name", "path"), [("a.slice", "/a.slice"), ("-.slice", "")])
def test_slices(name, path):
    assert slice_path(name) == path
