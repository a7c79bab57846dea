"""What is wrong in a request is refused by its field, with the right code, and leaves nothing.

One table for each kind of request: what is changed in one that is right, the gRPC code, and what
the message must say. Every message is one line.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from tests.integration.server import DEBIAN, IMAGE, UPSTREAM, Server, serving
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXISTS = grpc.StatusCode.ALREADY_EXISTS

POD, CONTAINER = pb.NamespaceMode.POD, pb.NamespaceMode.CONTAINER
NODE, TARGET = pb.NamespaceMode.NODE, pb.NamespaceMode.TARGET
CONTEXT = "linux.security_context"
OPTIONS = f"{CONTEXT}.namespace_options"

Fields = dict[str, Any]
Row = tuple[str, Any, grpc.StatusCode, str]
_numbers = itertools.count()

HANDLERS = f"""
[handlers.old]
shim = "{DEBIAN.shim}"
runtime = "{DEBIAN.runtime}"
"""


@pytest.fixture(scope="module")
def node() -> Iterator[Server]:
    """One server for the whole table; when all is over, nothing may be left."""
    with serving(UPSTREAM, extra=HANDLERS) as started:
        yield started
        started.remove_pods()
        assert started.leftovers() == []
        sandboxes = started.run / "sandboxes"
        assert not sandboxes.exists() or not list(sandboxes.iterdir())


@pytest.fixture(scope="module")
def cri(node: Server) -> Iterator[Any]:
    with node.cri() as stub:
        yield stub


@pytest.fixture(scope="module")
def pod(node: Server, cri: Any) -> str:
    """The pod that containers are to be made in."""
    return node.run_pod(cri, "good")


@pytest.fixture(scope="module")
def running(node: Server, cri: Any, pod: str) -> str:
    """A container of that pod, which runs."""
    return node.run_container(cri, pod, name="running")


def refused(call: Callable[[Any], Any], request: Any, code: grpc.StatusCode, says: str) -> None:
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    text = str(error.value.details())
    assert (error.value.code(), says in text) == (code, True), f"{error.value.code()}: {text}"
    assert "\n" not in text
    assert len(text) < 600


def known(cri: Any) -> tuple[list[str], list[str]]:
    """The ids of all pods and containers."""
    pods = cri.ListPodSandbox(pb.ListPodSandboxRequest()).items
    containers = cri.ListContainers(pb.ListContainersRequest()).containers
    return sorted(p.id for p in pods), sorted(c.id for c in containers)


def traces(node: Server) -> list[str]:
    """What there is of pods and containers, whether a record names it or not."""
    found = [mount.target for top in (node.run, node.state) for mount in mounts_below(str(top))]
    for name in ("run/bundles", "run/sandboxes", "run/fifo", "state/images/containers"):
        top, _, rest = name.partition("/")
        directory: Path = getattr(node, top) / rest
        found += [str(path) for path in directory.iterdir()] if directory.exists() else []
    return sorted(found)


def ids(rows: list[Row]) -> list[str]:
    return [row[0] for row in rows]


# Pods


def namespaces(**fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    """A pod with other namespace options."""

    def change(config: pb.PodSandboxConfig) -> None:
        context = config.linux.security_context
        context.namespace_options.CopyFrom(pb.NamespaceOption(**fields))

    return change


def userns(uids: list[pb.IDMapping], gids: list[pb.IDMapping] | None = None, **fields: Any) -> Any:
    gids = uids if gids is None else gids
    mode = fields.pop("mode", POD)
    fields.setdefault("network", NODE)
    options = pb.UserNamespace(mode=mode, uids=uids, gids=gids)
    return namespaces(userns_options=options, pid=fields.pop("pid", CONTAINER), **fields)


def ids_of(container: int, host: int, length: int) -> pb.IDMapping:
    return pb.IDMapping(container_id=container, host_id=host, length=length)


def merged(**fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    return lambda config: config.MergeFrom(pb.PodSandboxConfig(**fields))


def metadata(**fields: str) -> Callable[[pb.PodSandboxConfig], None]:
    def change(config: pb.PodSandboxConfig) -> None:
        for name, value in fields.items():
            setattr(config.metadata, name, value)

    return change


def sysctl(name: str, value: str = "1", **fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    def change(config: pb.PodSandboxConfig) -> None:
        namespaces(network=fields.get("network", NODE), ipc=fields.get("ipc", POD))(config)
        config.linux.sysctls[name] = value

    return change


def parent(path: str) -> Callable[[pb.PodSandboxConfig], None]:
    def change(config: pb.PodSandboxConfig) -> None:
        config.linux.cgroup_parent = path

    return change


def port(**fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    values = {"host_port": 8080, "container_port": 80} | fields
    return merged(port_mappings=[pb.PortMapping(**values)])


def hostname(name: str) -> Callable[[pb.PodSandboxConfig], None]:
    def change(config: pb.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.network = POD
        config.hostname = name

    return change


def dns(**fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    return merged(dns_config=pb.DNSConfig(**fields))


SELINUX = pb.SELinuxOption(level="s0 s1")
USERNS = f"{OPTIONS}.userns_options"
ALL = ids_of(0, 100_000, 65_536)

PODS: list[Row] = [
    ("no name", metadata(name=""), INVALID, "metadata.name"),
    ("no namespace", metadata(namespace=""), INVALID, "metadata.namespace"),
    ("no uid", metadata(uid=""), INVALID, "metadata.uid"),
    ("a name for plugins", metadata(name="a;K8S_POD_UID=x"), INVALID, "metadata.name"),
    ("a namespace with a newline", metadata(namespace="a\nb"), INVALID, "metadata.namespace"),
    ("long host name", hostname("x" * 65), INVALID, "hostname"),
    ("host name of lines", hostname("a\nb"), INVALID, "hostname"),
    ("log directory", lambda c: setattr(c, "log_directory", "logs"), INVALID, "log_directory"),
    ("log directory above", lambda c: setattr(c, "log_directory", "/a/../b"), INVALID, "log_dir"),
    ("name server", dns(servers=["1.1.1.1 2.2.2.2"]), INVALID, "dns_config.servers"),
    ("empty search", dns(searches=[""]), INVALID, "dns_config.searches"),
    ("searches", dns(searches=["x"] * 33), INVALID, "dns_config.searches: 33 entries, at most"),
    ("dns option", dns(options=["a\nnameserver 6.6.6.6"]), INVALID, "dns_config.options"),
    ("host port", port(host_port=70_000), INVALID, "port_mappings[0].host_port"),
    ("negative host port", port(host_port=-1), INVALID, "port_mappings[0].host_port"),
    ("container port", port(container_port=0), INVALID, "port_mappings[0].container_port"),
    ("protocol", port(protocol=9), INVALID, "port_mappings[0].protocol"),
    ("host ip", port(host_ip="localhost"), INVALID, "port_mappings[0].host_ip"),
    ("parent above", parent("/a/../../b"), INVALID, "linux.cgroup_parent"),
    ("parent with NUL", parent("/a\0b"), INVALID, "linux.cgroup_parent"),
    ("network CONTAINER", namespaces(network=CONTAINER), INVALID, f"{OPTIONS}.network"),
    ("network TARGET", namespaces(network=TARGET), INVALID, f"{OPTIONS}.network"),
    ("ipc CONTAINER", namespaces(network=NODE, ipc=CONTAINER), INVALID, f"{OPTIONS}.ipc"),
    ("pid TARGET", namespaces(network=NODE, pid=TARGET), INVALID, f"{OPTIONS}.pid"),
    ("pid of no mode", namespaces(network=NODE, pid=9), INVALID, f"{OPTIONS}.pid"),
    ("user mode", userns([ALL], mode=TARGET), INVALID, f"{USERNS}.mode"),
    ("user NODE with mappings", userns([ALL], mode=NODE), INVALID, USERNS),
    ("two mappings", userns([ALL, ids_of(70_000, 9, 9)]), INVALID, f"{USERNS}.uids"),
    ("no gids", userns([ALL], []), INVALID, f"{USERNS}.gids"),
    ("root not mapped", userns([ids_of(1, 9, 9)]), INVALID, f"{USERNS}.uids[0].container_id"),
    ("empty mapping", userns([ids_of(0, 9, 0)]), INVALID, f"{USERNS}.uids[0].length"),
    ("mapping beyond", userns([ids_of(0, 9, 2**32 - 1)]), INVALID, f"{USERNS}.uids[0].length"),
    ("mappings differ", userns([ALL], [ids_of(0, 9, 9)]), INVALID, USERNS),
    ("user and host pid", userns([ALL], pid=NODE), INVALID, f"{OPTIONS}.pid"),
    ("user and host ipc", userns([ALL], ipc=NODE), INVALID, f"{OPTIONS}.ipc"),
    ("the whole host's sysctl", sysctl("vm.swappiness"), INVALID, 'linux.sysctls["vm.swappiness"]'),
    ("the host network's", sysctl("net.ipv4.tcp_syncookies"), INVALID, "linux.sysctls"),
    ("the host ipc's", sysctl("kernel.shmmax", ipc=NODE), INVALID, "linux.sysctls"),
    ("no sysctl", sysctl("kernel.shm_no"), INVALID, "linux.sysctls"),
    ("sysctl above", sysctl("net/../../etc/x"), INVALID, "linux.sysctls"),
    ("sysctl's value", sysctl("kernel.shmmax", "lots"), INVALID, "sysctl kernel.shmmax='lots'"),
    ("sysctl that isn't", sysctl("fs.mqueue.none"), INVALID, "sysctl fs.mqueue.none: this kernel"),
    (
        "selinux",
        lambda c: c.linux.security_context.selinux_options.CopyFrom(SELINUX),
        INVALID,
        f"{CONTEXT}.selinux_options.level",
    ),
    (
        "bandwidth",
        lambda c: c.annotations.update({"kubernetes.io/ingress-bandwidth": "lots"}),
        INVALID,
        "annotation kubernetes.io/ingress-bandwidth",
    ),
    (
        "no bandwidth",
        lambda c: c.annotations.update({"kubernetes.io/egress-bandwidth": "1"}),
        INVALID,
        "annotation kubernetes.io/egress-bandwidth",
    ),
]


@pytest.mark.parametrize("row", PODS, ids=ids(PODS))
def test_pods(node: Server, cri: Any, pod: str, running: str, row: Row) -> None:
    _, change, code, says = row
    config = node.pod(f"bad{next(_numbers)}")
    change(config)
    before, there = known(cri), traces(node)
    refused(cri.RunPodSandbox, pb.RunPodSandboxRequest(config=config), code, says)
    assert known(cri) == before
    assert traces(node) == there


HANDLER_ROWS: list[Row] = [
    ("unknown", ("kata", lambda _: None), INVALID, 'runtime_handler: "kata" is not configured'),
    ("user namespace", ("old", userns([ALL])), INVALID, f"{USERNS}: the runtime handler"),
]


@pytest.mark.parametrize("row", HANDLER_ROWS, ids=ids(HANDLER_ROWS))
def test_handlers(node: Server, cri: Any, pod: str, row: Row) -> None:
    _, (handler, change), code, says = row
    config = node.pod(f"bad{next(_numbers)}")
    change(config)
    before = known(cri)
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    refused(cri.RunPodSandbox, request, code, says)
    assert known(cri) == before


def test_a_pods_name_is_taken(node: Server, cri: Any, pod: str) -> None:
    config = node.pod("good", hostname="other")
    refused(cri.RunPodSandbox, pb.RunPodSandboxRequest(config=config), EXISTS, "good")


# Containers


def context(**fields: Any) -> Fields:
    given = pb.LinuxContainerSecurityContext(**fields)
    return {"linux": pb.LinuxContainerConfig(security_context=given)}


def options(**fields: Any) -> Fields:
    return context(namespace_options=pb.NamespaceOption(network=NODE, **fields))


def limits(**fields: Any) -> Fields:
    return {"linux": pb.LinuxContainerConfig(resources=pb.LinuxContainerResources(**fields))}


def mount(**fields: Any) -> Fields:
    return {"mounts": [pb.Mount(**{"container_path": "/x", "host_path": "/etc"} | fields)]}


def device(**fields: Any) -> Fields:
    values = {"container_path": "/dev/x", "host_path": "/dev/null", "permissions": "rw"} | fields
    return {"devices": [pb.Device(**values)]}


def seccomp(kind: Any, reference: str = "") -> Fields:
    return context(seccomp=pb.SecurityProfile(profile_type=kind, localhost_ref=reference))


def apparmor(kind: Any, reference: str = "") -> Fields:
    return context(apparmor=pb.SecurityProfile(profile_type=kind, localhost_ref=reference))


def capability(**fields: Any) -> Fields:
    return context(capabilities=pb.Capability(**fields))


def user(number: int) -> Fields:
    return context(run_as_user=pb.Int64Value(value=number))


def env(key: str, value: str = "x") -> Fields:
    return {"envs": [pb.KeyValue(key=key, value=value.encode())]}


def image(name: str) -> Fields:
    return {"image": pb.ImageSpec(image=name)}


LOCALHOST, DEFAULT = pb.SecurityProfile.Localhost, pb.SecurityProfile.RuntimeDefault
RES = "linux.resources"
SOME = pb.ImageSpec(image=IMAGE)
BROKEN = "/etc/passwd"  # a file that is no profile
HAS_APPARMOR = Path("/sys/module/apparmor/parameters/enabled").exists()
HUGE = pb.HugepageLimit(page_size="3MB", limit=1)
ODD = pb.HugepageLimit(page_size="big", limit=1)
NULL = pb.CDIDevice(name="vendor")
ABSENT_CDI = pb.CDIDevice(name="vendor.com/x=absent")
ONE = [ids_of(0, 1, 1)]

CONTAINERS: list[Row] = [
    ("no name", {"name": ""}, INVALID, "metadata.name: is empty"),
    ("no image", image(""), INVALID, "image.image: is empty"),
    ("absent image", image("absent:1"), NOT_FOUND, 'image.image: "absent:1" is not on this host'),
    ("no image's name", image("UP PER"), INVALID, "image.image"),
    ("argument with NUL", {"command": ["a\0b"]}, INVALID, "command"),
    ("args with NUL", {"args": ["\0"]}, INVALID, "NUL"),
    ("working directory", {"working_dir": "tmp"}, INVALID, "working_dir"),
    ("working directory's NUL", {"working_dir": "/\0"}, INVALID, "working_dir"),
    ("variable without a name", env(""), INVALID, "envs[0].key"),
    ("variable with =", env("A=B"), INVALID, "envs[0].key"),
    ("variable with NUL", env("A", "\0"), INVALID, "envs[0].value"),
    ("log path above", {"log": "../x.log"}, INVALID, "log_path"),
    ("log path of its own", {"log": "/tmp/x.log"}, INVALID, "log_path"),
    ("stop signal", {"stop_signal": 1000}, INVALID, "stop_signal"),
    ("mount's target", mount(container_path="x"), INVALID, "mounts[0].container_path"),
    ("mount over the root", mount(container_path="/a/.."), INVALID, "mounts[0].container_path"),
    ("mount without a target", mount(container_path=""), INVALID, "mounts[0].container_path"),
    ("mount's source", mount(host_path="etc"), INVALID, "mounts[0].host_path"),
    ("mount without a source", mount(host_path=""), INVALID, "mounts[0].host_path"),
    ("source with NUL", mount(host_path="/a\0"), INVALID, "mounts[0].host_path"),
    ("source below a file", mount(host_path="/etc/passwd/x"), INVALID, "mounts[0].host_path"),
    ("endless source", mount(host_path="/" + "x/" * 3000), INVALID, "mounts[0].host_path"),
    ("propagation", mount(propagation=9), INVALID, "mounts[0].propagation"),
    (
        "recursive, writable",
        mount(recursive_read_only=True),
        INVALID,
        "mounts[0].recursive_read_only",
    ),
    (
        "recursive, shared",
        mount(recursive_read_only=True, readonly=True, propagation=1),
        INVALID,
        "mounts[0].",
    ),
    ("mount option", mount(mount_options=["suid"]), INVALID, "mounts[0].mount_options[0]"),
    ("uids alone", mount(uidMappings=ONE), INVALID, "mounts[0].uidMappings"),
    ("sub-path, no image", mount(image_sub_path="x"), INVALID, "mounts[0].image_sub_path"),
    ("image and source", mount(image=SOME), INVALID, "mounts[0].host_path"),
    (
        "absent image mounted",
        mount(host_path="", image=pb.ImageSpec(image="absent:1")),
        NOT_FOUND,
        "mounts[0].image.image",
    ),
    (
        "no image mounted",
        mount(host_path="", image=pb.ImageSpec()),
        INVALID,
        "mounts[0].image.image",
    ),
    (
        "sub-path that is absent",
        mount(host_path="", image=SOME, image_sub_path="absent"),
        INVALID,
        "mounts[0].image_sub_path: ImageVolumeMountFailed",
    ),
    (
        "too many mounts",
        {"mounts": [pb.Mount(container_path="/x", host_path="/etc")] * 4097},
        INVALID,
        "mounts: are 4097",
    ),
    ("no device", device(host_path="/etc/passwd"), INVALID, "devices[0].host_path"),
    ("absent device", device(host_path="/dev/absent"), INVALID, "devices[0].host_path"),
    ("relative device", device(host_path="null"), INVALID, "devices[0].host_path"),
    ("device with NUL", device(host_path="/dev/\0"), INVALID, "devices[0].host_path"),
    ("device's target", device(container_path="x"), INVALID, "devices[0].container_path"),
    ("permissions", device(permissions="rx"), INVALID, "devices[0].permissions"),
    ("CDI name", {"CDI_devices": [NULL]}, INVALID, "CDI_devices[0]"),
    ("CDI device", {"CDI_devices": [ABSENT_CDI]}, INVALID, "CDI_devices[0]"),
    ("cpu period", limits(cpu_period=10), INVALID, f"{RES}.cpu_period"),
    ("cpu quota", limits(cpu_quota=10), INVALID, f"{RES}.cpu_quota"),
    ("cpu quota below", limits(cpu_quota=-2), INVALID, f"{RES}.cpu_quota"),
    ("cpu shares", limits(cpu_shares=1), INVALID, f"{RES}.cpu_shares"),
    ("cpu shares above", limits(cpu_shares=2**20), INVALID, f"{RES}.cpu_shares"),
    ("cpus", limits(cpuset_cpus="all"), INVALID, f"{RES}.cpuset_cpus"),
    ("cpus that aren't", limits(cpuset_cpus="0-9999"), INVALID, f"{RES}.cpuset_cpus"),
    ("cpus backwards", limits(cpuset_cpus="1-0"), INVALID, f"{RES}.cpuset_cpus"),
    ("memory nodes", limits(cpuset_mems="0,"), INVALID, f"{RES}.cpuset_mems"),
    ("memory", limits(memory_limit_in_bytes=-2), INVALID, f"{RES}.memory_limit_in_bytes"),
    (
        "swap below memory",
        limits(memory_limit_in_bytes=2**30, memory_swap_limit_in_bytes=2**20),
        INVALID,
        f"{RES}.memory_swap_limit_in_bytes",
    ),
    (
        "swap alone",
        limits(memory_swap_limit_in_bytes=2**20),
        INVALID,
        f"{RES}.memory_swap_limit_in_bytes",
    ),
    ("oom score", limits(oom_score_adj=1001), INVALID, f"{RES}.oom_score_adj"),
    ("oom score below", limits(oom_score_adj=-1001), INVALID, f"{RES}.oom_score_adj"),
    ("unified", limits(unified={"../x": "1"}), INVALID, f"{RES}.unified"),
    ("capability", capability(add_capabilities=["NOPE"]), INVALID, "capabilities"),
    ("dropped", capability(drop_capabilities=["NOPE"]), INVALID, "capabilities"),
    ("ambient", capability(add_ambient_capabilities=["NOPE"]), INVALID, "capabilities"),
    ("privileged", context(privileged=True), INVALID, f"{CONTEXT}.privileged"),
    ("the host's pids", options(pid=NODE), INVALID, f"{OPTIONS}.pid"),
    ("no target", options(pid=TARGET), INVALID, f"{OPTIONS}.target_id"),
    ("absent target", options(pid=TARGET, target_id="f" * 64), NOT_FOUND, f"{OPTIONS}.target_id"),
    ("pid of no mode", options(pid=9), INVALID, f"{OPTIONS}.pid"),
    (
        "another user namespace",
        options(userns_options=pb.UserNamespace(mode=POD, uids=[ALL], gids=[ALL])),
        INVALID,
        f"{OPTIONS}.userns_options",
    ),
    ("unknown user", context(run_as_username="nobody9"), INVALID, f"{CONTEXT}.run_as_username"),
    ("user below", user(-1), INVALID, f"{CONTEXT}.run_as_user"),
    ("user above", user(2**31), INVALID, f"{CONTEXT}.run_as_user"),
    (
        "user twice",
        context(run_as_user=pb.Int64Value(value=1), run_as_username="root"),
        INVALID,
        f"{CONTEXT}.run_as_username",
    ),
    (
        "group alone",
        context(run_as_group=pb.Int64Value(value=1)),
        INVALID,
        f"{CONTEXT}.run_as_group",
    ),
    ("groups", context(supplemental_groups=[-1]), INVALID, f"{CONTEXT}.supplemental_groups[0]"),
    (
        "groups' policy",
        context(supplemental_groups_policy=9),
        INVALID,
        f"{CONTEXT}.supplemental_groups_policy",
    ),
    ("masked path", context(masked_paths=["proc"]), INVALID, f"{CONTEXT}.masked_paths[0]"),
    ("read-only path", context(readonly_paths=[""]), INVALID, f"{CONTEXT}.readonly_paths[0]"),
    ("profile's type", seccomp(9), INVALID, f"{CONTEXT}.seccomp.profile_type"),
    ("no profile", seccomp(LOCALHOST), INVALID, f"{CONTEXT}.seccomp.localhost_ref"),
    ("profile's path", seccomp(LOCALHOST, "x"), INVALID, f"{CONTEXT}.seccomp.localhost_ref"),
    ("absent profile", seccomp(LOCALHOST, "/absent"), INVALID, f"{CONTEXT}.seccomp.localhost_ref"),
    ("broken profile", seccomp(LOCALHOST, BROKEN), INVALID, f"{CONTEXT}.seccomp.localhost_ref"),
    ("default with a path", seccomp(DEFAULT, "/x"), INVALID, f"{CONTEXT}.seccomp.localhost_ref"),
    (
        "old profile",
        context(seccomp_profile_path="nonsense"),
        INVALID,
        f"{CONTEXT}.seccomp_profile_path",
    ),
    (
        "absent old profile",
        context(seccomp_profile_path="localhost//absent"),
        INVALID,
        f"{CONTEXT}.seccomp_profile_path",
    ),
    ("AppArmor profile", apparmor(LOCALHOST, "absent"), INVALID, f"{CONTEXT}.apparmor"),
    ("old AppArmor", context(apparmor_profile="x"), INVALID, f"{CONTEXT}.apparmor_profile"),
    (
        "selinux",
        context(selinux_options=pb.SELinuxOption(type="a:b")),
        INVALID,
        f"{CONTEXT}.selinux_options.type",
    ),
    (
        "block I/O class",
        {"annotations": {"io.kubernetes.cri.blockio-class": "x"}},
        INVALID,
        "block I/O class",
    ),
    ("RDT class", {"annotations": {"io.kubernetes.cri.rdt-class": "x"}}, INVALID, "RDT class"),
]


@pytest.mark.parametrize("row", CONTAINERS, ids=ids(CONTAINERS))
def test_containers(node: Server, cri: Any, pod: str, running: str, row: Row) -> None:
    _, fields, code, says = row
    fields = {"name": f"bad{next(_numbers)}"} | fields
    command = fields.pop("command", ("sleep", "1"))
    log = fields.pop("log", "")
    config = node.container(*command, **fields)
    config.log_path = log or config.log_path
    before, there = known(cri), traces(node)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    refused(cri.CreateContainer, request, code, says)
    assert known(cri) == before
    assert traces(node) == there


@pytest.mark.parametrize("size", [HUGE, ODD], ids=["3MB", "big"])
def test_huge_pages(node: Server, cri: Any, pod: str, size: pb.HugepageLimit) -> None:
    """Passed over where the host has no controller for them: the kubelet always sends some."""
    if not any(Path("/sys/fs/cgroup").glob("*hugetlb*")):
        pytest.skip("this host has no hugetlb controller")
    config = node.container(name=f"bad{next(_numbers)}", **limits(hugepage_limits=[size]))
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    refused(cri.CreateContainer, request, INVALID, f"{RES}.hugepage_limits[0].page_size")


def test_in_no_pod(node: Server, cri: Any, pod: str) -> None:
    for id_, code in (("f" * 64, NOT_FOUND), ("", NOT_FOUND)):
        request = pb.CreateContainerRequest(pod_sandbox_id=id_, config=node.container())
        refused(cri.CreateContainer, request, code, "no sandbox with id")


def test_in_a_pod_that_is_stopped(node: Server, cri: Any) -> None:
    stopped = node.run_pod(cri, "stopped")
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=stopped))
    request = pb.CreateContainerRequest(pod_sandbox_id=stopped, config=node.container())
    refused(cri.CreateContainer, request, PRECONDITION, f"pod sandbox {stopped} is not_ready")
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=stopped))


def test_a_containers_name_is_taken(node: Server, cri: Any, pod: str, running: str) -> None:
    config = node.container("sleep", "2", name="running")
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    refused(cri.CreateContainer, request, EXISTS, 'container "running_0" exists')


def test_a_target_in_another_pod(node: Server, cri: Any, pod: str, running: str) -> None:
    other = node.run_pod(cri, "other")
    config = node.container(name="debug", **options(pid=TARGET, target_id=running))
    request = pb.CreateContainerRequest(pod_sandbox_id=other, config=config)
    refused(cri.CreateContainer, request, INVALID, f"{OPTIONS}.target_id")
    cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=other))
    cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=other))


# Starts: what only the runtime finds out

STARTS: list[Row] = [
    ("no such command", {"command": ["/absent"]}, grpc.StatusCode.UNKNOWN, "/absent"),
    ("a directory", {"command": ["/etc"]}, grpc.StatusCode.UNKNOWN, "/etc"),
    ("working directory", {"working_dir": "/etc/passwd/x"}, grpc.StatusCode.UNKNOWN, "/etc/passwd"),
]


@pytest.mark.parametrize("row", STARTS, ids=ids(STARTS))
def test_starts(node: Server, cri: Any, pod: str, row: Row) -> None:
    """The container is there afterwards, ended, with the message in its status."""
    _, fields, _, says = row
    command = fields.get("command", ("sleep", "1"))
    given = {key: value for key, value in fields.items() if key != "command"}
    config = node.container(*command, name=f"bad{next(_numbers)}", **given)
    request = pb.CreateContainerRequest(pod_sandbox_id=pod, config=config)
    id_ = cri.CreateContainer(request).container_id
    with pytest.raises(grpc.RpcError) as error:
        cri.StartContainer(pb.StartContainerRequest(container_id=id_))
    text = str(error.value.details())
    assert says in text
    assert "\n" not in text
    status = cri.ContainerStatus(pb.ContainerStatusRequest(container_id=id_)).status
    assert (status.exit_code, status.reason) == (128, "StartError")
    assert says in status.message
    cri.RemoveContainer(pb.RemoveContainerRequest(container_id=id_))


# Everything else

NOBODY = "f" * 64
UPDATE = pb.LinuxContainerResources

CALLS: list[Row] = [
    ("StartContainer", pb.StartContainerRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("StartContainer", pb.StartContainerRequest(), NOT_FOUND, "no container"),
    ("StopContainer", pb.StopContainerRequest(container_id="{id}", timeout=-1), INVALID, "timeout"),
    ("ContainerStatus", pb.ContainerStatusRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("ContainerStatus", pb.ContainerStatusRequest(), NOT_FOUND, "no container"),
    (
        "PodSandboxStatus",
        pb.PodSandboxStatusRequest(pod_sandbox_id=NOBODY),
        NOT_FOUND,
        "no sandbox",
    ),
    ("ContainerStats", pb.ContainerStatsRequest(container_id=NOBODY), NOT_FOUND, "no container"),
    ("PodSandboxStats", pb.PodSandboxStatsRequest(pod_sandbox_id=NOBODY), NOT_FOUND, "sandbox"),
    (
        "ReopenContainerLog",
        pb.ReopenContainerLogRequest(container_id=NOBODY),
        NOT_FOUND,
        "no container",
    ),
    ("ExecSync", pb.ExecSyncRequest(container_id=NOBODY, cmd=["x"]), NOT_FOUND, "no container"),
    ("ExecSync", pb.ExecSyncRequest(container_id="{id}"), INVALID, "cmd: is empty"),
    (
        "ExecSync",
        pb.ExecSyncRequest(container_id="{id}", cmd=["x"], timeout=-1),
        INVALID,
        "timeout",
    ),
    ("ExecSync", pb.ExecSyncRequest(container_id="{id}", cmd=["a\0"]), INVALID, "cmd"),
    ("Exec", pb.ExecRequest(container_id="{id}", cmd=["x"]), INVALID, "stdin, stdout, stderr"),
    ("Exec", pb.ExecRequest(container_id="{id}", stdout=True), INVALID, "cmd: is empty"),
    (
        "Exec",
        pb.ExecRequest(container_id="{id}", cmd=["x"], tty=True, stdout=True, stderr=True),
        INVALID,
        "stderr",
    ),
    (
        "Exec",
        pb.ExecRequest(container_id=NOBODY, cmd=["x"], stdout=True),
        NOT_FOUND,
        "no container",
    ),
    ("Attach", pb.AttachRequest(container_id="{id}"), INVALID, "stdin, stdout, stderr"),
    ("Attach", pb.AttachRequest(container_id=NOBODY, stdout=True), NOT_FOUND, "no container"),
    ("PortForward", pb.PortForwardRequest(pod_sandbox_id=NOBODY), NOT_FOUND, "no sandbox"),
    (
        "PortForward",
        pb.PortForwardRequest(pod_sandbox_id="{pod}", port=[70_000]),
        INVALID,
        "port",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id=NOBODY),
        NOT_FOUND,
        "no container",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(cpu_shares=1)),
        INVALID,
        "linux.cpu_shares",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(oom_score_adj=9999)),
        INVALID,
        "linux.oom_score_adj",
    ),
    (
        "UpdateContainerResources",
        pb.UpdateContainerResourcesRequest(container_id="{id}", linux=UPDATE(cpuset_cpus="x")),
        INVALID,
        "linux.cpuset_cpus",
    ),
    (
        "UpdateRuntimeConfig",
        pb.UpdateRuntimeConfigRequest(
            runtime_config=pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/99"))
        ),
        INVALID,
        "pod_cidr",
    ),
]
IMAGES: list[Row] = [
    ("PullImage", pb.PullImageRequest(), INVALID, "image.image: is empty"),
    (
        "PullImage",
        pb.PullImageRequest(image=pb.ImageSpec(image="UP PER")),
        INVALID,
        "UP PER",
    ),
    (
        "PullImage",
        pb.PullImageRequest(
            image=pb.ImageSpec(image="127.0.0.1:9/x"), auth=pb.AuthConfig(auth="!")
        ),
        INVALID,
        "auth",
    ),
    ("ImageStatus", pb.ImageStatusRequest(), INVALID, "image.image: is empty"),
    ("RemoveImage", pb.RemoveImageRequest(), INVALID, "image.image: is empty"),
]


@pytest.mark.parametrize("row", CALLS, ids=[f"{row[0]} {row[3]}" for row in CALLS])
def test_calls(cri: Any, pod: str, running: str, row: Row) -> None:
    method, template, code, says = row
    request = type(template)()
    request.CopyFrom(template)
    for field, value in (("container_id", running), ("pod_sandbox_id", pod)):
        if getattr(request, field, "") in ("{id}", "{pod}"):
            setattr(request, field, value)
    refused(getattr(cri, method), request, code, says)


@pytest.mark.parametrize("row", IMAGES, ids=[f"{row[0]} {row[3]}" for row in IMAGES])
def test_images(node: Server, row: Row) -> None:
    method, request, code, says = row
    with node.channel() as channel:
        stub = cri_pb2_grpc.ImageServiceStub(channel)
        refused(getattr(stub, method), request, code, says)


def test_a_running_container_is_not_started_again(cri: Any, running: str) -> None:
    request = pb.StartContainerRequest(container_id=running)
    refused(cri.StartContainer, request, PRECONDITION, f"container {running}")
