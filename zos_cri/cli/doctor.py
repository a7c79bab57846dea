"""`zos-cri doctor`: whether this host is fit, and what to change."""

from __future__ import annotations

import asyncio
import json
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri import config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from zos_cri.doctor.finding import Finding

WIDTH: Final = 100
MARKS: Final = {"ok": "ok", "warn": "WARN", "fail": "FAIL"}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check this host and say what to change",
        description="Checks this host: kernel, cgroups, rights, limits, programs, directories. The"
        " exit code is 1 where pods can't be run; warnings don't count.",
        epilog="example: zos-cri doctor -o json",
    )
    parser.add_argument(
        "--config", type=Path, help=f"configuration file (default: {config.DEFAULT_PATH})"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`zos-cri doctor`."""
    findings = asyncio.run(examine(config.load(arguments.config)))
    if arguments.output == "json":
        print(json.dumps(msgspec.to_builtins(findings), indent=2))
    else:
        show(findings)
    return 1 if any(each.level == "fail" for each in findings) else 0


async def examine(settings: config.Config) -> list[Finding]:
    """Everything that is checked. Takes a fraction of a second, most of it other programs'."""
    # Only here: they cost the other commands' start some milliseconds.
    from zos_cri.doctor import machine, places, programs  # noqa: PLC0415
    from zos_cri.host import host_facts  # noqa: PLC0415
    from zos_cri.linux.cgroup import Cgroups  # noqa: PLC0415

    cgroups = Cgroups()
    found = await asyncio.to_thread(machine.gather, await host_facts(cgroups), cgroups)
    findings = [*machine.check(found)]
    findings += [
        each async for each in programs.handlers(settings, mode=cgroups.mode, systemd=found.systemd)
    ]
    findings += [programs.init(settings.init), programs.busybox(settings.images.busybox)]
    with tempfile.TemporaryDirectory(prefix="zos-cri-doctor.") as scratch:
        findings += programs.network(settings, Path(scratch))
    return [*findings, *places.check(settings)]


def show(findings: Sequence[Finding]) -> None:
    """Prints a table, with what to change below each line that asks for it."""
    width = max(len(each.check) for each in findings)
    for each in findings:
        print(f"{MARKS[each.level]:<4}  {each.check:<{width}}  {each.found}")
        if each.advice:
            text = f"-> {each.advice}"
            print(textwrap.indent(textwrap.fill(text, WIDTH - width), " " * (width + 8)))
    counts = {level: sum(each.level == level for each in findings) for level in MARKS}
    print(f"\n{counts['ok']} ok, {counts['warn']} warnings, {counts['fail']} failures")
