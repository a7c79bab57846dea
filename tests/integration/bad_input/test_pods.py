"""RunPodSandbox."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.bad_input.rows import (
    ALL,
    CONTAINER,
    CONTEXT,
    EXISTS,
    INVALID,
    NODE,
    OPTIONS,
    POD,
    RESOURCES,
    TARGET,
    Profile,
    Row,
    ids,
    ids_of,
    known,
    new_name,
    refused,
    traces,
)
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]


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


def context(**fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    given = pb.LinuxSandboxSecurityContext(**fields)
    return merged(linux=pb.LinuxPodSandboxConfig(security_context=given))


def selinux(**fields: str) -> Callable[[pb.PodSandboxConfig], None]:
    return context(selinux_options=pb.SELinuxOption(**fields))


def resources(name: str, **fields: Any) -> Callable[[pb.PodSandboxConfig], None]:
    given: Any = {name: pb.LinuxContainerResources(**fields)}
    return merged(linux=pb.LinuxPodSandboxConfig(**given))


NO_TYPE: Any = 9
ODD_PAGES = pb.HugepageLimit(page_size="big", limit=1)
USERNS = f"{OPTIONS}.userns_options"

PODS: list[Row] = [
    ("no name", metadata(name=""), INVALID, "metadata.name"),
    ("no namespace", metadata(namespace=""), INVALID, "metadata.namespace"),
    ("no uid", metadata(uid=""), INVALID, "metadata.uid"),
    ("a name for plugins", metadata(name="a;K8S_POD_UID=x"), INVALID, "metadata.name"),
    ("a namespace with a newline", metadata(namespace="a\nb"), INVALID, "metadata.namespace"),
    ("long host name", hostname("x" * 65), INVALID, "hostname"),
    ("host name of lines", hostname("a\nb"), INVALID, "hostname"),
    ("log directory", lambda c: setattr(c, "log_directory", "logs"), INVALID, "log_directory"),
    (
        "log directory above",
        lambda c: setattr(c, "log_directory", "/a/../b"),
        INVALID,
        "log_directory",
    ),
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
    ("group 0", userns([ALL], [ids_of(1, 9, 9)]), INVALID, f"{USERNS}.gids[0].container_id"),
    ("no groups", userns([ALL], [ids_of(0, 9, 0)]), INVALID, f"{USERNS}.gids[0].length"),
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
    ("label's user", selinux(user="a b"), INVALID, f"{CONTEXT}.selinux_options.user"),
    ("label's role", selinux(role="a:b"), INVALID, f"{CONTEXT}.selinux_options.role"),
    ("label's type", selinux(type="a\n"), INVALID, f"{CONTEXT}.selinux_options.type"),
    ("label's level", selinux(level="s0 s1"), INVALID, f"{CONTEXT}.selinux_options.level"),
    ("user", context(run_as_user=pb.Int64Value(value=-1)), INVALID, f"{CONTEXT}.run_as_user"),
    ("group", context(run_as_group=pb.Int64Value(value=-1)), INVALID, f"{CONTEXT}.run_as_group"),
    ("groups", context(supplemental_groups=[2**31]), INVALID, f"{CONTEXT}.supplemental_groups[0]"),
    (
        "groups' policy",
        context(supplemental_groups_policy=9),
        INVALID,
        f"{CONTEXT}.supplemental_groups_policy",
    ),
    (
        "seccomp's type",
        context(seccomp=Profile(profile_type=NO_TYPE)),
        INVALID,
        f"{CONTEXT}.seccomp.profile_type",
    ),
    (
        "seccomp's file",
        context(seccomp=Profile(profile_type=Profile.Localhost)),
        INVALID,
        f"{CONTEXT}.seccomp.localhost_ref",
    ),
    (
        "old seccomp",
        context(seccomp_profile_path="x"),
        INVALID,
        f"{CONTEXT}.seccomp_profile_path",
    ),
    (
        "AppArmor's type",
        context(apparmor=Profile(profile_type=NO_TYPE)),
        INVALID,
        f"{CONTEXT}.apparmor.profile_type",
    ),
    (
        "AppArmor's name",
        context(apparmor=Profile(profile_type=Profile.Unconfined, localhost_ref="x")),
        INVALID,
        f"{CONTEXT}.apparmor.localhost_ref",
    ),
    *(
        (f"{name}: {key}", resources(name, **{key: value}), INVALID, f"linux.{name}.{key}")
        for name in ("overhead", "resources")
        for key, value in RESOURCES.items()
    ),
    *(
        (
            f"{name}: huge pages",
            resources(name, hugepage_limits=[ODD_PAGES]),
            INVALID,
            f"linux.{name}.hugepage_limits[0].page_size",
        )
        for name in ("overhead", "resources")
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
    config = node.pod(new_name())
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
    config = node.pod(new_name())
    change(config)
    before = known(cri)
    request = pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
    refused(cri.RunPodSandbox, request, code, says)
    assert known(cri) == before


def test_a_pods_name_is_taken(node: Server, cri: Any, pod: str) -> None:
    config = node.pod("good", hostname="other")
    refused(cri.RunPodSandbox, pb.RunPodSandboxRequest(config=config), EXISTS, "good")
