"""CNI network configurations: reading them, and noticing when they change.

Source of the rules: the CNI specification 1.1.0, section 1, and what the field's runtimes do where
it is silent: files of the configuration directory in lexical order, the first `max_conf_num` are
the pods' networks; a broken one among them makes the node's network not ready instead of silently
giving pods the next network.

What the plugins' own keys hold is none of our business: plugin objects are kept as the bytes that
the file has and reach the plugin unchanged, numbers of any size included.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Mapping

# In ascending order. 0.1.0 and 0.2.0 differ from 0.3.0 in the form of the result only.
VERSIONS: Final = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# The largest configurations in use (service meshes' chained ones) have some 10 KiB.
MAX_CONF: Final = 1 << 20
# A directory with more entries than this is not a CNI configuration directory.
MAX_FILES: Final = 1000
# Records of attachments are named after these; with the id and the suffix they must fit 255 bytes.
MAX_NAME: Final = 128
EXTENSIONS: Final = (".conf", ".conflist", ".json")
# A file changed this recently may change again within its time stamp's granularity (a timer tick,
# up to 10 ms), so what was read is not taken as settled.
_RACY_NS: Final = 20_000_000

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


class ConfError(FailedPrecondition):
    """A configuration can't be used; the message names the file and the field."""


class NoConf(FailedPrecondition):
    """The configuration directory has no network."""


class PluginConf(msgspec.Struct, frozen=True):
    """One plugin of a network.

    Attributes:
        type: the name of its program.
        capabilities: what dynamic configuration it takes (`portMappings`, …).
        ipam: the name of its address management program, "" where it has none.
        raw: its whole object, the bytes of the file.
    """

    type: str
    capabilities: frozenset[str]
    ipam: str
    raw: bytes


class NetworkConf(msgspec.Struct, frozen=True):
    """One network.

    Attributes:
        versions: the specification versions it may be used with that we know, ascending, at least
            one; the highest is chosen, or the highest that its plugins know.
        source: the file it came from.
    """

    name: str
    versions: tuple[str, ...]
    plugins: tuple[PluginConf, ...]
    disable_check: bool = False
    disable_gc: bool = False
    source: str = ""

    @property
    def loopback_only(self) -> bool:
        """Whether it does nothing but bring up `lo`, which whoever makes the namespace has done."""
        return all(plugin.type == "loopback" for plugin in self.plugins)

    def to_json(self, version: str) -> bytes:
        """The network as a self-contained configuration list of one version, for the record."""
        return msgspec.json.encode(
            {
                "cniVersion": version,
                "name": self.name,
                "disableCheck": self.disable_check,
                "disableGC": self.disable_gc,
                "loadOnlyInlinedPlugins": True,
                "plugins": [msgspec.Raw(plugin.raw) for plugin in self.plugins],
            }
        )


def at_least(version: str, other: str) -> bool:
    """Whether a known version is `other` or a later one."""
    return VERSIONS.index(version) >= VERSIONS.index(other)


def parse_list(data: bytes, *, source: str, folder: str | None = None) -> NetworkConf:
    """A configuration list (`*.conflist`).

    Args:
        source: the file's name, for errors.
        folder: where further plugins of a network lie (`<folder>/<network>/*.conf`), appended
            unless the list says `loadOnlyInlinedPlugins`; None: nowhere.

    Raises:
        ConfError: it breaks a rule.
    """
    top = _object(data, source)
    name = network_name(_field(top, "name", str, source), source)
    inlined = _field(top, "plugins", list[msgspec.Raw], source, default=None)
    only_inlined = _flag(top, "loadOnlyInlinedPlugins", source)
    if inlined is None and only_inlined:
        raise ConfError(f"{source}: plugins: missing, and loadOnlyInlinedPlugins is true")
    if inlined is not None and not inlined:
        raise ConfError(f"{source}: plugins: the list is empty")
    plugins = [
        _plugin(bytes(raw), f"{source}: plugins[{i}]") for i, raw in enumerate(inlined or ())
    ]
    if folder is not None and not only_inlined:
        files = _conf_files(os.path.join(folder, name), (".conf",))
        plugins.extend(_plugin(_read(path), path) for path in files)
    if not plugins:
        raise ConfError(f"{source}: plugins: missing, and no {name}/*.conf beside the file")
    return NetworkConf(
        name=name,
        versions=_versions(top, source),
        plugins=tuple(plugins),
        disable_check=_flag(top, "disableCheck", source),
        disable_gc=_flag(top, "disableGC", source),
        source=source,
    )


def parse_single(data: bytes, *, source: str) -> NetworkConf:
    """A configuration of one plugin (`*.conf`, `*.json`; gone from the specification with 1.0).

    Raises:
        ConfError: it breaks a rule.
    """
    top = _object(data, source)
    if "type" not in top and "plugins" in top:
        raise ConfError(f"{source}: type: missing; a list of plugins belongs in a .conflist file")
    return NetworkConf(
        name=network_name(_field(top, "name", str, source), source),
        versions=_versions(top, source),
        plugins=(_plugin(data, source),),
        source=source,
    )


def network_name(name: str, source: str) -> str:
    """The name, checked by the specification's rule."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ConfError(
            f"{source}: name: {name[:MAX_NAME]!r} must be letters, digits, '_', '.' and '-', begin"
            f" with a letter or digit and have at most {MAX_NAME} characters"
        )
    return name


def load(directory: str, max_conf_num: int) -> tuple[NetworkConf, ...]:
    """The first networks of a directory.

    A network of nothing but the loopback plugin is passed over: `lo` is up in every pod already.

    Args:
        max_conf_num: how many; 0: all.

    Raises:
        NoConf: there is none, or no such directory.
        ConfError: a file that is among the first is broken, or two have the same network name.
    """
    networks: dict[str, NetworkConf] = {}
    for path in _conf_files(directory, EXTENSIONS):
        data = _read(path)
        if path.endswith(".conflist"):
            network = parse_list(data, source=path, folder=directory)
        else:
            network = parse_single(data, source=path)
        if network.loopback_only:
            continue
        if network.name in networks:
            other = networks[network.name].source
            raise ConfError(f"{path}: name: {network.name!r} is the name of {other} too")
        networks[network.name] = network
        if len(networks) == max_conf_num:
            break
    if not networks:
        raise NoConf(f"no network configuration in {directory}")
    return tuple(networks.values())


class ConfDir:
    """A configuration directory that is read again when it changed, and only then.

    To look is a handful of stat calls; no thread, no inotify watch that could be lost.
    """

    def __init__(self, directory: str, max_conf_num: int) -> None:
        self.directory = directory
        self._max_conf_num = max_conf_num
        self._seen: object = None
        self._networks: tuple[NetworkConf, ...] = ()
        self._error: ConfError | NoConf | None = None
        self.generation = 0

    def networks(self) -> tuple[NetworkConf, ...]:
        """The networks as the directory has them now.

        Raises:
            NoConf, ConfError: as `load`.
        """
        before = self._signature()
        if before != self._seen:
            self._reload()
            # With the network's name known its folder of plugins is part of the signature.
            after = self._signature()
            self._seen = after if _same_files(before, after) and _settled(after) else None
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._networks

    def _reload(self) -> None:
        previous = (self._networks, str(self._error))
        try:
            self._networks, self._error = load(self.directory, self._max_conf_num), None
        except (ConfError, NoConf) as error:
            self._networks, self._error = (), error
        if (self._networks, str(self._error)) != previous:
            self.generation += 1

    def _signature(self) -> _Signature:
        folders = [network.name for network in self._networks]
        return (
            _listing(self.directory),
            tuple((name, _listing(os.path.join(self.directory, name))) for name in folders),
        )


# (name, device, inode, modification and change time in ns, size) of a directory's files
_Stamp = tuple[str, int, int, int, int, int]
_Signature = tuple[tuple[_Stamp, ...], tuple[tuple[str, tuple[_Stamp, ...]], ...]]


def _same_files(before: _Signature, after: _Signature) -> bool:
    """Whether the directory stood still while it was read; folders may have come into sight."""
    folders = dict(before[1])
    return before[0] == after[0] and all(
        folders.get(name, stamps) == stamps for name, stamps in after[1]
    )


def _settled(signature: _Signature) -> bool:
    stamps = [*signature[0], *(stamp for _, folder in signature[1] for stamp in folder)]
    newest = max((stamp[4] for stamp in stamps), default=0)
    return time.time_ns() - newest > _RACY_NS


def _listing(directory: str) -> tuple[_Stamp, ...]:
    found: list[_Stamp] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if not entry.name.endswith(EXTENSIONS) or len(found) > MAX_FILES:
                continue
            try:
                info = entry.stat()
            except OSError:  # a dangling link, or gone meanwhile: that it is listed will do
                found.append((entry.name, 0, 0, 0, 0, 0))
                continue
            found.append(
                (
                    entry.name,
                    info.st_dev,
                    info.st_ino,
                    info.st_mtime_ns,
                    info.st_ctime_ns,
                    info.st_size,
                )
            )
    return tuple(sorted(found))


def _conf_files(directory: str, extensions: tuple[str, ...]) -> list[str]:
    """Paths of the files with these extensions, in lexical order; none where it doesn't exist."""
    try:
        with os.scandir(directory) as entries:
            names = [
                entry.name
                for entry in entries
                if os.path.splitext(entry.name)[1] in extensions and not entry.is_dir()
            ]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfError(f"{directory}: {error.strerror}") from error
    if len(names) > MAX_FILES:
        raise ConfError(f"{directory}: {len(names)} configuration files, at most {MAX_FILES}")
    return [os.path.join(directory, name) for name in sorted(names)]


def _read(path: str) -> bytes:
    """A regular file's content; never waits, whatever a FIFO or device may lie there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ConfError(f"{path}: not a regular file")
            data = file.read(MAX_CONF + 1)
    except OSError as error:
        raise ConfError(f"{path}: {error.strerror}") from error
    if len(data) > MAX_CONF:
        raise ConfError(f"{path}: larger than {MAX_CONF} bytes")
    return data


def _object(data: bytes, where: str) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfError(f"{where}: not a JSON object: {error}") from error


_REQUIRED: Final[Any] = object()


def _field(
    top: Mapping[str, msgspec.Raw], key: str, kind: Any, where: str, *, default: Any = _REQUIRED
) -> Any:
    raw = top.get(key)
    if raw is None or (bytes(raw).strip() == b"null" and default is not _REQUIRED):
        if default is _REQUIRED:
            raise ConfError(f"{where}: {key}: missing")
        return default
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfError(f"{where}: {key}: {error}") from error


def _flag(top: Mapping[str, msgspec.Raw], key: str, where: str) -> bool:
    """A boolean, which by old custom may be written as a string."""
    value = _field(top, key, Any, where, default=False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ConfError(f"{where}: {key}: expected true or false, got {value!r}")
    return value


def _versions(top: Mapping[str, msgspec.Raw], where: str) -> tuple[str, ...]:
    """The known ones of `cniVersion` and `cniVersions`; 0.1.0 where neither is given."""
    given = _field(top, "cniVersions", list[str], where, default=[])
    single = _field(top, "cniVersion", str, where, default="")
    every = [*given, *([single] if single else [])] or ["0.1.0"]
    known = sorted(set(every) & set(VERSIONS), key=VERSIONS.index)
    if not known:
        key = "cniVersions" if given else "cniVersion"
        raise ConfError(
            f"{where}: {key}: {', '.join(every)} isn't supported; known are {', '.join(VERSIONS)}"
        )
    return tuple(known)


def _plugin(data: bytes, where: str) -> PluginConf:
    top = _object(data, where)
    kind = _field(top, "type", str, where)
    if not kind or "/" in kind or "\0" in kind or kind in (".", ".."):
        raise ConfError(f"{where}: type: {kind!r} isn't a program's name")
    capabilities = _field(top, "capabilities", dict[str, bool], where, default={})
    ipam = _field(top, "ipam", Any, where, default=None)
    return PluginConf(
        type=kind,
        capabilities=frozenset(name for name, wanted in capabilities.items() if wanted),
        ipam=_program(ipam),
        raw=data,
    )


def _program(ipam: object) -> str:
    """The `type` in an `ipam` object; the object is the plugin's own, so no form is an error."""
    kind = ipam.get("type") if isinstance(ipam, dict) else None
    return kind if isinstance(kind, str) and "/" not in kind else ""
