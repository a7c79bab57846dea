"""The Debian package, installed, upgraded and removed in a root of its own: this host's files below
a writable layer, so that what it depends on is there as it is on this host."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
import tomllib
import zipfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import ROOT
from zos_cri import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.root, pytest.mark.runtime]

DIST = ROOT / "dist"
TIMEOUT = 120.0
UNITS = ("zos-cri.service", "zos-cri-logger.service", "zos-cri.socket")


def built(pattern: str) -> Path:
    """What hack/deb has built of the tree's version."""
    found = [path for path in DIST.glob(pattern) if __version__ in path.name]
    if len(found) != 1:
        pytest.fail(f"{DIST}: not one {pattern}: run hack/deb")
    return found[0]


class Host:
    """A root to change."""

    def __init__(self, place: Path, undo: ExitStack) -> None:
        self.root = place / "root"
        place.mkdir()
        undo.callback(place.rmdir)
        self._undo = undo
        # Private, for pivot_root(2) refuses a root whose parent mount is shared.
        self._mount(place, "-t", "tmpfs", "--make-private", "tmpfs")
        for name in ("root", "upper", "work"):
            (place / name).mkdir()
        layers = f"lowerdir=/,upperdir={place}/upper,workdir={place}/work"
        self._mount(self.root, "-t", "overlay", "-o", layers, "overlay")
        for name in ("proc", "sys", "dev"):
            self._mount(self.root / name, "--rbind", "--make-rslave", f"/{name}")
        self._mount(self.root / "run", "-t", "tmpfs", "-o", "mode=755", "tmpfs")
        # Containers' layers can't be on an overlay.
        state = self.root / "var/lib/zos-cri"
        state.mkdir(parents=True, exist_ok=True)
        self._mount(state, "-t", "tmpfs", "tmpfs")
        self.server: subprocess.Popen[bytes] | None = None
        undo.callback(self.stop)

    def _mount(self, target: Path, *arguments: str) -> None:
        subprocess.run(["mount", *arguments, target], check=True)
        self._undo.callback(subprocess.call, ["umount", "-R", "-l", target])

    def run(self, *command: str, code: int | None = 0) -> str:
        """Runs a command there; what it printed."""
        done = subprocess.run(
            ["chroot", self.root, *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=TIMEOUT,
        )
        assert code in (None, done.returncode), f"{command}: {done.returncode}: {done.stdout}"
        return done.stdout

    def install(self, package: Path) -> str:
        shutil.copy(package, self.root / "tmp" / "zos-cri.deb")
        options = ("--force-unsafe-io", "--force-confdef", "--force-confold")
        return self.run("dpkg", *options, "--install", "/tmp/zos-cri.deb")

    def start(self) -> None:
        """Starts the server that is installed, as the unit does it."""
        log = self.root / "tmp/server.log"
        with log.open("wb") as file:
            self.server = subprocess.Popen(
                ["chroot", self.root, "/usr/bin/zos-cri", "serve"],
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + TIMEOUT
        while b" serving " not in log.read_bytes():
            assert self.server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait(TIMEOUT)
            self.server = None

    def end_logger(self) -> None:
        """It outlives the server; here it keeps the root in use."""
        done = self.run("lslocks", "--noheadings", "--output", "PID,PATH", code=None)
        for line in done.splitlines():
            pid, _, path = line.strip().partition(" ")
            if path.strip().endswith("/zos-cri/logger.sock.lock"):
                os.kill(int(pid), 15)


@pytest.fixture
def host(own_network: None) -> Iterator[Host]:
    with ExitStack() as undo:
        yield Host(Path("/run") / f"zt{secrets.token_hex(3)}", undo)


@pytest.fixture(scope="session")
def package() -> Path:
    return built("zos-cri_*.deb")


@pytest.fixture
def newer(package: Path, tmp_path: Path) -> Path:
    return made_newer(package, tmp_path)


def made_newer(package: Path, scratch: Path) -> Path:
    """The same with another version, and another default for one setting."""
    tree = scratch / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(control.read_text().replace(f"Version: {__version__}", "Version: 99.0"))
    (init,) = tree.glob("usr/lib/zos-cri/lib/python3*/site-packages/zos_cri/__init__.py")
    init.write_text(init.read_text().replace(__version__, "99.0"))
    shutil.rmtree(init.parent / "__pycache__")
    default = tree / "etc/zos-cri/config.toml"
    default.write_text(default.read_text() + "# from 99.0\n")
    made = scratch / "newer.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, made], check=True)
    return made


def test_wheel_has_what_it_needs() -> None:
    with zipfile.ZipFile(built("zos_cri-*.whl")) as wheel:
        names = set(wheel.namelist())
    assert {"zos_cri/_pb/cri_pb2.py", "zos_cri/default.toml", "zos_cri/py.typed"} <= names
    assert not [name for name in names if not name.startswith(("zos_cri/", "zos_cri-"))]


def test_an_installed_package_is_complete(host: Host, package: Path) -> None:
    said = host.install(package)
    assert "rror" not in said
    assert "arning" not in said
    assert host.run("dpkg", "--verify", "zos-cri") == ""
    assert host.run("dpkg", "--audit") == ""
    assert host.run("zos-cri", "--version") == f"zos-cri {__version__}\n"
    assert host.run("zos-cri", "config", "validate") == "/etc/zos-cri/config.toml: ok\n"
    findings = {f["check"]: f for f in json.loads(host.run("zos-cri", "doctor", "-o", "json"))}
    assert findings["handlers.runc.shim"]["level"] == "ok"
    assert "No module" not in host.run("zos-cri", "top", "--once", code=8)
    script = "/usr/share/bash-completion/completions/zos-cri"
    host.run("bash", "-euc", f". {script}; complete -p zos-cri")
    for unit in UNITS:
        # Their targets are outside of this root for whom looks from here.
        enabled = {path.name for path in (host.root / "etc/systemd/system").glob("*.wants/*")}
        assert unit in enabled
        said = host.run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{unit}")
        assert said == "", said
    # No Python of the host's own has a say in it.
    assert "usr/lib/zos-cri" in host.run(
        *("/usr/lib/zos-cri/bin/python3", "-Ic", "import zos_cri; print(zos_cri.__file__)")
    )


def test_containers_outlive_an_upgrade(host: Host, package: Path, newer: Path) -> None:
    host.install(package)
    config = host.root / "etc/zos-cri/config.toml"
    config.write_text(config.read_text().replace("#metrics = ", "metrics = "))
    host.start()
    run = ("zos-cri", "run", "--name", "x", "--flist", "localhost/zos-cri/busybox:latest")
    host.run(*run, "--net", "/proc/1/ns/net", "--", "sleep", "1000")
    try:
        before = json.loads(host.run("zos-cri", "inspect", "x"))
        host.install(newer)
        assert host.run("zos-cri", "--version") == "zos-cri 99.0\n"
        host.stop()
        host.start()
        assert json.loads(host.run("zos-cri", "inspect", "x")) == before
        assert host.run("zos-cri", "exec", "x", "--", "echo", "still there") == "still there\n"
        # What the administrator has changed stays; the new file is beside it.
        assert tomllib.loads(config.read_text())["server"] == {"metrics": "127.0.0.1:9474"}
        assert "# from 99.0" in config.with_suffix(".toml.dpkg-dist").read_text()
    finally:
        host.run("zos-cri", "delete", "x")
        host.stop()
        host.end_logger()


def test_removal_and_purge(host: Host, package: Path) -> None:
    host.install(package)
    host.start()
    host.stop()
    host.end_logger()
    assert (host.root / "var/lib/zos-cri/state.db").exists()
    host.run("dpkg", "--remove", "zos-cri")
    assert not (host.root / "usr/bin/zos-cri").exists()
    assert not (host.root / "usr/lib/zos-cri").exists()
    assert (host.root / "etc/zos-cri/config.toml").exists()
    assert (host.root / "var/lib/zos-cri/state.db").exists()
    host.run("dpkg", "--purge", "zos-cri")
    assert not (host.root / "etc/zos-cri").exists()
    assert not (host.root / "run/zos-cri").exists()
    # The test's own mount is there; what was in it is gone.
    assert list((host.root / "var/lib/zos-cri").iterdir()) == []
    assert "zos-cri" not in host.run("dpkg", "--get-selections")
    assert [path for path in contents(package) if (host.root / path).exists()] == []
    assert not list((host.root / "etc/systemd/system").glob("*.wants/zos-cri*"))


def contents(package: Path) -> list[str]:
    """The files of a package."""
    listed = subprocess.run(
        ["dpkg-deb", "--contents", package], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    names = [line.split(" -> ")[0].split(maxsplit=5)[5] for line in listed]
    return [name for name in names if not name.endswith("/")]


def test_node_script_of_the_chart(host: Host, package: Path, newer: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    there = packages / package.name
    config = tmp_path / "config.toml"
    config.write_text("[log]\nformat = 'json'\n")

    def node(action: str, code: int = 0) -> str:
        done = subprocess.run(
            ["sh", ROOT / "charts/zos-cri/files/node.sh", action],
            env={
                **os.environ,
                "HOST": str(host.root),
                "PACKAGES": str(packages),
                "CONFIG": str(config),
                "KUBELET_CONFIG_DIR": "/etc/kubernetes/kubelet.conf.d",
                "ONCE": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    assert "no package for" in node("install", code=1)
    shutil.copy(package, there)
    node("is-installed", code=1)
    assert f"installing {__version__}" in node("install")
    node("is-installed")
    drop_in = host.root / "etc/kubernetes/kubelet.conf.d/90-zos-cri.conf"
    assert "unix:///run/zos-cri/zos-cri.sock" in drop_in.read_text()
    assert f"{__version__} is installed" in node("install")
    # An upgrade, and a configuration that is wrong: the one that is there stays.
    shutil.copy(newer, packages / package.name.replace(__version__, "99.0"))
    there.unlink()
    node("is-installed", code=1)
    assert f"installing 99.0 over {__version__}" in node("install")
    config.write_text("[log]\nformat = 'loud'\n")
    assert "neither text nor json" in node("install", code=3)
    node("is-installed", code=1)
    assert "'json'" in (host.root / "etc/zos-cri/config.toml").read_text()
    config.write_text("[log]\nformat = 'text'\n")
    assert "the configuration has changed" in node("install")
    node("is-installed")
    node("is-removed", code=1)
    assert "removed" in node("remove")
    node("is-removed")
    assert not drop_in.exists()
    node("remove")
