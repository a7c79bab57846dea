"""The logger process's own affairs; the rest is in tests/integration/test_logger.py."""

from pathlib import Path

from tests.unit.stdio.conftest import Rig
from zos_cri.stdio.main import stop_when_unreachable


def test_a_logger_without_socket_and_containers_ends(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "logger.sock"
    path.touch()
    stop_when_unreachable(str(path), rig.logger, rig.loop, every=0.0)
    rig.attach(rig.spec())
    rig.settle()
    assert not rig.logger.stopping
    path.unlink()
    rig.settle()
    assert not rig.logger.stopping, "it has a container"
    rig.logger.detach("c")
    rig.until(lambda: rig.logger.stopping)
