from __future__ import annotations

import socket

from zos_cri.config import Config, ServerConfig
from zos_cri.doctor import places
from zos_cri.linux.mount import mount_of


def judged(**server):
    return {each.check: each for each in places.check(Config(server=ServerConfig(**server)))}


def test_directories_need_not_be_there_yet(tmp_path):
    findings = judged(state=str(tmp_path / "a" / "b"), run="/dev/shm/none", socket=f"{tmp_path}/s")
    assert str(tmp_path / "a" / "b") in findings["server.state"].found
    assert "GiB free" in findings["server.state"].found
    assert findings["server.run"].level == "ok"
    assert "not started" in findings["server"].found


def test_what_a_layer_cannot_be_on(monkeypatch, tmp_path):
    kind = mount_of(str(tmp_path)).type
    monkeypatch.setattr(places, "NO_UPPER", frozenset({kind}))
    finding = judged(state=str(tmp_path))["server.state"]
    assert finding.level == "fail"
    assert f"is on {kind}" in finding.found


def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path):
    monkeypatch.setattr(places, "FREE_BYTES", 1 << 62)
    finding = judged(state=str(tmp_path))["server.state"]
    assert finding.level == "warn"
    assert "zos-cri gc" in finding.advice


def test_a_server_that_listens_and_one_that_died(tmp_path):
    path = tmp_path / "sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        assert places.server(path).found == f"listens at {path}"
    dead = places.server(path)
    assert dead.level == "warn"
    assert "journalctl" in dead.advice
