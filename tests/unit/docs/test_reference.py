"""The documents that are written from code say what the code says."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from zos_cri import config
from zos_cri._pb import cri_pb2
from zos_cri.cli import main
from zos_cri.metrics import Metrics
from zos_cri.store import lifecycle

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[3]
CONFIGURATION = (ROOT / "docs/configuration.md").read_text()
METRICS = (ROOT / "docs/metrics.md").read_text()
CLI = (ROOT / "docs/cli.md").read_text()
METHODS = [
    method.name
    for service in cri_pb2.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def load(name: str) -> ModuleType:
    """A script of hack/ as a module."""
    loader = importlib.machinery.SourceFileLoader(name.replace("-", "_"), str(ROOT / "hack" / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["lifecycle", "cri"])
def test_is_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs" / f"{name}.md").read_text()
    assert written == load(f"{name}-docs").render(), f"run hack/{name}-docs"


def test_default_configuration_explains_every_setting() -> None:
    written = (ROOT / "zos_cri" / "default.toml").read_text()
    assert written == load("config-docs").render(), "run hack/config-docs"
    assert config.parse(written.encode(), "as it is") == config.Config()
    uncommented = re.sub(r"^#(?=\w)", "", written, flags=re.MULTILINE)
    settled = tomllib.loads(uncommented)
    assert settled == msgspec.json.decode(msgspec.json.encode(config.Config()))


def test_every_rpc_is_listed_once() -> None:
    listed = re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "cri.md").read_text(), re.MULTILINE)
    assert listed == METHODS
    assert set(load("cri-docs").functions()) <= set(METHODS)


@pytest.mark.parametrize("table", [lifecycle.SANDBOX, lifecycle.CONTAINER])
def test_every_transition_is_drawn(table: Any) -> None:
    drawn = (ROOT / "docs" / "lifecycle.md").read_text()
    for state, row in table.items():
        for event, target in row.items():
            assert re.search(rf"^    {state} --> {target}: .*\b{event}\b", drawn, re.MULTILINE)


def test_comments_are_found_beside_members() -> None:
    comments = load("lifecycle-docs").comments(lifecycle.ContainerEvent)
    assert comments["FOUND"] == "an unknown one answers again"
    assert comments["START"] == ""


def settings() -> list[tuple[str, object]]:
    """Every key of the configuration with its default."""
    found: list[tuple[str, object]] = []
    for key, value in msgspec.to_builtins(config.Config()).items():
        if key == "handlers":
            found += [(f"handlers.NAME.{name}", each) for name, each in value["runc"].items()]
        elif isinstance(value, dict) and value:
            found += [(f"{key}.{name}", each) for name, each in value.items()]
        else:
            found.append((key, value))
    return found


@pytest.mark.parametrize(("key", "default"), settings(), ids=str)
def test_every_setting_is_listed(key: str, default: object) -> None:
    row = re.search(rf"^\| `{re.escape(key)}` \| (.*?) \|", CONFIGURATION, re.MULTILINE)
    assert row, f"{key} is not in docs/configuration.md"
    shown = msgspec.json.encode(default).decode().replace(",", ", ")
    assert row[1] == f"`{shown}`"


def test_no_setting_is_listed_that_is_not_there() -> None:
    listed = re.findall(r"^\| `([\w.]+)` \| `", CONFIGURATION, re.MULTILINE)
    assert sorted(listed) == sorted(key for key, _ in settings())


def test_every_metric_is_listed() -> None:
    ours = {family.name for family in Metrics().registry.collect() if "zos_cri" in family.name}
    assert ours
    for name in ours:
        assert f"`{name}" in METRICS, name


def test_every_command_is_listed() -> None:
    usage = main.parser().format_help()
    commands = re.findall(r"^    (\w+) ", usage, re.MULTILINE)
    assert "serve" in commands
    for command in commands:
        assert f"`zos-cri {command}`" in CLI, command


def test_exit_codes_are_listed() -> None:
    for cls, code in main.EXIT_CODES.items():
        assert f"{code} {cls.__name__}" in CLI


def test_links_lead_somewhere() -> None:
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"
