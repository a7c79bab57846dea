from __future__ import annotations

import json

import pytest

from zos_cri.config import CniConfig, Config
from zos_cri.config_handlers import HandlerConfig
from zos_cri.doctor import programs


def program(path, says, code=0):
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
    path.chmod(0o755)
    return str(path)


async def judged(handler, *, mode="v2", systemd=False):
    config = Config(handlers={"x": handler}, default_handler="x")
    found = programs.handlers(config, mode=mode, systemd=systemd)
    return {each.check: each async for each in found}


@pytest.mark.parametrize(
    ("says", "mode", "level"),
    [
        ("runc version 1.1.5", "v2", "warn"),
        ("runc version 1.2.0-rc1", "v2", "ok"),
        ("crun version 1.8.1", "v2", "ok"),
        ("crun version 1.8.1", "hybrid", "warn"),
        ("crun version 1.14", "hybrid", "ok"),
        ("something else", "hybrid", "ok"),
    ],
)
async def test_handlers(tmp_path, says, mode, level):
    shim = program(tmp_path / "shim", "Version: 2.4.2")
    runtime = program(tmp_path / "runtime", says)
    findings = await judged(HandlerConfig(shim=shim, runtime=runtime), mode=mode)
    assert findings["handlers.x.shim"].level == "ok"
    assert findings["handlers.x.shim"].found == f"{shim}: Version: 2.4.2"
    assert findings["handlers.x.runtime"].level == level
    assert findings["handlers.x.runtime"].found == f"{runtime}: {says}"


async def test_programs_that_are_not_there():
    findings = await judged(
        HandlerConfig(shim="io.containerd.none.v9", runtime="no-such-runtime", systemd_cgroup=True)
    )
    assert {each.level for each in findings.values()} == {"fail"}
    assert "containerd-shim-none-v9" in findings["handlers.x.shim"].found
    assert "apt install no-such-runtime" in findings["handlers.x.runtime"].advice
    assert "systemd_cgroup" in findings["handlers.x"].advice


@pytest.mark.parametrize(
    ("systemd", "mode", "handler", "told"),
    [
        (True, "v2", False, True),
        (True, "v2", True, False),
        (True, "hybrid", False, False),
        (False, "v2", False, False),
    ],
)
async def test_cgroups_beside_systemd_are_told(systemd, mode, handler, told):
    findings = await judged(HandlerConfig(systemd_cgroup=handler), mode=mode, systemd=systemd)
    assert ("handlers.x" in findings) is told
    if told:
        assert findings["handlers.x"].level == "warn"
        assert findings["handlers.x"].advice.startswith("handlers.x.systemd_cgroup = true")


async def test_a_program_that_fails_is_told(tmp_path):
    assert "exit code 3" in await programs.version(program(tmp_path / "x", "no", 3))
    assert "x" in await programs.version(str(tmp_path / "absent-x"))


def test_init_and_busybox(tmp_path):
    there = program(tmp_path / "x", "")
    assert programs.init(there).level == programs.busybox(there).level == "ok"
    assert "catatonit" in programs.init("no-such-init").advice
    assert programs.busybox(str(tmp_path / "none")).level == "fail"


def test_network(tmp_path):
    (tmp_path / "net.d").mkdir()
    (tmp_path / "bin").mkdir()
    config = Config(
        cni=CniConfig(conf_dir=str(tmp_path / "net.d"), bin_dirs=(str(tmp_path / "bin"),))
    )

    def judged():
        [finding] = programs.network(config, tmp_path / "scratch")
        return finding

    assert judged().level == "warn"
    assert "no network configuration" in judged().found
    conf = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "zbridge"}]}
    (tmp_path / "net.d" / "1.conflist").write_text(json.dumps(conf))
    assert "zbridge" in judged().found
    assert str(tmp_path / "bin") in judged().advice
    program(tmp_path / "bin" / "zbridge", "")
    assert judged().level == "ok"


async def test_a_runtime_that_is_left_open_is_chosen_as_the_server_does(tmp_path, monkeypatch):
    shim = program(tmp_path / "containerd-shim-runc-v2", "Version: 2.4.2")
    crun = program(tmp_path / "crun", "crun version 1.14")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "PATH", str(tmp_path))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = (await judged(HandlerConfig(shim=shim)))["handlers.x.runtime"]
    assert found.level == "ok"
    assert found.found == f"{crun}: crun version 1.14 ({crun} runs containers here)"
    found = (await judged(HandlerConfig(shim=shim, runtime=crun)))["handlers.x.runtime"]
    assert found.found == f"{crun}: crun version 1.14"
