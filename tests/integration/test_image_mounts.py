"""Images as volumes (KEP-4639): read only, a part of them, and nothing of it left."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.fakes import tars
from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.test_containers import FIRST, SIZE, load_image, says
from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.mount import Mount, mount, mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One for all tests here."""
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def node(server: Server) -> Iterator[Server]:
    """The server, which nothing of a test is left on."""
    yield server
    server.remove_pods()
    assert server.leftovers() == []


@pytest.fixture(scope="module")
def model(server: Server) -> Any:
    """An image of two layers; links in it lead everywhere."""
    extra = tars.directory(b"weights", uid=1000) + tars.file(b"weights/one", b"1\n", mode=0o644)
    extra += tars.directory(b"weights/deep") + tars.file(b"weights/deep/two", b"2\n", mode=0o755)
    extra += tars.symlink(b"inside", b"/weights/deep") + tars.symlink(b"out", b"../../../../etc")
    extra += tars.symlink(b"weights/up", b"../../..") + tars.symlink(b"loop", b"loop")
    extra += tars.file(b"data/.wh.old", b"")
    return load_image(server, "model", extra)


def image_mount(image: Any, sub_path: str = "", path: str = "/model", **fields: Any) -> pb.Mount:
    return pb.Mount(container_path=path, image=image, image_sub_path=sub_path, **fields)


def views(node: Server) -> list[str]:
    return [m.target for m in mounts_below(str(node.state / "images")) if "/views/" in m.target]


def test_all_of_an_image_and_its_parts(node: Server, model: Any) -> None:
    wanted = [
        image_mount(model, readonly=True),
        image_mount(model, "weights", "/weights"),
        image_mount(model, "/inside", "/inside", recursive_read_only=True, readonly=True),
        image_mount(model, "weights/up/weights/one", "/one"),
        image_mount(model, "data", "/data", mount_options=["noexec", "nosuid", "nodev"]),
    ]
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, mounts=wanted)
        assert says(
            cri, container, "cat /model/weights/one /weights/deep/two /inside/two /one"
        ) == ("1\n2\n2\n1")
        assert says(cri, container, "ls -A /data") == ""  # its only file is whited out
        assert says(cri, container, "stat -c %u /weights /model/weights").split() == ["1000"] * 2
        for path in ("/model/x", "/weights/x", "/inside/x", "/data/x"):
            done = cri.ExecSync(
                pb.ExecSyncRequest(container_id=container, cmd=["touch", path], timeout=20)
            )
            assert (done.exit_code, b"Read-only file system" in done.stderr) == (1, True)
        says(cri, container, "! echo x > /one")
        line = says(cri, container, "grep ' /data ' /proc/self/mountinfo")
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(line.split()[5].split(","))
        request = pb.ContainerStatusRequest(container_id=container)
        told = cri.ContainerStatus(request).status.mounts
        assert [(m.container_path, m.image.image, m.image_sub_path) for m in told][1] == (
            *("/weights", model.image, "weights"),
        )
        assert len(views(node)) == len(wanted)
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        assert views(node) == []


@pytest.mark.parametrize("path", ["out", "absent", "weights/one/x", "loop", "x" * 300, "../etc"])
def test_a_part_that_is_not_in_the_image(node: Server, model: Any, path: str) -> None:
    """The host has /etc, where two of these would lead."""
    with node.cri() as cri:
        pod = node.run_pod(cri)
        with pytest.raises(grpc.RpcError) as error:
            node.run_container(cri, pod, mounts=[image_mount(model, path)])
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        text = str(error.value.details())
        assert "mounts[0].image_sub_path: ImageVolumeMountFailed: the image has no" in text
        assert views(node) == []


def test_an_image_that_is_not_here(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        with pytest.raises(grpc.RpcError) as error:
            node.run_container(cri, pod, mounts=[image_mount(pb.ImageSpec(image="absent:1"))])
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        assert 'mounts[0].image.image: "absent:1" is not on this host' in str(error.value.details())


def test_an_images_files_in_a_user_namespace(node: Server, model: Any) -> None:
    config = node.pod()
    ids = [pb.IDMapping(container_id=0, host_id=FIRST, length=SIZE)]
    options = config.linux.security_context.namespace_options
    mode = pb.NamespaceMode.POD
    options.userns_options.CopyFrom(pb.UserNamespace(mode=mode, uids=ids, gids=ids))
    wanted = [image_mount(model), image_mount(model, "weights/deep/two", "/two")]
    with node.cri() as cri:
        pod = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
        container = node.run_container(cri, pod, mounts=wanted)
        facts = says(cri, container, "stat -c %u /model /model/weights /model/weights/one /two")
        assert facts.split() == ["0", "1000", "0", "0"]
        assert says(cri, container, "cat /model/weights/one /two").split() == ["1", "2"]
        assert len(views(node)) == len(wanted)  # the parts' own mounts are gone


def test_an_image_in_use_outlives_its_removal_and_the_server(node: Server) -> None:
    content = b"k" * 100_000
    image = load_image(node, "kept", tars.file(b"kept", content))
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, mounts=[image_mount(image)])
        cli = node.cli("rmi", image.image)
        assert cli.returncode == 0, cli
        assert layers_with(node, "kept")
        says(cri, container, "cmp /model/kept /model/kept")
    node.restart()
    with node.cri() as cri:
        assert says(cri, container, "wc -c < /model/kept") == str(len(content))
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
        assert views(node) == []
    node.restart()
    assert not layers_with(node, "kept")


def layers_with(node: Server, name: str) -> list[Path]:
    return list((node.state / "images/l").glob(f"*/{name}"))


def test_views_of_a_container_that_no_record_names(node: Server, model: Any) -> None:
    """As a kill leaves them between the mount and the container's record."""
    with node.cri() as cri:
        pod = node.run_pod(cri)
        node.run_container(cri, pod, mounts=[image_mount(model)])
        node.remove_pods()
    (node.state / "images/containers/stray/views/0").mkdir(parents=True)
    target = node.state / "images/containers/stray/views/0"
    mount(Mount(type="tmpfs", source="tmpfs"), str(target))
    (target / "file").write_text("x")
    node.restart()
    assert views(node) == []
    with pytest.raises(OSError, match="No such file") as error:
        target.stat()
    assert error.value.errno == errno.ENOENT
