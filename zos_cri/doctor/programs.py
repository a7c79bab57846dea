"""The programs that we run: shims, OCI runtimes, the pods' init, busybox, CNI plugins."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.config import handlers as shim_handlers
from zos_cri.config_handlers import DEFAULT_RUNTIME
from zos_cri.doctor.finding import Finding, fail, ok, warn
from zos_cri.errors import Error, one_line
from zos_cri.linux import spawn
from zos_cri.network.cni import Network
from zos_cri.shim.choice import choose
from zos_cri.shim.handler import SHIM
from zos_cri.shim.launch import find_binary
from zos_cri.shim.trial import failure_by_itself

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from zos_cri.config import Config
    from zos_cri.config_handlers import HandlerConfig

VERSION_TIMEOUT: Final = 10.0
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The first crun that runs where cgroups are hybrid, and the first runc with id-mapped mounts.
HYBRID_CRUN: Final = (1, 9)
MAPPED_RUNC: Final = (1, 2)


def find(program: str) -> str | None:
    """A name on PATH or in the usual places, or a path, that can be run."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{PATH}")


async def version(*argv: str) -> str:
    """The first line that says a version; what went wrong in its stead."""
    try:
        done = await spawn.run(argv, timeout=VERSION_TIMEOUT)
    except (Error, OSError) as error:
        return one_line(error)
    if done.returncode != 0:
        return done.failure()
    lines = [
        line.strip() for line in (done.stdout or done.stderr).decode(errors="replace").split("\n")
    ]
    numbered = [line for line in lines if re.search(r"\d+\.\d+", line)]
    return re.sub(r"\s+", " ", (numbered or lines)[0])


def numbers(text: str) -> tuple[int, ...]:
    """The first dotted number in a text."""
    found = re.search(r"\d+(?:\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


async def handlers(config: Config, *, mode: str, systemd: bool) -> AsyncIterator[Finding]:
    """The shim and the OCI runtime of each handler.

    Args:
        mode: the cgroups', as `Cgroups` has it.
        systemd: whether systemd is the init.
    """
    for name, handler in sorted(config.handlers.items()):
        yield await _shim(name, handler)
        open_ = name == config.default_handler and handler.runtime_is_open
        if open_ and os.geteuid() == 0:  # others may run no container
            yield await _chosen(name, config, mode)
        else:
            yield await _runtime(name, handler.runtime or DEFAULT_RUNTIME, mode)
        if handler.sandboxer == SHIM and os.geteuid() == 0:
            yield await _sandboxer(name, config)
        if handler.systemd_cgroup and not systemd:
            yield fail(
                f"handlers.{name}",
                "systemd_cgroup is true, but systemd isn't the init",
                f"handlers.{name}.systemd_cgroup = false; the kubelet takes its driver from us",
            )
        if systemd and mode == "v2" and not handler.systemd_cgroup:
            yield warn(
                f"handlers.{name}",
                "cgroups are made beside systemd, which takes itself for their only keeper",
                f"handlers.{name}.systemd_cgroup = true, before the node has pods",
            )


async def _shim(name: str, handler: HandlerConfig) -> Finding:
    check = f"handlers.{name}.shim"
    try:
        path = find_binary(handler.shim)
    except Error as error:
        return fail(check, one_line(error), "install it (Debian: apt install containerd)")
    return ok(check, f"{path}: {await version(path, '-v')}")


async def _sandboxer(name: str, config: Config) -> Finding:
    """Whether the shim makes sandboxes: one is started."""
    check = f"handlers.{name}.sandboxer"
    with tempfile.TemporaryDirectory(prefix="zos-cri-doctor.") as scratch:
        why = await failure_by_itself(shim_handlers(config)[name], Path(scratch))
    if why:
        return fail(check, why, f'handlers.{name}.sandboxer = "podsandbox", or another shim')
    return ok(check, "the shim makes sandboxes")


async def _chosen(name: str, config: Config, mode: str) -> Finding:
    """The runtime that the server takes where the configuration leaves it open."""
    with tempfile.TemporaryDirectory(prefix="zos-cri-doctor.") as scratch:
        choice = await choose(
            shim_handlers(config)[name],
            Path(scratch),
            oci_version=config.handlers[name].oci_version,
            known=None,
        )
    finding = await _runtime(name, choice.runtime, mode)
    return msgspec.structs.replace(finding, found=f"{finding.found} ({choice.why})")


async def _runtime(name: str, runtime: str, mode: str) -> Finding:
    check = f"handlers.{name}.runtime"
    path = find(runtime)
    if path is None:
        return fail(
            check,
            f"{runtime} is nowhere on PATH",
            f"install it (Debian: apt install {os.path.basename(runtime)})",
        )
    said = await version(path, "--version")
    found = f"{path}: {said}"
    if said.startswith("crun") and numbers(said) < HYBRID_CRUN and mode == "hybrid":
        return warn(check, found, "crun before 1.9 refuses hybrid cgroups: boot with version 2")
    if said.startswith("runc") and numbers(said) < MAPPED_RUNC:
        return warn(check, found, "runc 1.2 or later is needed for user namespaces (hostUsers)")
    return ok(check, found)


def init(program: str) -> Finding:
    """The init of pods that share a pid namespace."""
    path = find(program)
    if path:
        return ok("init", path)
    return warn(
        "init",
        f"{program} is nowhere on PATH: pods can't share a pid namespace",
        "apt install catatonit, or set init",
    )


def busybox(path: str) -> Finding:
    """What the built-in image is made of."""
    if os.access(path, os.X_OK):
        return ok("busybox", path)
    return fail(
        "busybox",
        f"{path} isn't there: the built-in image can't be made, and the server doesn't start",
        "apt install busybox-static, or set images.busybox",
    )


def network(config: Config, scratch: Path) -> Iterator[Finding]:
    """The CNI configuration and its plugins.

    Args:
        scratch: an empty directory.
    """
    found = Network(
        conf_dir=config.cni.conf_dir, bin_dirs=config.cni.bin_dirs, cache_dir=scratch
    ).status()
    if found.ready:
        yield ok("CNI", f"a network is configured in {config.cni.conf_dir}")
        return
    yield warn(
        "CNI",
        f"{found.message}: only pods on the host's network run",
        f"put a network's configuration into {config.cni.conf_dir} (your CNI's DaemonSet does), and"
        f" its plugins into {' or '.join(config.cni.bin_dirs)}"
        " (Debian: apt install containernetworking-plugins)",
    )
