"""Checkpoints of real containers: captured while they run, restored where they were.

Needs a criu that works on the host's kernel (`criu check`): the host's own, or the one that
hack/tools/criu fetches, or that of the directory `ZOS_CRI_TEST_CRIU`. Without, the tests show that
each RPC says why it can't be done.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import IMAGE, UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

FETCHED = Path(__file__).parents[2] / ".cache" / "tools" / "criu" / "bin"
OWN = os.environ.get("ZOS_CRI_TEST_CRIU") or (str(FETCHED) if FETCHED.exists() else "")
PATH = f"{OWN}:{os.environ['PATH']}" if OWN else os.environ["PATH"]
# It counts in a variable, so only its memory knows where it was; /count shows it.
COUNTER = (
    "n=0; rm /etc/group; while :; do n=$((n+1)); echo $n > /new; mv /new /count; echo $n;"
    " sleep 0.05; done"
)
PATIENCE = 60.0
NAMES = ("one", "two")


def works() -> bool:
    found = shutil.which("criu", path=PATH)
    return (
        found is not None
        and subprocess.run([found, "check"], capture_output=True, check=False).returncode == 0
    )


needs_criu = pytest.mark.skipif(not works(), reason="criu can't work on this host (criu check)")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("PATH", PATH)
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def cri(server: Server) -> Iterator[Any]:
    with server.cri() as stub:
        yield stub


def wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (answer := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return answer


def run(cri: Any, id_: str, *command: str) -> str:
    request = pb.ExecSyncRequest(container_id=id_, cmd=command, timeout=20)
    answer = cri.ExecSync(request)
    assert answer.exit_code == 0, answer.stderr
    return str(answer.stdout.decode().strip())


def count(cri: Any, id_: str) -> int:
    return int(run(cri, id_, "sh", "-c", "cat /count 2>/dev/null || echo 0"))


def counting(server: Server, cri: Any, pod: str, **fields: Any) -> str:
    """A container that has counted to 20 at least."""
    id_ = server.run_container(cri, pod, "sh", "-c", COUNTER, **fields)
    wait_for(lambda: count(cri, id_) >= 20)
    return id_


def last_count(archive: Path) -> int:
    """Where a captured container was."""
    with (
        tarfile.open(archive) as tar,
        tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as diff,
    ):
        return int((diff.extractfile("count") or io.BytesIO()).read())


def goes_on(server: Server, name: str, captured: int, pod: str = "pod") -> None:
    """Waits for a restored container's first number: the next, or the one it was about to print."""
    log = server.logs / pod / f"{name}.log"
    first = wait_for(lambda: log.exists() and log.read_text().splitlines()[:1])
    assert int(first[0].split()[-1]) in (captured, captured + 1), "it began anew, or elsewhere"


def checkpoint(cri: Any, id_: str, path: Path, **fields: Any) -> None:
    request = pb.CheckpointContainerRequest(container_id=id_, location=str(path), **fields)
    cri.CheckpointContainer(request, timeout=60)


def restore(server: Server, cri: Any, pod: str, image: str, name: str = "restored") -> str:
    config = server.container("sh", "-c", COUNTER, name=name, image=pb.ImageSpec(image=image))
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id_ = str(cri.CreateContainer(request, timeout=60).container_id)
    cri.StartContainer(pb.StartContainerRequest(container_id=id_), timeout=60)
    return id_


def state(cri: Any, id_: str) -> Any:
    return cri.ContainerStatus(pb.ContainerStatusRequest(container_id=id_)).status


def remove(cri: Any, *ids: str) -> None:
    for id_ in ids:
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))


@needs_criu
def test_a_counter_goes_on_from_where_it_was(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    first = counting(server, cri, pod)
    archive = server.state / "counter.tar"
    checkpoint(cri, first, archive)
    assert archive.stat().st_mode & 0o777 == 0o600
    then = count(cri, first)
    wait_for(lambda: count(cri, first) > then)  # it runs on

    with tarfile.open(archive) as tar:
        names = tar.getnames()
        config = json.load(tar.extractfile("config.dump") or io.BytesIO())
        spec = json.load(tar.extractfile("spec.dump") or io.BytesIO())
        with tarfile.open(fileobj=tar.extractfile("rootfs-diff.tar")) as diff:
            assert "etc/.wh.group" in diff.getnames()
    captured = last_count(archive)
    assert {"checkpoint/inventory.img", "dump.log", "stats-dump", "status.dump"} <= set(names)
    assert {"deleted.files", "container.log", "status"} <= set(names)
    assert (config["id"], config["name"], config["rootfsImageName"]) == (first, "main", IMAGE)
    assert spec["process"]["args"] == ["sh", "-c", COUNTER]

    wait_for(lambda: count(cri, first) > captured + 40)
    remove(cri, first)
    second = restore(server, cri, pod, str(archive))
    goes_on(server, "restored", captured)
    assert run(cri, second, "sh", "-c", "ls /etc/group || echo gone").endswith("gone")
    assert state(cri, second).state == pb.CONTAINER_RUNNING
    # It is a container like any other: the server may be killed, and its exit is seen.
    server.restart()
    now = count(cri, second)
    wait_for(lambda: count(cri, second) > now)
    cri.StopContainer(pb.StopContainerRequest(container_id=second, timeout=0))
    assert state(cri, second).exit_code == 137
    assert nothing_kept(server)
    server.remove_pods()
    assert server.leftovers() == []


@needs_criu
def test_from_an_image_of_the_archive(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    first = counting(server, cri, pod)
    archive = server.state / "counter.tar"
    checkpoint(cri, first, archive)
    remove(cri, first)
    oci = server.state / "image.tar"
    oci.write_bytes(image_of(archive.read_bytes()))
    done = server.cli("load", "-i", str(oci))
    assert done.returncode == 0, done.stderr
    second = restore(server, cri, pod, "localhost/counter:1")
    goes_on(server, "restored", last_count(archive))
    assert state(cri, second).image_id == state(cri, second).image_ref
    remove(cri, second)


def image_of(layer: bytes) -> bytes:
    """A Docker archive of an image whose only layer is that."""
    from hashlib import sha256

    digest = f"sha256:{sha256(layer).hexdigest()}"
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest]},
        }
    ).encode()
    manifest = [
        {"Config": "config.json", "RepoTags": ["localhost/counter:1"], "Layers": ["layer.tar"]}
    ]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (
            ("manifest.json", json.dumps(manifest).encode()),
            ("config.json", config),
            ("layer.tar", layer),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pod_request(pod: str, directory: Path, *ids: str) -> pb.CheckpointPodRequest:
    return pb.CheckpointPodRequest(
        pod_sandbox_id=pod, output_path=str(directory), container_ids=ids
    )


def restore_request(server: Server, directory: Path, **fields: Any) -> pb.RestorePodRequest:
    configs = [server.container("sh", "-c", COUNTER, name=name) for name in NAMES]
    base = {"config": server.pod("again"), "container_configs": configs}
    return pb.RestorePodRequest(checkpoint_path=str(directory), **{**base, **fields})


@needs_criu
def test_a_pod_is_captured_as_a_whole_and_restored(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    ids = [counting(server, cri, pod, name=name) for name in NAMES]
    directory = server.state / "pod-checkpoint"
    directory.mkdir()
    cri.CheckpointPod(pod_request(pod, directory, *ids), timeout=120)
    written = sorted(path.name for path in directory.iterdir())
    assert written == ["container-0.tar", "container-1.tar", "pod.dump", "pod.options"]
    all_go_on(cri, ids)
    captured = {n: last_count(directory / f"container-{i}.tar") for i, n in enumerate(NAMES)}
    assert min(captured.values()) >= 20
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    answer = cri.RestorePod(restore_request(server, directory), timeout=120)
    assert {c.name for c in answer.restored_containers} == {"one", "two"}
    assert before == {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    for container in answer.restored_containers:
        assert state(cri, container.container_id).state == pb.CONTAINER_CREATED
        cri.StartContainer(
            pb.StartContainerRequest(container_id=container.container_id), timeout=60
        )
        goes_on(server, container.name, captured[container.name], pod="again")
        all_go_on(cri, [container.container_id])
    server.remove_pods()
    assert server.leftovers() == []


@needs_criu
def test_a_failed_pod_checkpoint_leaves_nothing_and_nobody_paused(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    ids = [counting(server, cri, pod, name=name) for name in NAMES]
    directory = server.state / "pod-checkpoint"
    directory.mkdir()
    with pytest.raises(grpc.RpcError) as failed:
        cri.CheckpointPod(pod_request(pod, directory, *ids), timeout=0.3)
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The client's own clock ended the call: the server is a moment behind it.
    wait_for(lambda: nothing_kept(server) and not any(paused(cri, id_) for id_ in ids))
    all_go_on(cri, ids)
    assert not any(directory.iterdir())

    # CRIU refuses to capture one end of a connection.
    connect = (
        "sleep 1000 | nc -l -p 12345 & until netstat -tln | grep -q :12345; do :; done;"
        " sleep 1000 | nc 127.0.0.1 12345"
    )
    third = server.run_container(cri, pod, "sh", "-c", connect, name="three")
    connected = "netstat -tn | grep -q '127.0.0.1:12345.*ESTABLISHED' && echo yes || echo no"
    wait_for(lambda: run(cri, third, "sh", "-c", connected) == "yes")
    with pytest.raises(grpc.RpcError) as failed:
        cri.CheckpointPod(pod_request(pod, directory, *ids, third), timeout=120)
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "TCP" in str(failed.value.details())
    all_go_on(cri, ids)
    assert not any(directory.iterdir())
    assert nothing_kept(server)


def paused(cri: Any, id_: str) -> bool:
    try:
        count(cri, id_)
    except grpc.RpcError as error:
        if "paused" not in str(error.details()):
            raise
        return True
    return False


def nothing_kept(server: Server) -> bool:
    return not list(server.state.glob("checkpoints/*"))


def all_go_on(cri: Any, ids: list[str]) -> None:
    for id_ in ids:
        then = count(cri, id_)
        wait_for(lambda id_=id_, then=then: count(cri, id_) > then)  # type: ignore[misc]


@needs_criu
def test_a_server_killed_while_it_captures_leaves_nobody_paused(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    id_ = counting(server, cri, pod)
    archive = server.state / "counter.tar"
    call = cri.CheckpointContainer.future(
        pb.CheckpointContainerRequest(container_id=id_, location=str(archive))
    )
    wait_for(lambda: any((server.state / "checkpoints").glob("new-*")))
    server.restart()
    call.cancel()
    then = count(cri, id_)
    wait_for(lambda: count(cri, id_) > then)
    assert nothing_kept(server)


@needs_criu
def test_a_restore_that_fails_leaves_nothing(server: Server, cri: Any) -> None:
    pod = server.run_pod(cri)
    ids = [counting(server, cri, pod, name=name) for name in NAMES]
    directory = server.state / "pod-checkpoint"
    directory.mkdir()
    cri.CheckpointPod(pod_request(pod, directory, *ids), timeout=120)
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    def refused(**fields: Any) -> str:
        with pytest.raises(grpc.RpcError) as failed:
            cri.RestorePod(restore_request(server, directory, **fields), timeout=120)
        assert not cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert server.leftovers() == []
        return f"{failed.value.code().name}: {failed.value.details()}"

    other = [server.container("sleep", "1", name=name) for name in NAMES]
    assert "command and args" in refused(container_configs=other)
    assert "not the checkpoint's containers" in refused(container_configs=other[:1])
    assert "options" in refused(options={"fast": "yes"})
    assert "INVALID_ARGUMENT" in refused(runtime_handler="nope")
    damaged = directory / "container-1.tar"
    damaged.write_bytes(damaged.read_bytes()[:100_000])
    assert "DATA_LOSS" in refused()
    assert nothing_kept(server)


def test_without_a_criu_that_works_it_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "criu"
    broken.write_text("#!/bin/sh\necho 'Error (criu/vdso.c:381): vdso: no such luck' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with serving(UPSTREAM) as server, server.cri() as cri:
        pod = server.run_pod(cri)
        id_ = server.run_container(cri, pod)
        archive = server.state / "x.tar"
        directory = server.state / "pod-checkpoint"
        directory.mkdir()
        location = pb.CheckpointContainerRequest(container_id=id_, location=str(archive))
        for call, request in (
            (cri.CheckpointContainer, location),
            (cri.CheckpointPod, pod_request(pod, directory, id_)),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                call(request)
            assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert "vdso: no such luck" in str(failed.value.details())
        with pytest.raises(grpc.RpcError) as failed:
            restore(server, cri, pod, str(archive))
        assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert run(cri, id_, "echo", "runs on") == "runs on"
        assert not archive.exists()


@pytest.mark.parametrize("location", ["", "relative.tar", "/nonexistent/directory/x.tar"])
@needs_criu
def test_a_location_that_cannot_be(server: Server, cri: Any, location: str) -> None:
    pod = server.run_pod(cri)
    id_ = server.run_container(cri, pod)
    with pytest.raises(grpc.RpcError) as failed:
        checkpoint(cri, id_, Path(location) if location else Path(""))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
