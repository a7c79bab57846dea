"""Whether a container was killed for want of memory, also where its cgroup's own count is gone.

systemd removes a scope together with its last process, and the count with it, mostly before anybody
could read it. What is left then:
- the slices above it, which in cgroup v2 count for all that is and was below them, and the host's
  own count: they tell that nobody was killed, or that somebody was;
- the shim, which watches the cgroup, and tells (TaskOOM) of what it came to see;
- a first process that died of SIGKILL, though nobody here had sent one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TASK_OOM: Final = "/tasks/oom"
# How long the shim's event may come after the exit. Waited for only where somebody was killed.
EVENT_TIMEOUT: Final = 1.0  # seconds
HOST: Final = ""  # the key of the host's count
KILLED: Final = 128 + 9


def vanishes(cgroup: str) -> bool:
    """Whether a cgroup (logical path) goes with its last process."""
    return cgroup.endswith(".scope")


def somebody_killed(cgroup: str, before: Mapping[str, int], now: Mapping[str, int]) -> bool:
    """Whether there were kills where a cgroup that is gone belonged to.

    Args:
        before, now: kills by logical path, `HOST` for all; what isn't there has no entry. The
            nearest cgroup above that is still there decides. An empty `before` counts as zeros.
    """
    above = cgroup
    while above := above.rpartition("/")[0]:
        if above in now:
            return now[above] > before.get(above, 0)
    return now.get(HOST, 0) > before.get(HOST, 0)
