"""Keeping freed memory: fewer page faults for the same work."""

import subprocess
import sys

SCRIPT = """
import resource, sys
from zos_cri.linux import malloc
if sys.argv[1] == "keep":
    malloc.keep_freed_memory(4 << 20, 8 << 20)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
data = b"x" * 300_000
before = faults()
for _ in range(100):
    b"".join((data, data)).replace(b"x", b"y")
print(faults() - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], capture_output=True, check=True, text=True
    )
    return int(done.stdout)


def test_it_saves_page_faults() -> None:
    assert faults("keep") < 2000
    assert faults("keep") * 5 < faults("leave")
