from __future__ import annotations

import pytest

from zos_cri.errors import InvalidArgument
from zos_cri.oci import sysctls
from zos_cri.oci.namespaces import IdMapping, PodPlan

POD = PodPlan()
HOST = PodPlan(host_network=True, host_ipc=True)


def test_the_pods_own_and_the_defaults() -> None:
    made = sysctls.of_pod({"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100"}, POD)
    assert made == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "0 2147483647",
        "kernel.shm_rmid_forced": "1",
        "fs.mqueue.msg_max": "100",
    }


def test_defaults_give_way() -> None:
    given = {"net/ipv4/ip_unprivileged_port_start": "1024"}
    assert sysctls.of_pod(given, POD)["net.ipv4.ip_unprivileged_port_start"] == "1024"
    assert sysctls.of_pod({}, POD, {}) == {}
    assert sysctls.of_pod({}, HOST) == {}
    own = (IdMapping(container_id=0, host_id=1, length=1),)
    mapped = sysctls.of_pod({}, PodPlan(uids=own, gids=own))
    assert mapped == {"net.ipv4.ip_unprivileged_port_start": "0"}


def test_the_first_separator_decides_what_a_dot_is() -> None:
    made = sysctls.of_pod({"net/ipv4/conf/eth0.1/forwarding": "1"}, POD, {})
    assert made == {"net.ipv4.conf.eth0/1.forwarding": "1"}
    assert sysctls.of_pod({"net.ipv4.conf.eth0/1.forwarding": "1"}, POD, {}) == made


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("net.core.somaxconn", "network"),
        ("net/core/somaxconn", "network"),
        ("kernel.sem", "ipc"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.queues_max", "ipc"),
        ("kernel.domainname", "uts"),
    ],
)
def test_not_where_the_namespace_is_the_hosts(name: str, namespace: str) -> None:
    assert sysctls.of_pod({name: "1"}, POD, {})
    with pytest.raises(InvalidArgument, match=f"belongs to the {namespace} namespace"):
        sysctls.of_pod({name: "1"}, HOST)


@pytest.mark.parametrize(
    "name",
    [
        "vm.swappiness",
        "kernel.panic",
        "fs.file-max",
        "kernel.hostname",
        "kernel.shm_x",
        "fs.mqueue",
    ],
)
def test_not_what_is_the_whole_hosts(name: str) -> None:
    with pytest.raises(InvalidArgument, match="is the whole host's"):
        sysctls.of_pod({name: "1"}, POD)


@pytest.mark.parametrize(
    "name", ["", "net", "net..x", "net.ipv4.", "../net.x", "net.x/../../y", "net.x\ny", "a b.c"]
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.sysctls\[\".*\"\]: is no sysctl's name"):
        sysctls.of_pod({name: "1"}, POD)


@pytest.mark.parametrize("value", ["a\0b", "1" * 5000])
def test_values_that_the_kernel_cannot_take(value: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^linux\.sysctls"):
        sysctls.of_pod({"net.core.somaxconn": value}, POD)


def test_all_the_safe_ones_belong_to_a_pod() -> None:
    assert len(sysctls.of_pod(dict.fromkeys(sysctls.SAFE, "1"), POD, {})) == len(sysctls.SAFE)
