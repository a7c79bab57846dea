from __future__ import annotations

import pytest

from zos_cri.errors import DeadlineExceeded
from zos_cri.linux import dynmods
from zos_cri.linux.mount import parse_mountinfo
from zos_cri.linux.spawn import Completed

V1 = "30 20 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"
HYBRID = "31 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
ON = "31 20 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,favordynmods"
ELSEWHERE = "32 20 0:26 / /mnt rw - cgroup2 cgroup2 rw"


class Host:
    def __init__(self, *lines):
        self.lines = list(lines)
        self.calls = []
        self.failure = None
        self.works = True

    def mounts(self):
        return [parse_mountinfo(line) for line in self.lines]

    async def run(self, argv, *, timeout):
        self.calls.append(argv)
        if isinstance(self.failure, Exception):
            raise self.failure
        if self.works and not self.failure:
            self.lines.append(ON)
        return Completed(tuple(argv), 32 if self.failure else 0, b"", b"mount: bad option")


async def test_cgroup2_is_remounted_where_there_is_one():
    host = Host(V1, ELSEWHERE, HYBRID)
    assert not await dynmods.favored(host.mounts)
    assert await dynmods.favor(host.run, host.mounts)
    assert host.calls == [("mount", "-o", "remount,favordynmods", "/sys/fs/cgroup/unified")]
    assert await dynmods.favored(host.mounts)


async def test_with_version_1_alone_any_hierarchy_will_do():
    host = Host(V1)
    await dynmods.favor(host.run, host.mounts)
    assert host.calls[0][-1] == "/sys/fs/cgroup/cpu"


async def test_what_is_on_is_left_alone():
    host = Host(V1, ON)
    assert await dynmods.favor(host.run, host.mounts)
    assert host.calls == []


@pytest.mark.parametrize("failure", ["refused", DeadlineExceeded("stuck"), FileNotFoundError()])
async def test_a_host_that_can_not_have_it_is_served_all_the_same(failure):
    host = Host(HYBRID)
    host.failure = failure
    assert not await dynmods.favor(host.run, host.mounts)


async def test_without_cgroups_nothing_is_tried():
    host = Host(ELSEWHERE)
    assert not await dynmods.favor(host.run, host.mounts)
    assert host.calls == []


async def test_what_mount_only_says_it_did_does_not_count():
    host = Host(HYBRID)
    host.works = False
    assert not await dynmods.favor(host.run, host.mounts)
