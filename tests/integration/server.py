"""A real server for tests: in directories of its own, spoken to over its socket and by crictl."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from tests.conftest import TOOLS
from zos_cri._pb import container_pb2_grpc, cri_pb2, cri_pb2_grpc
from zos_cri.linux.mount import mounts_below

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = "localhost/zos-cri/busybox:latest"
# hack/vm critest sets them: all servers get this cgroup driver, upstream's shim this runtime.
SYSTEMD_CGROUP = os.environ.get("ZOS_CRI_TEST_CGROUP_DRIVER") == "systemd"
RUNTIME = os.environ.get("ZOS_CRI_TEST_RUNTIME") or str(TOOLS / "runc")
# Where the processor is emulated everything takes so many times as long.
SLOWNESS = float(os.environ.get("ZOS_CRI_TEST_SLOWNESS") or 1)
START_TIMEOUT = 30.0 * SLOWNESS
STOP_TIMEOUT = 30.0 * SLOWNESS


def environment() -> dict[str, str]:
    """A server's: the test's as it is now, with its own place for what Python compiles.

    Compiling the server anew takes half of the time of a start; some environments forbid Python to
    keep what it has compiled beside the sources.
    """
    return os.environ | {
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(TOOLS.parents[1] / "pycache"),
    }


@dataclass(frozen=True)
class Runtime:
    """A shim and a runtime to test with."""

    name: str
    shim: str
    runtime: str


DEBIAN = Runtime("debian", "/usr/bin/containerd-shim-runc-v2", "/usr/sbin/runc")
UPSTREAM = Runtime("upstream", str(TOOLS / "containerd-shim-runc-v2"), RUNTIME)
RUNTIMES = (DEBIAN, UPSTREAM)

_NETWORKS = itertools.count()

BRIDGE = {
    "cniVersion": "1.0.0",
    "name": "test",
    "plugins": [
        {
            "type": "bridge",
            "isGateway": True,
            "ipMasq": True,
            "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}]},
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


class Server:
    """`zos-cri serve` as a process of its own."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        cni: bool = False,
        cni_settings: str = "",
        nri_settings: str = "",
        extra: str = "",
        before: tuple[str, ...] = (),
        warm: int = 0,
    ) -> None:
        """
        Args:
            cni: pods are on a bridge.
            cni_settings: more of the configuration's section `cni`.
            nri_settings: more of the configuration's section `nri`.
            extra: more of the configuration.
            before: a command that runs the server's, and becomes it.
            warm: shims to keep warm.
        """
        self.runtime = runtime
        self._before = before
        self.tag = f"zt{secrets.token_hex(3)}"
        # A bridge stays until the run ends: with a subnet that another one has, nothing gets back.
        self.network = f"10.99.{1 + next(_NETWORKS) % 255}"
        # Short, for unix sockets have 107 characters; and not below /tmp, which may be an overlay.
        self.run = Path("/run") / self.tag
        self.state = Path("/var/lib") / self.tag
        self.socket = self.run / "zos-cri.sock"
        self.logs = self.state / "logs"
        self.cgroup = f"/{self.tag}.slice" if SYSTEMD_CGROUP else f"/{self.tag}"
        self.log = self.state / "server.log"
        self.cni = cni
        self.conf_dir = self.state / "net.d"
        self.process: subprocess.Popen[bytes] | None = None
        self.pass_fds: tuple[int, ...] = ()  # to `before`
        for directory in (self.run, self.state, self.logs, self.conf_dir):
            directory.mkdir(parents=True)
        self.config = self.state / "config.toml"
        self.config.write_text(
            f"""
default_handler = "runc"
[server]
run = "{self.run}"
state = "{self.state}"
logs = "{self.logs}"
metrics = "127.0.0.1:0"
[log]
level = "debug"
[cni]
conf_dir = "{self.conf_dir}"
{cni_settings}
[nri]
socket = "{self.run}/nri.sock"
plugin_dir = "{self.state}/nri/plugins"
plugin_config_dir = "{self.state}/nri/conf.d"
{nri_settings}
[handlers.runc]
shim = "{runtime.shim}"
runtime = "{runtime.runtime}"
warm_shims = {warm}
systemd_cgroup = {str(SYSTEMD_CGROUP).lower()}
{extra}
"""
        )
        if cni:
            self._write_cni()

    def _write_cni(self) -> None:
        conf: dict[str, Any] = json.loads(json.dumps(BRIDGE))
        bridge = conf["plugins"][0]
        bridge["bridge"] = self.tag
        bridge["ipam"]["ranges"] = [[{"subnet": f"{self.network}.0/24"}]]
        bridge["ipam"]["dataDir"] = str(self.state / "ipam")
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(conf))

    # ---- the process

    def start(self) -> None:
        """Starts it, and waits until it has recovered."""
        self.wait_until_ready(self.launch())

    def launch(self) -> int:
        """Starts it, and doesn't wait; where its log begins."""
        with self.log.open("ab") as log:
            begin = log.tell()
            self.process = subprocess.Popen(
                [
                    *self._before,
                    *(sys.executable, "-m", "zos_cri", "serve", "--config", str(self.config)),
                ],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                pass_fds=self.pass_fds,
                env=environment(),
            )
        return begin

    def wait_until_ready(self, begin: int) -> None:
        """Waits until the log says so behind this offset."""
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not self.is_ready(begin):
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                raise AssertionError(f"server: exit code {code}: {self._since(begin).decode()}")
            time.sleep(0.02)

    def is_ready(self, begin: int) -> bool:
        """Whether the log says so behind this offset."""
        return b"zos_cri.app.server serving" in self._since(begin)

    def _since(self, offset: int) -> bytes:
        with self.log.open("rb") as log:
            log.seek(offset)
            return log.read()

    def kill(self) -> None:
        """SIGKILL: it gets no chance to put anything in order."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as systemd does it."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(STOP_TIMEOUT)
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    @property
    def rss(self) -> int:
        """Resident memory in bytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def metrics_url(self) -> str:
        line = [x for x in self.log.read_text().splitlines() if "metrics address=" in x][-1]
        return f"http://{line.rsplit('address=', 1)[1]}/metrics"

    # ---- clients

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        with grpc.insecure_channel(f"unix:{self.socket}") as channel:
            yield channel

    @contextmanager
    def cri(self) -> Iterator[Any]:
        """The stub of RuntimeService."""
        with self.channel() as channel:
            yield cri_pb2_grpc.RuntimeServiceStub(channel)

    @contextmanager
    def module(self) -> Iterator[Any]:
        """The stub of zos.container.v1."""
        with self.channel() as channel:
            yield container_pb2_grpc.ContainerModuleStub(channel)

    def ask(self, method: str, request: Any, *, patience: float = 120.0) -> Any:
        """One RPC, asked again for as long as the server is being killed, as a kubelet does it."""
        gone = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        deadline = time.monotonic() + patience
        while True:
            try:
                with self.channel() as channel:
                    runtime = cri_pb2_grpc.RuntimeServiceStub(channel)
                    images = cri_pb2_grpc.ImageServiceStub(channel)
                    call = getattr(runtime, method, None) or getattr(images, method)
                    return call(request, timeout=60)
            except grpc.RpcError as error:
                if error.code() not in gone or time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def crictl(self, *arguments: str, check: bool = True, timeout: float = 60) -> str:
        """Runs crictl; its standard output."""
        endpoint = f"unix://{self.socket}"
        done = subprocess.run(
            [
                *(TOOLS / "crictl", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint),
                *arguments,
            ],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"crictl {' '.join(arguments)}: {done.stderr}{done.stdout}")
        return done.stdout.strip() if check else done.stdout + done.stderr

    def cli(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Runs `zos-cri` with our socket."""
        command, *rest = arguments
        return subprocess.run(
            [sys.executable, "-m", "zos_cri", command, "--socket", str(self.socket), *rest],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment(),
        )

    def audit(self, *arguments: str) -> list[dict[str, Any]]:
        """What `zos-cri audit` finds, or with `--fix` leaves."""
        argv = [sys.executable, "-m", "zos_cri", "audit", "--config", str(self.config)]
        done = subprocess.run(
            [*argv, "-o", "json", *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert done.stdout, done.stderr
        answer = json.loads(done.stdout)
        removed = answer["fixed"]["removed"] if answer["fixed"] else []
        left = [finding for finding in answer["findings"] if finding not in removed]
        counted = [finding for finding in left if finding["verdict"] != "unproved"]
        assert done.returncode == (1 if counted else 0), done.stderr
        return counted

    # ---- configurations

    def pod(
        self, name: str = "pod", *, host_network: bool | None = None, **fields: Any
    ) -> cri_pb2.PodSandboxConfig:
        """A pod's configuration: on the host's network unless CNI is configured."""
        on_host = not self.cni if host_network is None else host_network
        node = cri_pb2.NamespaceMode.NODE if on_host else cri_pb2.NamespaceMode.POD
        options = cri_pb2.NamespaceOption(
            network=node, pid=fields.pop("pid", cri_pb2.NamespaceMode.CONTAINER)
        )
        return cri_pb2.PodSandboxConfig(
            metadata=cri_pb2.PodSandboxMetadata(
                name=name, namespace="test", uid=f"{self.tag}-{name}"
            ),
            log_directory=str(self.logs / name),
            linux=cri_pb2.LinuxPodSandboxConfig(
                cgroup_parent=self.cgroup,
                security_context=cri_pb2.LinuxSandboxSecurityContext(namespace_options=options),
            ),
            **fields,
        )

    def container(
        self, *command: str, name: str = "main", **fields: Any
    ) -> cri_pb2.ContainerConfig:
        """A container's configuration."""
        return cri_pb2.ContainerConfig(
            metadata=cri_pb2.ContainerMetadata(name=name),
            image=fields.pop("image", cri_pb2.ImageSpec(image=IMAGE)),
            command=command or ("sleep", "1000"),
            log_path=f"{name}.log",
            **fields,
        )

    def run_pod(self, cri: Any, name: str = "pod", *, handler: str = "", **fields: Any) -> str:
        config = self.pod(name, **fields)
        request = cri_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(cri.RunPodSandbox(request).pod_sandbox_id)

    def run_container(self, cri: Any, pod: str, *command: str, **fields: Any) -> str:
        """Creates and starts a container."""
        config = self.container(*command, **fields)
        request = cri_pb2.CreateContainerRequest(pod_sandbox_id=pod, config=config)
        id_ = str(cri.CreateContainer(request).container_id)
        cri.StartContainer(cri_pb2.StartContainerRequest(container_id=id_))
        return id_

    # ---- the end

    def remove_pods(self) -> None:
        with self.cri() as cri:
            for pod in cri.ListPodSandbox(cri_pb2.ListPodSandboxRequest()).items:
                cri.StopPodSandbox(cri_pb2.StopPodSandboxRequest(pod_sandbox_id=pod.id))
                cri.RemovePodSandbox(cri_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod.id))

    def leftovers(self) -> list[str]:
        """What is there of pods and containers: nothing, once all were removed."""
        found = [f"process {pid}: {line}" for pid, line in self.processes()]
        mounts = [*mounts_below(str(self.run)), *mounts_below(str(self.state))]
        found += [f"mount {m.target}" for m in mounts]
        for name in ("bundles", "sandboxes", "exec", "fifo", "runtime/zos", "s"):
            directory = self.run / name
            if directory.exists():
                found += [str(path) for path in directory.iterdir()]
        for name in ("images/containers", "rootfs", "cni", "ipam"):
            directory = self.state / name
            if directory.exists():
                found += [
                    str(path)
                    for path in directory.rglob("*")
                    if path.is_file() and not path.name.startswith(("last_reserved_ip", "lock"))
                ]
        found += [str(path) for path in self.cgroups() if path.parent.name == self.cgroup[1:]]
        return found

    def processes(self) -> list[tuple[int, str]]:
        """Shims and containers of this server, not itself and not its logger."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                cgroup = (entry / "cgroup").read_text()
            except OSError:
                continue
            shim = "-shim-" in line and str(self.socket) in line
            if shim or f"/{self.tag}" in cgroup:
                found.append((int(entry.name), line))
        return found

    def cgroups(self) -> list[Path]:
        """The directories at and below our cgroup, deepest first, in every hierarchy."""
        roots = [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").iterdir()]
        found: list[Path] = []
        for root in roots:
            top = root / self.cgroup[1:]
            if top.is_dir():
                found += [Path(parent) for parent, _, _ in os.walk(top, topdown=False)]
        return found

    def destroy(self) -> None:
        """Ends and removes everything, however the test went."""
        try:
            if self.process is None:
                self.start()
            self.remove_pods()
        finally:
            self.stop()
            self._end_logger()
            for pid, _ in self.processes():
                os.kill(pid, signal.SIGKILL)
            for directory in (self.run, self.state):
                for mount in reversed(mounts_below(str(directory))):
                    subprocess.run(["umount", "-l", mount.target], check=False)
                shutil.rmtree(directory, ignore_errors=True)
            if SYSTEMD_CGROUP:
                subprocess.run(["systemctl", "stop", self.cgroup[1:]], check=False)
            for cgroup in self.cgroups():
                cgroup.rmdir()

    def _end_logger(self) -> None:
        """SIGTERM to the logger: it outlives every server."""
        for pid in self.loggers():
            with contextlib.suppress(ProcessLookupError):  # it goes when nothing is left to write
                os.kill(pid, signal.SIGTERM)

    def loggers(self) -> Iterator[int]:
        """The logger and its keeper."""
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"zos_cri.stdio" in words and str(self.run / "logger.sock").encode() in words:
                yield int(entry.name)

    def logger_pid(self) -> int:
        """The logger; its keeper is a fork of it."""
        return min(self.loggers())


@contextmanager
def serving(runtime: Runtime, **options: Any) -> Iterator[Server]:
    """A started server; whatever is left of it is removed at the end."""
    server = Server(runtime, **options)
    try:
        server.start()
        yield server
    except BaseException:
        print(server.log.read_text()[-20_000:])
        raise
    finally:
        server.destroy()
