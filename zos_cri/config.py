"""The configuration: one TOML file, checked whole before anything starts.

An unknown key, a wrong type or an impossible value is an error that names the file and the key.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec

from zos_cri import failpoints
from zos_cri.config_handlers import BlockIoEntry, HandlerConfig, block_io, check, shim_handler
from zos_cri.errors import InvalidArgument
from zos_cri.log import FORMATS, LEVELS
from zos_cri.shim.handler import SHIM
from zos_cri.wire.crilog import MIN_LINE

if TYPE_CHECKING:
    from zos_cri.shim.handler import Handler

DEFAULT_PATH: Final = Path("/etc/zos-cri/config.toml")
CONFIG_LIMIT: Final = 1 << 20  # bytes; a configuration is a few KiB

SOCKET_PATH_LIMIT: Final = 107  # bytes: unix(7)
WARM_SHIMS: Final = 4  # 4 MiB each; a kubelet that starts several pods at once is served by them

Seconds = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class ServerConfig(_Section, frozen=True):
    """Where the server listens and keeps things."""

    socket: str = ""  # "" = <run>/zos-cri.sock
    socket_gid: NotNegative = 0  # group of the socket; it is 0600 for gid 0, else 0660
    state: str = "/var/lib/zos-cri"
    run: str = "/run/zos-cri"
    logs: str = "/var/log"  # the module's <ns>/<name>.log
    # turned on for the whole host at start; stays on until the host is restarted
    favordynmods: bool = False
    # "" = no metrics; a port of 0 takes any free one
    metrics: str = "127.0.0.1:9474"


class LogConfig(_Section, frozen=True):
    """Our own log."""

    level: str = "info"
    format: str = "text"


class CniConfig(_Section, frozen=True):
    """How pods are connected."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    conf_template: str = ""  # rendered at UpdateRuntimeConfig; "" = none
    max_conf_num: NotNegative = 1  # networks of each pod, in the order of their files; 0 = all
    # which of a pod's addresses is its first; "cni" = the plugins' first
    ip_preference: Literal["ipv4", "ipv6", "cni"] = "ipv4"
    plugin_timeout: Seconds = 60.0  # an IPAM plugin that asks a slow API server needs many seconds


class CdiConfig(_Section, frozen=True):
    """Devices that vendors describe (Container Device Interface)."""

    dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")  # a later one's device is taken first


class NriConfig(_Section, frozen=True):
    """Plugins that watch and change pods and containers (Node Resource Interface)."""

    enabled: bool = True
    socket: str = "/var/run/nri/nri.sock"  # where plugins look for it by themselves
    disable_connections: bool = False  # no socket: installed plugins only
    plugin_dir: str = "/opt/nri/plugins"  # started with the server: files named NN-name
    plugin_config_dir: str = "/etc/nri/conf.d"  # NN-name.conf or name.conf
    registration_timeout: Seconds = 5.0
    request_timeout: Seconds = 2.0  # a plugin that takes longer for an answer is closed


class ImageConfig(_Section, frozen=True):
    """Where images come from."""

    # <host>/hosts.toml below these: mirrors, CAs, certificates; the first that knows a host counts
    certs_dirs: tuple[str, ...] = ("/etc/zos-cri/certs.d", "/etc/containerd/certs.d")
    busybox: str = "/bin/busybox"  # what the built-in image is made of; must be static
    # a connection that brings less for so many seconds is given up, for a new one or the next host
    min_throughput: Annotated[float, msgspec.Meta(ge=0)] = 1024.0  # bytes a second
    stall_timeout: Seconds = 30.0
    connections: Annotated[int, msgspec.Meta(ge=1, le=64)] = 6  # to registries, of one pull
    max_layer_bytes: Annotated[int, msgspec.Meta(gt=0)] = 1 << 40  # of one layer, unpacked
    min_free_bytes: NotNegative = 256 << 20  # of the disk; pulls leave it alone
    # containers-policy.json(5): what must be signed, and by whom; "" = nothing must
    signature_policy: str = ""
    registries_d: str = "/etc/containers/registries.d"  # where simple signing's signatures are


class ContainerLogConfig(_Section, frozen=True):
    """CRI container logs."""

    max_line_size: NotNegative = 16384  # bytes, 64 at least; longer lines are split, 0 = never
    # seconds for which a log's file system may refuse (full, over quota, broken) while the
    # container waits; then output is dropped and counted, until it takes some again; 0 = never
    drop_after: Annotated[float, msgspec.Meta(ge=0)] = 30.0
    start_logger: bool = True  # where none is there; false where a service manager runs it


class StreamingConfig(_Section, frozen=True):
    """The HTTP server of exec, attach and port-forward."""

    address: str = "127.0.0.1:0"  # port 0 = any free one; or a unix socket's path
    tls_cert: str = ""
    tls_key: str = ""
    creation_timeout: Seconds = 30.0
    idle_timeout: Seconds = 4 * 3600.0


class ExecConfig(_Section, frozen=True):
    """Exec and the end of containers."""

    # how long a child that keeps the output open can hold an exit back
    drain_timeout: Seconds = 2.0


class StatsConfig(_Section, frozen=True):
    """What containers and pods use."""

    # between two readings of all of them; a list asked for more often makes them come sooner
    interval: Seconds = 10.0
    # cgroup files kept open, 12 a container on cgroup v1: reading is then 2 to 4 times cheaper
    open_files: Annotated[int, msgspec.Meta(ge=0)] = 8192


class MetricsConfig(_Section, frozen=True):
    """What is shown of the server's own work."""

    containerd_names: bool = False  # beside ours, for dashboards that were made for containerd


class Config(_Section, frozen=True):
    """All of it. Every default works on a fresh Debian 12."""

    server: ServerConfig = ServerConfig()
    log: LogConfig = LogConfig()
    cni: CniConfig = CniConfig()
    cdi: CdiConfig = CdiConfig()
    nri: NriConfig = NriConfig()
    images: ImageConfig = ImageConfig()
    container_log: ContainerLogConfig = ContainerLogConfig()
    streaming: StreamingConfig = StreamingConfig()
    exec: ExecConfig = ExecConfig()
    stats: StatsConfig = StatsConfig()
    metrics: MetricsConfig = MetricsConfig()
    init: str = "catatonit"  # holds the pid namespace of pods that share one: a name or a path
    failpoints: dict[str, str] = {}  # for tests of faults: point → what happens there
    default_handler: str = "runc"
    handlers: dict[str, HandlerConfig] = msgspec.field(
        default_factory=lambda: {"runc": HandlerConfig()}
    )
    # what the annotations blockio-class and rdt-class of containers can name
    blockio_classes: dict[str, tuple[BlockIoEntry, ...]] = {}
    rdt_classes: tuple[str, ...] = ()

    @property
    def state_dir(self) -> Path:
        return Path(self.server.state)

    @property
    def run_dir(self) -> Path:
        return Path(self.server.run)

    @property
    def socket(self) -> Path:
        return Path(self.server.socket) if self.server.socket else self.run_dir / "zos-cri.sock"

    @property
    def logger_socket(self) -> Path:
        return self.run_dir / "logger.sock"

    @property
    def logger_state(self) -> Path:
        return self.run_dir / "logger"

    @property
    def checkpoints(self) -> Path:
        """What is being captured or restored."""
        return self.state_dir / "checkpoints"


def load(path: Path | None = None) -> Config:
    """Reads a configuration file; without a path, the default one where it exists.

    Raises:
        InvalidArgument: it can't be read, is no TOML, or says something impossible.
    """
    if path is None:
        if not DEFAULT_PATH.exists():
            return Config()
        path = DEFAULT_PATH
    try:
        with path.open("rb") as file:
            text = file.read(CONFIG_LIMIT + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    if len(text) > CONFIG_LIMIT:
        raise InvalidArgument(f"{path}: larger than {CONFIG_LIMIT} bytes")
    return parse(text, str(path))


def parse(text: bytes, name: str) -> Config:
    """The configuration in a TOML text; `name` stands in errors.

    Raises:
        InvalidArgument: it is no TOML, or says something impossible.
    """
    try:
        config = msgspec.convert(tomllib.loads(text.decode()), Config)
    except (ValueError, RecursionError) as error:  # msgspec's and tomllib's are ValueErrors
        raise InvalidArgument(f"{name}: {error}") from error
    _check(config, name)
    try:
        for point, action in config.failpoints.items():
            failpoints.parse(point, action)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}") from None
    return config


def _check(config: Config, name: str) -> None:
    if config.default_handler not in config.handlers:
        raise InvalidArgument(
            f'{name}: default_handler: there is no handler "{config.default_handler}", only '
            + ", ".join(sorted(config.handlers))
        )
    for key, value in (
        ("server.state", config.server.state),
        ("server.run", config.server.run),
        ("server.logs", config.server.logs),
        ("server.socket", str(config.socket)),
        ("cni.conf_dir", config.cni.conf_dir),
        ("nri.socket", config.nri.socket),
        ("nri.plugin_dir", config.nri.plugin_dir),
        ("nri.plugin_config_dir", config.nri.plugin_config_dir),
        ("images.registries_d", config.images.registries_d),
        ("images.signature_policy", config.images.signature_policy or "/"),
        *(("cni.bin_dirs", directory) for directory in config.cni.bin_dirs),
        *(("cdi.dirs", directory) for directory in config.cdi.dirs),
    ):
        if not value.startswith("/"):
            raise InvalidArgument(f'{name}: {key}: "{value}" is not an absolute path')
    for key, value in (("server.socket", str(config.socket)), ("nri.socket", config.nri.socket)):
        if len(os.fsencode(value)) > SOCKET_PATH_LIMIT:
            raise InvalidArgument(
                f"{name}: {key}: {value} is longer than {SOCKET_PATH_LIMIT} bytes"
            )
    if config.server.metrics and not _is_address(config.server.metrics):
        raise InvalidArgument(f'{name}: server.metrics: "{config.server.metrics}" is not HOST:PORT')
    if config.log.level not in LEVELS:
        raise InvalidArgument(f'{name}: log.level: "{config.log.level}" is not a level')
    if config.log.format not in FORMATS:
        raise InvalidArgument(f'{name}: log.format: "{config.log.format}" is neither text nor json')
    _check_streams(config, name)
    try:
        _check_handlers(config)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error}") from error


def _check_streams(config: Config, name: str) -> None:
    most = config.container_log.max_line_size
    if 0 < most < MIN_LINE:
        what = f"{most} is under {MIN_LINE}, and not 0 for no limit"
        raise InvalidArgument(f"{name}: container_log.max_line_size: {what}")
    address = config.streaming.address
    if not address.startswith("/") and not _is_address(address):
        raise InvalidArgument(f'{name}: streaming.address: "{address}" is not HOST:PORT or a path')
    if bool(config.streaming.tls_cert) != bool(config.streaming.tls_key):
        raise InvalidArgument(f"{name}: streaming: tls_cert and tls_key go together")


def _check_handlers(config: Config) -> None:
    for handler, settings in config.handlers.items():
        check(handler, settings)
    for key, entries in config.blockio_classes.items():
        block_io(key, entries)


def _is_address(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and int(port) < 65536


def warm_shims(config: Config) -> dict[str, int]:
    """How many shims are kept warm, by handler."""
    return {
        name: (WARM_SHIMS if name == config.default_handler and handler.sandboxer != SHIM else 0)
        if handler.warm_shims < 0
        else handler.warm_shims
        for name, handler in config.handlers.items()
    }


def pods_per_shim(config: Config) -> dict[str, int]:
    """How many pods a shim holds at once, by handler."""
    return {name: handler.pods_per_shim for name, handler in config.handlers.items()}


def handlers(config: Config) -> dict[str, Handler]:
    """The handlers in the shim layer's terms."""
    root = str(config.run_dir / "runtime")
    return {
        name: shim_handler(name, handler, root=root) for name, handler in config.handlers.items()
    }
