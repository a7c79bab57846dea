"""Fixtures of tests that run a runtime without a shim."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.oci.bundles import TIMEOUT, Bundle, Paths, facts, made_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri.oci.host import HostFacts


@pytest.fixture
def bundle() -> Iterator[Bundle]:
    # Not in tmp_path: root of a user namespace can't go through that, which is root's own.
    with tempfile.TemporaryDirectory(prefix="zos-oci-") as directory:
        top = Path(directory)
        top.chmod(0o755)
        yield from made_in(top)


@pytest.fixture(scope="module")
def host() -> HostFacts:
    return facts()


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[Paths]:
    """A pod's pinned namespaces."""
    files = {kind: tmp_path / f"ns-{kind}" for kind in ("net", "ipc", "uts")}
    for file in files.values():
        file.touch()
    argv = ["unshare", *(f"--{kind}={file}" for kind, file in files.items()), "true"]
    try:
        subprocess.run(argv, check=True, timeout=TIMEOUT)
        yield Paths(network=str(files["net"]), ipc=str(files["ipc"]), uts=str(files["uts"]))
    finally:
        for file in files.values():
            subprocess.run(["umount", str(file)], check=False, timeout=TIMEOUT)
