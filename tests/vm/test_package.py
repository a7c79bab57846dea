"""The Debian package under systemd, and a kubelet's first pod on it as README shows it.

For a machine that is nobody else's: `hack/vm run python -m pytest -q tests/vm` (hack/deb first).
The tests are a story, and run in their order.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.integration.test_package import UNITS, built, made_newer
from zos_cri import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.root,
    pytest.mark.runtime,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not Path("/etc/systemd/system/hack-vm.service").exists(),
        reason="changes the machine: hack/vm run python -m pytest -q tests/vm",
    ),
]

SERVER, LOGGER, SOCKET = UNITS
# Not the Python that runs the tests: its zos-cri is the source tree's.
ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "DEBIAN_FRONTEND": "noninteractive",
}
TIMEOUT = 300.0
COUNTING = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done"


def run(*command: str | Path, code: int | None = 0) -> str:
    """Runs a command; what it printed."""
    done = subprocess.run(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert code in (None, done.returncode), f"{command}: {done.returncode}: {done.stdout}"
    return done.stdout


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < deadline, f"not within {TIMEOUT:g} s: {what}"
        time.sleep(0.2)


def install(package: Path) -> str:
    return run("dpkg", "--force-unsafe-io", "--force-confold", "--install", package)


def of_unit(unit: str, *names: str) -> dict[str, str]:
    """Properties that systemd has of a unit."""
    said = run("systemctl", "show", unit, f"--property={','.join(names)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def main_pid(unit: str = SERVER) -> int:
    return int(of_unit(unit, "MainPID")["MainPID"])


def active(unit: str) -> str:
    return run("systemctl", "is-active", unit, code=None).strip()


def container() -> dict[str, Any]:
    return dict(json.loads(run("zos-cri", "inspect", "counting")))


def numbers() -> list[int]:
    """The container's log."""
    return [int(line) for line in run("zos-cri", "logs", "counting").split()]


def lines_come() -> None:
    before = len(numbers())
    until(lambda: len(numbers()) > before, "the container's lines are written")


@pytest.fixture(scope="module")
def package() -> Iterator[Path]:
    """It is installed; nothing of it afterwards."""
    found = built("zos-cri_*.deb")
    install(found)
    yield found
    run("dpkg", "--purge", "zos-cri")


@pytest.fixture(scope="module")
def counting(package: Path) -> Iterator[dict[str, Any]]:
    """A container, from before all that happens to the services."""
    words = ("run", "--name", "counting", "--flist", "localhost/zos-cri/busybox:latest")
    run("zos-cri", *words, "--net", "/proc/1/ns/net", "--", "sh", "-c", COUNTING)
    yield container()
    if Path("/usr/bin/zos-cri").exists():  # else it is removed, as it should be by then
        run("zos-cri", "delete", "counting", code=None)


def test_the_services_run_when_it_is_installed(package: Path) -> None:
    assert {unit: active(unit) for unit in UNITS} == dict.fromkeys(UNITS, "active")
    assert {run("systemctl", "is-enabled", unit) for unit in UNITS} == {"enabled\n"}
    names = ("Type", "KillMode", "Delegate", "WatchdogUSec", "NRestarts")
    assert of_unit(SERVER, *names) == {
        "Type": "notify",
        "KillMode": "process",
        "Delegate": "yes",
        "WatchdogUSec": "30s",
        "NRestarts": "0",
    }
    assert run("zos-cri", "ps") != ""
    found = json.loads(run("zos-cri", "doctor", "-o", "json"))
    assert [each for each in found if each["level"] == "fail"] == []
    # The logger is held to what it needs, the server is not: its containers would be, too.
    status = {unit: Path(f"/proc/{main_pid(unit)}/status").read_text() for unit in (SERVER, LOGGER)}
    assert "NoNewPrivs:\t1" in status[LOGGER]
    assert "Seccomp:\t2" in status[LOGGER]
    assert "NoNewPrivs:\t0" in status[SERVER]


def test_a_pod_is_below_systemds_slices(counting: dict[str, Any]) -> None:
    pid = counting["pid"]
    assert Path(f"/proc/{pid}/cgroup").read_text().startswith("0::/")
    assert main_pid() != pid


def test_callers_wait_while_a_killed_server_comes_back(counting: dict[str, Any]) -> None:
    """The socket is systemd's."""
    for number in range(3):
        os.kill(main_pid(), signal.SIGKILL)
        assert container() == counting
        assert of_unit(SERVER, "NRestarts") == {"NRestarts": str(number + 1)}
    lines_come()


def test_the_watchdog_ends_a_server_that_stands_still(counting: dict[str, Any]) -> None:
    before = main_pid()
    os.kill(before, signal.SIGSTOP)
    until(lambda: main_pid() not in (0, before), "another one runs")
    assert container() == counting


def test_containers_outlive_a_stop_of_everything(counting: dict[str, Any]) -> None:
    run("systemctl", "stop", *UNITS)
    assert Path(f"/proc/{counting['pid']}").exists()
    run("systemctl", "start", *UNITS)
    assert container() == counting
    lines_come()


def test_a_restart_of_the_logger_loses_no_line(counting: dict[str, Any]) -> None:
    for signal_name in ("SIGTERM", "SIGKILL"):
        before = main_pid(LOGGER)
        run("systemctl", "kill", f"--signal={signal_name}", "--kill-who=main", LOGGER)
        until(lambda old=before: main_pid(LOGGER) not in (0, old), "another one")  # type: ignore[misc]
        lines_come()
    found = numbers()
    assert found == list(range(len(found)))


def test_an_upgrade(counting: dict[str, Any], package: Path, tmp_path: Path) -> None:
    before = main_pid()
    install(made_newer(package, tmp_path))
    assert run("zos-cri", "--version") == "zos-cri 99.0\n"
    assert main_pid() not in (0, before)
    assert container() == counting
    found = numbers()
    assert found == list(range(len(found)))
    assert {unit: active(unit) for unit in UNITS} == dict.fromkeys(UNITS, "active")
    run("dpkg", "--force-unsafe-io", "--force-downgrade", "--install", package)
    assert run("zos-cri", "--version") == f"zos-cri {__version__}\n"
    assert container() == counting


def test_a_reload_reads_the_configuration(counting: dict[str, Any]) -> None:
    config = Path("/etc/zos-cri/config.toml")
    text = config.read_text()
    config.write_text(text.replace("#metrics = ", "metrics = "))
    try:
        before = main_pid()
        run("systemctl", "reload", SERVER)
        log = ("journalctl", "--unit", SERVER, "--output=cat", "--no-pager")
        until(lambda: "127.0.0.1:9474" in run(*log), "metrics are served")
        assert main_pid() == before
        assert container() == counting
    finally:
        config.write_text(text)


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
def test_readme_kubelet(counting: dict[str, Any], driver: str, tmp_path: Path) -> None:
    """The first pod, by the commands of README; only what needs a network is left out."""
    if driver == "systemd":
        config = Path("/etc/zos-cri/config.toml")
        text = config.read_text().replace("#systemd_cgroup = false", "systemd_cgroup = true", 1)
        config.write_text(text)
        run("systemctl", "restart", SERVER)
    section = (ROOT / "README.md").read_text().split("\n## The kubelet\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    fetch = "until busybox wget -q -O - http://127.0.0.1:8080; do sleep 1; done"
    for shown, here in (
        (r"^apt-get .*", ""),
        (r"^hack/kubelet build$", f"cd {ROOT}; test -x .cache/tools/bin/kubelet"),
        (r"^curl .*", fetch),
        (r"(?<= --manifests )pods", str(tmp_path / "pods")),
        (r"(?<=>)kubelet\.log", str(tmp_path / "kubelet.log")),
    ):
        block, count = re.subn(shown, here, block, flags=re.MULTILINE)
        assert count, shown
    slices = "/sys/fs/cgroup/" + {"cgroupfs": "kubepods", "systemd": "kubepods.slice"}[driver]
    cgroup = f"ls {slices}; rm {tmp_path}/pods/web.json; "
    gone = "while zos-cri top --once | grep -q httpd; do sleep 1; done; kill %1; wait"
    try:
        said = run("bash", "-euc", f"cd {tmp_path}\n{block}\n{cgroup}\n{gone}\n")
    except BaseException:
        print((tmp_path / "kubelet.log").read_text()[-6000:])
        raise
    assert "hello" in said
    assert re.search(r"^default +web-\S+ +httpd ", said, re.MULTILINE), said
    name = {"cgroupfs": "besteffort", "systemd": "kubepods-besteffort.slice"}[driver]
    assert name in said.splitlines(), said


def test_removal(counting: dict[str, Any], package: Path) -> None:
    """Containers are told of, and left to their shims; a new installation has them again."""
    assert "containers still run" in run("dpkg", "--remove", "zos-cri")
    assert {active(unit) for unit in UNITS} == {"inactive"}
    assert Path(f"/proc/{counting['pid']}").exists()
    install(package)
    assert container() == counting
    run("zos-cri", "delete", "counting")
    said = run("dpkg", "--purge", "zos-cri")
    assert "still" not in said, said
    assert not Path("/var/lib/zos-cri").exists()
    assert not Path("/run/zos-cri").exists()
    assert not Path("/etc/zos-cri").exists()
    assert run("pgrep", "-af", "containerd-shim|/usr/lib/zos-cri", code=1) == ""
