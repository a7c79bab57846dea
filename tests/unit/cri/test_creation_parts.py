from __future__ import annotations

import msgspec
import pytest

from tests.fakes.images import BUSYBOX
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.creation_parts import image_volumes, log_file
from zos_cri.errors import InvalidArgument


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
