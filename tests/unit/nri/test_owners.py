from __future__ import annotations

import pytest

from zos_cri._pb import nri_pb2 as pb
from zos_cri.nri.owners import Conflict, Owners, removed, split


def test_a_field_is_one_plugins():
    owners = Owners()
    owners.claim("c", pb.Args, "a")
    owners.claim("d", pb.Args, "b")  # another container's
    owners.claim("c", pb.Env, "a", "X")
    owners.claim("c", pb.Env, "b", "Y")
    with pytest.raises(Conflict, match=r'NRI plugins "b" and "a" both set Args$'):
        owners.claim("c", pb.Args, "b")
    with pytest.raises(Conflict, match=r'NRI plugins "c" and "b" both set Env Y$'):
        owners.claim("c", pb.Env, "c", "Y")
    with pytest.raises(Conflict, match='"a" and "a" both set Args'):
        owners.claim("c", pb.Args, "a")


def test_who_takes_away_may_set_and_nobody_else():
    owners = Owners()
    owners.claim("c", pb.Args, "a")
    owners.take_away("c", pb.Args, "b")
    with pytest.raises(Conflict, match='"c" and "b" both set Args'):
        owners.claim("c", pb.Args, "c")
    owners.claim("c", pb.Args, "b")
    with pytest.raises(Conflict):
        owners.claim("c", pb.Args, "b")


def test_what_all_may_add_to():
    owners = Owners()
    owners.add("c", pb.OciHooks, "a")
    owners.add("c", pb.OciHooks, "b")
    assert owners.message().owners["c"].simple[pb.OciHooks] == "a,b"


def test_the_message_for_validators():
    owners = Owners()
    owners.claim("c", pb.Args, "a")
    owners.claim("c", pb.Env, "a", "X")
    owners.take_away("c", pb.Mounts, "b", "/m")
    own = owners.message().owners["c"]
    assert dict(own.simple) == {pb.Args: "a"}
    assert {k: dict(v.owners) for k, v in own.compound.items()} == {
        pb.Env: {"X": "a"},
        pb.Mounts: {"/m": "-b"},
    }


def test_all_or_nothing():
    owners = Owners()
    owners.claim("c", pb.Env, "a", "X")

    def two() -> None:
        with owners.all_or_nothing():
            owners.claim("c", pb.Args, "b")
            owners.claim("c", pb.Env, "b", "X")

    with pytest.raises(Conflict):
        two()
    owners.claim("c", pb.Args, "c")
    with owners.all_or_nothing():
        owners.claim("c", pb.Env, "c", "Z")
    with pytest.raises(Conflict):
        owners.claim("c", pb.Env, "d", "Z")


def test_names():
    assert split(["a", "-b", "-", "c-d"]) == (["a", "c-d"], {"b", ""})
    assert removed("a") == "-a"
