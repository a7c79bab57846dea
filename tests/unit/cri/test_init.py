"""The init container of pods that share a pid namespace."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.init import BINARY, MOUNT_POINTS, PodInits
from zos_cri.errors import FailedPrecondition
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts
from zos_cri.store.model import SandboxMeta

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.module.types import NewContainer


class Containers:
    """Takes what is created and started."""

    def __init__(self) -> None:
        self.created: list[NewContainer] = []
        self.started: list[str] = []

    async def create(self, new: NewContainer) -> None:
        self.created.append(new)

    async def start(self, id_: str) -> None:
        self.started.append(id_)


def inits(containers: Any, program: Path, directory: Path) -> PodInits:
    return PodInits(
        containers=containers,
        program=str(program),
        directory=directory,
        handlers={"runc": HandlerSettings()},
        host=HostFacts(),
    )


def sandbox(number: int) -> SandboxMeta:
    return SandboxMeta(
        id=f"{number:064x}", name=f"pod{number}", config=b"", handler="runc", created_at=1
    )


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "catatonit"
    path.write_bytes(b"\x7fELF and so on")
    path.chmod(0o755)
    return path


async def test_many_pods_at_once_are_the_first(tmp_path: Path, program: Path) -> None:
    containers = Containers()
    made = inits(containers, program, tmp_path / "init")
    await asyncio.gather(*(made.start(sandbox(n), pb.PodSandboxConfig()) for n in range(20)))
    assert len(containers.started) == 20
    roots = {new.rootfs[0].source for new in containers.created}
    assert len(roots) == 1
    (root,) = (tmp_path / "init").iterdir()
    assert roots == {str(root)}
    assert (root / BINARY).read_bytes() == program.read_bytes()
    assert {path.name for path in root.iterdir()} == {BINARY, *MOUNT_POINTS}


async def test_a_new_version_has_a_root_of_its_own(tmp_path: Path, program: Path) -> None:
    containers = Containers()
    made = inits(containers, program, tmp_path / "init")
    await made.start(sandbox(1), pb.PodSandboxConfig())
    program.write_bytes(b"\x7fELF, a later one")
    await made.start(sandbox(2), pb.PodSandboxConfig())
    first, second = (new.rootfs[0].source for new in containers.created)
    assert first != second


async def test_missing_program(tmp_path: Path) -> None:
    made = inits(Containers(), tmp_path / "none", tmp_path / "init")
    with pytest.raises(FailedPrecondition, match="apt install catatonit"):
        await made.start(sandbox(1), pb.PodSandboxConfig())
