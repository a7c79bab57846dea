"""A real Prometheus scrapes a real server: what the chart's rules and dashboard ask is there."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import yaml

from tests.conftest import ROOT
from tests.integration.server import UPSTREAM, serving
from zos_cri._pb import cri_pb2 as pb
from zos_cri._pb import cri_pb2_grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.integration.server import Server

pytestmark = [pytest.mark.root, pytest.mark.runtime, pytest.mark.go]

FILES = ROOT / "charts/zos-cri/files"
TIMEOUT = 60.0
SCRAPES = 4  # that rates are made of
NAME = re.compile(r"\b(?:zos_cri|process)_\w+")


def dashboard() -> list[tuple[str, str]]:
    """Panels' titles and queries."""
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    return [(p["title"], t["expr"]) for p in panels for t in p.get("targets", [])]


def rules() -> str:
    text = (FILES / "rules.yaml").read_text()
    return text.replace("@startSeconds@", "10").replace("@failureShare@", "0.05")


class Prometheus:
    """Prometheus with this server as its only target."""

    def __init__(self, target: str, directory: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (directory / "rules.yaml").write_text(rules())
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [
                {"job_name": "node/zos-cri", "static_configs": [{"targets": [target]}]}
            ],
        }
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self._url = f"http://127.0.0.1:{port}/api/v1"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._log = directory / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *("prometheus", f"--config.file={directory}/prometheus.yaml"),
                    f"--storage.tsdb.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(TIMEOUT)

    def get(self, path: str, **query: str) -> Any:
        url = f"{self._url}/{path}?{urllib.parse.urlencode(query)}"
        with self._opener.open(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, text: str) -> list[Any]:
        found: list[Any] = self.get("query", query=text)["result"]
        return found

    def wait_for(self, text: str) -> list[Any]:
        """The answer to a query, as soon as there is one."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            assert self._process.poll() is None, self._log.read_text()
            try:
                found = self.query(text)
            except OSError:  # it doesn't listen yet
                found = []
            if found:
                return found
            assert time.monotonic() < deadline, f"{text}: no answer: {self._log.read_text()}"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(own_network: None) -> Iterator[Server]:
    with serving(UPSTREAM, warm=1) as started:
        yield started


@pytest.fixture(scope="module")
def exposed(server: Server) -> str:
    """What the server exposes once everything that can be counted has happened."""
    with server.channel() as channel:
        images = cri_pb2_grpc.ImageServiceStub(channel)
        cri = cri_pb2_grpc.RuntimeServiceStub(channel)
        with pytest.raises(grpc.RpcError):
            # Nobody listens there.
            images.PullImage(pb.PullImageRequest(image=pb.ImageSpec(image="127.0.0.1:1/none:1")))
        pod = server.run_pod(cri)
        gone = server.run_container(cri, pod)
        cri.ExecSync(pb.ExecSyncRequest(container_id=gone, cmd=["true"]))
        with pytest.raises(grpc.RpcError):
            server.run_container(cri, pod, "/no/such/program", name="fails")
        cri.StopContainer(pb.StopContainerRequest(container_id=gone, timeout=0))
        cri.RemoveContainer(pb.RemoveContainerRequest(container_id=gone))
        cri.StopPodSandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod))
        cri.RemovePodSandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod))
        # What gauges by state count.
        server.run_container(cri, server.run_pod(cri, "stays"))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(server.metrics_url(), timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture(scope="module")
def prometheus(
    server: Server, exposed: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    target = urllib.parse.urlsplit(server.metrics_url()).netloc
    started = Prometheus(target, tmp_path_factory.mktemp("prometheus"))
    try:
        started.wait_for(f"count_over_time(up[1h]) >= {SCRAPES}")
        yield started
    finally:
        started.close()


def test_every_name_that_is_asked_for_is_exposed(exposed: str) -> None:
    there = set(re.findall(r"^(\w+)(?:\{| )", exposed, re.MULTILINE))
    recorded = set(re.findall(r"record: (\S+)", rules()))
    asked = {name for _, query in dashboard() for name in NAME.findall(query)}
    expressions = [
        rule["expr"] for group in yaml.safe_load(rules())["groups"] for rule in group["rules"]
    ]
    asked |= {
        name
        for text in expressions
        for name in NAME.findall(text)
        if not any(name in record for record in recorded)
    }
    assert len(asked) > 15
    assert asked - there == set()


def test_the_server_is_scraped(prometheus: Prometheus) -> None:
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert prometheus.query("scrape_samples_scraped")[0]["value"][1] != "0"


def test_every_query_of_the_dashboard_has_data(prometheus: Prometheus) -> None:
    empty = []
    for title, query in dashboard():
        text = query.replace("$__rate_interval", "1m").replace("$instance", ".*")
        assert "$" not in text, title
        if not prometheus.query(text):
            empty.append(f"{title}: {text}")
    assert empty == []


def test_every_rule_is_evaluated(prometheus: Prometheus) -> None:
    # The record is there once the first evaluation is over.
    assert prometheus.wait_for('zos_cri:rpc_failures:ratio_rate5m{method="StartContainer"}')
    assert prometheus.wait_for("zos_cri:rpc_duration_seconds:p99_rate5m")
    (group,) = prometheus.get("rules")["groups"]
    assert len(group["rules"]) == 12
    assert {(rule["name"], rule["health"]) for rule in group["rules"]} == {
        (rule["name"], "ok") for rule in group["rules"]
    }
    assert prometheus.query('ALERTS{alertstate="firing"}') == []
