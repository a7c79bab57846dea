"""`zos-cri audit`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zos_cri import config, log
from zos_cri.audit import check, records
from zos_cri.audit.model import differs, removable
from zos_cri.audit.present import Look
from zos_cri.cli.table import print_table
from zos_cri.cri.flists import ImageRootfs
from zos_cri.errors import FailedPrecondition
from zos_cri.images.store import ImageStore
from zos_cri.linux import blocking
from zos_cri.linux.cgroup import Cgroups
from zos_cri.module.rootfs import DirectoryRootfs
from zos_cri.network.cni import Network
from zos_cri.network.pod import PodNetwork
from zos_cri.stdio.client import LoggerClient
from zos_cri.stdio.state import StateDir

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from zos_cri.audit.check import Removed
    from zos_cri.audit.expected import Records
    from zos_cri.audit.model import Finding
    from zos_cri.config import Config


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "audit",
        help="hold what exists of pods and containers against the records",
        description="Lists what exists of pods and containers (shims, tasks, mounts, namespaces,"
        " cgroups, networks, FIFOs, bundles, layers, logs) and should not, and what should and"
        " does not. It reads the state file and asks nobody, so it works beside a server that"
        " runs, hangs or is gone. The exit code is 1 where there is a difference (with --fix:"
        " where one is left). What may be another installation's is listed as UNPROVED and not"
        " counted.",
        epilog="example: zos-cri audit --fix",
    )
    parser.add_argument(
        "--config", type=Path, help=f"configuration file (default: {config.DEFAULT_PATH})"
    )
    parser.add_argument(
        "--fix", action="store_true", help="remove strays that are proved ours and dead"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Audits; returns the exit code."""
    settings = config.load(arguments.config)
    log.setup(level="critical")  # what is found and done is printed
    findings, done = asyncio.run(_run(settings, fix=arguments.fix))
    if arguments.output == "json":
        print(json.dumps(msgspec.to_builtins({"findings": findings, "fixed": done}), indent=2))
    else:
        _print(findings, done)
    gone = set(done.removed) if done else set()
    return 1 if differs(f for f in findings if f not in gone) else 0


async def _run(settings: Config, *, fix: bool) -> tuple[list[Finding], Removed | None]:
    cgroups = Cgroups()
    state = settings.state_dir / "state.db"

    async def read() -> Records:
        return await blocking.call(records.read, state)

    findings = await check.audit(Look(settings, cgroups), read)
    if not fix or not removable(findings):
        return findings, None
    with _alone(settings) as alone:
        return findings, await check.fix(findings, _Hands(settings, alone=alone), cgroups)


@contextlib.contextmanager
def _alone(settings: Config) -> Iterator[bool]:
    """Keeps servers from starting meanwhile; False where one runs."""
    try:
        lock = os.open(settings.run_dir / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True  # the host was restarted, and no server was started since
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)


class _Hands:
    """What a server's own objects do, done without one."""

    def __init__(self, settings: Config, *, alone: bool) -> None:
        self._settings = settings
        self._alone = alone

    async def detach(self, pod_id: str) -> None:
        cni = self._settings.cni
        network = Network(
            conf_dir=cni.conf_dir,
            bin_dirs=cni.bin_dirs,
            cache_dir=self._settings.state_dir / "cni",
            plugin_timeout=cni.plugin_timeout,
        )
        await network.delete(PodNetwork(id=pod_id))

    async def release(self, container_id: str) -> None:
        if not self._alone:
            raise FailedPrecondition(
                f"layer of {container_id}: the images are the running server's, which removes it"
                " itself within minutes"
            )
        settings = self._settings
        images = ImageStore(
            settings.state_dir / "images", busybox=Path(settings.images.busybox), certs_dirs=()
        )
        await images.start()
        try:
            await DirectoryRootfs(settings.state_dir / "rootfs", ImageRootfs(images)).release(
                container_id
            )
        finally:
            await images.aclose()

    async def forget(self, container_id: str) -> None:
        run = self._settings.run_dir
        path = run / "logger.sock"
        if await blocking.call(_listens, str(path)):
            client = LoggerClient(path, state_dir=run / "logger")
            try:
                await client.detach(container_id)
            finally:
                await client.aclose()
        else:
            await blocking.call(StateDir(run / "logger").remove, container_id)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
        return True


def _print(findings: list[Finding], done: Removed | None) -> None:
    if not findings:
        print("no difference")
        return
    failed = dict(done.failed) if done else {}
    gone = set(done.removed) if done else set()
    rows = [
        (
            f.verdict.upper(),
            f.kind,
            f.id[:13],
            f.where,
            "removed" if f in gone else failed.get(f, f.why + (", it lives" if f.live else "")),
        )
        for f in findings
    ]
    print_table(("VERDICT", "KIND", "ID", "WHERE", "WHY"), rows)
