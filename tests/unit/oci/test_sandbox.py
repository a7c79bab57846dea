from __future__ import annotations

from tests.unit.oci import golden
from zos_cri._pb import cri_pb2
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts
from zos_cri.oci.namespaces import NamespacePaths
from zos_cri.oci.sandbox import sandbox_init_spec

PATHS = NamespacePaths(network="/p/net", ipc="/p/ipc", uts="/p/uts", user="/p/user")
POD = cri_pb2.PodSandboxConfig(
    metadata=cri_pb2.PodSandboxMetadata(name="web", uid="u1", namespace="prod"),
    annotations={"io.kata.vcpus": "2", "other": "x"},
    linux=cri_pb2.LinuxPodSandboxConfig(cgroup_parent="/kubepods/pod1"),
)


def test_a_pods_init() -> None:
    spec = sandbox_init_spec(
        sandbox_id="s1",
        sandbox=POD,
        paths=PATHS,
        handler=HandlerSettings(pod_annotations=("io.kata.*",)),
        host=HostFacts(oom_score_adj_min=-500),
    )
    golden.check("sandbox_init", spec)


def test_in_a_user_namespace_and_a_slice() -> None:
    pod = cri_pb2.PodSandboxConfig()
    pod.CopyFrom(POD)
    mapping = [cri_pb2.IDMapping(host_id=1000, length=65536)]
    options = pod.linux.security_context.namespace_options.userns_options
    options.uids.extend(mapping)
    options.gids.extend(mapping)
    pod.linux.cgroup_parent = "/kubepods.slice/kubepods-pod1.slice"
    spec = sandbox_init_spec(
        sandbox_id="s1",
        sandbox=pod,
        paths=PATHS,
        handler=HandlerSettings(systemd_cgroup=True),
        host=HostFacts(),
    )
    assert "uidMappings" not in spec["linux"]  # Who joins a user namespace has its mappings.
    assert {"type": "user", "path": "/p/user"} in spec["linux"]["namespaces"]
    assert spec["linux"]["cgroupsPath"] == "kubepods-pod1.slice:zos-cri:s1"


def test_it_has_no_rights_at_all() -> None:
    spec = sandbox_init_spec(
        sandbox_id="s1", sandbox=POD, paths=PATHS, handler=HandlerSettings(), host=HostFacts()
    )
    assert not any(spec["process"]["capabilities"].values())
    assert spec["process"]["noNewPrivileges"] is True
    assert spec["root"]["readonly"] is True
