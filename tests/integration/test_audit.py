"""Strays made on purpose are found by the audit, and removed by it and by the server's sweep."""

from __future__ import annotations

import os
import signal
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.integration.test_crictl import wait_for

if TYPE_CHECKING:
    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.timeout(180)]

KINDS = {
    *("task", "network", "address", "namespace", "mount", "cgroup", "sandbox", "log", "fifo"),
    *("bundle", "layer"),
}


def forget(server: Server, *ids: str) -> None:
    """Takes records away, as no server does."""
    with closing(sqlite3.connect(server.state / "state.db")) as connection, connection:
        for table in ("sandbox", "container"):
            connection.executemany(f"DELETE FROM {table} WHERE id = ?", [(id_,) for id_ in ids])


def two_pods(server: Server) -> tuple[str, str]:
    with server.cri() as cri:
        pod = server.run_pod(cri, "stray")
        container = server.run_container(cri, pod)
        server.run_container(cri, server.run_pod(cri, "wanted"))
    return pod, container


def test_what_runs_is_never_fixed_and_what_is_dead_is(bridged: Server) -> None:
    ids = two_pods(bridged)
    assert bridged.audit() == []
    bridged.kill()
    assert bridged.audit() == []
    forget(bridged, *ids)
    found = bridged.audit()
    assert {finding["kind"] for finding in found} == KINDS | {"shim"}
    assert {finding["id"] for finding in found} == set(ids)
    assert {finding["verdict"] for finding in found} == {"stray"}
    assert bridged.audit("--fix") == found  # all of it is a running container's

    for pid, line in bridged.processes():
        if ids[0] in line or any(id_ in _cgroup(pid) for id_ in ids):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(ids[0] in line for _, line in bridged.processes()))
    # Old shims' sockets are in a directory that is others' as well.
    assert {finding["kind"] for finding in bridged.audit()} - {"socket"} == KINDS
    assert bridged.audit("--fix") == []
    assert bridged.audit() == []
    bridged.start()
    assert bridged.audit() == []


def test_the_server_ends_what_no_record_names(bridged: Server) -> None:
    ids = two_pods(bridged)
    bridged.kill()
    forget(bridged, *ids)
    bridged.start()
    assert bridged.audit() == []
    bridged.remove_pods()
    assert bridged.leftovers() == []


def _cgroup(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            return file.read()
    except OSError:
        return ""
