from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.oci import golden
from zos_cri.errors import InvalidArgument
from zos_cri.oci.base import DeviceNode, Rlimit
from zos_cri.oci.host import HostFacts
from zos_cri.oci.module import ModuleContainer, ModuleMount, module_spec

HOST = HostFacts(cpus=1)
PLAIN = ModuleContainer(
    id="0123456789abcdef", args=("/sbin/init",), network_namespace="/run/netns/n1"
)


def spec(host: HostFacts = HOST, **fields: Any) -> dict[str, Any]:
    return module_spec(msgspec.structs.replace(PLAIN, **fields), host)


def test_a_plain_container() -> None:
    golden.check("module_plain", spec())


def test_a_full_container() -> None:
    made = spec(
        env=("A=1", "PATH=/x"),
        working_dir="/srv",
        hostname="box",
        mounts=(
            ModuleMount(source="none", target="/data/ram", type="tmpfs", options=("size=1m",)),
            ModuleMount(source="/mnt/data", target="/data", options=("ro", "nosuid")),
        ),
        cpu=1.5,
        memory=1 << 30,
        interactive=True,
        user=(1000, 1000),
        cgroups_path="/zos/c1",
        rlimits=(Rlimit(type="RLIMIT_NOFILE", soft=1, hard=2),),
        oom_score_adj=100,
        annotations={"a": "b"},
        readonly_rootfs=True,
        host=HostFacts(cgroup_mode="v1", swap_accounting=False),
    )
    golden.check("module_full", made)


def test_an_elevated_container() -> None:
    node = DeviceNode(path="/dev/kvm", type="c", major=10, minor=232, mode=0o660, gid=104)
    elevated = msgspec.structs.replace(PLAIN, elevated=True)
    host = HostFacts(capabilities=frozenset({"CAP_CHOWN", "CAP_SYS_ADMIN"}))
    golden.check("module_elevated", module_spec(elevated, host, devices=(node,)))


def test_it_joins_one_network_namespace_and_makes_the_others() -> None:
    kinds = {entry["type"]: entry.get("path") for entry in spec()["linux"]["namespaces"]}
    assert kinds == {
        "pid": None,
        "mount": None,
        "ipc": None,
        "uts": None,
        "network": "/run/netns/n1",
        "cgroup": None,
    }


def test_devices_are_for_elevated_ones_only() -> None:
    node = DeviceNode(path="/dev/kvm", type="c", major=10, minor=232)
    assert "devices" not in module_spec(PLAIN, HOST, devices=(node,))["linux"]


def test_the_runtimes_version_is_a_parameter() -> None:
    assert module_spec(PLAIN, HOST, oci_version="1.2.0")["ociVersion"] == "1.2.0"


def test_without_seccomp_in_the_kernel_there_is_no_profile() -> None:
    assert "seccomp" not in spec(HostFacts(seccomp=False))["linux"]


@pytest.mark.parametrize(("cores", "quota", "shares"), [(0.001, 1000, 2), (2, 200_000, 2048)])
def test_cores(cores: float, quota: int, shares: int) -> None:
    cpu = spec(cpu=cores)["linux"]["resources"]["cpu"]
    assert (cpu["period"], cpu["quota"], cpu["shares"]) == (100_000, quota, shares)


def test_a_bind_mounts_own_options_stay() -> None:
    given = (ModuleMount(source="/s", target="/t", options=("bind", "rshared")),)
    assert spec(mounts=given)["mounts"][-1]["options"] == ["bind", "rshared"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"args": ()}, r"^entrypoint: names nothing to run"),
        ({"args": ("",)}, r"^entrypoint: names nothing to run"),
        ({"args": ("a\0",)}, r"^entrypoint\[0\]: has a NUL"),
        ({"env": ("A=1", "B")}, r"^env\[1\]: \"B\" is not NAME=value"),
        ({"env": ("=1",)}, r"^env\[0\]: "),
        ({"working_dir": "srv"}, r"^working_dir: "),
        ({"hostname": "a b"}, r"^hostname: "),
        ({"hostname": "a" * 65}, r"^hostname: "),
        ({"network_namespace": ""}, r"^network\.namespace: is empty"),
        ({"network_namespace": "n1"}, r"^network\.namespace: \"n1\" is not an absolute path"),
        ({"cpu": -1}, r"^cpu: "),
        ({"cpu": float("nan")}, r"^cpu: "),
        ({"memory": -1}, r"^memory: "),
        ({"memory": 1000}, r"^memory: "),
        ({"user": (-1, 0)}, r"^user: "),
        ({"oom_score_adj": 1001}, r"^oom_score_adj: "),
        ({"rlimits": (Rlimit(type="X", soft=0, hard=0),)}, r"^rlimits\[0\]\.type: "),
    ],
)
def test_bad_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        spec(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target": "data"}, r"target: \"data\" is not an absolute path"),
        ({"target": "/a/../../etc"}, r"target: \"/a/\.\./\.\./etc\" has a '\.\.' in it"),
        ({"target": "/"}, r"target: the root"),
        ({"source": ""}, r"source: is empty"),
        ({"source": "data"}, r"source: \"data\" is not an absolute path"),
        ({"type": "nfs"}, r"type: \"nfs\" is not one of"),
        ({"options": ("ro,rw",)}, r"options: \"ro,rw\" is not one option"),
        ({"options": ("",)}, r"options: "),
    ],
)
def test_bad_mounts(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"source": "/s", "target": "/t"}
    mount = ModuleMount(**(good | fields))
    with pytest.raises(InvalidArgument, match=r"^mounts\[0\]\." + message):
        spec(mounts=(mount,))


def test_one_target_is_for_one_mount() -> None:
    twice = (ModuleMount(source="/a", target="/t"), ModuleMount(source="/b", target="/t/"))
    with pytest.raises(InvalidArgument, match=r"^mounts\[1\]\.target: \"/t\" is mounted over"):
        spec(mounts=twice)
