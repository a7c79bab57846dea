"""CreateContainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.integration.bad_input.rows import (
    ALL,
    CONTAINER,
    CONTEXT,
    EXISTS,
    INVALID,
    NODE,
    NOT_FOUND,
    OPTIONS,
    PRECONDITION,
    RESOURCES,
    TARGET,
    Row,
    ids,
    ids_of,
    known,
    new_name,
    refused,
    traces,
)
from tests.integration.server import IMAGE
from zos_cri._pb import cri_pb2 as pb

if TYPE_CHECKING:
    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

Fields = dict[str, Any]


def context(**fields: Any) -> Fields:
    given = pb.LinuxContainerSecurityContext(**fields)
    return {"linux": pb.LinuxContainerConfig(security_context=given)}


def options(**fields: Any) -> Fields:
    return context(namespace_options=pb.NamespaceOption(**{"network": NODE} | fields))


def userns(**fields: Any) -> Fields:
    return options(userns_options=pb.UserNamespace(**fields))


def selinux(**fields: str) -> Fields:
    return context(selinux_options=pb.SELinuxOption(**fields))


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
CAPS = f"{CONTEXT}.capabilities"
SOME = pb.ImageSpec(image=IMAGE)
BROKEN = "/etc/passwd"  # a file that is no profile
HAS_APPARMOR = Path("/sys/module/apparmor/parameters/enabled").exists()
HUGE = pb.HugepageLimit(page_size="3MB", limit=1)
ODD = pb.HugepageLimit(page_size="big", limit=1)
NULL = pb.CDIDevice(name="vendor")
ABSENT_CDI = pb.CDIDevice(name="vendor.com/x=absent")
ONE, EMPTY = [ids_of(0, 1, 1)], [ids_of(0, 1, 0)]

CONTAINERS: list[Row] = [
    ("no name", {"name": ""}, INVALID, "metadata.name: is empty"),
    ("no image", image(""), INVALID, "image.image: is empty"),
    ("absent image", image("absent:1"), NOT_FOUND, 'image.image: "absent:1" is not on this host'),
    ("no image's name", image("UP PER"), INVALID, "image.image"),
    ("argument with NUL", {"command": ["a\0b"]}, INVALID, "command[0]"),
    ("args with NUL", {"args": ["\0"]}, INVALID, "args[0]"),
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
    ("no uids", mount(uidMappings=EMPTY), INVALID, "mounts[0].uidMappings[0].length"),
    ("no gids", mount(gidMappings=EMPTY), INVALID, "mounts[0].gidMappings[0].length"),
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
    ("CDI name", {"CDI_devices": [NULL]}, INVALID, "CDI_devices[0].name"),
    ("CDI device", {"CDI_devices": [ABSENT_CDI]}, INVALID, "CDI_devices[0].name"),
    *(
        (key.replace("_", " "), limits(**{key: value}), INVALID, f"{RES}.{key}")
        for key, value in RESOURCES.items()
    ),
    ("cpu quota below", limits(cpu_quota=-2), INVALID, f"{RES}.cpu_quota"),
    ("cpu shares above", limits(cpu_shares=2**20), INVALID, f"{RES}.cpu_shares"),
    ("cpus that aren't", limits(cpuset_cpus="0-9999"), INVALID, f"{RES}.cpuset_cpus"),
    ("cpus backwards", limits(cpuset_cpus="1-0"), INVALID, f"{RES}.cpuset_cpus"),
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
    ("oom score below", limits(oom_score_adj=-1001), INVALID, f"{RES}.oom_score_adj"),
    ("capability", capability(add_capabilities=["NOPE"]), INVALID, f"{CAPS}.add_capabilities"),
    ("dropped", capability(drop_capabilities=["NOPE"]), INVALID, f"{CAPS}.drop_capabilities"),
    (
        "ambient",
        capability(add_ambient_capabilities=["NOPE"]),
        INVALID,
        f"{CAPS}.add_ambient_capabilities",
    ),
    ("privileged", context(privileged=True), INVALID, f"{CONTEXT}.privileged"),
    ("the host's pids", options(pid=NODE), INVALID, f"{OPTIONS}.pid"),
    ("no target", options(pid=TARGET), INVALID, f"{OPTIONS}.target_id"),
    ("absent target", options(pid=TARGET, target_id="f" * 64), NOT_FOUND, f"{OPTIONS}.target_id"),
    ("pid of no mode", options(pid=9), INVALID, f"{OPTIONS}.pid"),
    ("network", options(network=TARGET), INVALID, f"{OPTIONS}.network"),
    ("ipc", options(ipc=9), INVALID, f"{OPTIONS}.ipc"),
    ("user's mode", userns(mode=CONTAINER), INVALID, f"{OPTIONS}.userns_options.mode"),
    (
        "user 0 not mapped",
        userns(uids=[ids_of(1, 9, 9)], gids=[ALL]),
        INVALID,
        f"{OPTIONS}.userns_options.uids[0].container_id",
    ),
    (
        "empty mapping",
        userns(uids=EMPTY, gids=[ALL]),
        INVALID,
        f"{OPTIONS}.userns_options.uids[0].length",
    ),
    (
        "group 0 not mapped",
        userns(uids=[ALL], gids=[ids_of(1, 9, 9)]),
        INVALID,
        f"{OPTIONS}.userns_options.gids[0].container_id",
    ),
    (
        "empty mapping of groups",
        userns(uids=[ALL], gids=EMPTY),
        INVALID,
        f"{OPTIONS}.userns_options.gids[0].length",
    ),
    (
        "another user namespace",
        userns(uids=[ALL], gids=[ALL]),
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
    ("AppArmor's type", apparmor(9), INVALID, f"{CONTEXT}.apparmor.profile_type"),
    ("AppArmor's name", apparmor(LOCALHOST), INVALID, f"{CONTEXT}.apparmor.localhost_ref"),
    ("AppArmor profile", apparmor(LOCALHOST, "absent"), INVALID, f"{CONTEXT}.apparmor"),
    ("old AppArmor", context(apparmor_profile="x"), INVALID, f"{CONTEXT}.apparmor_profile"),
    ("label's user", selinux(user="a b"), INVALID, f"{CONTEXT}.selinux_options.user"),
    ("label's role", selinux(role="a\n"), INVALID, f"{CONTEXT}.selinux_options.role"),
    ("label's type", selinux(type="a:b"), INVALID, f"{CONTEXT}.selinux_options.type"),
    ("label's level", selinux(level="s0 s1"), INVALID, f"{CONTEXT}.selinux_options.level"),
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
    fields = {"name": new_name()} | fields
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
    config = node.container(name=new_name(), **limits(hugepage_limits=[size]))
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
