"""`zos-cri completion`: what a shell proposes, generated from the parser itself."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

# What stands for an argument in help says what it is.
_FILES: Final = frozenset({"FILE", "PATH", "CONFIG", "CHECKPOINT"})
_CONTAINERS: Final = frozenset({"ID"})
_IMAGES: Final = frozenset({"IMAGE"})

_FUNCTION: Final = """\
# bash completion of zos-cri; made by `zos-cri completion bash`.
_zos_cri() {
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command= each
    COMPREPLY=()
    for each in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$command $each" in
%(commands)s
        esac
    done
    case "$command $before" in
%(options)s
    esac
    if [[ $word == -* ]]; then
        case "$command" in
%(flags)s
        esac
        return
    fi
    case "$command" in
%(arguments)s
    esac
}
complete -F _zos_cri zos-cri
"""
_INDENT: Final = " " * 8


def add(commands: Commands) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete our commands",
        description="Prints what makes a shell complete our commands: source it, or put it into"
        " /usr/share/bash-completion/completions/zos-cri.",
        epilog="example: zos-cri completion bash",
    )
    parser.add_argument("shell", choices=("bash",), metavar="SHELL", help="bash")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """`zos-cri completion`."""
    from zos_cri.cli.main import parser  # noqa: PLC0415 it is made of us

    print(bash(parser()), end="")
    return 0


def bash(root: argparse.ArgumentParser) -> str:
    """A parser's completion as a bash script."""
    parsers = dict(_walk("", root))
    lines: dict[str, list[str]] = {"commands": [], "options": [], "flags": [], "arguments": []}
    for name, parser in parsers.items():
        quoted = shlex.quote(name)
        names = list(_children(parser))
        for child in names:
            whole = f"{name} {child}".strip()
            lines["commands"].append(
                f"{shlex.quote(f'{name} {child}')}) command={shlex.quote(whole)} ;;"
            )
        flags = [flag for action in parser._actions for flag in action.option_strings]
        lines["flags"].append(f"{quoted}) {_words(flags)} ;;")
        proposal = _words(names) if names else _arguments(parser)
        if proposal:
            lines["arguments"].append(f"{quoted}) {proposal} ;;")
        for action in parser._actions:
            if action.option_strings and action.nargs != 0:
                pattern = "|".join(shlex.quote(f"{name} {flag}") for flag in action.option_strings)
                lines["options"].append(f"{pattern}) {_value(action) or ':'}; return ;;")
    return _FUNCTION % {
        key: "\n".join(_INDENT + line for line in value) for key, value in lines.items()
    }


def _walk(
    name: str, parser: argparse.ArgumentParser
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for child, sub in _children(parser).items():
        yield from _walk(f"{name} {child}".strip(), sub)


def _children(parser: argparse.ArgumentParser) -> dict[str, Any]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _arguments(parser: argparse.ArgumentParser) -> str:
    for action in parser._actions:
        if not action.option_strings:
            return _value(action)
    return ""


def _value(action: argparse.Action) -> str:
    """The command that proposes values of an option or argument; "" where there are none."""
    metavar = str(action.metavar or "")
    if action.choices is not None:
        return _words([str(choice) for choice in action.choices])
    if action.dest in ("config", "input", "flist") or metavar in _FILES:
        return 'COMPREPLY=($(compgen -f -- "$word"))'
    if metavar in _CONTAINERS:
        return _listed("zos-cri ps", 2)
    if metavar in _IMAGES:
        return _listed("zos-cri images", 1)
    return ""


def _words(words: list[str]) -> str:
    return f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(words))} -- "$word"))'


def _listed(command: str, column: int) -> str:
    """Names from a column of a table that another command prints."""
    names = f"$({command} 2>/dev/null | awk 'NR > 1 {{ print ${column} }}')"
    return f'COMPREPLY=($(compgen -W "{names}" -- "$word"))'
