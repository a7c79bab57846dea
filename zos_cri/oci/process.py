"""What a container runs: arguments, environment, working directory; and exec'ed processes."""

from __future__ import annotations

import copy
import posixpath
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from zos_cri.errors import InvalidArgument
from zos_cri.oci.fields import absolute_path, bad, quote, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zos_cri._pb import cri_pb2
    from zos_cri.oci.host import Spec

DEFAULT_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What an image without a PATH gets, as everywhere (execvp's own default differs by libc)."""


class Image(Protocol):
    """What of an OCI image's config has a meaning for a container's spec."""

    @property
    def user(self) -> str: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def entrypoint(self) -> Sequence[str]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def working_dir(self) -> str: ...


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An `Image` of one's own making."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    working_dir: str = ""


def arguments(config: cri_pb2.ContainerConfig, image: Image) -> list[str]:
    """The argument vector by CRI's rules.

    `command` replaces the image's entrypoint and with it its cmd; `args` replaces the image's
    cmd alone.

    Raises:
        InvalidArgument: neither says what to run, or an argument has a NUL.
    """
    command, args = (
        [text(f"{field}[{index}]", argument) for index, argument in enumerate(given)]
        for field, given in (("command", config.command), ("args", config.args))
    )
    if not command:
        args = args or list(image.cmd)
        # [""] is how an image takes its parent's entrypoint back.
        command = list(image.entrypoint) if list(image.entrypoint) != [""] else []
    argv = command + args
    if not argv:
        raise bad("command", "is empty, and the image has neither an entrypoint nor a cmd")
    return checked_arguments("command", argv)


def checked_arguments(field: str, argv: Sequence[str]) -> list[str]:
    """An argument vector as execve takes it.

    Raises:
        InvalidArgument: it is empty, or has a NUL.
    """
    if not argv or not argv[0]:
        raise bad(field, "names nothing to run")
    return [text(f"{field}[{index}]", argument) for index, argument in enumerate(argv)]


def environment(*layers: Iterable[str]) -> list[str]:
    """`NAME=value` strings, of one name the last one; a string without `=` takes a name away.

    A name stays at the place where it first came up. PATH is there in any case.
    """
    result: dict[str, str] = {"PATH": DEFAULT_PATH}
    for layer in layers:
        for entry in layer:
            name, equals, _ = entry.partition("=")
            if equals:
                result[name] = entry
            else:
                result.pop(name, None)
    result.setdefault("PATH", DEFAULT_PATH)
    return list(result.values())


def of_container(config: cri_pb2.ContainerConfig, image: Image, *, hostname: str) -> list[str]:
    """A CRI container's environment: HOSTNAME, the image's, the config's, each over the former.

    Raises:
        InvalidArgument: an empty name, an `=` in a name, a NUL, or bytes that are not UTF-8
            (JSON, and so an OCI spec, cannot carry them).
    """
    given = []
    for index, entry in enumerate(config.envs):
        field = f"envs[{index}]"
        if not entry.key or "=" in entry.key:
            raise bad(f"{field}.key", f"{quote(entry.key)} is no variable's name")
        try:
            value = entry.value.decode()
        except UnicodeDecodeError as error:
            what = f"{quote(entry.key)} is not UTF-8, and an OCI spec takes nothing else"
            raise bad(f"{field}.value", what) from error
        given.append(f"{text(f'{field}.key', entry.key)}={text(f'{field}.value', value)}")
    # An image isn't the caller's: what no kernel would take is left out of its environment.
    inherited = [entry for entry in image.env if "\0" not in entry and not entry.startswith("=")]
    terminal = ["TERM=xterm"] if config.tty else []
    return environment(terminal, [f"HOSTNAME={hostname}"], inherited, given)


def working_dir(config: cri_pb2.ContainerConfig, image: Image) -> str:
    """The working directory: the config's, else the image's (taken from the root), else `/`.

    Raises:
        InvalidArgument: the config's is not absolute.
    """
    if config.working_dir:
        return absolute_path("working_dir", config.working_dir)
    if not image.working_dir:
        return "/"
    try:
        return absolute_path("working_dir", posixpath.join("/", image.working_dir))
    except InvalidArgument as error:
        raise InvalidArgument(f"the image's {error}") from error


def exec_process(
    spec: Spec,
    argv: Sequence[str],
    *,
    tty: bool,
    env: Sequence[str] = (),
    cwd: str = "",
    size: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """OCI's process for an exec in a container: the container's own, with other arguments.

    So an exec has the container's user, groups, capabilities, limits and profiles.

    Args:
        spec: The container's spec; it isn't changed.
        argv: What to run.
        tty: Whether it gets a terminal.
        env: `NAME=value` strings over the container's.
        cwd: Another working directory.
        size: The terminal's columns and rows.

    Raises:
        InvalidArgument: there is nothing to run, a NUL in it, or a relative cwd.
    """
    process: dict[str, Any] = copy.deepcopy(spec["process"])
    process["args"] = checked_arguments("cmd", argv)
    process["terminal"] = tty
    process.pop("consoleSize", None)
    if tty and size is not None:
        process["consoleSize"] = {"width": size[0], "height": size[1]}
    terminal = []
    if tty and not any(entry.startswith("TERM=") for entry in process.get("env", ())):
        terminal = ["TERM=xterm"]
    extra = [text(f"env[{index}]", entry) for index, entry in enumerate(env)]
    process["env"] = environment(process.get("env", ()), terminal, extra)
    if cwd:
        process["cwd"] = absolute_path("cwd", cwd)
    return process
