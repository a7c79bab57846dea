"""Pods with user namespaces of their own, asked of the kernel from inside and from outside."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.conftest import TOOLS
from tests.fakes import tars
from tests.integration.server import DEBIAN, UPSTREAM, Server, serving
from tests.integration.test_crictl import wait_for
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

FIRST = 231072  # the host's id of root inside
SIZE = 65536
MODE = pb.NamespaceMode


@pytest.fixture
def node() -> Iterator[Server]:
    with serving(UPSTREAM) as started:
        yield started


@pytest.fixture
def bridged_node(own_network: None) -> Iterator[Server]:
    with serving(UPSTREAM, cni=True) as started:
        yield started


def with_userns(config: Any, first: int = FIRST) -> Any:
    """The pod's configuration, with a user namespace."""
    mapping = pb.IDMapping(container_id=0, host_id=first, length=SIZE)
    options = config.linux.security_context.namespace_options
    options.userns_options.CopyFrom(pb.UserNamespace(mode=MODE.POD, uids=[mapping], gids=[mapping]))
    return config


def run_pod(cri: Any, config: Any) -> str:
    return str(cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def security(**fields: Any) -> Any:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(**fields))


def says(cri: Any, container: str, script: str) -> str:
    """What a script says inside; it must succeed."""
    request = pb.ExecSyncRequest(container_id=container, cmd=["sh", "-c", script], timeout=20)
    done = cri.ExecSync(request)
    assert done.exit_code == 0, done
    return str(done.stdout.decode().strip())


def on_terminal(node: Server, container: str, script: str) -> list[str]:
    """The words that `crictl exec -it` shows on a terminal."""
    crictl = f"{TOOLS}/crictl --runtime-endpoint unix://{node.socket} exec -it {container}"
    silent, typed = os.pipe()  # nobody types, and the keyboard isn't taken away either
    try:
        done = subprocess.run(
            ["script", "-qec", f"{crictl} sh -c {shlex.quote(script)} 2>/dev/null", "/dev/null"],
            stdin=silent,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        os.close(silent)
        os.close(typed)
    assert done.returncode == 0, done
    return done.stdout.split()


def pid_of(cri: Any, container: str) -> int:
    request = pb.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(cri.ContainerStatus(request).info["info"])["pid"])


def owner(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_uid, found.st_gid


def test_root_inside_is_nobody_outside(node: Server) -> None:
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod()))
        container = node.run_container(cri, pod)
        for name in ("uid_map", "gid_map"):
            assert says(cri, container, f"cat /proc/self/{name}").split() == [
                "0",
                "231072",
                "65536",
            ]
        assert says(cri, container, "id -u; stat -c %u:%g / /bin/busybox /etc/passwd") == (
            "0\n0:0\n0:0\n0:0"
        )
        pid = pid_of(cri, container)
        assert owner(f"/proc/{pid}") == (FIRST, FIRST)
        inside = Path(f"/proc/{pid}/root")
        assert owner(inside) == (FIRST, FIRST)
        says(cri, container, "echo new > /new; chown 7:8 /new; echo more >> /etc/passwd")
        assert owner(inside / "new") == (FIRST + 7, FIRST + 8)
        upper = node.state / "images/containers" / container / "fs"
        assert owner(upper / "new") == (FIRST + 7, FIRST + 8)
        assert owner(upper / "etc/passwd") == (FIRST, FIRST)
        assert (upper / "etc/passwd").read_text().endswith("more\n")
        for kind in ("user", "ipc"):
            joined = os.stat(f"/proc/{pid}/ns/{kind}").st_ino
            assert joined == os.stat(node.run / "sandboxes" / pod / kind).st_ino
        assert node.crictl("exec", "-s", container, "id", "-u") == "0"
    node.remove_pods()
    assert node.leftovers() == []


def test_shared_pids_two_containers_and_a_killed_server(node: Server) -> None:
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod(pid=MODE.POD)))
        other = run_pod(cri, with_userns(node.pod("other"), first=400000))
        options = pb.NamespaceOption(pid=MODE.POD)
        first, second = (
            node.run_container(cri, pod, name=name, linux=security(namespace_options=options))
            for name in ("one", "two")
        )
        third = node.run_container(cri, other)
        assert "catatonit" in says(cri, second, "cat /proc/1/cmdline")
        pids = [pid_of(cri, id_) for id_ in (first, second)]
        assert len({os.stat(f"/proc/{pid}/ns/pid").st_ino for pid in pids}) == 1
        assert [owner(f"/proc/{pid}/root") for pid in pids] == [(FIRST, FIRST)] * 2
        assert owner(f"/proc/{pid_of(cri, third)}/root") == (400000, 400000)
        # The init's own files are the host's root's: what is run can't change them.
        assert says(cri, second, "stat -c %u /proc/1/root/catatonit").startswith("65534")
    node.restart()
    with node.cri() as cri:
        states = {item.state for item in cri.ListPodSandbox(pb.ListPodSandboxRequest()).items}
        assert states == {pb.SANDBOX_READY}
        assert says(cri, first, "id -u") == "0"
        assert says(cri, third, "cut -c1- /proc/self/uid_map").split()[1] == "400000"
        late = node.run_container(cri, pod, name="late", linux=security(namespace_options=options))
        assert owner(f"/proc/{pid_of(cri, late)}/root") == (FIRST, FIRST)
    node.remove_pods()
    assert node.leftovers() == []


def test_streams_can_be_opened_again_by_any_user(node: Server, tmp_path: Path) -> None:
    script = "echo log of $(id -u) > /dev/stdout; echo and errors > /dev/stderr; sleep 1000"
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod()))
        user = security(run_as_user=pb.Int64Value(value=1000))
        container = node.run_container(cri, pod, "sh", "-c", script, linux=user)
        root = node.run_container(cri, pod, "sh", "-c", script, name="root")
        for id_, number in ((container, 1000), (root, 0)):
            assert says(cri, id_, "echo $(id -u) > /dev/stdout") == str(number)
            assert owner(f"/proc/{pid_of(cri, id_)}") == (FIRST + number, FIRST)
        status = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=container)).status
        assert (status.user.linux.uid, status.user.linux.gid) == (1000, 0)
    for id_, name in ((container, "1000"), (root, "0")):
        wait_for(lambda id_=id_: "and errors" in node.crictl("logs", id_, check=False))
        assert f"log of {name}" in node.crictl("logs", id_)
        reopen = "echo said > /dev/stdout; echo wrong > /dev/stderr"
        assert node.crictl("exec", id_, "sh", "-c", reopen) == "said"
        assert on_terminal(node, id_, "tty; echo said > $(tty)") == ["/dev/pts/0", "said"]
    node.remove_pods()
    assert node.leftovers() == []


def test_a_container_with_a_terminal(node: Server) -> None:
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod()))
        script = "tty; stat -c %u $(tty); echo said > /dev/console; sleep 1000"
        container = node.run_container(cri, pod, "sh", "-c", script, tty=True)
    wait_for(lambda: "said" in node.crictl("logs", container, check=False))
    assert node.crictl("logs", container).split() == ["/dev/pts/0", "0", "said"]
    node.remove_pods()
    assert node.leftovers() == []


def test_volumes_with_and_without_mappings(node: Server, tmp_path: Path) -> None:
    volume = node.state / "volume"  # not below /tmp: whose file system may not map ids
    volume.mkdir(mode=0o755)
    (volume / "secret").write_text("of root")
    (volume / "secret").chmod(0o600)
    ids = [pb.IDMapping(container_id=0, host_id=FIRST, length=SIZE)]
    mounts = [
        pb.Mount(container_path="/mapped", host_path=str(volume), uidMappings=ids, gidMappings=ids),
        pb.Mount(container_path="/plain", host_path=str(volume)),
    ]
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod(hostname="named")))
        container = node.run_container(cri, pod, mounts=mounts)
        assert says(cri, container, "cat /mapped/secret") == "of root"
        assert says(cri, container, "stat -c %u /mapped/secret /plain/secret") == "0\n65534"
        says(cri, container, "! cat /plain/secret && ! touch /plain/new && touch /mapped/new")
        assert owner(volume / "new") == (0, 0)
        says(cri, container, "chown 1000:1000 /mapped/new")
        assert owner(volume / "new") == (1000, 1000)
    node.remove_pods()
    assert node.leftovers() == []


def archive(path: Path, layers: list[bytes]) -> None:
    """A Docker archive of one image named many:1."""
    digests = [hashlib.sha256(layer).hexdigest() for layer in layers]
    config = json.dumps(
        {
            "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
            "os": "linux",
            "config": {"Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        }
    ).encode()
    entry = {"Config": "config.json", "RepoTags": ["many:1"], "Layers": digests}
    files = [
        (b"config.json", config),
        (b"manifest.json", json.dumps([entry]).encode()),
        *((digest.encode(), layer) for digest, layer in zip(digests, layers, strict=True)),
    ]
    path.write_bytes(b"".join(tars.file(*file) for file in files) + tars.end())


def test_an_image_of_many_layers_in_pods_with_other_ids(node: Server, tmp_path: Path) -> None:
    """More layers than a page of mount options names; who owns what is as in the image."""
    busybox = Path("/bin/busybox").read_bytes()
    first = tars.directory(b"bin") + tars.file(b"bin/busybox", busybox, mode=0o755)
    for name in (b"sh", b"sleep", b"stat", b"id", b"touch"):
        first += tars.symlink(b"bin/" + name, b"busybox")
    first += tars.directory(b"home", uid=1000, gid=100, mode=0o700) + tars.directory(b"n")
    first += tars.file(b"far", b"x", uid=70000, gid=70000)
    layers = [first + tars.end()]
    layers += [tars.file(b"n/%d" % n, b"x", uid=n, gid=n) + tars.end() for n in range(150)]
    archive(tmp_path / "many.tar", layers)
    loaded = node.cli("load", "-i", str(tmp_path / "many.tar"))
    assert loaded.returncode == 0, loaded
    with node.cri() as cri:
        for first_id in (FIRST, 400000):
            pod = run_pod(cri, with_userns(node.pod(f"p{first_id}"), first=first_id))
            container = node.run_container(cri, pod, image=pb.ImageSpec(image="many:1"))
            assert says(cri, container, "stat -c %u:%g / /home /n/0 /n/149 /far").split() == [
                *("0:0", "1000:100", "0:0", "149:149", "65534:65534")
            ]
            says(cri, container, "touch /home/new /n/149 && ! touch /far")
            root = f"/proc/{pid_of(cri, container)}/root"
            assert owner(f"{root}/home/new") == (first_id, first_id)
            assert owner(f"{root}/n/149") == (first_id + 149, first_id + 149)
    node.remove_pods()
    assert node.leftovers() == []
    assert os.listdir(node.run / "tmp") == []


def test_the_pods_files_devices_and_shared_memory(node: Server) -> None:
    with node.cri() as cri:
        pod = run_pod(cri, with_userns(node.pod()))
        user = security(run_as_user=pb.Int64Value(value=1000), readonly_rootfs=True)
        container = node.run_container(cri, pod, linux=user)
        root = node.run_container(cri, pod, name="root")
        files = "/etc/hosts /etc/hostname /etc/resolv.conf"
        for id_ in (container, root):
            assert says(cri, id_, f"cat {files} > /dev/null; stat -c %u:%g {files} /dev/shm") == (
                "\n".join(["0:0"] * 4)
            )
            says(cri, id_, "echo x > /dev/null; head -c 8 /dev/urandom > /dev/shm/$(id -u)")
            assert "rw" in says(cri, id_, "grep ' /dev/shm ' /proc/mounts")
        assert says(cri, root, "ls -n /dev/shm | awk '{print $3}'").split() == ["0", "1000"]
        says(cri, root, "echo '127.0.0.1 me' >> /etc/hosts")
        assert (node.run / "sandboxes" / pod / "hosts").read_text().endswith("me\n")
    node.remove_pods()
    assert node.leftovers() == []


def test_on_the_hosts_network(node: Server) -> None:
    """The host's network and a user namespace: its /sys can't be mounted anew."""
    config = with_userns(node.pod())
    assert config.linux.security_context.namespace_options.network == MODE.NODE
    with node.cri() as cri:
        status = cri.Status(pb.StatusRequest())
        assert status.features.user_namespaces_host_network
        pod = run_pod(cri, config)
        container = node.run_container(cri, pod)
        assert (
            sorted(os.listdir("/sys/class/net"))
            == says(cri, container, "ls /sys/class/net").split()
        )
        assert says(cri, container, "hostname") == os.uname().nodename
        says(cri, container, "! echo 1 > /sys/kernel/mm/ksm/run")
    node.remove_pods()
    assert node.leftovers() == []


def test_a_network_of_its_own(bridged_node: Server) -> None:
    """The network namespace is the pod's root's: capabilities count in it, and in it alone."""
    node = bridged_node
    config = with_userns(node.pod(hostname="named"))
    config.linux.sysctls["net.ipv4.ip_local_port_range"] = "2000 3000"
    config.linux.sysctls["kernel.shmmax"] = "1234567"
    with node.cri() as cri:
        pod = run_pod(cri, config)
        admin = security(capabilities=pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"]))
        container = node.run_container(cri, pod, linux=admin)
        assert says(cri, container, "hostname") == "named"
        assert says(cri, container, "cat /proc/sys/net/ipv4/ip_local_port_range").split() == [
            "2000",
            "3000",
        ]
        assert says(cri, container, "cat /proc/sys/kernel/shmmax") == "1234567"
        status = cri.PodSandboxStatus(pb.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
        assert status.network.ip in says(cri, container, "ip -4 addr show eth0")
        assert sorted(says(cri, container, "ls /sys/class/net").split()) == ["eth0", "lo"]
        says(cri, container, "ip link set lo down && ip link set lo up")
        says(cri, container, "mount -t tmpfs none /mnt || mkdir /mnt && mount -t tmpfs none /mnt")
        says(cri, container, "! echo 1 > /proc/sys/vm/drop_caches")
    node.remove_pods()
    assert node.leftovers() == []


def test_an_old_runtime_is_not_trusted_with_it() -> None:
    """It would ignore what it doesn't know of, and root inside would be the host's."""
    with serving(DEBIAN) as node, node.cri() as cri:
        features = cri.Status(pb.StatusRequest()).runtime_handlers
        assert not any(handler.features.user_namespaces for handler in features)
        assert not cri.Status(pb.StatusRequest()).features.user_namespaces_host_network
        with pytest.raises(grpc.RpcError) as refused:
            run_pod(cri, with_userns(node.pod()))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "userns_options: the runtime handler" in str(refused.value.details())
        assert not cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
        assert node.leftovers() == []
