"""What gRPC is told before it is imported."""

from __future__ import annotations

import subprocess
import sys

_CHECK = """
import sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            import os
            print(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"), os.environ.get("GRPC_EXPERIMENTS"))
        return None

sys.meta_path.insert(0, Finder())
import zos_cri.cli.main
"""


def test_grpc_finds_its_settings_when_it_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], env={}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "0 -event_engine_listener\n"


def test_the_environment_decides_otherwise() -> None:
    environment = {"GRPC_EXPERIMENTS": "", "GRPC_ENABLE_FORK_SUPPORT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _CHECK], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1 \n"
