from __future__ import annotations

import json
import tomllib

import msgspec
import pytest

from zos_cri import config
from zos_cri.cli import toml
from zos_cri.cli.main import main


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('[log]\nlevel = "debug"\n[handlers."a.b"]\nruntime = "crun \\"x\\" \\u007f"\n')
    with path.open("a") as file:
        file.write("[handlers.runc]\n")
    return path


def test_dump_prints_what_counts_and_can_be_read_again(path, tmp_path, capsys):
    assert main(["config", "dump", "--config", str(path)]) == 0
    dumped = tmp_path / "dumped.toml"
    dumped.write_text(capsys.readouterr().out)
    assert config.load(dumped) == config.load(path)
    assert main(["config", "dump", "--config", str(dumped), "-o", "json"]) == 0
    assert msgspec.convert(json.loads(capsys.readouterr().out), config.Config) == config.load(path)


def test_validate(path, capsys):
    assert main(["config", "validate", "--config", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n"
    path.write_text("[log]\nlevel = 'loud'\n")
    assert main(["config", "validate", "--config", str(path)]) == 3
    assert f'{path}: log.level: "loud" is not a level' in capsys.readouterr().err
    assert main(["config", "validate", "--config", f"{path}.absent"]) == 3
    assert "No such file" in capsys.readouterr().err


def test_validate_says_where_there_is_no_file(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "none.toml")
    assert main(["config", "validate"]) == 0
    assert "isn't there: every setting has its default" in capsys.readouterr().out


def test_default_explains_every_setting(capsys):
    assert main(["config", "default"]) == 0
    out = capsys.readouterr().out
    assert '#metrics = "127.0.0.1:9474"' in out
    assert config.parse(out.encode(), "x") == config.Config()


@pytest.mark.parametrize(
    "found",
    [
        "",
        'a"b\\c\n\t\x01\x7fäß€𝄞',
        0,
        -5,
        1.5,
        60.0,
        True,
        False,
        [1, 2],
        ["a", []],
        {"a b": {"c": 1}},
    ],
)
def test_a_value_is_read_back(found):
    assert tomllib.loads(f"x = {toml.value(found)}") == {"x": found}


def test_what_a_configuration_does_not_hold():
    with pytest.raises(TypeError, match="nothing that a configuration holds"):
        toml.value(object())
