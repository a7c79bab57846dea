"""`zos-cri logger`: what it becomes. That it runs is in tests/integration/test_logger.py."""

from pathlib import Path

import pytest

from zos_cri.cli import main
from zos_cri.cli.logger import command
from zos_cri.errors import InvalidArgument


def options(*argv: str) -> dict[str, str]:
    words = command(main.parse(["logger", *argv]))
    assert words[1:3] == ("-m", "zos_cri.stdio")
    return dict(zip(words[3::2], words[4::2], strict=True))


def test_from_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[server]\nrun = "/run/there"\n[log]\nlevel = "debug"\nformat = "json"\n')
    assert options("--config", str(path)) == {
        "--socket": "/run/there/logger.sock",
        "--state-dir": "/run/there/logger",
        "--log-level": "debug",
        "--log-format": "json",
    }


def test_arguments_go_before_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("")
    given = ("--socket", "/s", "--state-dir", "/d", "--log-level", "error", "--log-format", "json")
    found = options("--config", str(path), *given)
    assert found == dict(zip(given[::2], given[1::2], strict=True))


def test_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[server]\nruns = 1\n")
    with pytest.raises(InvalidArgument, match="runs"):
        options("--config", str(path))
