"""A container as 0-OS describes it, and what is asked of each field."""

from __future__ import annotations

import re
import shlex
from typing import Final

import msgspec

from zos_cri.errors import InvalidArgument

# A name becomes a part of the log's path and of the hostname.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# Environment, tags and mounts travel in one gRPC message; the kernel takes 128 KiB an argument.
MAX_TEXT: Final = 128 * 1024
DEFAULT_SHUTDOWN_TIMEOUT: Final = 5.0  # seconds
NETNS_DIR: Final = "/run/netns"  # where `ip netns` keeps names


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one network namespace that the container joins: a name of `ip netns`, or a path."""

    namespace: str

    @property
    def path(self) -> str:
        return self.namespace if "/" in self.namespace else f"{NETNS_DIR}/{self.namespace}"


class MountInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mount in the container, in the terms of mount(8); the type "" is a bind mount."""

    source: str
    target: str
    type: str = ""
    options: tuple[str, ...] = ()


class Container(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `run` is given.

    Attributes:
        name: unique in its namespace; names the log.
        flist: the root filesystem: a directory, or what the layer above can turn into one.
        tags: kept for the caller, read by nobody.
        entrypoint: a command line, split as a shell would, run without one.
        cpu: cores, 0 = no limit.
        memory: bytes, 0 = no limit.
        interactive: a terminal for the first process.
        elevated: all capabilities and devices of the host.
        shutdown_timeout: seconds between the stop signal and SIGKILL.
    """

    name: str
    flist: str
    network: Network
    entrypoint: str
    id: str = ""
    tags: dict[str, str] = {}
    env: dict[str, str] = {}
    mounts: tuple[MountInfo, ...] = ()
    working_dir: str = "/"
    cpu: float = 0.0
    memory: int = 0
    interactive: bool = False
    elevated: bool = False
    shutdown_timeout: float = DEFAULT_SHUTDOWN_TIMEOUT

    def argv(self) -> list[str]:
        """The words of the entrypoint.

        Raises:
            InvalidArgument: it is empty, or a quotation isn't closed.
        """
        try:
            words = shlex.split(self.entrypoint)
        except ValueError as error:
            raise InvalidArgument(f"entrypoint: {str(error).lower()}") from error
        if not words:
            raise InvalidArgument("entrypoint: no command given")
        return words


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A container as it is now. Times are ns since the epoch, 0 = not yet."""

    ns: str
    container: Container
    state: str
    pid: int
    created_at: int
    started_at: int
    finished_at: int
    exit_code: int
    reason: str
    message: str
    log_path: str


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a container uses: timestamp in ns, cpu in ns since its start, memory in bytes."""

    timestamp: int
    cpu: int
    memory: int
    pids: int


def check_name(value: str, field: str) -> str:
    """A name that can stand in a path.

    Raises:
        InvalidArgument: it can't.
    """
    if not _NAME.fullmatch(value):
        raise InvalidArgument(
            f'{field}: "{value[:80]}" is no name: letters, digits, and . _ - inside, at most 63'
        )
    return value


def check(container: Container) -> None:
    """Checks what can be checked without looking at the host.

    Raises:
        InvalidArgument: one line that names the field.
    """
    check_name(container.name, "name")
    if container.id:
        raise InvalidArgument("id: it is chosen here, not given")
    if not container.flist:
        raise InvalidArgument("flist: no root filesystem given")
    if not container.network.namespace:
        raise InvalidArgument("network.namespace: no network namespace given")
    if not container.working_dir.startswith("/"):
        raise InvalidArgument(f'working_dir: "{container.working_dir}" is not an absolute path')
    if not 0 <= container.cpu <= 4096:
        raise InvalidArgument(f"cpu: {container.cpu:g} cores are out of range")
    if container.memory < 0:
        raise InvalidArgument(f"memory: {container.memory} bytes are out of range")
    if not 0 <= container.shutdown_timeout <= 86400:
        raise InvalidArgument(f"shutdown_timeout: {container.shutdown_timeout:g} s is out of range")
    for name, value in container.env.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidArgument(f'env: "{name[:80]}" is no name of a variable')
        if len(name) + len(value) > MAX_TEXT:
            raise InvalidArgument(f'env: "{name[:80]}" is longer than {MAX_TEXT} bytes')
    container.argv()
