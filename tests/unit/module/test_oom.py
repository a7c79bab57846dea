"""What can be known of OOM kills when a container's cgroup is gone."""

from __future__ import annotations

import pytest

from zos_cri.module.oom import somebody_killed, vanishes


def test_scopes_go_with_their_processes():
    assert vanishes("/a.slice/b.scope")
    assert not vanishes("/kubepods/pod/b")
    assert not vanishes("")


@pytest.mark.parametrize(
    ("before", "now", "killed"),
    [
        ({}, {}, False),
        ({"": 1}, {"": 1}, False),
        ({"": 1}, {"": 2}, True),
        # The nearest that is there decides.
        ({"": 1, "/a.slice": 5}, {"": 2, "/a.slice": 5}, False),
        ({"": 1, "/a.slice": 5}, {"": 2, "/a.slice": 6}, True),
        ({"/a.slice": 5, "/a.slice/b.slice": 0}, {"/a.slice": 6, "/a.slice/b.slice": 0}, False),
        ({"/a.slice": 5, "/a.slice/b.slice": 0}, {"/a.slice": 6}, True),
        # After a restart nobody knows what was before.
        ({}, {"/a.slice": 1, "": 1}, True),
        ({}, {"/a.slice": 0, "": 1}, False),
    ],
)
def test_where_it_belonged_to(before, now, killed):
    assert somebody_killed("/a.slice/b.slice/c.scope", before, now) is killed
