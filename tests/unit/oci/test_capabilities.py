from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri._pb import cri_pb2
from zos_cri.errors import InvalidArgument, PermissionDenied
from zos_cri.oci import capabilities
from zos_cri.oci.host import CAPABILITIES, HostFacts

HOST = HostFacts()


def held(
    host: HostFacts = HOST, privileged: bool = False, userns: bool = False, **lists: Any
) -> capabilities.Sets:
    asked = cri_pb2.Capability(**lists)
    return capabilities.of_container(asked, privileged=privileged, user_namespace=userns, host=host)


def test_the_default_is_dockers() -> None:
    sets = held()
    assert set(sets["bounding"]) == capabilities.DEFAULT
    assert sets["bounding"] == sets["effective"] == sets["permitted"]
    assert "inheritable" not in sets
    assert "ambient" not in sets
    assert len(capabilities.DEFAULT) == 14


@pytest.mark.parametrize("name", ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN"])
def test_adding(name: str) -> None:
    assert set(held(add_capabilities=[name])["effective"]) == capabilities.DEFAULT | {
        "CAP_NET_ADMIN"
    }


def test_dropping_wins_over_adding() -> None:
    sets = held(add_capabilities=["NET_ADMIN"], drop_capabilities=["NET_ADMIN", "CHOWN"])
    assert set(sets["bounding"]) == capabilities.DEFAULT - {"CAP_CHOWN"}


def test_all_counts_first() -> None:
    everything = set(held(add_capabilities=["all"])["bounding"])
    assert everything == set(CAPABILITIES)
    but_one = held(add_capabilities=["ALL"], drop_capabilities=["SYS_ADMIN"])
    assert set(but_one["bounding"]) == everything - {"CAP_SYS_ADMIN"}
    only_one = held(drop_capabilities=["ALL"], add_capabilities=["CHOWN"])
    assert only_one["bounding"] == ["CAP_CHOWN"]
    assert held(drop_capabilities=["ALL"])["bounding"] == []


def test_ambient_ones_are_in_every_set() -> None:
    sets = held(drop_capabilities=["ALL"], add_ambient_capabilities=["NET_BIND_SERVICE"])
    assert set(sets) == {"bounding", "effective", "permitted", "inheritable", "ambient"}
    assert all(names == ["CAP_NET_BIND_SERVICE"] for names in sets.values())


def test_a_dropped_one_is_in_none() -> None:
    sets = held(add_ambient_capabilities=["CHOWN"], drop_capabilities=["CHOWN"])
    assert not any("CAP_CHOWN" in names for names in sets.values())


def test_all_and_the_default_are_what_this_host_has() -> None:
    host = HostFacts(capabilities=frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE", "CAP_MKNOD"})
    assert "CAP_MKNOD" not in held(host)["bounding"]
    assert len(held(host, add_capabilities=["ALL"])["bounding"]) == len(CAPABILITIES) - 2
    assert len(held(host, privileged=True)["bounding"]) == len(CAPABILITIES) - 2
    # In a user namespace of its own a process has everything.
    assert len(held(host, privileged=True, userns=True)["bounding"]) == len(CAPABILITIES)
    assert (
        "CAP_SYS_RESOURCE" in held(host, userns=True, add_capabilities=["SYS_RESOURCE"])["bounding"]
    )


def test_what_this_host_cannot_give_is_said() -> None:
    host = HostFacts(capabilities=capabilities.DEFAULT)
    with pytest.raises(PermissionDenied, match=r"add_capabilities: .*CAP_SYS_RESOURCE"):
        held(host, add_capabilities=["SYS_RESOURCE"])
    with pytest.raises(PermissionDenied, match="add_ambient_capabilities"):
        held(host, add_ambient_capabilities=["SYS_RESOURCE"])
    assert held(host, add_capabilities=["SYS_RESOURCE"], drop_capabilities=["SYS_RESOURCE"])


@pytest.mark.parametrize(
    "field", ["add_capabilities", "drop_capabilities", "add_ambient_capabilities"]
)
def test_names_that_are_none(field: str) -> None:
    where = rf"^linux\.security_context\.capabilities\.{field}\[1\]: no capability"
    with pytest.raises(InvalidArgument, match=where):
        held(HOST, False, False, **{field: ["CHOWN", "FLY"]})


NAMES = st.lists(st.sampled_from(["ALL", *(name[4:] for name in CAPABILITIES)]), max_size=6)


@given(add=NAMES, drop=NAMES, ambient=NAMES)
def test_rules_that_always_hold(add: list[str], drop: list[str], ambient: list[str]) -> None:
    sets = held(add_capabilities=add, drop_capabilities=drop, add_ambient_capabilities=ambient)
    single = {f"CAP_{name}" for name in drop}
    assert not single & set(sets["bounding"])
    # capabilities(7): ambient ⊆ inheritable ∩ permitted; permitted is in the bounding set.
    assert set(sets.get("ambient", ())) <= set(sets["permitted"]) <= set(sets["bounding"])
    assert sets.get("ambient") == sets.get("inheritable")
