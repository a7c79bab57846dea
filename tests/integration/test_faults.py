"""What the host runs out of, and what hangs: the server says so, and is well afterwards."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.fakes.fuse import HangingFuse
from tests.fakes.registry import Registry, tar_of
from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(180)]

EMPTY = 400 << 20  # bytes of the small disk; pulls leave 320 MiB of theirs free


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as server:
        yield server
        assert server.audit() == []
        server.remove_pods()
        assert server.leftovers() == []


@pytest.fixture
def on_small_disk() -> Iterator[Server]:
    """A server whose state, images and logs are on a small file system of their own."""
    server = Server(UPSTREAM, extra="[container_log]\ndrop_after = 0")
    text = server.config.read_text()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={EMPTY}", "small", str(server.state)], check=True
    )
    server.config.write_text(text)
    server.conf_dir.mkdir()
    server.logs.mkdir()
    # Its own log would be the first to suffer, and tells the test when it is ready.
    server.log = server.run / "server.log"
    try:
        server.start()
        yield server
    finally:
        print(server.log.read_text()[-20_000:])
        with contextlib.suppress(FileNotFoundError):
            (server.state / "filler").unlink()
        server.destroy()


def status(node: Server, id_: str) -> pb.ContainerStatus:
    found: pb.ContainerStatus = node.ask(
        "ContainerStatus", pb.ContainerStatusRequest(container_id=id_)
    ).status
    return found


def ended(node: Server, id_: str) -> bool:
    return bool(status(node, id_).state == pb.CONTAINER_EXITED)


def fill(path: Path) -> None:
    """Takes all that is free."""
    for size in (1 << 20, 1 << 12):
        with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
            while file.write(bytes(size)) == size:
                pass


def test_a_full_disk(on_small_disk: Server) -> None:
    node = on_small_disk
    with node.cri() as cri, node.channel() as channel, Registry() as registry:
        pod = node.run_pod(cri, "pod")
        script = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"
        node.run_container(cri, pod, "sh", "-c", script, name="writes")
        # Ends when the file is there, which is what it's told by when the disk is full.
        script = "while [ ! -e /run/go ]; do sleep 0.02; done; exit 7"
        mount = pb.Mount(container_path="/run", host_path=str(node.run))
        ends = node.run_container(cri, pod, "sh", "-c", script, name="ends", mounts=[mount])
        registry.add_image("large", "1", [tar_of({"blob": os.urandom(1 << 20)})])
        image = pb.ImageSpec(image=f"{registry.address}/large:1")
        images = cri_pb2_grpc.ImageServiceStub(channel)

        fill(node.state / "filler")
        with pytest.raises(grpc.RpcError) as error:
            images.PullImage(pb.PullImageRequest(image=image))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "space" in str(error.value.details()) or "full" in str(error.value.details())
        # What can be begun is; what can't be is refused, and nothing of it is left.
        with contextlib.suppress(grpc.RpcError):
            node.run_pod(cri, "refused")
        assert cri.Version(pb.VersionRequest()).runtime_name
        assert cri.ListContainers(pb.ListContainersRequest()).containers
        # An exit is told although it can't be written down.
        (node.run / "go").touch()
        wait_for(lambda: ended(node, ends), timeout=60)
        assert status(node, ends).exit_code == 7

        (node.state / "filler").unlink()
        images.PullImage(pb.PullImageRequest(image=image))
        node.run_container(cri, pod, name="well")
        log = node.logs / "pod" / "writes.log"

        def numbers() -> list[str]:
            return [line.split()[-1] for line in log.read_text().splitlines()]

        # Nothing that was written meanwhile is lost.
        so_far = len(numbers())
        wait_for(lambda: len(numbers()) > so_far + 10, timeout=30)
        found = numbers()
        assert found == [str(number) for number in range(len(found))]
    node.restart()
    assert status(node, ends).exit_code == 7
    assert node.audit() == []
    node.remove_pods()
    assert node.leftovers() == [f"mount {node.state}"]  # the disk itself


def test_no_more_processes(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri, "pod")
        well = node.run_container(cri, pod)
        (limits,) = (path / "pids.max" for path in _tops(node) if (path / "pids.max").exists())
        limits.write_text("2")
        config = node.container(name="refused")
        refused = cri.CreateContainer(
            pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        ).container_id
        with pytest.raises(grpc.RpcError) as error:
            cri.StartContainer(pb.StartContainerRequest(container_id=refused))
        assert "Task/" in str(error.value.details())
        found = status(node, refused)
        assert (found.state, found.reason, found.exit_code) == (
            pb.CONTAINER_EXITED,
            "StartError",
            128,
        )
        assert found.message
        assert status(node, well).state == pb.CONTAINER_RUNNING
        limits.write_text("max")
        node.run_container(cri, pod, name="next")


def _tops(node: Server) -> list[Path]:
    """The cgroup above all of a server's, in every hierarchy."""
    return [path for path in node.cgroups() if path.name == node.cgroup[1:]]


def test_no_more_descriptors(node: Server) -> None:
    assert node.process is not None
    with node.cri() as cri:
        pod = node.run_pod(cri, "pod")
        before = resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{node.process.pid}/fd"))
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, (used, before[1]))
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as error:
                node.run_pod(cri, "refused")
            assert "Too many open files" in str(error.value.details())
        assert cri.Version(pb.VersionRequest()).runtime_name
        assert pod in [p.id for p in cri.ListPodSandbox(pb.ListPodSandboxRequest()).items]
        resource.prlimit(node.process.pid, resource.RLIMIT_NOFILE, before)
        node.run_container(cri, node.run_pod(cri, "refused"))


def test_a_process_that_cannot_be_killed(node: Server, tmp_path: Path) -> None:
    with node.cri() as cri, HangingFuse(tmp_path / "dead") as fuse:
        pod = node.run_pod(cri, "stuck")
        well = node.run_container(cri, node.run_pod(cri, "well"))
        mount = pb.Mount(container_path="/dead", host_path=str(fuse.path))
        script = "while [ ! -e /dead/go ]; do :; done"
        stuck = node.run_container(cri, pod, "sh", "-c", script, mounts=[mount])
        fuse.hang()
        assert fuse.asked.wait(10)
        with pytest.raises(grpc.RpcError) as error:
            cri.StopContainer(pb.StopContainerRequest(container_id=stuck, timeout=0))
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "SIGKILL" in str(error.value.details())
        assert status(node, stuck).state == pb.CONTAINER_RUNNING
        assert status(node, well).state == pb.CONTAINER_RUNNING
        removal = threading.Thread(target=_remove, args=(node, pod), daemon=True)
        removal.start()
        node.run_container(cri, node.run_pod(cri, "next"))
        fuse.abort()
        removal.join(60)
        assert not removal.is_alive()
        wait_for(lambda: ended(node, stuck))
        assert status(node, stuck).exit_code == 137


def _remove(node: Server, pod: str) -> Any:
    with contextlib.suppress(grpc.RpcError):
        return node.ask("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod))
