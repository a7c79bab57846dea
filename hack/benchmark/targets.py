"""The servers that are measured: ours and containerd, started here, or any CRI socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from hack.benchmark.place import accounting, cpu_seconds, memory, processes, times
from hack.benchmark.workload import Cri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hack.benchmark.place import Spot

ROOT: Final = Path(__file__).resolve().parents[2]
TOOLS: Final = ROOT / ".cache" / "tools" / "bin"
START_TIMEOUT: Final = 60.0  # seconds until a server answers
STOP_TIMEOUT: Final = 30.0
SETTLE_TIMEOUT: Final = 5.0  # for shims that are still ending, and the kernel after them
# The machine rests when its CPUs are idle for nine tenths of this time.
REST: Final = 0.2  # seconds
REST_SHARE: Final = 0.9
PLUGINS: Final = ("/opt/cni/bin", "/usr/lib/cni")
OLD_CRUN: Final = 'oci_version = "1.0.2"'  # Debian 12's takes no later one
PAUSE: Final = "registry.k8s.io/pause:3.10.2"


class Target:
    """A CRI socket.

    Args:
        name: in the table.
        endpoint: as gRPC wants it.
        spot: of all of it; pods' cgroups are below its cgroup.
    """

    images: tuple[str, ...] = ()  # that it needs beside the containers'

    def __init__(self, name: str, *, endpoint: str, spot: Spot) -> None:
        self.name = name
        self.endpoint = endpoint
        self.spot = spot
        self.pods_cgroup = f"{spot.cgroup}/pods"

    def start(self) -> None:
        """Makes it serve.

        Raises:
            RuntimeError: it doesn't.
        """

    def stop(self) -> None:
        """Ends it. Idempotent."""

    @property
    def pid(self) -> int:
        """The server's, by its socket; 0 where it can't be seen from here."""
        path = self.endpoint.removeprefix("unix:").removeprefix("//")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int(struct.unpack("3i", credentials)[0])

    def cpu(self) -> float | None:
        """CPU seconds of everything of it and of its pods, so far; None where nobody counts."""
        return None

    def rss(self) -> int:
        """The server's resident memory in bytes."""
        return memory(self.pid, "status", "VmRSS")

    def pss(self) -> dict[str, int]:
        """Proportional set sizes in bytes: server, logger, shims, pause."""
        return {"server": memory(self.pid, "smaps_rollup", "Pss")}


class Started(Target):
    """One that is started here, in a cgroup of its own in which all its processes stay."""

    def __init__(self, name: str, *, socket: str, spot: Spot) -> None:
        super().__init__(name, endpoint=f"unix:{spot.run / socket}", spot=spot)
        self.log = spot.state / "log"
        self._own_cgroup = f"{spot.cgroup}/server"
        self._config = spot.state / "config.toml"
        self._process: subprocess.Popen[bytes] | None = None

    def _argv(self) -> Sequence[str]:
        raise NotImplementedError

    def _environment(self) -> dict[str, str]:
        return {}

    def _working_directory(self) -> Path:
        return Path("/")

    def start(self) -> None:
        own = accounting() / self._own_cgroup.lstrip("/")
        own.mkdir(parents=True, exist_ok=True)
        join = ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', str(own)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*join, *self._argv()],
                env={**os.environ, **self._environment()},
                cwd=self._working_directory(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,  # signals to ours are for us: the pods are removed before it ends
            )
        deadline = time.monotonic() + START_TIMEOUT
        while not self._serves():
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                text = self.log.read_text(errors="replace")[-4000:]
                raise RuntimeError(f"{self.name} doesn't serve (exit code {code}):\n{text}")
            time.sleep(0.05)

    def _serves(self) -> bool:
        path = Path(self.endpoint.removeprefix("unix:"))
        if not path.is_socket():
            return False
        cri = Cri(self.endpoint)
        try:
            return cri.conditions().get("RuntimeReady", False)
        except grpc.RpcError:
            return False
        finally:
            cri.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def cpu(self) -> float:
        return cpu_seconds(self.spot.cgroup)

    def pss(self) -> dict[str, int]:
        found = {"server": 0, "logger": 0, "shims": 0, "pause": 0}
        for pid in processes(self.spot.cgroup):
            kind = self._kind(pid)
            if kind:
                found[kind] += memory(pid, "smaps_rollup", "Pss")
        return found

    def _kind(self, pid: int) -> str:
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return ""
        if pid == self.pid:
            return "server"
        if b"-shim-" in arguments[0]:
            return "shims"
        if b"zos_cri.stdio" in arguments:
            return "logger"
        return "pause" if arguments[0] in (b"/pause", b"catatonit") else ""


class Ours(Started):
    """`zos-cri serve` of a source tree.

    Args:
        variant: `rs` for the shim in Rust, or how many pods share a shim; "" for neither.
    """

    def __init__(
        self,
        name: str,
        spot: Spot,
        setting: Setting,
        *,
        tree: Path,
        runtime: Path,
        variant: str = "",
    ) -> None:
        shim = (
            setting.shim.with_name(f"{setting.shim.name}-rs") if variant == "rs" else setting.shim
        )
        super().__init__(name, socket="zos-cri.sock", spot=spot)
        self._tree = tree
        conf_dir = write_cni(spot.state, setting)
        self._config.write_text(
            f"""
default_handler = "runc"
[server]
run = "{spot.run}"
state = "{spot.state / "zos-cri"}"
logs = "{spot.state / "module-logs"}"
metrics = "127.0.0.1:0"
[cni]
conf_dir = "{conf_dir}"
bin_dirs = {json.dumps(PLUGINS)}
[images]
certs_dirs = ["{setting.certs_d}"]
[nri]
socket = "{spot.run / "nri.sock"}"
plugin_dir = "{spot.state / "nri"}"
plugin_config_dir = "{spot.state / "nri.d"}"
[handlers.runc]
shim = "{shim}"
runtime = "{runtime}"
{OLD_CRUN if runtime.name == "crun" else ""}
{f"pods_per_shim = {variant}" if variant.isdecimal() else ""}
"""
        )

    def _argv(self) -> Sequence[str]:
        return [sys.executable, "-m", "zos_cri", "serve", "--config", str(self._config)]

    def _environment(self) -> dict[str, str]:
        # As it is once installed: compiled, and only once.
        return {
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(self.spot.state / "pycache"),
        }

    def _working_directory(self) -> Path:
        return self._tree  # `-m` looks there first


class Containerd(Started):
    """containerd with its defaults, but for places."""

    images = (PAUSE,)

    def __init__(self, name: str, spot: Spot, setting: Setting, *, runtime: Path) -> None:
        super().__init__(name, socket="containerd.sock", spot=spot)
        conf_dir = write_cni(spot.state, setting)
        # restrict_oom_score_adj: without CAP_SYS_RESOURCE no pod starts otherwise.
        self._config.write_text(
            f"""
version = 3
root = "{spot.state / "root"}"
state = "{spot.run}"
imports = []
[grpc]
address = "{spot.run / "containerd.sock"}"
[ttrpc]
address = "{spot.run / "containerd.sock.ttrpc"}"
[plugins."io.containerd.internal.v1.opt"]
path = "{spot.state / "opt"}"
[plugins."io.containerd.nri.v1.nri"]
socket_path = "{spot.run / "nri.sock"}"
plugin_path = "{spot.state / "nri"}"
plugin_config_path = "{spot.state / "nri.d"}"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{setting.certs_d}"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = {json.dumps(PLUGINS)}
conf_dir = "{conf_dir}"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{setting.shim}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "{runtime}"
[plugins."io.containerd.shim.v1.manager"]
socket_dir = "{spot.run / "s"}"
"""
        )

    def _argv(self) -> Sequence[str]:
        return [str(TOOLS / "containerd"), "--config", str(self._config)]


class Setting:
    """What the targets of a run have in common.

    Args:
        shim, runtime: absolute paths.
        certs_d: registries' hosts.toml, by host.
    """

    def __init__(self, *, shim: Path, runtime: Path, certs_d: Path) -> None:
        self.shim = shim
        self.runtime = runtime
        self.certs_d = certs_d
        self.networks = 0  # that were given out


def settle() -> None:
    """Waits until the machine rests, or for `SETTLE_TIMEOUT`.

    The kernel takes cgroups and mounts apart after the calls that wanted it: the next one's time
    isn't to have that in it.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT
    share, now = 0.0, times()
    while share < REST_SHARE and time.monotonic() < deadline:
        time.sleep(REST)
        before, now = now, times()
        share = (now.idle - before.idle) / (now.passed - before.passed)


def write_cni(directory: Path, setting: Setting) -> Path:
    """A bridge with addresses of its own, port mappings; the folder of the configuration."""
    setting.networks += 1
    number = setting.networks
    bridge: dict[str, Any] = {
        "type": "bridge",
        "bridge": f"bench{number}",
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": f"10.98.{number * 8}.0/21"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(directory / "ipam"),
        },
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conf = {"cniVersion": "1.0.0", "name": f"bench{number}", "plugins": [bridge, portmap]}
    folder = directory / "net.d"
    folder.mkdir(parents=True)
    (folder / "10-bench.conflist").write_text(json.dumps(conf))
    return folder
