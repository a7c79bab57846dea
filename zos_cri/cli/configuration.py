"""`zos-cri config`: what the configuration is, whether a file is right, and what can be set."""

from __future__ import annotations

import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from zos_cri import config
from zos_cri.cli import toml

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "config",
        help="print, explain or check the configuration",
        description="Prints, explains or checks the configuration.",
        epilog="example: zos-cri config dump",
    )
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    dumper = _command(parts, "dump", dump, "print what counts, defaults included")
    dumper.add_argument("-o", "--output", choices=("toml", "json"), default="toml")
    _command(parts, "validate", validate, "check a file; nothing is printed for a right one but ok")
    explainer = parts.add_parser(
        "default",
        help="print a file that explains every setting",
        description="Prints a configuration file that explains every setting, with its default.",
        epilog="example: zos-cri config default",
    )
    explainer.set_defaults(run=default)


def _command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=f"example: zos-cri config {name} --config config.toml",
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help=f"default: {config.DEFAULT_PATH}"
    )
    parser.set_defaults(run=run)
    return parser


def dump(arguments: argparse.Namespace) -> int:
    """`zos-cri config dump`."""
    settings = msgspec.to_builtins(config.load(arguments.config))
    if arguments.output == "json":
        print(json.dumps(settings, indent=2))
    else:
        print("\n".join(toml.document(settings)))
    return 0


def validate(arguments: argparse.Namespace) -> int:
    """`zos-cri config validate`."""
    config.load(arguments.config)
    path = arguments.config or config.DEFAULT_PATH
    print(f"{path}: ok" if path.exists() else f"{path} isn't there: every setting has its default")
    return 0


def default(arguments: argparse.Namespace) -> int:
    """`zos-cri config default`."""
    print((importlib.resources.files("zos_cri") / "default.toml").read_text(), end="")
    return 0
