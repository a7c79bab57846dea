"""The server's memory: what only workers need stays out of it."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_store_imports_none_of_the_workers_libraries() -> None:
    code = (
        "import sys, json, zos_cri.images.store;"
        "print(json.dumps([m for m in sys.modules if m.split('.')[0] in"
        " ('urllib3', 'ssl', 'isal', 'backports', 'cryptography', 'cramjam')"
        "]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    # asyncio has ssl with it, always.
    assert {name for name in loaded if not name.startswith("ssl")} == set()
