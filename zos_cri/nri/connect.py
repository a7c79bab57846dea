"""How plugins come: those that connect to the socket, and those that are installed and started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, NamedTuple

from zos_cri import errors
from zos_cri.linux import blocking, spawn
from zos_cri.log import get_log
from zos_cri.nri.plugin import Identity, Unusable, identity
from zos_cri.shim.server import remove_stale

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.nri.plugin import Plugin
    from zos_cri.nri.plugins import Plugins

_log = get_log(__name__)

CONFIG_LIMIT: Final = 1 << 20  # bytes of a plugin's configuration
MAX_INSTALLED: Final = 32
STOP_GRACE: Final = 1.0  # seconds between SIGTERM and SIGKILL
_STDERR: Final = 2


class Settings(NamedTuple):
    """Where plugins are.

    Attributes:
        socket: where they connect, "" for nowhere.
        directory: of those to be started: files named `NN-name`.
        config_directory: of their configurations: `NN-name.conf` or `name.conf`.
    """

    socket: str
    directory: Path
    config_directory: Path


class Installed(NamedTuple):
    """A plugin to be started."""

    path: Path
    identity: Identity
    config: str


class Connector:
    """Brings plugins to `Plugins`."""

    def __init__(self, plugins: Plugins, settings: Settings) -> None:
        self._plugins = plugins
        self._settings = settings
        self._undo = AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Starts the installed plugins, waits until they have joined, and listens for others.

        Nothing of it stops the server: a plugin that can't be used is only said to be.
        """
        for found in await blocking.call(installed, self._settings):
            await self._launch(found)
        if self._settings.socket:
            try:
                await self._listen(self._settings.socket)
            except (errors.Error, OSError) as error:
                _log.error("no NRI socket: plugins can't connect", error=errors.one_line(error))

    async def aclose(self) -> None:
        """Stops listening, closes all connections, ends the plugins that were started."""
        self._plugins.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._undo.aclose()

    # ---- the socket

    async def _listen(self, path: str) -> None:
        await blocking.call(os.makedirs, os.path.dirname(path), 0o700, True)
        await remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Before listen: nobody can connect while the mode is still the umask's.
            listener.bind(path)
            os.chmod(path, 0o600)
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(self._accepted, sock=listener)
        except BaseException:
            listener.close()
            raise
        self._undo.callback(_remove, path, os.lstat(path).st_ino)
        self._undo.callback(server.close)
        _log.info("NRI socket", path=path)

    def _accepted(self) -> asyncio.BaseProtocol:
        try:
            plugin = self._plugins.plugin()
        except errors.ResourceExhausted as error:
            _log.error("NRI plugin refused", error=errors.one_line(error))
            return _Refused()
        task = asyncio.create_task(self._join_quietly(plugin))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return plugin.trunk

    async def _join_quietly(self, plugin: Plugin) -> None:
        try:
            await self._plugins.join(plugin)
        except errors.Error as error:
            _log.error("NRI plugin not taken in", error=errors.one_line(error))

    # ---- installed ones

    async def _launch(self, found: Installed) -> None:
        try:
            await self._start(found)
        except (errors.Error, OSError) as error:
            _log.error("NRI plugin not started", path=str(found.path), error=errors.one_line(error))

    async def _start(self, found: Installed) -> None:
        plugin = self._plugins.plugin(found.identity, found.config)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                process = await spawn.start(
                    [str(found.path)],
                    env={
                        "NRI_PLUGIN_NAME": found.identity.name,
                        "NRI_PLUGIN_IDX": found.identity.position,
                        "NRI_PLUGIN_SOCKET": str(theirs.fileno()),
                    },
                    stderr=_STDERR,
                    pass_fds=(theirs.fileno(),),
                )
            self._undo.push_async_callback(_end, process)
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: plugin.trunk, sock=ours)
        except BaseException:
            ours.close()
            plugin.close()
            raise
        try:
            await self._plugins.join(plugin)
        except Unusable:
            process.kill(signal.SIGKILL, group=True)
            raise


class _Refused(asyncio.Protocol):
    """A connection that there is no place for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _remove(path: str, inode: int) -> None:
    """Removes our socket; another runtime may have put its own there."""
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)


async def _end(process: spawn.Process) -> None:
    process.kill(signal.SIGTERM, group=True)
    try:
        await process.wait(STOP_GRACE)
    except errors.DeadlineExceeded:
        process.kill(signal.SIGKILL, group=True)
        await process.wait(STOP_GRACE)


def installed(settings: Settings) -> list[Installed]:
    """The plugins that are to be started, in their order. Blocks.

    A file that is named wrongly, or whose configuration can't be read, is left out and said to be.
    """
    try:
        names = sorted(os.listdir(settings.directory))
    except FileNotFoundError:
        return []
    except OSError as error:
        _log.error("NRI plugins not looked for", path=str(settings.directory), error=error.strerror)
        return []
    found = []
    for name in names:
        path = settings.directory / name
        if not path.is_file() or not os.access(path, os.X_OK):
            continue
        try:
            who = identity(*_parts(name))
            found.append(Installed(path, who, _config(settings.config_directory, who)))
        except (errors.Error, OSError) as error:
            _log.error("NRI plugin not used", path=str(path), error=errors.one_line(error))
    for extra in found[MAX_INSTALLED:]:
        _log.error("NRI plugin not used", path=str(extra.path), error="there are too many")
    return found[:MAX_INSTALLED]


def _parts(name: str) -> tuple[str, str]:
    index, separator, rest = name.partition("-")
    if not separator:
        raise errors.InvalidArgument(f"{name[:140]!r} is not named NN-name")
    return index, rest


def _config(directory: Path, who: Identity) -> str:
    for name in (f"{who}.conf", f"{who.name}.conf"):
        try:
            with (directory / name).open("rb") as file:
                data = file.read(CONFIG_LIMIT + 1)
        except FileNotFoundError:
            continue
        if len(data) > CONFIG_LIMIT:
            raise errors.InvalidArgument(f"{directory / name}: larger than {CONFIG_LIMIT} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise errors.InvalidArgument(f"{directory / name}: is not UTF-8") from None
    return ""
