"""The command line: `zos-cri COMMAND`. An error is one line on stderr and an exit code."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Final

from zos_cri import __version__
from zos_cri.cli import (
    audit,
    completion,
    configuration,
    doctor,
    events,
    images,
    logger,
    module,
    serve,
    top,
)
from zos_cri.errors import (
    AlreadyExists,
    DeadlineExceeded,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    one_line,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Beyond 2, which is argparse's own for a wrong command line, and below 64 (sysexits).
EXIT_CODES: Final[Mapping[type[Error], int]] = {
    InvalidArgument: 3,
    NotFound: 4,
    AlreadyExists: 5,
    FailedPrecondition: 6,
    DeadlineExceeded: 7,
    Unavailable: 8,
}


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    codes = ", ".join(f"{code} {cls.__name__}" for cls, code in EXIT_CODES.items())
    root = argparse.ArgumentParser(
        prog="zos-cri",
        description="A Kubernetes CRI server over the 0-OS container module, and its client.",
        epilog=f"exit codes: 0 done, 1 failed, 2 wrong command line, {codes}",
    )
    root.add_argument("--version", action="version", version=f"zos-cri {__version__}")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for part in (serve, logger, module, images, top, events, audit, doctor, configuration):
        part.add(commands)
    completion.add(commands)
    return root


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command line; one that is wrong ends the process with 2.

    What stands behind `--` is taken from it before: argparse would lose a second `--` in it.
    """
    root = parser()
    end = argv.index("--") if "--" in argv else len(argv)
    arguments, rest = root.parse_args(argv[:end]), list(argv[end + 1 :])
    if "command" in arguments:
        arguments.command += rest
        if not arguments.command:
            arguments.parser.error("no command given: put it behind --")
    elif rest:
        root.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code."""
    arguments = parse(sys.argv[1:] if argv is None else argv)
    try:
        code: int = arguments.run(arguments)
    except Error as error:
        print(f"zos-cri: {one_line(error)}", file=sys.stderr)
        return next((EXIT_CODES[c] for c in type(error).__mro__ if c in EXIT_CODES), 1)
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
