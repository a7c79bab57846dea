from __future__ import annotations

import pytest

from zos_cri.linux.idmap import IdMappings
from zos_cri.linux.namespaces import IdMap

ONE = IdMappings(uids=(IdMap(0, 1000, 100),), gids=(IdMap(0, 2000, 100),))
TWO = IdMappings(
    uids=(IdMap(1, 5000, 10), IdMap(0, 1000, 1)), gids=(IdMap(0, 7, 1), IdMap(1, 8, 2))
)


def test_root_inside_is_somebody_on_the_host() -> None:
    assert ONE.root == (1000, 2000)
    assert TWO.root == (1000, 7)


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ((0, 0), (1000, 2000)),
        ((99, 99), (1099, 2099)),
        ((100, 5), (1000, 2005)),  # beyond the mapping: root's
        ((1000, 2000), (1000, 2000)),
    ],
)
def test_owners(inside: tuple[int, int], outside: tuple[int, int]) -> None:
    assert ONE.owner(*inside) == outside


def test_of_several_ranges_the_right_one_counts() -> None:
    assert TWO.owner(1, 1) == (5000, 8)
    assert TWO.owner(10, 2) == (5009, 9)
    assert TWO.owner(11, 3) == TWO.root


def test_the_options_that_a_shim_understands() -> None:
    assert ONE.mount_options() == ("uidmap=0:1000:100", "gidmap=0:2000:100")
    assert TWO.mount_options() == ("uidmap=1:5000:10,0:1000:1", "gidmap=0:7:1,1:8:2")


def test_without_root_there_is_nobody_to_own_anything() -> None:
    with pytest.raises(ValueError, match="0 is not mapped"):
        assert IdMappings(uids=(IdMap(1, 5, 1),), gids=(IdMap(1, 5, 1),)).root
