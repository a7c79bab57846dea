from __future__ import annotations

import contextlib
import os
import resource

import pytest

from zos_cri.linux import host, spawn
from zos_cri.oci.host import CAPABILITIES

root = pytest.mark.root


async def test_this_host():
    facts = await host.probe()
    release = os.uname().release
    assert release.startswith(f"{facts.kernel[0]}.{facts.kernel[1]}")
    assert facts.kernel_release == release
    assert len(facts.boot_id) == 36
    assert facts.effective <= frozenset(CAPABILITIES)
    assert facts.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert facts.hard_limits["RLIMIT_NOFILE"] == (None if hard == resource.RLIM_INFINITY else hard)
    assert set(facts.hard_limits) == set(host.RLIMITS.values())
    assert facts.oom_score_adj_min <= facts.oom_score_adj


@root
async def test_what_was_found_is_true_of_a_child():
    facts = await host.probe()

    async def child_can(command: str) -> bool:
        return (await spawn.run(["sh", "-c", command], timeout=10)).returncode == 0

    lowest = facts.oom_score_adj_min
    assert await child_can(f"echo {lowest} > /proc/self/oom_score_adj")
    if lowest > -1000:
        assert not await child_can(f"echo {lowest - 1} > /proc/self/oom_score_adj")
    limit = facts.hard_limits["RLIMIT_NOFILE"]
    assert limit is not None
    assert await child_can(f"ulimit -n {limit + 1}") is facts.can_raise_rlimits


async def test_the_lowest_score_of_a_child_that_started_higher():
    """A process that was given 300 may still come down to where it began."""
    own = int((await spawn.run(["cat", "/proc/self/oom_score_adj"], timeout=10)).stdout)
    lowest = await host._lowest_oom_score_adj(own)
    assert await host._lowest_oom_score_adj(1000) == lowest


async def test_without_a_shell_our_own_score_is_the_lowest(monkeypatch):
    async def run(*argv, **_kwargs):
        return spawn.Completed(argv, 1, b"", b"")

    monkeypatch.setattr(spawn, "run", run)
    assert await host._lowest_oom_score_adj(12) == 12


def files(tmp_path, **content: str) -> str:
    for name, text in content.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path)


async def test_another_host(tmp_path):
    proc = files(
        tmp_path / "proc",
        self__status="Name:\tx\nCapEff:\t0000000001000001\nCapBnd:\t0000000000000001\n",
        self__limits="Limit                     Soft Limit           Hard Limit           Units\n"
        "Max open files            1024                 4096                 files     \n"
        "Max cpu time              unlimited            unlimited            seconds   \n",
        self__oom_score_adj="-5\n",
        self__uid_map="         0          0 4294967295\n",
        meminfo="MemTotal:       100 kB\nSwapTotal:        50 kB\nHugePages_Total:       0\n",
        sys__kernel__random__boot_id="abc\n",
        sys__kernel__seccomp__actions_avail="kill\n",
    )
    sys = files(
        tmp_path / "sys", module__apparmor__parameters__enabled="Y\n", fs__selinux__enforce="1"
    )
    facts = await host.probe(proc, sys)
    assert facts.effective == {"CAP_CHOWN", "CAP_SYS_RESOURCE"}
    assert facts.bounding == {"CAP_CHOWN"}
    assert (facts.boot_id, facts.memory_bytes, facts.swap_bytes) == ("abc", 102400, 51200)
    assert (facts.seccomp, facts.apparmor, facts.selinux) == (True, True, True)
    assert facts.can_raise_rlimits
    assert facts.hard_limits == {"RLIMIT_NOFILE": 4096, "RLIMIT_CPU": None}
    assert facts.clamp_rlimit("RLIMIT_NOFILE", 9999) == 9999
    files(tmp_path / "proc", self__uid_map="0 1000 1\n", meminfo="MemTotal: lots\n")
    (tmp_path / "sys" / "module" / "apparmor" / "parameters" / "enabled").unlink()
    facts = await host.probe(proc, sys)
    assert (facts.can_raise_rlimits, facts.apparmor, facts.memory_bytes) == (False, False, 0)


async def test_clamping():
    facts = await host.probe()
    with contextlib.suppress(AttributeError):
        facts.oom_score_adj_min = 0  # type: ignore[misc]
    assert facts.clamp_oom_score_adj(1000) == 1000
    assert facts.clamp_oom_score_adj(-2000) == facts.oom_score_adj_min
    if not facts.can_raise_rlimits:
        limit = facts.hard_limits["RLIMIT_NOFILE"]
        assert facts.clamp_rlimit("RLIMIT_NOFILE", None) == limit
        assert facts.clamp_rlimit("RLIMIT_NOFILE", 10) == 10
        assert facts.clamp_rlimit("RLIMIT_CPU", None) is None


def test_capabilities_by_number():
    assert host.capability_names(1 << 21) == {"CAP_SYS_ADMIN"}
    assert host.capability_names(1 << 40) == {"CAP_CHECKPOINT_RESTORE"}
    assert len(host.capability_names((1 << 64) - 1)) == 41


def test_odd_files(tmp_path):
    assert host._version("weird") == (0, 0)
    with pytest.raises(IsADirectoryError):
        host._read(str(tmp_path))
