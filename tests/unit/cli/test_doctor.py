from __future__ import annotations

import json

import pytest

from zos_cri.cli import doctor
from zos_cri.cli.main import main
from zos_cri.doctor.finding import fail, ok, warn

FINDINGS = [ok("kernel", "6.1"), warn("CNI", "none", "put one into /etc/cni/net.d")]


@pytest.fixture
def found(monkeypatch):
    found = list(FINDINGS)

    async def examine(settings):
        return found

    monkeypatch.setattr(doctor, "examine", examine)
    return found


def test_warnings_do_not_count(found, capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["ok", "kernel", "6.1"]
    assert lines[1].split() == ["WARN", "CNI", "none"]
    assert lines[2].strip() == "-> put one into /etc/cni/net.d"
    assert lines[-1] == "1 ok, 1 warnings, 0 failures"


def test_failures_do(found, capsys):
    found.append(fail("user", "uid 1000", "run it as root"))
    assert main(["doctor", "-o", "json"]) == 1
    assert [each["level"] for each in json.loads(capsys.readouterr().out)] == ["ok", "warn", "fail"]


def test_a_real_examination(tmp_path, capsys):
    path = tmp_path / "config.toml"
    path.write_text(f'[server]\nstate = "{tmp_path}"\n[handlers.x]\nruntime = "none"\n')
    with path.open("a") as file:
        file.write("[handlers.runc]\n")
    assert main(["doctor", "--config", str(path), "-o", "json"]) == 1
    findings = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
    assert findings["handlers.x.runtime"]["level"] == "fail"
    assert {"kernel", "cgroups", "favordynmods", "CNI", "server.state"} <= set(findings)
