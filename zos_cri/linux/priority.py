"""The event loop's turn on a host whose CPUs are all busy.

Whatever is asked of us passes through one thread, in many short stretches, and for each of them it
waits its turn behind the very runtimes and containers that it has started. So that thread comes
first; nothing that it starts does.
"""

from __future__ import annotations

import os
from typing import Final

# Nine times the weight of what has none (kernel/sched/core.c, sched_prio_to_weight): decision 0018.
NICE: Final = -10


def prefer_this_thread() -> bool:
    """Prefers the calling thread to others of its cgroup; its threads and children begin as usual.

    Nothing where somebody has chosen a priority or a scheduling policy for us already, or where we
    may not (CAP_SYS_NICE). Since sched(7): a nice value is a thread's own, and
    SCHED_RESET_ON_FORK has what is forked begin with 0.

    Returns:
        Whether it was done.
    """
    if os.getpriority(os.PRIO_PROCESS, 0) or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    try:
        # This first: not for a moment may a child come to be that has our nice value.
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    except OSError:
        return False
    return True
