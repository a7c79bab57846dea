"""What confines a container, asked of the kernel from inside of it, as CRI's client gets it."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from tests.fakes import tars
from tests.integration.server import UPSTREAM, Server, serving
from tests.integration.test_containers import load_image, says
from zos_cri._pb import cri_pb2 as pb
from zos_cri.oci.capabilities import DEFAULT
from zos_cri.oci.host import CAPABILITIES

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

POD, CONTAINER = pb.NamespaceMode.POD, pb.NamespaceMode.CONTAINER
NODE, TARGET = pb.NamespaceMode.NODE, pb.NamespaceMode.TARGET
Profile = pb.SecurityProfile
KINDS: Final = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
EMPTY: Final = "0" * 16


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


@pytest.fixture
def cri(node: Server) -> Iterator[Any]:
    with node.cri() as stub:
        yield stub


def context(**fields: Any) -> pb.LinuxContainerConfig:
    given = pb.LinuxContainerSecurityContext(**fields)
    return pb.LinuxContainerConfig(security_context=given)


def privileged_pod(node: Server, cri: Any) -> str:
    config = node.pod("privileged")
    config.linux.security_context.privileged = True
    return str(cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id)


def status(cri: Any, container: str, process: str = "1") -> dict[str, str]:
    """/proc/PID/status."""
    lines = says(cri, container, f"cat /proc/{process}/status").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mask(names: Any) -> str:
    return f"{sum(1 << CAPABILITIES.index(name) for name in names):016x}"


def sets(cri: Any, container: str, process: str = "1") -> list[str]:
    found = status(cri, container, process)
    return [found[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")]


# Capabilities


CAPS = [
    ("default", {}, DEFAULT),
    ("added", {"add_capabilities": ["SYS_TIME"]}, {*DEFAULT, "CAP_SYS_TIME"}),
    ("dropped", {"drop_capabilities": ["CHOWN"]}, {*DEFAULT} - {"CAP_CHOWN"}),
    ("none", {"drop_capabilities": ["ALL"]}, set()),
    ("one", {"drop_capabilities": ["ALL"], "add_capabilities": ["NET_RAW"]}, {"CAP_NET_RAW"}),
]


def test_capability_sets(node: Server, cri: Any) -> None:
    pod = node.run_pod(cri)
    for name, fields, wanted in CAPS:
        linux = context(capabilities=pb.Capability(**fields))
        container = node.run_container(cri, pod, name=name, linux=linux)
        for process in ("1", "self"):  # the container's own, and an exec's
            assert sets(cri, container, process) == [
                *(EMPTY, mask(wanted), mask(wanted), mask(wanted), EMPTY)
            ], name


def test_ambient_capabilities_reach_a_user(node: Server, cri: Any) -> None:
    pod = node.run_pod(cri)
    given = pb.Capability(add_ambient_capabilities=["NET_BIND_SERVICE"])
    user = pb.Int64Value(value=1000)
    plain = node.run_container(cri, pod, name="plain", linux=context(run_as_user=user))
    assert sets(cri, plain)[1:3] == [EMPTY, EMPTY]
    linux = context(run_as_user=user, capabilities=given)
    container = node.run_container(cri, pod, linux=linux)
    one = mask(["CAP_NET_BIND_SERVICE"])
    assert [sets(cri, container)[index] for index in (0, 1, 2, 4)] == [one, one, one, one]


def test_privileged(node: Server, cri: Any) -> None:
    own = Path("/proc/self/status").read_text().split("CapBnd:\t")[1].split()[0]
    container = node.run_container(
        cri,
        privileged_pod(node, cri),
        linux=context(privileged=True, seccomp=Profile(profile_type=Profile.RuntimeDefault)),
    )
    assert sets(cri, container)[1:4] == [own] * 3
    assert status(cri, container)["Seccomp"] == "0"
    flags = mounts(cri, container)
    assert "rw" in flags["/sys"]
    assert not [target for target in flags if target.startswith("/proc/")]
    kept = {"console", "ptmx", "tty"}  # the container's own
    nodes = {e.name: e.stat() for e in Path("/dev").iterdir() if not e.is_symlink()}
    wanted = {
        f"{os.major(found.st_rdev):x}:{os.minor(found.st_rdev):x} /dev/{name}"
        for name, found in nodes.items()
        if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode)
        if name not in kept
    }
    assert wanted <= {*says(cri, container, "stat -c '%t:%T %n' /dev/*").splitlines()}
    says(cri, container, "mkdir /m && mount -t tmpfs m /m && umount /m")


# Seccomp and no_new_privs


def test_seccomp_and_no_new_privileges(node: Server, cri: Any, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    refused = [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": refused}))
    local = Profile(profile_type=Profile.Localhost, localhost_ref=str(profile))
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("nothing", {}, "0", "0"),
        ("unconfined", {"seccomp": Profile(profile_type=Profile.Unconfined)}, "0", "0"),
        ("default", {"seccomp": Profile(profile_type=Profile.RuntimeDefault)}, "2", "0"),
        ("local", {"seccomp": local}, "2", "0"),
        ("old", {"seccomp_profile_path": "runtime/default"}, "2", "0"),
        ("nnp", {"no_new_privs": True}, "0", "1"),
        ("both", {"no_new_privs": True, "seccomp": local}, "2", "1"),
    ]
    pod = node.run_pod(cri)
    for name, fields, mode, no_new in cases:
        container = node.run_container(cri, pod, name=name, linux=context(**fields))
        for process in ("1", "self"):
            found = status(cri, container, process)
            assert (found["Seccomp"], found["NoNewPrivs"]) == (mode, no_new), name
        answer = says(cri, container, "mkdir /new 2>&1 || true")
        assert ("not supported" in answer) is (fields.get("seccomp") == local), name
        # unshare(2) of a user namespace: what the default profile is there for.
        answer = says(cri, container, "unshare -U true 2>&1 && echo made || true")
        assert ("made" in answer) is (mode == "0" or fields.get("seccomp") == local), (name, answer)


# Namespaces


def links(cri: Any, container: str, process: str = "self") -> dict[str, str]:
    """The namespaces of a process inside: kind → `kind:[inode]`."""
    script = f"cd /proc/{process}/ns; for k in {' '.join(KINDS)}; do readlink $k; done"
    return dict(zip(KINDS, says(cri, container, script).splitlines(), strict=True))


def host_links() -> dict[str, str]:
    return {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}


def options(**fields: Any) -> pb.LinuxContainerConfig:
    return context(namespace_options=pb.NamespaceOption(network=NODE, **fields))


def test_namespaces_of_each_container(node: Server, cri: Any) -> None:
    host = host_links()
    pod = node.run_pod(cri)
    one = node.run_container(cri, pod, name="one", linux=options(pid=CONTAINER))
    two = node.run_container(cri, pod, name="two", linux=options(pid=CONTAINER))
    target = options(pid=TARGET, target_id=one)
    three = node.run_container(cri, pod, name="three", linux=target)
    a, b, c = (links(cri, each) for each in (one, two, three))
    for found in (a, b, c):
        assert {kind for kind in KINDS if found[kind] == host[kind]} >= {"net", "uts", "user"}
        assert not {kind for kind in KINDS if found[kind] == host[kind]} & {"ipc", "mnt", "pid"}
    assert a["ipc"] == b["ipc"] == c["ipc"]
    assert a["pid"] == c["pid"] != b["pid"]
    assert len({a["mnt"], b["mnt"], c["mnt"]}) == 3
    assert links(cri, one, "1") == a
    assert "sleep" in says(cri, three, "cat /proc/1/cmdline")


def test_namespaces_that_are_shared_or_the_hosts(node: Server, cri: Any) -> None:
    host = host_links()
    shared = node.run_pod(cri, "shared", pid=POD)
    pair = [
        node.run_container(cri, shared, name=name, linux=options(pid=POD)) for name in ("a", "b")
    ]
    first, second = (links(cri, each) for each in pair)
    assert first["pid"] == second["pid"] != host["pid"]
    assert says(cri, pair[0], "cat /proc/1/comm") == "catatonit"
    alone = node.run_container(cri, shared, name="alone", linux=options(pid=CONTAINER))
    assert links(cri, alone)["pid"] not in (first["pid"], host["pid"])
    config = node.pod("hosts", pid=NODE)
    config.linux.security_context.namespace_options.ipc = NODE
    hosts = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    container = node.run_container(cri, hosts, linux=options(pid=NODE, ipc=NODE))
    found = links(cri, container)
    assert {kind for kind in KINDS if found[kind] == host[kind]} >= {
        *("ipc", "net", "pid", "user", "uts")
    }
    assert found["mnt"] != host["mnt"]


# Mounts


def mounts(cri: Any, container: str) -> dict[str, set[str]]:
    """By target: the options of the mount, and its propagation's tags."""
    found = {}
    for line in says(cri, container, "cat /proc/self/mountinfo").splitlines():
        fields, _, _ = line.partition(" - ")
        _, _, _, _, target, flags, *tags = fields.split()
        found[target] = {*flags.split(","), *(tag.split(":")[0] for tag in tags)}
    return found


def test_mount_flags(node: Server, cri: Any, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    given = [
        pb.Mount(container_path="/plain", host_path=str(tmp_path)),
        pb.Mount(container_path="/ro", host_path=str(tmp_path), readonly=True),
        pb.Mount(
            container_path="/rro",
            host_path=str(tmp_path),
            readonly=True,
            recursive_read_only=True,
            mount_options=["noexec", "nosuid", "nodev"],
        ),
    ]
    linux = context(
        readonly_rootfs=True,
        masked_paths=["/proc/keys", "/proc/acpi", "/sys/firmware"],
        readonly_paths=["/proc/sys", "/proc/bus"],
    )
    pod = node.run_pod(cri)
    container = node.run_container(cri, pod, mounts=given, linux=linux)
    found = mounts(cri, container)
    assert "ro" in found["/"]
    for target in ("/proc", "/sys", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup"):
        assert {"nosuid", "nodev", "noexec"} <= found[target], target
    assert {"nosuid"} <= found["/dev"]
    assert {"nosuid", "noexec"} <= found["/dev/pts"]
    for target in ("/sys", "/proc/sys", "/ro", "/rro", "/etc/hosts"):
        assert "ro" in found[target], target
    assert {"noexec", "nosuid", "nodev"} <= found["/rro"]
    assert "rw" in found["/plain"]
    # On cgroup v1 each controller has its mount, on a tmpfs of the container's own.
    cgroups = [t for t in found if t.startswith("/sys/fs/cgroup/")] or ["/sys/fs/cgroup"]
    assert all("ro" in found[target] for target in cgroups)
    for target in {*found} - {*cgroups}:
        assert not found[target] & {"shared", "master"}, target
    assert says(cri, container, "cat /proc/keys") == ""
    says(cri, container, "! echo 1 > /proc/sys/kernel/panic && ! touch /x")
    unmasked = node.run_container(cri, pod, name="unmasked", linux=context())
    assert not [t for t in mounts(cri, unmasked) if t.startswith("/proc/")]


def test_propagation(node: Server, cri: Any) -> None:
    """Both ways, one way and none, seen where it ends."""
    volume = node.state / "volume"
    (volume / "mine").mkdir(parents=True)
    (volume / "hosts").mkdir()
    os.system(f"mount -t tmpfs volume {volume} && mount --make-shared {volume}")
    for name in ("mine", "hosts"):
        (volume / name).mkdir()
    modes = {
        "none": pb.MountPropagation.PROPAGATION_PRIVATE,
        "in": pb.MountPropagation.PROPAGATION_HOST_TO_CONTAINER,
        "both": pb.MountPropagation.PROPAGATION_BIDIRECTIONAL,
    }
    try:
        pod = privileged_pod(node, cri)
        containers = {
            name: node.run_container(
                cri,
                pod,
                name=name,
                mounts=[pb.Mount(container_path="/v", host_path=str(volume), propagation=mode)],
                linux=context(privileged=True),
            )
            for name, mode in modes.items()
        }
        tags = {name: mounts(cri, id_)["/v"] for name, id_ in containers.items()}
        assert not tags["none"] & {"shared", "master"}
        assert tags["in"] & {"shared", "master"} == {"master"}
        assert "shared" in tags["both"]
        os.system(f"mount -t tmpfs hosts {volume}/hosts && touch {volume}/hosts/seen")
        seen = {name: says(cri, id_, "ls /v/hosts") for name, id_ in containers.items()}
        assert seen == {"none": "", "in": "seen", "both": "seen"}
        says(cri, containers["both"], "mount -t tmpfs mine /v/mine && touch /v/mine/mine")
        assert [path.name for path in (volume / "mine").iterdir()] == ["mine"]
        says(cri, containers["in"], "umount /v/mine && mount -t tmpfs x /v/mine; touch /v/mine/y")
        assert [path.name for path in (volume / "mine").iterdir()] == ["mine"]
    finally:
        node.remove_pods()
        os.system(f"umount -R {volume}")


# Users, devices, limits


def test_users_and_groups(node: Server, cri: Any) -> None:
    passwd = b"root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n"
    group = b"root:x:0:\nweb:x:34:\nextra:x:77:web\n"
    extra = tars.directory(b"etc") + tars.file(b"etc/passwd", passwd)
    extra += tars.file(b"etc/group", group)
    for tool in (b"grep", b"tr"):
        extra += tars.symlink(b"bin/" + tool, b"busybox")
    image = load_image(node, "users", extra, User="web")
    strict = pb.SupplementalGroupsPolicy.Strict
    cases: list[tuple[str, dict[str, Any], list[int]]] = [
        ("image", {}, [33, 34, 34, 77]),
        ("name", {"run_as_username": "root"}, [0, 0, 0]),
        ("number", {"run_as_user": pb.Int64Value(value=33)}, [33, 34, 34, 77]),
        ("stranger", {"run_as_user": pb.Int64Value(value=1234)}, [1234, 0, 0]),
        (
            "group",
            {"run_as_user": pb.Int64Value(value=33), "run_as_group": pb.Int64Value(value=5)},
            [33, 5, 5, 77],
        ),
        ("more", {"supplemental_groups": [9, 8]}, [33, 34, 8, 9, 34, 77]),
        (
            "strict",
            {"supplemental_groups": [9], "supplemental_groups_policy": strict},
            [33, 34, 9, 34],
        ),
    ]
    pod = node.run_pod(cri)
    for name, fields, wanted in cases:
        container = node.run_container(cri, pod, name=name, image=image, linux=context(**fields))
        found = status(cri, container)
        uids, gids = found["Uid"].split(), found["Gid"].split()
        assert len({*uids}) == len({*gids}) == 1
        groups = sorted(map(int, found["Groups"].split()))
        assert [int(uids[0]), int(gids[0]), *groups] == wanted, name
        request = pb.ContainerStatusRequest(container_id=container)
        told = cri.ContainerStatus(request).status.user.linux
        assert [told.uid, told.gid, *sorted(told.supplemental_groups)] == wanted, name


def test_the_device_cgroup(node: Server, cri: Any) -> None:
    zero = pb.Device(container_path="/dev/mine", host_path="/dev/zero", permissions="r")
    pod = node.run_pod(cri)
    container = node.run_container(cri, pod, devices=[zero])
    says(cri, container, "head -c 1 /dev/mine && ! mknod /k c 1 11 2>/dev/null || ! head -c 1 /k")
    answer = says(cri, container, "cat /k /dev/kmsg 2>&1 | head -1 || true")
    assert re.search("No such file|not permitted", answer)


def test_scores_and_sysctls(node: Server, cri: Any) -> None:
    config = node.pod("sysctls")
    config.linux.sysctls["kernel.shm_rmid_forced"] = "1"
    config.linux.sysctls["fs.mqueue.msg_max"] = "33"
    pod = cri.RunPodSandbox(pb.RunPodSandboxRequest(config=config)).pod_sandbox_id
    least = pb.LinuxContainerResources(oom_score_adj=-999)
    linux = pb.LinuxContainerConfig(resources=least)
    container = node.run_container(cri, pod, linux=linux)
    values = "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max"
    assert says(cri, container, values).split() == ["1", "33"]
    # Where this host lets nobody go so low, it is as low as it goes: the container runs.
    score = int(says(cri, container, "cat /proc/1/oom_score_adj"))
    assert score == max(-999, lowest_score())


def lowest_score() -> int:
    """Tried: without CAP_SYS_RESOURCE the lowest is what an ancestor was given with it."""
    if int(Path("/proc/self/status").read_text().split("CapEff:\t")[1].split()[0], 16) >> 24 & 1:
        return -1000
    return int(Path("/proc/self/oom_score_adj").read_text())
