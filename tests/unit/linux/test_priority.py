"""The loop's thread comes first, and nothing that it starts does."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from zos_cri.linux import priority

# Each in a process of its own: it can't be taken back.
SCRIPT = """
import json, os, subprocess, sys, threading
from zos_cri.linux import priority

if sys.argv[1:]:
    os.setpriority(os.PRIO_PROCESS, 0, int(sys.argv[1]))
nice = lambda: os.getpriority(os.PRIO_PROCESS, 0)
done, seen = priority.prefer_this_thread(), {}
thread = threading.Thread(target=lambda: seen.update(thread=nice()))
thread.start()
thread.join()
argv = [sys.executable, "-c", "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"]
child = subprocess.run(argv, stdout=subprocess.PIPE, text=True, process_group=0)
print(json.dumps({"done": done, "own": nice(), "child": int(child.stdout), **seen}))
"""


def found(*arguments: str, prefix: tuple[str, ...] = ()) -> dict[str, Any]:
    argv = [*prefix, sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.root
def test_this_thread_is_preferred_and_what_it_starts_is_not() -> None:
    assert found() == {"done": True, "own": priority.NICE, "child": 0, "thread": 0}


def test_another_priority_is_left_as_it_is() -> None:
    assert found("3") == {"done": False, "own": 3, "child": 3, "thread": 3}


@pytest.mark.root
def test_without_the_capability_nothing_changes() -> None:
    bare = ("setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice")
    assert found(prefix=bare) == {"done": False, "own": 0, "child": 0, "thread": 0}
