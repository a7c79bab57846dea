"""Runs a shim's binary: `start`, `delete` and `-info`."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
from google.protobuf.message import DecodeError

from zos_cri import errors
from zos_cri._pb import task_v3_pb2, types_pb2
from zos_cri.linux import blocking, spawn
from zos_cri.linux.mount import unmount_tree
from zos_cri.log import get_log
from zos_cri.shim import bootstrap, direct, processes
from zos_cri.shim.bootstrap import Dialect, DialectCache, Encoding, Identity, Parameters
from zos_cri.shim.client import socket_path
from zos_cri.shim.task import Exit, nanoseconds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

_log = get_log(__name__)

# A start takes 7 ms; on a host that swaps or starts a hundred at once, some seconds.
BOOTSTRAP_TIMEOUT: Final = 10.0
# `delete` runs `runc delete --force`, which waits for the killed processes for up to 10 s.
DELETE_TIMEOUT: Final = 20.0
INFO_TIMEOUT: Final = 10.0
MAX_ANSWER: Final = 1 << 20
_SAID: Final = 500  # bytes of a warning that are worth a line of our log
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Where Go's shims before 2.3 put their sockets, whatever they are told.
_LEGACY_SOCKET_DIR: Final = "/run/containerd/s"
# sun_path has 108 bytes; the shims name their socket by 64 hex digits and allow 106 in all.
MAX_SOCKET_DIR: Final = 106 - 64 - 1


class StartFailed(errors.Internal):
    """A shim's `start` failed, in every dialect that was tried."""


class Runner(Protocol):
    """How a program is run to its end: `linux.spawn.run`."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        timeout: float,
        max_output: int = MAX_ANSWER,
        linger: float = 0,
    ) -> spawn.Completed: ...


def find_binary(shim: str, *, path: str | None = None) -> str:
    """The file of a shim: `a.b.runc.v2` is `containerd-shim-runc-v2` on PATH or in the usual
    places; an absolute path is itself. Resolved through symbolic links: a running pod must keep
    this very file, whatever an upgrade puts in its place.

    Raises:
        InvalidArgument: neither a type name nor an absolute path.
        NotFound: no such executable; the message lists where it was looked for.
    """
    if shim.startswith("/"):
        candidates = [shim]
    else:
        parts = shim.split(".")
        if len(parts) < 2 or "/" in shim or not all(parts[-2:]) or not parts[0]:
            raise errors.InvalidArgument(
                f"shim {shim!r}: want a type name like io.containerd.runc.v2 or an absolute path"
            )
        name = f"containerd-shim-{parts[-2]}-{parts[-1]}"
        given = os.environ.get("PATH", "") if path is None else path
        directories = dict.fromkeys([*given.split(":"), *DEFAULT_PATH.split(":")])
        candidates = [os.path.join(d, name) for d in directories if d.startswith("/")]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.realpath(candidate)
    raise errors.NotFound(f"shim {shim!r}: no executable at {', '.join(candidates)}")


class Launcher:
    """Runs shim binaries.

    Args:
        namespace: of the shims' tasks.
        events_address: where our events server listens; every shim keeps it for its life.
        grpc_address: what containerd's own address would be. Together with namespace and group it
            names a shim's socket, so it must be this installation's alone. Nothing listens there.
        publish_binary: for old shims that publish events by running it.
        socket_dir: for the shims' sockets (from 2.3 on), at most `MAX_SOCKET_DIR` bytes long.
        dialects: what is known of the binaries.
        environment: further variables for the shims (OTEL_…), beside PATH and theirs.
        run: seam for tests.
    """

    def __init__(
        self,
        *,
        namespace: str,
        events_address: str,
        grpc_address: str,
        publish_binary: str,
        socket_dir: str,
        dialects: DialectCache,
        environment: Mapping[str, str] | None = None,
        debug: bool = False,
        run: Runner = spawn.run,
    ) -> None:
        if len(socket_dir.encode()) > MAX_SOCKET_DIR:
            raise errors.InvalidArgument(
                f"shim socket directory {socket_dir}: longer than {MAX_SOCKET_DIR} bytes"
            )
        self._namespace = namespace
        self._events_address = events_address
        self._grpc_address = grpc_address
        self._publish_binary = publish_binary
        self._socket_dir = socket_dir
        self._dialects = dialects
        self._direct: dict[Identity, bool] = {}  # whether each is to be started without its `start`
        self._debug = debug
        self._run = run
        # Nothing else of ours: a shim lives for months, and hands its environment to runc.
        self._environment = {
            "PATH": os.environ.get("PATH", DEFAULT_PATH),
            "TTRPC_ADDRESS": events_address,
            "GRPC_ADDRESS": grpc_address,
            "NAMESPACE": namespace,
            "MAX_SHIM_VERSION": "2",  # as containerd says; it means the shim API, not the Task API
            "GOMAXPROCS": "2",
            **(environment or {}),
        }

    async def start(
        self,
        group: str,
        bundle: Path,
        binary: str,
        options: AnyMessage | None,
        *,
        by_itself: bool = False,
        timeout: float = BOOTSTRAP_TIMEOUT,
    ) -> bootstrap.Result:
        """Starts a group's shim, or finds the one that runs.

        One that says it is containerd's for runc has its server started directly. Any other is
        told to `start` itself: a known binary is spoken to in its dialect; an unknown one in each
        in turn. Whatever a failed try left running is killed. A failure forgets the dialect, so
        that the next try finds out again.

        Args:
            by_itself: always by `start`.
            timeout: seconds for each try.

        Raises:
            StartFailed: the message has every try's reason.
            DeadlineExceeded: it took too long and was killed, with its process group.
        """
        identity = Identity.of(binary)
        if not by_itself and await self._starts_directly(identity, options):
            directly = await self._start_directly(group, bundle, binary, timeout)
            if directly is not None:
                return directly
        parameters = Parameters(
            id=group,
            namespace=self._namespace,
            events_address=self._events_address,
            grpc_address=self._grpc_address,
            publish_binary=self._publish_binary,
            socket_dir=self._socket_dir,
            options=options,
            debug=self._debug,
        )
        failures: list[str] = []
        for dialect in self._dialects.to_try(identity):
            try:
                result = await self._try(bundle, binary, dialect, parameters, timeout)
            except StartFailed as error:
                failures.append(f"given {dialect}: {error}")
                await self.kill(group, bundle)
                continue
            except BaseException:
                await self.kill(group, bundle)
                raise
            self._dialects.learn(identity, dialect)
            return result
        self._dialects.forget(identity)
        raise StartFailed(f"shim {binary} for {group}: start failed: {'; '.join(failures)}")

    async def _starts_directly(self, identity: Identity, options: AnyMessage | None) -> bool:
        if self._debug:  # it would want another socket
            return False
        known = self._direct.get(identity)
        if known is None:
            known = direct.possible(await self.info(identity.path, options))
            self._direct[identity] = known
        return known

    async def _start_directly(
        self, group: str, bundle: Path, binary: str, timeout: float
    ) -> bootstrap.Result | None:
        flags = ("-namespace", self._namespace, "-id", group, "-address", self._grpc_address)
        try:
            return await direct.start(
                [binary, *flags],
                os.path.join(self._socket_dir, self._socket_name(group)),
                bundle=bundle,
                env={**self._environment, "OTEL_SERVICE_NAME": f"containerd-shim-{group}"},
                timeout=timeout,
            )
        except BaseException as error:
            await self.kill(group, bundle)
            if isinstance(error, Exception):
                self.distrust(binary)
            if isinstance(error, OSError):
                raise StartFailed(f"shim {binary} for {group}: {error}") from error
            raise

    def distrust(self, binary: str) -> None:
        """A shim was started and didn't answer: from now on it is told to `start` itself."""
        with contextlib.suppress(OSError):
            identity = Identity.of(binary)
            if self._direct.get(identity):
                _log.warning("shim not started directly any more", shim=binary)
                self._direct[identity] = False

    async def _try(
        self, bundle: Path, binary: str, dialect: Dialect, parameters: Parameters, timeout: float
    ) -> bootstrap.Result:
        done = await self._run(
            self._argv(binary, parameters.id, "start"),
            cwd=bundle,
            env=self._environment,
            stdin=bootstrap.stdin(dialect, parameters),
            timeout=timeout,
            max_output=MAX_ANSWER,
            linger=0,
        )
        if done.returncode != 0:
            raise StartFailed(done.failure())
        try:
            result = bootstrap.parse(done.stdout)
        except errors.Internal as error:
            raise StartFailed(str(error)) from error
        if dialect is Dialect.PARAMS and result.encoding is not Encoding.PROTOBUF:
            raise StartFailed(f"answered in {result.encoding}, so the options weren't seen")
        if result.protocol != "ttrpc":
            raise errors.Unimplemented(f"shim {binary} speaks {result.protocol}, not ttrpc")
        return result

    async def delete(
        self, container: str, bundle: Path, binary: str, *, timeout: float = DELETE_TIMEOUT
    ) -> Exit:
        """Cleans up after a container whose shim is proved dead: kills what is left of it,
        removes the runtime's state and the mounts.

        Returns:
            Its exit: from the shim's own notes where it left any (from 2.3 on), else 137.

        Raises:
            StartFailed: the binary failed.
            DeadlineExceeded: it took too long.
        """
        argv = self._argv(binary, container, "delete", "-bundle", str(bundle))
        done = await self._run(argv, cwd=bundle, env=self._environment, timeout=timeout)
        if done.returncode != 0:
            raise StartFailed(f"delete of {container}: {done.failure()}")
        if done.stderr:
            _log.warning(
                "shim delete", container=container, said=done.stderr[-500:].decode(errors="replace")
            )
        try:
            response = task_v3_pb2.DeleteResponse.FromString(done.stdout)
        except DecodeError as error:
            raise StartFailed(f"delete of {container}: the answer isn't understood") from error
        return Exit(response.exit_status, nanoseconds(response.exited_at), response.pid)

    async def info(self, binary: str, options: AnyMessage | None) -> types_pb2.RuntimeInfo | None:
        """What a shim says of itself and of its OCI runtime; None where it can't (before 2.0)."""
        try:
            done = await self._run(
                [binary, "-info"],
                env=self._environment,
                stdin=options.SerializeToString() if options is not None else b"",
                timeout=INFO_TIMEOUT,
            )
        except errors.DeadlineExceeded as error:
            _log.warning("shim says nothing of itself", shim=binary, error=error)
            return None
        if done.returncode != 0:
            _log.debug("shim says nothing of itself", shim=binary, error=done.failure())
            return None
        try:
            return types_pb2.RuntimeInfo.FromString(done.stdout)
        except DecodeError:
            return None

    async def kill(self, group: str, bundle: Path, address: str = "") -> None:
        """Kills whatever shim of that group runs in that bundle, and removes its socket, also the
        one at its address where that is known."""
        killed = await blocking.call(processes.kill_of_bundle, bundle, group)
        if killed:
            _log.warning("left over shim killed", group=group, pids=killed)
        await blocking.call(self.remove_sockets, group, bundle, address)

    def remove_sockets(self, group: str, bundle: Path, address: str = "") -> None:
        """Removes what a dead shim left: the socket at its address, and those it may have made.

        Blocks for some file operations.
        """
        name = self._socket_name(group)
        paths = [os.path.join(d, name) for d in (self._socket_dir, _LEGACY_SOCKET_DIR)]
        addresses = [address]
        with contextlib.suppress(OSError):
            addresses.append((bundle / "address").read_text(errors="replace").strip())
        for known in filter(None, addresses):
            with contextlib.suppress(errors.Error):
                paths.append(socket_path(known))
        for path in paths:
            with contextlib.suppress(OSError):
                if path.startswith("/") and stat.S_ISSOCK(os.lstat(path).st_mode):
                    os.unlink(path)

    def _socket_name(self, group: str) -> str:
        """What Go's shims call it: the sha256 of <address>/<namespace>/<group>."""
        name = os.path.normpath(f"{self._grpc_address}/{self._namespace}/{group}")
        return hashlib.sha256(name.encode()).hexdigest()

    def _argv(self, binary: str, id_: str, action: str, *flags: str) -> list[str]:
        return [
            binary,
            "-namespace",
            self._namespace,
            "-address",
            self._grpc_address,
            "-publish-binary",
            self._publish_binary,
            "-id",
            id_,
            *(["-debug"] if self._debug else []),
            *flags,
            action,
        ]


def temporary(run: Path) -> Path:
    """Makes the shims' temporary directory, or clears it of what dead ones left mounted there.

    Called before any shim is told to do anything. Blocks.
    """
    path = run / "tmp"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    unmount_tree(str(path), lazy=True)
    for left in path.iterdir():
        # Only what is empty: no mistake here may reach the layers that were mounted.
        with contextlib.suppress(OSError):
            left.rmdir()
    return path


class Features(msgspec.Struct, frozen=True):
    """A handler's RuntimeInfo, as far as we use it."""

    name: str = ""
    version: str = ""
    oci: dict[str, object] = {}
    annotations: dict[str, str] = {}


def features(info: types_pb2.RuntimeInfo) -> Features:
    """The parts of a RuntimeInfo; `oci` is the runtime's features document, {} where none came."""
    oci: dict[str, object] = {}
    with contextlib.suppress(msgspec.DecodeError):
        oci = msgspec.json.decode(info.features.value or b"{}", type=dict[str, object])
    return Features(info.name, info.version.version, oci, dict(info.annotations))
