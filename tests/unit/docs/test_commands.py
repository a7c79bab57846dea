"""The commands that the documents show can be given; README's are run by tests."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from zos_cri import config
from zos_cri.cli import main

ROOT = Path(__file__).resolve().parents[3]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
INTEGRATION = ROOT / "tests" / "integration"
# Which test runs README's commands, by heading; and why not, where none does.
RUN = {
    "Two commands": ("test_demo.py", "test_demo_ends_with_0_and_leaves_nothing"),
    "crictl": ("test_demo.py", "test_readme_crictl"),
    "The command line": ("test_demo.py", "test_readme_command_line"),
    "The kubelet": ("../kubelet/test_readme.py", "test_readme_kubelet"),
    "A cluster": ("../cluster/test_by_hand.py", "test_readme_cluster"),
    "Installing": ("test_package.py", "test_an_installed_package_is_complete"),
}
EXCEPTED = {
    "hack/test": "runs this test",
    "apt-get update": "tests have no network; what it brings is there when they begin",
    "apt-get install": "the same; the package is installed by dpkg instead",
    "hack/deb": "needs the package index; hack/test runs it before the tests",
}


def blocks(path: Path, language: str) -> list[tuple[str, str]]:
    """(heading, block) of a language."""
    found = []
    for section in re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]:
        heading, _, text = section.partition("\n")
        found += [(heading, b) for b in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]
    return found


def lines(path: Path) -> list[tuple[str, str]]:
    """(heading, command line) of shell blocks, here documents left out."""
    return [
        (heading, line)
        for heading, block in blocks(path, "sh")
        for line in re.sub(r"<<END\n.*?^END$", "", block, flags=re.DOTALL | re.MULTILINE).split(
            "\n"
        )
        if line.strip()
    ]


SHOWN = [(path, line) for path in DOCUMENTS for _, line in lines(path)]


@pytest.mark.parametrize(
    ("path", "line"), [(p, x) for p, x in SHOWN if x.startswith("zos-cri ")], ids=str
)
def test_our_command_can_be_given(path: Path, line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    assert main.parse(words).run


@pytest.mark.parametrize(("path", "line"), [(p, x) for p, x in SHOWN if "hack/" in x], ids=str)
def test_script_is_there(path: Path, line: str) -> None:
    for name in re.findall(r"\bhack/[\w/-]+", line):
        assert os.access(ROOT / name, os.X_OK), name


def test_units_that_are_named_are_there() -> None:
    for path in DOCUMENTS:
        for name in re.findall(r"\bzos-cri[\w-]*\.(?:service|socket)\b", path.read_text()):
            assert (ROOT / "packaging/systemd" / name).exists(), f"{path}: {name}"


def test_every_command_of_readme_is_run_or_excepted() -> None:
    for heading, line in lines(ROOT / "README.md"):
        if any(line.startswith(excepted) for excepted in EXCEPTED):
            continue
        assert heading in RUN, f"README: {heading}: nothing runs: {line}"
        file, test = RUN[heading]
        assert f"def {test}(" in (INTEGRATION / file).read_text()


def test_every_configuration_shown_is_right() -> None:
    shown = [block for path in DOCUMENTS for _, block in blocks(path, "toml")]
    assert shown
    for block in shown:
        config.parse(block.encode(), "shown")


def test_crictl_yaml_is_the_packages() -> None:
    example = (ROOT / "packaging/crictl.yaml").read_text()
    (shown,) = [
        block for heading, block in blocks(ROOT / "README.md", "yaml") if "crictl" in heading
    ]
    assert shown in example
    assert str(config.Config().socket) in shown
