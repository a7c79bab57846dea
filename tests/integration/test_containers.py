"""What a container's configuration and its image say arrives in it: asked from inside."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.fakes import tars
from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

FIRST = 231072  # the host's id of root in a pod with a user namespace
SIZE = 65536
EXIT_TIMEOUT = 30.0


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


def says(cri: Any, container: str, script: str) -> str:
    """What a script says inside; it must succeed."""
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=20)
    done = cri.ExecSync(request)
    assert done.exit_code == 0, done
    return str(done.stdout.decode().strip())


def status_of(cri: Any, container: str) -> Any:
    return cri.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status


def ended(cri: Any, container: str) -> Any:
    """The status of a container that ends by itself."""
    deadline = time.monotonic() + EXIT_TIMEOUT
    while True:
        status = status_of(cri, container)
        if status.state == pb.ContainerState.CONTAINER_EXITED:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)


def refused(cri: Any, node: Server, pod: str, **fields: Any) -> tuple[Any, str]:
    """The code and the text of an error that a container can't be created for."""
    with pytest.raises(grpc.RpcError) as error:
        node.run_container(cri, pod, **fields)
    return error.value.code(), str(error.value.details())


def test_the_hosts_mounts_do_not_grow_with_what_runs(node: Server) -> None:
    """A root filesystem is the container's own once it runs, and is whole."""
    with node.cri() as cri:
        pod = node.run_pod(cri)
        one, two = (node.run_container(cri, pod, name=name) for name in ("one", "two"))
        bundles = node.run / "bundles"
        wait_for(lambda: mounts_below(str(bundles)) == [])
        says(cri, one, "echo mine > /mine && ls /bin/sh")
        assert (node.state / "images/containers" / one / "fs/mine").read_text() == "mine\n"
        node.restart()
    with node.cri() as cri:
        assert says(cri, one, "cat /mine") == "mine"
        says(cri, two, "! test -e /mine")
        cri.StopContainer(pb.StopContainerRequest(container_id=one, timeout=0))
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=one))
        assert not (node.state / "images/containers" / one).exists()
        assert not (bundles / one).exists()
        says(cri, two, "cat /etc/passwd")


# Images' volumes


def load_image(node: Server, name: str, extra: bytes, **config: Any) -> Any:
    """An image of two layers: busybox, and `extra` on it."""
    busybox = Path("/bin/busybox").read_bytes()
    first = tars.directory(b"bin") + tars.file(b"bin/busybox", busybox, mode=0o755)
    for tool in (b"sh", b"sleep", b"stat", b"cat", b"touch", b"ls", b"chown"):
        first += tars.symlink(b"bin/" + tool, b"busybox")
    first += tars.directory(b"data", uid=1000, gid=50, mode=0o2750)
    first += tars.file(b"data/old", b"old\n", uid=1001, gid=51, mode=0o640)
    layers = [first + tars.end(), extra + tars.end()]
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    document = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
    }
    entry = {"Config": "config.json", "RepoTags": [f"{name}:1"], "Layers": digests}
    files = [
        (b"config.json", json.dumps(document).encode()),
        (b"manifest.json", json.dumps([entry]).encode()),
        *((digest.encode(), layer) for digest, layer in zip(digests, layers, strict=True)),
    ]
    path = node.state / f"{name}.tar"
    path.write_bytes(b"".join(tars.file(*file) for file in files) + tars.end())
    loaded = node.cli("load", "-i", str(path))
    path.unlink()
    assert loaded.returncode == 0, loaded
    return pb.ImageSpec(image=f"{name}:1")


@pytest.fixture(scope="module")
def with_volumes(server: Server) -> Any:
    """An image with two volumes: /data has something in both layers, /var/new is in none."""
    extra = tars.directory(b"data", uid=1000, gid=50, mode=0o2750)
    extra += tars.file(b"data/new", b"new\n", mode=0o600) + tars.directory(b"data/sub", uid=7)
    return load_image(server, "volumes", extra, Volumes={"/data": {}, "var/new/": {}})


def volumes_of(node: Server, container: str) -> Path:
    return node.state / "images/containers" / container / "volumes"


def test_volumes_begin_with_what_the_image_has(node: Server, with_volumes: Any) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        readonly = pb.LinuxContainerConfig(
            security_context=pb.LinuxContainerSecurityContext(readonly_rootfs=True)
        )
        one = node.run_container(cri, pod, image=with_volumes, linux=readonly)
        two = node.run_container(cri, pod, image=with_volumes, name="two")
        assert says(cri, one, "cat /data/old /data/new; ls /var/new").split() == ["old", "new"]
        facts = says(cri, one, "stat -c '%u:%g %a' /data /data/old /data/new /data/sub /var/new")
        assert facts.splitlines() == [
            *("1000:50 2750", "1001:51 640", "0:0 600", "7:0 755", "0:0 755")
        ]
        says(cri, one, "touch /data/mine /var/new/mine && ! touch /mine")
        assert says(cri, two, "ls /data /var/new").split() == [
            *("/data:", "new", "old", "sub", "/var/new:")
        ]
        assert len(list(volumes_of(node, one).iterdir())) == 2
        for id_ in (one, two):
            cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))
            assert not volumes_of(node, id_).exists()


def test_a_mount_at_a_volumes_path_takes_its_place(
    node: Server, with_volumes: Any, tmp_path: Path
) -> None:
    (tmp_path / "hers").write_text("x")
    mount = pb.Mount(container_path="/data/", host_path=str(tmp_path))
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, image=with_volumes, mounts=[mount])
        assert says(cri, container, "ls /data") == "hers"
        assert len(list(volumes_of(node, container).iterdir())) == 1


def test_volumes_in_a_user_namespace(node: Server, with_volumes: Any) -> None:
    config = node.pod()
    ids = [pb.IDMapping(container_id=0, host_id=FIRST, length=SIZE)]
    options = config.linux.security_context.namespace_options
    mode = pb.NamespaceMode.POD
    options.userns_options.CopyFrom(pb.UserNamespace(mode=mode, uids=ids, gids=ids))
    with node.cri() as cri:
        request = pb.RunPodSandboxRequest(config=config)
        pod = cri.RunPodSandbox(request).pod_sandbox_id
        container = node.run_container(cri, pod, image=with_volumes)
        facts = says(cri, container, "stat -c %u:%g /data /data/old /data/new /var/new")
        assert facts.split() == ["1000:50", "1001:51", "0:0", "0:0"]
        says(cri, container, "touch /var/new/mine /data/mine && chown 9:9 /data/mine")
        assert says(cri, container, "stat -c %u:%g /data/mine /var/new/mine").split() == [
            *("9:9", "0:0")
        ]


def test_volumes_outlive_the_server(node: Server, with_volumes: Any) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, image=with_volumes)
        says(cri, container, "touch /data/mine")
    node.restart()
    with node.cri() as cri:
        assert says(cri, container, "ls /data").split() == ["mine", "new", "old", "sub"]
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=container))
    assert not volumes_of(node, container).exists()


def test_a_volume_that_is_a_file_in_the_image(node: Server) -> None:
    image = load_image(node, "badvolume", tars.file(b"data/f", b"x"), Volumes={"/data/f": {}})
    with node.cri() as cri:
        pod = node.run_pod(cri)
        code, text = refused(cri, node, pod, image=image)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "image volume /data/f: in the image it is no directory" in text
        assert not list((node.state / "images/containers").iterdir())


# Killed for want of memory

LIMIT = 32 << 20  # bytes
HOG = "head -c 200m /dev/zero | tail"  # tail keeps it all: there is no newline


def limited(**fields: Any) -> Any:
    resources = pb.LinuxContainerResources(memory_limit_in_bytes=LIMIT, **fields)
    return pb.LinuxContainerConfig(resources=resources)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", HOG), None),
        (("tail", "/dev/zero"), 137),
        (("sh", "-c", "tail /dev/zero; exit 3"), 3),
        (("sh", "-c", "tail /dev/zero; exit 0"), 0),
        (("sh", "-c", "(tail /dev/zero; exit 3) & wait $!"), 3),
    ],
    ids=["in a pipe", "init itself", "a child", "a child unnoticed", "a grandchild"],
)
def test_who_was_killed_for_memory_says_so(
    node: Server, command: tuple[str, ...], code: int | None
) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        status = ended(cri, node.run_container(cri, pod, *command, linux=limited()))
        assert status.reason == "OOMKilled"
        if code is not None:
            assert status.exit_code == code


KILLS = int(os.environ.get("ZOS_CRI_OOM_KILLS", "20"))


@pytest.mark.parametrize("command", ["tail /dev/zero", "tail /dev/zero; exit 0"])
def test_every_kill_for_memory_is_told_of(node: Server, command: str) -> None:
    """Many at once, so that exits, deletions and cgroups' removals race."""
    with node.cri() as cri:
        pod = node.run_pod(cri)
        containers = [
            node.run_container(cri, pod, "sh", "-c", command, name=f"c{number}", linux=limited())
            for number in range(KILLS)
        ]
        reasons = [ended(cri, container).reason for container in containers]
        assert reasons == ["OOMKilled"] * KILLS


def test_who_ends_within_the_limit_does_not(node: Server) -> None:
    with node.cri() as cri:
        pod = node.run_pod(cri)
        status = ended(cri, node.run_container(cri, pod, "sh", "-c", "exit 137", linux=limited()))
        assert (status.reason, status.exit_code) == ("Error", 137)


def test_a_kill_for_memory_while_no_server_runs(node: Server) -> None:
    """The task waits in its shim, undeleted: so its cgroup is there still to be read."""
    gate = node.state / "gate"
    gate.mkdir()
    mount = pb.Mount(container_path="/gate", host_path=str(gate))
    script = "while [ ! -e /gate/open ]; do sleep 0.05; done; tail /dev/zero; touch /gate/done"
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(
            cri, pod, "sh", "-c", script, linux=limited(), mounts=[mount]
        )
    node.kill()
    (gate / "open").touch()
    deadline = time.monotonic() + EXIT_TIMEOUT
    while not (gate / "done").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    node.start()
    with node.cri() as cri:
        assert ended(cri, container).reason == "OOMKilled"


# Updates


def test_oom_score_adj_of_what_runs(node: Server) -> None:
    scores = "cat /proc/1/oom_score_adj /proc/$(cat /child)/oom_score_adj"
    script = "sleep 1000 & echo $! > /child; wait"
    with node.cri() as cri:
        pod = node.run_pod(cri)
        resources = pb.LinuxContainerResources(oom_score_adj=300, cpu_shares=64)
        linux = pb.LinuxContainerConfig(resources=resources)
        container = node.run_container(cri, pod, "sh", "-c", script, linux=linux)
        other = node.run_container(cri, pod, name="other", linux=linux)
        assert says(cri, container, f"until [ -s /child ]; do :; done; {scores}").split() == [
            *("300", "300")
        ]
        for wanted in (900, 950):
            request = pb.UpdateContainerResourcesRequest(
                container_id=container, linux=pb.LinuxContainerResources(oom_score_adj=wanted)
            )
            cri.UpdateContainerResources(request)
            assert says(cri, container, scores).split() == [str(wanted)] * 2
            reported = status_of(cri, container).resources.linux
            assert (reported.oom_score_adj, reported.cpu_shares) == (wanted, 64)
        assert says(cri, other, "cat /proc/1/oom_score_adj") == "300"


def test_an_exec_after_an_update_of_oom_score_adj(node: Server) -> None:
    """The runtime starts it with the old one; it is given the new one at once."""
    mine = "[ $(cat /proc/self/oom_score_adj) = 910 ]"
    wait = f"i=0; until {mine} || [ $i = 200 ]; do sleep 0.05; i=$((i+1)); done"
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, linux=scored(300))
        assert says(cri, container, "cat /proc/self/oom_score_adj") == "300"
        update(cri, container, oom_score_adj=910)
        assert says(cri, container, f"{wait}; {mine} && echo yes") == "yes"


def scored(value: int) -> Any:
    resources = pb.LinuxContainerResources(oom_score_adj=value)
    return pb.LinuxContainerConfig(resources=resources)


def update(cri: Any, container: str, **fields: Any) -> None:
    linux = pb.LinuxContainerResources(**fields)
    request = pb.UpdateContainerResourcesRequest(container_id=container, linux=linux)
    cri.UpdateContainerResources(request)


def limits_of(node: Server, container: str) -> dict[str, int]:
    """By the kernel's files."""
    found = {}
    for controller, name in (
        ("cpu", "cpu.shares"),
        ("cpu", "cpu.cfs_quota_us"),
        ("cpu", "cpu.cfs_period_us"),
        ("memory", "memory.limit_in_bytes"),
    ):
        path = Path(f"/sys/fs/cgroup/{controller}{node.cgroup}/{container}/{name}")
        found[name] = int(path.read_text())
    return found


@pytest.mark.skipif(
    Path("/sys/fs/cgroup/cgroup.controllers").exists(), reason="names the files of cgroup v1"
)
@pytest.mark.parametrize("when", ["created", "running"])
def test_an_update_changes_what_it_gives_and_nothing_else(node: Server, when: str) -> None:
    resources = pb.LinuxContainerResources(
        cpu_shares=64, cpu_period=50_000, cpu_quota=10_000, memory_limit_in_bytes=64 << 20
    )
    linux = pb.LinuxContainerConfig(resources=resources)
    start = pb.StartContainerRequest
    with node.cri() as cri:
        pod = node.run_pod(cri)
        config = node.container(linux=linux)
        request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        container = cri.CreateContainer(request).container_id
        if when == "running":
            cri.StartContainer(start(container_id=container))
        update(cri, container, cpu_quota=20_000)
        update(cri, container, memory_limit_in_bytes=96 << 20)
        update(cri, container)
        with pytest.raises(grpc.RpcError) as error:
            update(cri, container, cpu_shares=1, cpu_quota=30_000)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    node.restart()
    with node.cri() as cri:
        if when == "created":
            cri.StartContainer(start(container_id=container))
        assert limits_of(node, container) == {
            "cpu.shares": 64,
            "cpu.cfs_quota_us": 20_000,
            "cpu.cfs_period_us": 50_000,
            "memory.limit_in_bytes": 96 << 20,
        }
        reported = status_of(cri, container).resources.linux
        assert (reported.cpu_shares, reported.cpu_quota, reported.cpu_period) == (
            64,
            20_000,
            50_000,
        )
        assert reported.memory_limit_in_bytes == 96 << 20
        update(cri, container, cpu_quota=-1, memory_limit_in_bytes=-1)
        found = limits_of(node, container)
        assert found["cpu.cfs_quota_us"] == -1
        assert found["memory.limit_in_bytes"] > 1 << 60


def test_an_update_that_the_kernel_refuses_changes_nothing(node: Server) -> None:
    """All of the runtime's call or none: the status doesn't say what isn't so."""
    with node.cri() as cri:
        pod = node.run_pod(cri)
        container = node.run_container(cri, pod, linux=limited(cpu_shares=64))
        with pytest.raises(grpc.RpcError) as error:
            update(cri, container, cpuset_mems="63")
        assert "\n" not in str(error.value.details())
        assert "cpuset" in str(error.value.details())
        reported = status_of(cri, container).resources.linux
        assert (reported.cpuset_mems, reported.cpu_shares) == ("", 64)
        update(cri, container, cpu_shares=128)
        assert limits_of(node, container)["cpu.shares"] == 128


# CDI


def test_cdi_devices(tmp_path: Path) -> None:
    """A server of its own, for its directories; what the files say is asked from inside."""
    etc, run = tmp_path / "etc", tmp_path / "run"
    run.mkdir()
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/driver").write_text("driver 1\n")
    edits = {
        "env": ["VENDOR=yes"],
        "deviceNodes": [
            {"path": "/dev/vendor0", "hostPath": "/dev/null", "permissions": "rw"},
            {"path": "/dev/vendor1", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640},
        ],
        "mounts": [{"hostPath": str(tmp_path / "lib"), "containerPath": "/opt/lib"}],
        "hooks": [
            {
                "hookName": "createRuntime",
                "path": "/bin/touch",
                "args": ["touch", str(tmp_path / "hooked")],
            }
        ],
        "additionalGids": [4242],
    }
    document = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/device",
        "devices": [{"name": "a", "containerEdits": edits}],
    }
    asked = [pb.CDIDevice(name="vendor.com/device=a")]
    with serving(UPSTREAM, extra=f'[cdi]\ndirs = ["{etc}", "{run}"]\n') as node, node.cri() as cri:
        pod = node.run_pod(cri)
        code, text = refused(cri, node, pod, CDI_devices=asked)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert 'no CDI spec file has a device "vendor.com/device=a"' in text
        (run / "vendor.json").write_text(json.dumps(document))
        container = node.run_container(cri, pod, CDI_devices=asked)
        assert says(cri, container, "cat /opt/lib/driver; echo $VENDOR").split() == [
            *("driver", "1", "yes")
        ]
        assert says(cri, container, "stat -c '%t:%T %a' /dev/vendor0 /dev/vendor1") == (
            "1:3 666\n1:5 640"
        )
        says(cri, container, "echo x > /dev/vendor0 && head -c 4 /dev/vendor1")
        says(cri, container, "! touch /opt/lib/new; grep -q 4242 /proc/1/status")
        assert (tmp_path / "hooked").exists()
        document["devices"] = [{"name": "a", "containerEdits": {"env": ["VENDOR=new"]}}]
        (run / "vendor.json").write_text(json.dumps(document))
        other = node.run_container(cri, pod, name="other", CDI_devices=asked)
        assert says(cri, other, "echo $VENDOR; ls /dev | grep -c vendor || true").split() == [
            *("new", "0")
        ]
        plain = pb.ContainerConfig(
            annotations={"cdi.k8s.io/x": "vendor.com/device=a"}  # isn't trusted
        ).annotations
        third = node.run_container(cri, pod, name="third", annotations=plain)
        assert says(cri, third, "echo ${VENDOR:-none}") == "none"
        node.remove_pods()
        assert node.leftovers() == []
