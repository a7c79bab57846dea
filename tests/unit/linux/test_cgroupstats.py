from __future__ import annotations

import errno
import os

import pytest

from zos_cri.linux import cgroupstats as stats
from zos_cri.linux.cgroupstats import HugetlbStats, IoStats, Stall

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@pytest.fixture
def files(tmp_path):
    def write(**content: str) -> str:
        for name, text in content.items():
            (tmp_path / name.replace("__", ".")).write_text(text)
        return str(tmp_path)

    return write


def test_reading_what_is_there_and_what_is_not(files, tmp_path, monkeypatch):
    where = files(a="12\n", b="max\n", c="x 1\ny 2\nz -3\nTotal\n")
    assert stats.read_text(where, "a") == "12\n"
    assert stats.read_int(where, "a") == 12
    assert stats.read_int(where, "b") is None
    assert stats.read_int(where, "gone") is None
    assert stats.read_text(f"{where}/a", "below-a-file") is None
    assert stats.read_keyed(where, "c") == {"x": 1, "y": 2}
    assert stats.read_keyed(where, "gone") == {}
    for number, expected in ((errno.ENODEV, None), (errno.EOPNOTSUPP, None), (errno.EIO, OSError)):

        def refuse(_fd, _size, number=number):
            raise OSError(number, "no")

        with monkeypatch.context() as patch:
            patch.setattr(os, "read", refuse)
            if expected is None:
                assert stats.read_text(where, "a") is None
            else:
                with pytest.raises(OSError, match="no"):
                    stats.read_text(where, "a")


def test_cpu_of_version_2(files):
    where = files(
        cpu__stat="usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 7\n"
        "nr_throttled 2\nthrottled_usec 900\nnr_bursts 0\nburst_usec 0\n"
    )
    assert stats.cpu_v2(where) == stats.CpuStats(
        usage_ns=5_000_000,
        user_ns=3_000_000,
        system_ns=2_000_000,
        periods=7,
        throttled_periods=2,
        throttled_ns=900_000,
    )


def test_cpu_of_version_1(files):
    where = files(
        cpuacct__usage="5000000\n",
        cpuacct__stat="user 3\nsystem 2\n",
        cpu__stat="nr_periods 7\nnr_throttled 2\nthrottled_time 900\nwait_sum 5\n",
    )
    assert stats.cpu_v1(where, where) == stats.CpuStats(
        usage_ns=5_000_000,
        user_ns=3 * TICK,
        system_ns=2 * TICK,
        periods=7,
        throttled_periods=2,
        throttled_ns=900,
    )
    assert stats.cpu_v1(None, where).periods == 0
    assert stats.cpu_v1(where, None).usage_ns == 0


def test_memory_of_version_2(files):
    where = files(
        memory__current="1000\n",
        memory__max="5000\n",
        memory__peak="1200\n",
        memory__stat="anon 600\nfile 300\nkernel 90\nfile_mapped 50\ninactive_file 200\n"
        "pgfault 11\npgmajfault 1\n",
        memory__events="low 0\nhigh 0\nmax 4\noom 1\noom_kill 2\n",
    )
    where = files(memory__swap__current="70\n", memory__swap__max="max\n")
    assert stats.memory_v2(where) == stats.MemoryStats(
        usage=1000,
        working_set=800,
        limit=5000,
        rss=600,
        file=300,
        mapped_file=50,
        kernel=90,
        page_faults=11,
        major_page_faults=1,
        swap=70,
        swap_limit=None,
        peak=1200,
        failures=4,
    )
    assert stats.oom_kills_v2(where) == 2


def test_memory_of_older_and_of_root_cgroups(files):
    where = files(memory__stat="anon 600\nfile 300\nslab 30\nkernel_stack 4\ninactive_file 1000\n")
    found = stats.memory_v2(where)
    assert (found.usage, found.kernel, found.working_set, found.peak) == (900, 34, 0, None)


def test_memory_of_version_1(files):
    where = files(
        memory__usage_in_bytes="1000\n",
        memory__limit_in_bytes="5000\n",
        memory__memsw__limit_in_bytes="7000\n",
        memory__max_usage_in_bytes="1200\n",
        memory__failcnt="4\n",
        memory__kmem__usage_in_bytes="90\n",
        memory__stat="rss 1\ninactive_file 1\ntotal_rss 600\ntotal_cache 300\ntotal_swap 70\n"
        "total_mapped_file 50\ntotal_inactive_file 200\ntotal_pgfault 11\ntotal_pgmajfault 1\n",
        memory__oom_control="oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    )
    assert stats.memory_v1(where) == stats.MemoryStats(
        usage=1000,
        working_set=800,
        limit=5000,
        rss=600,
        file=300,
        mapped_file=50,
        kernel=90,
        page_faults=11,
        major_page_faults=1,
        swap=70,
        swap_limit=2000,
        peak=1200,
        failures=4,
    )
    assert stats.oom_kills_v1(where) == 2


@pytest.mark.parametrize("unlimited", [9223372036854771712, 9223372036854710272])  # 4, 64 KiB
def test_no_limit_on_version_1_on_any_page_size(files, unlimited):
    where = files(memory__limit_in_bytes=f"{unlimited}\n", memory__usage_in_bytes="1\n")
    found = stats.memory_v1(where)
    assert (found.limit, found.swap_limit) == (None, None)


def test_io_of_version_2(files):
    where = files(
        io__stat="8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"
        "254:0 \n"  # a device that was never used: the kernel may leave the rest out
        "7:0 rbytes=9\n"
        "(unknown) rbytes=9\n"
    )
    assert stats.io_v2(where) == (
        IoStats(major=8, minor=16, read_bytes=1, write_bytes=2, reads=3, writes=4),
        IoStats(major=7, minor=0, read_bytes=9),
    )


def test_io_of_version_1(files):
    where = files(
        blkio__throttle__io_service_bytes_recursive="8:0 Read 10\n8:0 Write 20\n8:0 Total 30\n"
        "Total 30\n",
        blkio__throttle__io_serviced="8:0 Read 1\n7:1 Write 2\n",
    )
    assert stats.io_v1(where) == (
        IoStats(major=7, minor=1, writes=2),
        IoStats(major=8, minor=0, read_bytes=10, write_bytes=20, reads=1),
    )


def test_hugetlb_of_version_2(files):
    where = files(
        hugetlb__2MB__current="4\n",
        hugetlb__2MB__max="max\n",
        hugetlb__2MB__events="max 3\n",
        hugetlb__2MB__rsvd__current="9\n",
        hugetlb__1GB__current="0\n",
        hugetlb__1GB__max="8\n",
    )
    assert stats.hugetlb_v2(where) == (
        HugetlbStats(page_size="1GB", limit=8),
        HugetlbStats(page_size="2MB", usage=4, failures=3),
    )


def test_hugetlb_of_version_1(files):
    where = files(
        hugetlb__2MB__usage_in_bytes="4\n",
        hugetlb__2MB__max_usage_in_bytes="6\n",
        hugetlb__2MB__limit_in_bytes="9223372036854771712\n",
        hugetlb__2MB__failcnt="3\n",
        hugetlb__2MB__rsvd__usage_in_bytes="9\n",
    )
    assert stats.hugetlb_v1(where) == (HugetlbStats(page_size="2MB", usage=4, peak=6, failures=3),)


def test_pressure(files):
    where = files(
        cpu__pressure="some avg10=1.50 avg60=0.20 avg300=0.03 total=7\n",
        memory__pressure="some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
        "full avg10=2.00 avg60=0.00 avg300=0.00 total=9\n",
    )
    found = stats.pressure(where)
    assert set(found) == {"cpu", "memory"}
    assert found["cpu"].some == Stall(avg10=1.5, avg60=0.2, avg300=0.03, total_ns=7000)
    assert found["cpu"].full == Stall()
    assert found["memory"].full.total_ns == 9000
