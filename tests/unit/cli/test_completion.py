from __future__ import annotations

import argparse
import subprocess

import pytest

from zos_cri.cli.completion import bash
from zos_cri.cli.main import main, parser

LISTS = """
zos-cri() { case $1 in
    ps) printf 'NS NAME\\ndefault web\\ndefault worker\\n' ;;
    images) printf 'IMAGE ID\\nbusybox:1 x\\n' ;;
esac; }
"""


def complete(*words):
    """What bash would propose for the last word."""
    script = f"""{LISTS}{bash(parser())}
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)); _zos_cri; printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-uc", script, "-", *words], capture_output=True, text=True, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "proposed"),
    [
        (["zos-cri", "ser"], ["serve"]),
        (["zos-cri", "config", ""], ["default", "dump", "validate"]),
        (["zos-cri", "config", "dump", "-o", ""], ["json", "toml"]),
        (["zos-cri", "top", "--so"], ["--socket", "--sort"]),
        (["zos-cri", "top", "--once", "--sort", "m"], ["memory"]),
        (["zos-cri", "run", "--ns", ""], []),
        (["zos-cri", "logs", "-f", "w"], ["web", "worker"]),
        (["zos-cri", "rmi", ""], ["busybox:1"]),
        (["zos-cri", "completion", ""], ["bash"]),
        (["zos-cri", "--v"], ["--version"]),
    ],
)
def test_proposals(words, proposed):
    assert complete(*words) == proposed


def test_every_command_and_option_is_proposed():
    [subparsers] = [a for a in parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert complete("zos-cri", "") == sorted(subparsers.choices)
    for name, sub in subparsers.choices.items():
        flags = [flag for action in sub._actions for flag in action.option_strings]
        assert complete("zos-cri", name, "-") == sorted(flags)


def test_files_are_proposed(tmp_path):
    (tmp_path / "a.toml").touch()
    assert complete("zos-cri", "serve", "--config", f"{tmp_path}/a") == [f"{tmp_path}/a.toml"]


def test_the_command_prints_it(capsys):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == bash(parser())
