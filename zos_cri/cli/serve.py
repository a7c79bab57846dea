"""`zos-cri serve`."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from zos_cri import config, log
from zos_cri.app.handover import begin_anew
from zos_cri.linux import openfiles, priority

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from zos_cri.app.handover import Held
    from zos_cri.config import Config


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "serve",
        help="serve CRI and the container module",
        description="Serves CRI v1 and zos.container.v1 on one unix socket, as root.",
        epilog="example: zos-cri serve --config /etc/zos-cri/config.toml --log-format json",
    )
    parser.add_argument(
        "--config", type=Path, help=f"configuration file (default: {config.DEFAULT_PATH})"
    )
    parser.add_argument("--log-format", choices=log.FORMATS, help="over log.format")
    parser.add_argument("--log-level", choices=log.LEVELS, help="over log.level")
    parser.add_argument(
        "--no-logger",
        action="store_true",
        help="over container_log.start_logger: `zos-cri logger` is run by somebody else",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is told to stop."""
    load = partial(_settings, arguments)
    settings = load()
    log.setup(level=settings.log.level, fmt=settings.log.format)
    openfiles.raise_limit()
    priority.prefer_this_thread()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        held = runner.run(_serve(settings, load))
    if held is not None:
        begin_anew(held)
    return 0


def _settings(arguments: argparse.Namespace) -> Config:
    """The configuration, with what the command line says over it."""
    settings = config.load(arguments.config)
    if arguments.no_logger:
        settings = replace(
            settings, container_log=replace(settings.container_log, start_logger=False)
        )
    level = arguments.log_level or settings.log.level
    fmt = arguments.log_format or settings.log.format
    return replace(settings, log=replace(settings.log, level=level, format=fmt))


async def _serve(settings: Config, load: Callable[[], Config]) -> Held | None:
    from zos_cri.app.server import App  # noqa: PLC0415 gRPC reads its environment when imported

    return await App(settings, load).run()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed (the extra of that name), else asyncio's."""
    try:
        import uvloop  # noqa: PLC0415
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
