"""The limit of open files: ours is raised, our children's isn't. In a process of its own each."""

import subprocess
import sys

CHILDREN = """
import asyncio, resource
from zos_cri.linux import openfiles, spawn
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 256))
def limits():
    return resource.getrlimit(resource.RLIMIT_NOFILE)
openfiles.raise_limit()
openfiles.raise_limit()
async def child():
    # It asks late, as a shim does before it starts what it starts.
    return (await spawn.run(["sh", "-c", "sleep 0.1; ulimit -Sn; ulimit -Hn"], timeout=20)).stdout
print(limits(), asyncio.run(child()).split())
"""


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_ours_is_raised_and_a_child_has_what_we_had() -> None:
    assert run(CHILDREN) == "(256, 256) [b'128', b'256']"


def test_nothing_to_raise() -> None:
    assert run(CHILDREN.replace("(128, 256)", "(256, 256)")) == "(256, 256) [b'256', b'256']"
