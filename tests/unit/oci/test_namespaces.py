from __future__ import annotations

from typing import Any

import pytest

from zos_cri._pb import cri_pb2
from zos_cri.errors import FailedPrecondition, InvalidArgument
from zos_cri.oci import namespaces
from zos_cri.oci.host import HostFacts
from zos_cri.oci.namespaces import CONTAINER, NODE, POD, TARGET, IdMapping, NamespacePaths, PodPlan

V2, V1 = HostFacts(cgroup_mode="v2"), HostFacts(cgroup_mode="v1")
PATHS = NamespacePaths(network="/n", ipc="/i", uts="/u", pid="/p", user="/us", target_pid="/t")


def options(**fields: Any) -> cri_pb2.NamespaceOption:
    return cri_pb2.NamespaceOption(**fields)


def pod(**fields: Any) -> cri_pb2.PodSandboxConfig:
    context = cri_pb2.LinuxSandboxSecurityContext(namespace_options=options(**fields))
    return cri_pb2.PodSandboxConfig(linux=cri_pb2.LinuxPodSandboxConfig(security_context=context))


def mapping(container: int = 0, host: int = 1000, length: int = 65536) -> cri_pb2.IDMapping:
    return cri_pb2.IDMapping(container_id=container, host_id=host, length=length)


def userns(mode: Any = POD, uids: Any = None, gids: Any = None) -> cri_pb2.UserNamespace:
    own = [mapping()]
    return cri_pb2.UserNamespace(
        mode=mode, uids=own if uids is None else uids, gids=own if gids is None else gids
    )


def test_a_pods_plan() -> None:
    plan = namespaces.pod_plan(pod())
    assert plan == PodPlan(shared_pid=True)
    assert plan.pinned == ("net", "uts", "ipc")
    host = namespaces.pod_plan(pod(network=NODE, ipc=NODE, pid=NODE))
    assert host == PodPlan(host_network=True, host_ipc=True, host_pid=True)
    assert host.pinned == ()
    assert namespaces.pod_plan(pod(network=NODE, pid=CONTAINER)).pinned == ("ipc",)
    assert not namespaces.pod_plan(pod(pid=CONTAINER)).shared_pid


def test_a_pods_user_namespace() -> None:
    plan = namespaces.pod_plan(pod(pid=CONTAINER, userns_options=userns()))
    assert plan.user_namespace
    assert plan.uids == plan.gids == (IdMapping(container_id=0, host_id=1000, length=65536),)
    assert namespaces.oci_mappings(plan.uids) == [{"containerID": 0, "hostID": 1000, "size": 65536}]
    nodes = namespaces.pod_plan(pod(userns_options=userns(NODE, [], [])))
    assert not nodes.user_namespace


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": CONTAINER}, r"network: CONTAINER is not POD or NODE"),
        ({"ipc": TARGET}, r"ipc: TARGET is not POD or NODE"),
        ({"pid": TARGET}, r"pid: TARGET is not"),
        ({"pid": 9}, r"pid: 9 is not"),
        ({"userns_options": userns(CONTAINER)}, r"userns_options\.mode: CONTAINER"),
        ({"userns_options": userns(TARGET)}, r"userns_options\.mode: TARGET"),
        ({"userns_options": userns(NODE)}, r"userns_options: has mappings"),
        ({"userns_options": userns(uids=[])}, r"uids: has 0 mappings"),
        ({"userns_options": userns(gids=[])}, r"gids: has 0 mappings"),
        ({"userns_options": userns(uids=[mapping()] * 2)}, r"uids: has 2 mappings"),
        ({"userns_options": userns(uids=[mapping(1)])}, r"uids\[0\]\.container_id: is 1"),
        ({"userns_options": userns(uids=[mapping(length=0)])}, r"uids\[0\]\.length: is 0"),
        ({"userns_options": userns(uids=[mapping(length=2**32 - 1)])}, r"beyond the last id"),
        ({"userns_options": userns(gids=[mapping(length=5)])}, r"maps 65536 uids, but 5 gids"),
        ({"userns_options": userns(), "pid": NODE}, r"pid: NODE does not go with"),
        ({"userns_options": userns(), "ipc": NODE}, r"ipc: NODE does not go with"),
    ],
)
def test_what_a_pod_cannot_have(fields: dict[str, Any], message: str) -> None:
    where = r"^linux\.security_context\.namespace_options\..*"
    with pytest.raises(InvalidArgument, match=where + message):
        namespaces.pod_plan(pod(**fields))


def join(
    plan: PodPlan, paths: NamespacePaths = PATHS, host: HostFacts = V2, **fields: Any
) -> dict[str, str | None]:
    return namespaces.of_container(plan, options(**fields), paths, privileged=False, host=host)


def test_a_container_joins_its_pod() -> None:
    assert join(PodPlan(shared_pid=True)) == {
        "pid": "/p",
        "mount": "",
        "network": "/n",
        "ipc": "/i",
        "uts": "/u",
        "cgroup": "",
    }


def test_what_is_the_hosts_is_not_named() -> None:
    kinds = join(PodPlan(host_network=True, host_ipc=True, host_pid=True), pid=NODE, host=V1)
    assert {kind for kind, path in kinds.items() if path is None} == {
        "pid",
        "network",
        "ipc",
        "uts",
        "cgroup",
    }


def test_privileged_containers_see_the_hosts_cgroups() -> None:
    kinds = namespaces.of_container(
        PodPlan(), options(pid=CONTAINER), PATHS, privileged=True, host=V2
    )
    assert kinds["cgroup"] is None


@pytest.mark.parametrize(
    ("plan", "mode", "expected"),
    [
        (PodPlan(shared_pid=True), POD, "/p"),
        (PodPlan(), POD, "/p"),
        (PodPlan(), CONTAINER, ""),
        (PodPlan(host_pid=True), CONTAINER, ""),
        (PodPlan(host_pid=True), NODE, None),
        (PodPlan(host_pid=True), POD, None),
    ],
)
def test_pid_modes(plan: PodPlan, mode: Any, expected: str | None) -> None:
    assert join(plan, pid=mode)["pid"] == expected


def test_a_target() -> None:
    assert join(PodPlan(), pid=TARGET, target_id="c1")["pid"] == "/t"
    with pytest.raises(InvalidArgument, match=r"target_id: is empty"):
        join(PodPlan(), pid=TARGET)
    with pytest.raises(InvalidArgument, match=r"target_id: names no running container"):
        join(PodPlan(), NamespacePaths(network="/n", ipc="/i", uts="/u"), pid=TARGET, target_id="x")


def test_the_hosts_pids_only_where_the_pod_has_them() -> None:
    with pytest.raises(InvalidArgument, match=r"pid: is NODE, and the pod is not"):
        join(PodPlan(shared_pid=True), pid=NODE)


@pytest.mark.parametrize("missing", ["network", "ipc", "uts", "pid", "user"])
def test_a_pod_without_a_namespace_that_it_should_have(missing: str) -> None:
    own = (IdMapping(container_id=0, host_id=1, length=1),)
    fields = {kind: "/x" for kind in ("network", "ipc", "uts", "pid", "user") if kind != missing}
    with pytest.raises(FailedPrecondition, match=f"no {missing} namespace"):
        join(PodPlan(shared_pid=True, uids=own, gids=own), NamespacePaths(**fields))


def test_a_containers_user_namespace_is_its_pods() -> None:
    plan = namespaces.pod_plan(pod(userns_options=userns()))
    assert join(plan, userns_options=userns())["user"] == "/us"
    assert join(plan)["user"] == "/us"
    other = userns(uids=[mapping(host=2000)], gids=[mapping(host=2000)])
    with pytest.raises(InvalidArgument, match=r"userns_options: is not the pod's"):
        join(plan, userns_options=other)
    with pytest.raises(InvalidArgument, match=r"userns_options: is not the pod's"):
        join(PodPlan(), userns_options=userns())
