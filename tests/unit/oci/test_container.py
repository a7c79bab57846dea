from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.oci import golden
from zos_cri._pb import cri_pb2
from zos_cri.errors import Error, InvalidArgument
from zos_cri.oci import cdi, devices, mounts, namespaces, users
from zos_cri.oci.base import DeviceNode, Rlimit
from zos_cri.oci.container import ContainerInputs, HandlerSettings, container_spec
from zos_cri.oci.host import HostFacts
from zos_cri.oci.process import ImageConfig

Context = cri_pb2.LinuxContainerSecurityContext
CONTAINER = cri_pb2.NamespaceMode.CONTAINER
NODE = cri_pb2.NamespaceMode.NODE
IMAGE = ImageConfig(user="web", env=("A=image",), entrypoint=("/entry",), working_dir="/srv")
IMAGE_WITHOUT_USER = ImageConfig()
ACCOUNTS = users.Accounts(passwd=b"web:x:33:34::/:\n", group=b"extra:x:50:web\n")
PATHS = namespaces.NamespacePaths(network="/p/net", ipc="/p/ipc", uts="/p/uts", user="/p/user")


def build(
    config: cri_pb2.ContainerConfig | None = None,
    *,
    pod: cri_pb2.PodSandboxConfig | None = None,
    handler: HandlerSettings | None = None,
    host: HostFacts | None = None,
    **inputs: Any,
) -> dict[str, Any]:
    own = cri_pb2.ContainerConfig(metadata=cri_pb2.ContainerMetadata(name="app"))
    if config is not None:
        own.MergeFrom(config)
    options = own.linux.security_context.namespace_options
    if options.pid == cri_pb2.NamespaceMode.POD:
        options.pid = CONTAINER
    given: dict[str, Any] = {
        "id": "c1",
        "sandbox_id": "s1",
        "image_name": "nginx:1",
        "hostname": "web-1",
        "accounts": ACCOUNTS,
        "namespaces": PATHS,
    }
    return container_spec(
        ContainerInputs(**(given | inputs)),
        sandbox=pod or sandbox(),
        config=own,
        image=IMAGE,
        handler=handler or HandlerSettings(),
        host=host or HostFacts(),
    )


def sandbox(**fields: Any) -> cri_pb2.PodSandboxConfig:
    return cri_pb2.PodSandboxConfig(
        metadata=cri_pb2.PodSandboxMetadata(name="web-1", uid="u1", namespace="prod"),
        linux=cri_pb2.LinuxPodSandboxConfig(
            cgroup_parent="/kubepods/pod1",
            security_context=cri_pb2.LinuxSandboxSecurityContext(**fields),
        ),
    )


def linux(context: Context | None = None, **limits: Any) -> cri_pb2.ContainerConfig:
    return cri_pb2.ContainerConfig(
        linux=cri_pb2.LinuxContainerConfig(
            security_context=context, resources=cri_pb2.LinuxContainerResources(**limits)
        )
    )


def test_a_container_that_asks_for_nothing() -> None:
    golden.check("container_plain", build())


def test_a_container_that_asks_for_much() -> None:
    config = linux(
        Context(
            run_as_user=cri_pb2.Int64Value(value=1000),
            run_as_group=cri_pb2.Int64Value(value=1001),
            supplemental_groups=[7],
            capabilities=cri_pb2.Capability(add_capabilities=["NET_ADMIN"]),
            no_new_privs=True,
            readonly_rootfs=True,
            masked_paths=["/proc/kcore"],
            readonly_paths=["/proc/sys"],
            seccomp=cri_pb2.SecurityProfile(),
            apparmor=cri_pb2.SecurityProfile(),
            selinux_options=cri_pb2.SELinuxOption(level="s0:c1"),
        ),
        cpu_shares=512,
        memory_limit_in_bytes=64 << 20,
        oom_score_adj=900,
    )
    config.command.extend(["serve", "-p", "80"])
    config.envs.add(key="A", value=b"config")
    config.tty = True
    config.mounts.add(container_path="/data", host_path="/link", readonly=True)
    config.devices.add(host_path="/dev/fuse", container_path="/dev/fuse", permissions="rw")
    config.annotations["keep.me"] = "1"
    config.annotations["io.kubernetes.cri.rdt-class"] = "gold"
    config.annotations["io.kubernetes.cri.blockio-class"] = "slow"
    fuse = DeviceNode(path="/dev/fuse", type="c", major=10, minor=229)
    made = build(
        config,
        handler=HandlerSettings(
            container_annotations=("keep.*",),
            rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=1, hard=2),),
            pids_limit=100,
            rdt_classes=("gold",),
            blockio_classes={"slow": {"weight": 10}},
        ),
        host=HostFacts(
            cgroup_mode="v1",
            selinux=True,
            apparmor=True,
            apparmor_profiles=frozenset({"dflt"}),
            apparmor_default="dflt",
        ),
        files=mounts.PodFiles(
            hosts="/p/hosts", hostname="/p/hn", resolv_conf="/p/rc", shm="/p/shm"
        ),
        mount_facts=(mounts.MountFacts(source="/real"),),
        device_facts=(devices.DeviceFacts(path="/dev/fuse", nodes=(fuse,)),),
    )
    golden.check("container_full", made)


def test_a_privileged_container() -> None:
    disk = DeviceNode(path="/dev/sda", type="b", major=8, minor=0)
    config = linux(
        Context(
            privileged=True,
            masked_paths=["/proc/kcore"],
            capabilities=cri_pb2.Capability(drop_capabilities=["ALL"]),
        )
    )
    pod = sandbox(privileged=True)
    made = build(config, pod=pod, host_devices=(disk,))
    golden.check("container_privileged", made)
    without = build(
        config,
        pod=pod,
        host_devices=(disk,),
        handler=HandlerSettings(privileged_without_host_devices=True),
    )
    assert without["linux"]["devices"] == []
    assert without["linux"]["resources"]["devices"] == [{"allow": False, "access": "rwm"}]
    any_device = build(
        config,
        pod=pod,
        handler=HandlerSettings(privileged_without_host_devices=True, all_devices_allowed=True),
    )
    assert any_device["linux"]["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


def test_privileged_only_in_a_pod_that_is() -> None:
    with pytest.raises(
        InvalidArgument, match=r"security_context\.privileged: is true, and the pod"
    ):
        build(linux(Context(privileged=True)))


def user_namespace(**fields: Any) -> cri_pb2.PodSandboxConfig:
    mapping = [cri_pb2.IDMapping(host_id=1000, length=65536)]
    options = cri_pb2.NamespaceOption(
        userns_options=cri_pb2.UserNamespace(uids=mapping, gids=mapping), **fields
    )
    return sandbox(namespace_options=options)


def test_a_user_namespace() -> None:
    handler = HandlerSettings(id_mapped_mounts=True)
    made = build(
        pod=user_namespace(), handler=handler, files=mounts.PodFiles(hosts="/p/hosts", shm="/p/shm")
    )
    assert "uidMappings" not in made["linux"]  # Who joins a user namespace has its mappings.
    assert {"type": "user", "path": "/p/user"} in made["linux"]["namespaces"]
    by_target = {mount["destination"]: mount for mount in made["mounts"]}
    assert "uidMappings" not in by_target["/etc/hosts"]  # it belongs to the pod's root
    assert "uidMappings" not in by_target["/dev/shm"]
    assert by_target["/sys"]["type"] == "sysfs"
    with pytest.raises(InvalidArgument, match="the runtime handler has no user namespaces"):
        build(pod=user_namespace())


def test_a_user_namespace_with_the_hosts_network_has_the_hosts_sys() -> None:
    made = build(pod=user_namespace(network=NODE), handler=HandlerSettings(id_mapped_mounts=True))
    sys = next(mount for mount in made["mounts"] if mount["destination"] == "/sys")
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert "rro" in sys["options"]


def test_a_container_that_says_nothing_of_namespaces_goes_by_its_pods() -> None:
    pod = sandbox(namespace_options=cri_pb2.NamespaceOption(pid=NODE, network=NODE))
    made = container_spec(
        ContainerInputs(id="c1", sandbox_id="s1", image_name="x", hostname="h", namespaces=PATHS),
        sandbox=pod,
        config=cri_pb2.ContainerConfig(command=["x"]),
        image=IMAGE_WITHOUT_USER,
        handler=HandlerSettings(),
        host=HostFacts(),
    )
    assert [entry["type"] for entry in made["linux"]["namespaces"]] == ["mount", "ipc", "cgroup"]


def test_selinux_of_the_pod_where_the_container_has_none() -> None:
    pod = sandbox(selinux_options=cri_pb2.SELinuxOption(level="s0:c9"))
    made = build(pod=pod, host=HostFacts(selinux=True))
    assert made["process"]["selinuxLabel"] == "system_u:system_r:container_t:s0:c9"


BASE = {
    "process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}], "args": ["x"]},
    "hooks": {"poststop": [{"path": "/bin/true"}]},
    "annotations": {"base": "1"},
    "mounts": [{"destination": "/opt", "type": "bind", "source": "/opt", "options": ["rbind"]}],
    "linux": {
        "resources": {"pids": {"limit": 5}, "network": {"classID": 1}},
        "seccomp": {"defaultAction": "SCMP_ACT_LOG"},
        "devices": [{"path": "/dev/x"}],
    },
}


def test_a_base_spec_gives_what_cri_has_no_field_for() -> None:
    before = json.dumps(BASE)
    made = build(handler=HandlerSettings(base_spec=BASE))
    assert made["process"]["rlimits"] == [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}]
    assert made["process"]["args"] == ["/entry"]
    assert made["hooks"] == {"poststop": [{"path": "/bin/true"}]}
    assert made["annotations"]["base"] == "1"
    assert made["mounts"][-1]["destination"] == "/opt"
    assert made["linux"]["resources"]["pids"] == {"limit": 5}
    assert made["linux"]["resources"]["network"] == {"classID": 1}
    assert made["linux"]["seccomp"] == {"defaultAction": "SCMP_ACT_LOG"}
    assert made["linux"]["devices"] == [{"path": "/dev/x"}]
    made["linux"]["resources"]["network"]["classID"] = 2
    assert json.dumps(BASE) == before


def test_a_profile_that_is_named_replaces_the_bases() -> None:
    unconfined = cri_pb2.SecurityProfile(profile_type=cri_pb2.SecurityProfile.Unconfined)
    made = build(linux(Context(seccomp=unconfined)), handler=HandlerSettings(base_spec=BASE))
    assert "seccomp" not in made["linux"]


def test_a_profile_that_the_runtime_would_pass_over() -> None:
    default = cri_pb2.SecurityProfile(profile_type=cri_pb2.SecurityProfile.RuntimeDefault)
    without = HandlerSettings(seccomp=False)
    with pytest.raises(InvalidArgument, match=r"security_context\.seccomp: .* without seccomp"):
        build(linux(Context(seccomp=default)), handler=without)
    assert "seccomp" not in build(handler=without)["linux"]


def test_cdi_comes_last() -> None:
    edits = cdi.Edits(env=("A=cdi",), additional_gids=(99,))
    made = build(cdi=edits)
    assert "A=cdi" in made["process"]["env"]
    assert 99 in made["process"]["user"]["additionalGids"]


def test_the_oom_score_is_never_inherited_from_the_shim() -> None:
    assert build()["process"]["oomScoreAdj"] == 0
    assert build(host=HostFacts(oom_score_adj_min=5))["process"]["oomScoreAdj"] == 5


def test_devices_belong_to_the_user_where_the_handler_says_so() -> None:
    config = linux(Context(run_as_user=cri_pb2.Int64Value(value=7)))
    config.devices.add(host_path="/dev/fuse")
    fuse = DeviceNode(path="/dev/fuse", type="c", major=10, minor=229)
    made = build(
        config,
        handler=HandlerSettings(device_ownership_from_security_context=True),
        device_facts=(devices.DeviceFacts(path="/dev/fuse", nodes=(fuse,)),),
    )
    assert (made["linux"]["devices"][0]["uid"], made["linux"]["devices"][0]["gid"]) == (7, 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (linux(Context(masked_paths=["proc/kcore"])), r"masked_paths\[0\]: .* is not an absolute"),
        (linux(Context(readonly_paths=["/a", "/b\0"])), r"readonly_paths\[1\]: has a NUL"),
        (linux(oom_score_adj=5000), r"^linux\.resources\.oom_score_adj: "),
        (linux(cpu_shares=-1), r"^linux\.resources\.cpu_shares: "),
        (
            cri_pb2.ContainerConfig(annotations={"io.kubernetes.cri.rdt-class": "no"}),
            r"no RDT class \"no\"",
        ),
        (
            cri_pb2.ContainerConfig(annotations={"io.kubernetes.cri.blockio-class": "no"}),
            r"no block I/O class \"no\"",
        ),
    ],
)
def test_bad_fields(config: cri_pb2.ContainerConfig, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        build(config)


TEXT = st.text(max_size=12)


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {
            "command": st.lists(TEXT, max_size=3),
            "working_dir": TEXT,
            "user": TEXT,
            "env": st.dictionaries(TEXT, st.binary(max_size=8), max_size=3),
            "masked": st.lists(TEXT, max_size=2),
            "groups": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
            "memory": st.integers(-(2**63), 2**63 - 1),
        }
    )
)
def test_whatever_is_asked_is_a_spec_or_one_line(asked: dict[str, Any]) -> None:
    context = Context(
        run_as_username=asked["user"],
        masked_paths=asked["masked"],
        supplemental_groups=asked["groups"],
    )
    config = linux(context, memory_limit_in_bytes=asked["memory"])
    config.command.extend(asked["command"])
    config.working_dir = asked["working_dir"]
    for key, value in asked["env"].items():
        config.envs.add(key=key, value=value)
    problem, spec = "", {}
    try:
        spec = build(config)
    except Error as error:
        problem = str(error)
    assert "\n" not in problem
    assert bool(spec) != bool(problem)
    if spec:
        assert json.loads(json.dumps(spec)) == spec
        assert "\0" not in "".join([*spec["process"]["args"], *spec["process"]["env"]])
