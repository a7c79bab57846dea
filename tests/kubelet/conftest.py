"""Fixtures of tests with a real kubelet."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kubelet.node import Node, node_running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def node(own_network: None) -> Iterator[Node]:
    """One kubelet for all tests of a file: each has pods of its own."""
    with node_running() as running:
        yield running


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Puts the ends of the logs into the report of a test that failed."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    node = getattr(item, "funcargs", {}).get("node")
    if report.failed and node is not None:
        report.sections.append(("kubelet", node.log.read_text()[-9000:]))
        report.sections.append(
            (
                "server",
                "\n".join(
                    line
                    for line in node.server.log.read_text().splitlines()
                    if " DEBUG " not in line
                )[-6000:],
            )
        )
