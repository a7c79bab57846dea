"""Running one CNI plugin: its environment, its standard input, and what to make of its answer.

Source of the rules: the CNI specification 1.1.0, section 2, and section 3 ("Deriving request
configuration"). A plugin is a program of someone else's that may fail, hang, be killed, flood us or
answer nonsense: each ends in one error that names the network, the plugin, the command and the
time it took.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from zos_cri.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from zos_cri.linux import spawn
from zos_cri.log import get_log
from zos_cri.network import result as results
from zos_cri.network.conf import VERSIONS, PluginConf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_log = get_log(__name__)

# A result has a few KiB. What a plugin prints beyond this is dropped, and the answer refused.
MAX_OUTPUT: Final = 1 << 20
# Bytes of a plugin's own words in an error.
MAX_WORDS: Final = 2048
# An installer that writes over a plugin in place makes exec fail with ETXTBSY until it is done,
# and there is nothing to wait on but time. (libcni tries for 5 s, a second each.)
BUSY_TIMEOUT: Final = 5.0
BUSY_INTERVAL: Final = 0.1
# Descriptors and addresses that systemd meant for us alone.
_OURS: Final = ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "CNI_", "GRPC_")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PluginFailed(Unavailable):
    """A plugin said no, or ended without a word.

    Attributes:
        code: the plugin's error code (specification, section 5), 0 where it gave none.
        msg: its message, "" likewise.
    """

    def __init__(self, text: str, *, code: int = 0, msg: str = "", details: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.msg = msg
        self.details = details


class PluginTimeout(DeadlineExceeded):
    """A plugin was killed because its time was over."""


class BadReply(Internal):
    """A plugin answered what the specification doesn't allow."""


class PluginMissing(FailedPrecondition):
    """A plugin's program isn't there, or can't be run."""


class Completed(Protocol):
    """A program that has ended, as `linux.spawn.Completed`."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> bytes: ...
    @property
    def stderr(self) -> bytes: ...
    @property
    def truncated(self) -> bool: ...


class Run(Protocol):
    """How a program is run, as `linux.spawn.run`."""

    async def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: bytes,
        timeout: float,
        max_output: int,
    ) -> Completed: ...


class OnOperation(Protocol):
    """Hears of each plugin run: for metrics. `network` is "" for VERSION."""

    def __call__(
        self, op: str, network: str, plugin: str, seconds: float, error: BaseException | None
    ) -> None: ...


class Call(msgspec.Struct, frozen=True):
    """One run of a plugin.

    Attributes:
        command: ADD, DEL, CHECK, GC, STATUS or VERSION.
        request: its standard input, see `request`.
        parameters: further `CNI_*` variables.
    """

    command: str
    network: str
    plugin: str
    request: bytes
    parameters: dict[str, str] = {}


class _Error(msgspec.Struct):
    code: int = 0
    msg: str = ""
    details: str = ""


class _Versions(msgspec.Struct):
    supportedVersions: list[str]  # noqa: N815 - the specification's name


def request(
    plugin: PluginConf,
    *,
    network: str,
    version: str,
    capabilities: Mapping[str, Any] | None = None,
    prev_result: bytes | None = None,
    attachments: Sequence[tuple[str, str]] | None = None,
) -> bytes:
    """A plugin's standard input: its own object as the file has it, with the protocol's keys.

    Args:
        capabilities: what we could tell; the plugin gets what it declared.
        attachments: for GC: the (container id, interface) pairs that are to stay.
    """
    top: dict[str, Any] = msgspec.json.decode(plugin.raw, type=dict[str, msgspec.Raw])
    for key in [key for key in top if key.startswith("cni.dev/")]:
        del top[key]
    for key in ("capabilities", "prevResult", "cniVersions"):
        top.pop(key, None)
    asked = {
        key: value for key, value in (capabilities or {}).items() if key in plugin.capabilities
    }
    if asked:
        top["runtimeConfig"] = asked
    if prev_result is not None:
        top["prevResult"] = msgspec.Raw(prev_result)
    if attachments is not None:
        valid = [{"containerID": container, "ifname": ifname} for container, ifname in attachments]
        # The specification had the second name at first, and plugins were written for it.
        top["cni.dev/valid-attachments"] = top["cni.dev/attachments"] = valid
    return msgspec.json.encode(top | {"cniVersion": version, "name": network})


class Plugins:
    """The plugins in `bin_dirs`, run with a deadline each.

    Args:
        timeout: seconds that one plugin has.
        env: the environment that plugins inherit; ours, less what was meant for us alone, where
            None.
        run: how a program is run.
        on_operation: hears of each run; an error it raises is logged and goes no further.
    """

    def __init__(
        self,
        bin_dirs: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        run: Run = spawn.run,
        on_operation: OnOperation | None = None,
    ) -> None:
        self._bin_dirs = tuple(bin_dirs)
        self._timeout = timeout
        self._env = {"PATH": _PATH, **(_inherited(os.environ) if env is None else env)}
        self._run = run
        self._on_operation = on_operation
        self._versions: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {}

    def find(self, plugin: str) -> str:
        """The path of a plugin's program.

        Raises:
            PluginMissing: none of the directories has it.
        """
        for directory in self._bin_dirs:
            path = os.path.join(directory, plugin)
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        raise PluginMissing(
            f"CNI plugin {plugin}: no such program in {', '.join(self._bin_dirs) or 'no directory'}"
        )

    async def run(self, call: Call, *, deadline: float) -> bytes:
        """Runs a plugin; what it printed.

        Args:
            deadline: by the loop's clock, of the whole operation that this is a part of.

        Raises:
            PluginMissing, PluginTimeout, PluginFailed, BadReply.
        """
        begun = time.monotonic()
        error: BaseException | None = None
        try:
            return await self._checked(call, deadline, begun)
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._report(call, time.monotonic() - begun, error)

    async def add(self, call: Call, *, version: str, ifname: str, deadline: float) -> bytes:
        """Runs a plugin's ADD; its result, checked, with its `cniVersion` in it.

        Raises:
            as `run`.
        """
        begun = time.monotonic()
        out = await self.run(call, deadline=deadline)
        try:
            results.parse(out, ifname=ifname)
            top = msgspec.json.decode(out, type=dict[str, msgspec.Raw])
        except (results.BadResult, msgspec.MsgspecError, RecursionError) as error:
            said = _words(out) or "nothing"
            raise BadReply(f"{_what(call, begun)}: bad result: {error}; it said: {said}") from error
        if "cniVersion" in top:
            return out.strip()
        return msgspec.json.encode({"cniVersion": version, **top})

    async def versions(self, plugin: str, *, deadline: float) -> tuple[str, ...]:
        """The specification versions that a plugin says it supports; asked once per program file.

        Raises:
            as `run`.
        """
        path = self.find(plugin)
        info = os.stat(path)
        stamp = (info.st_ino, info.st_mtime_ns)
        known = self._versions.get(path)
        if known is None or known[0] != stamp:
            call = Call("VERSION", "", plugin, msgspec.json.encode({"cniVersion": VERSIONS[-1]}))
            begun = time.monotonic()
            out = await self.run(call, deadline=deadline)
            try:
                answer = msgspec.json.decode(out, type=_Versions)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadReply(f"{_what(call, begun)}: {error}; it said: {_words(out)}") from error
            known = self._versions[path] = (stamp, tuple(answer.supportedVersions))
        return known[1]

    async def _checked(self, call: Call, deadline: float, begun: float) -> bytes:
        path = self.find(call.plugin)
        done = await self._exec(path, call, deadline, begun)
        if done.stderr:
            _log.debug(
                "plugin's stderr", plugin=path, command=call.command, said=_words(done.stderr)
            )
        if done.truncated and len(done.stdout) >= MAX_OUTPUT:
            raise BadReply(f"{_what(call, begun)}: it printed more than {MAX_OUTPUT} bytes")
        said = _error(done.stdout)
        if done.returncode == 0 and (said is None or said.code == 0):
            return done.stdout
        raise _failure(call, begun, done, said)

    async def _exec(self, path: str, call: Call, deadline: float, begun: float) -> Completed:
        loop = asyncio.get_running_loop()
        env = {
            **self._env,
            "CNI_COMMAND": call.command,
            "CNI_PATH": ":".join(self._bin_dirs),
            **call.parameters,
        }
        busy_until = loop.time() + BUSY_TIMEOUT
        while True:
            left = min(self._timeout, deadline - loop.time())
            if left <= 0:
                raise PluginTimeout(f"{_what(call, begun)}: no time was left to run it")
            try:
                return await self._run(
                    [path], env=env, stdin=call.request, timeout=left, max_output=MAX_OUTPUT
                )
            except DeadlineExceeded as error:
                raise PluginTimeout(f"{_what(call, begun)}: {error}") from error
            except OSError as error:
                if error.errno != errno.ETXTBSY or loop.time() > busy_until:
                    raise PluginMissing(
                        f"{_what(call, begun)}: {path} can't be run: {error.strerror}"
                    ) from error
            _log.debug("plugin is being replaced", plugin=path)
            await asyncio.sleep(BUSY_INTERVAL)

    def _report(self, call: Call, seconds: float, error: BaseException | None) -> None:
        if self._on_operation is None:
            return
        try:
            self._on_operation(call.command, call.network, call.plugin, seconds, error)
        except Exception:
            _log.exception("on_operation failed", command=call.command)


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environ.items() if not key.startswith(_OURS)}


def _error(out: bytes) -> _Error | None:
    try:
        return msgspec.json.decode(out, type=_Error)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _failure(call: Call, begun: float, done: Completed, said: _Error | None) -> PluginFailed:
    """Its own error where it gave one; else how it ended and what it said instead."""
    what = _what(call, begun)
    if said is not None and (said.code or said.msg):
        text = f"{what}: " + (f"code {said.code}: " if said.code else "") + _clip(said.msg)
        if said.details:
            text += f": {_clip(said.details)}"
        return PluginFailed(text, code=said.code, msg=said.msg, details=said.details)
    how = (
        f"exit code {done.returncode}"
        if done.returncode >= 0
        else f"killed by signal {-done.returncode}"
    )
    words = _words(done.stdout) or _words(done.stderr) or "nothing"
    return PluginFailed(f"{what}: {how}; it said: {words}")


def _what(call: Call, begun: float) -> str:
    where = f"network {call.network}: " if call.network else ""
    seconds = time.monotonic() - begun
    return f"{where}CNI plugin {call.plugin}: {call.command} failed after {seconds:.2f} s"


def _words(output: bytes) -> str:
    """The end of an output, on one line: errors stand at the end."""
    text = " ".join(output[-MAX_WORDS:].decode(errors="replace").split())
    return ("…" if len(output) > MAX_WORDS else "") + text


def _clip(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_WORDS else line[:MAX_WORDS] + "…"
