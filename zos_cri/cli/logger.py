"""`zos-cri logger`: the logger in the foreground, for a service manager to run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import zos_cri
from zos_cri import config, log

if TYPE_CHECKING:
    import argparse


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "logger",
        help="write containers' output to their log files",
        description=(
            "Runs the logger in the foreground. The server starts one itself where there is none; "
            "this is for a service manager. A second one for the same socket ends with 3."
        ),
        epilog="example: zos-cri logger --config /etc/zos-cri/config.toml",
    )
    parser.add_argument(
        "--config", type=Path, help=f"configuration file (default: {config.DEFAULT_PATH})"
    )
    parser.add_argument("--socket", type=Path, help="control socket (default: RUN/logger.sock)")
    parser.add_argument(
        "--state-dir", type=Path, help="what it serves; on tmpfs (default: RUN/logger)"
    )
    parser.add_argument("--log-format", choices=log.FORMATS, help="over log.format")
    parser.add_argument("--log-level", choices=log.LEVELS, help="over log.level")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Becomes the logger: the same process, without what the command line needed of memory."""
    argv = command(arguments)
    package = str(Path(zos_cri.__file__).parent.parent)
    search = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    os.chdir("/")
    os.execve(sys.executable, argv, {**os.environ, "PYTHONPATH": search})


def command(arguments: argparse.Namespace) -> tuple[str, ...]:
    """The logger's own command line.

    Raises:
        InvalidArgument: the configuration is wrong.
    """
    settings = config.load(arguments.config)
    return (
        *(sys.executable, "-m", "zos_cri.stdio"),
        *("--socket", os.path.abspath(arguments.socket or settings.logger_socket)),
        *("--state-dir", os.path.abspath(arguments.state_dir or settings.logger_state)),
        *("--log-level", arguments.log_level or settings.log.level),
        *("--log-format", arguments.log_format or settings.log.format),
    )
