"""The Helm chart: what it makes is right by Kubernetes' schemas, what it watches by promtool."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, TOOLS
from zos_cri import __version__

pytestmark = [pytest.mark.go]

CHART = ROOT / "charts" / "zos-cri"
SCHEMAS = TOOLS.parent / "schemas" / "{{.ResourceKind}}{{.KindSuffix}}.json"
EVERYTHING: dict[str, Any] = {
    "metrics": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "serviceMonitor": {"enabled": True},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True, "annotations": {"grafana_folder": "nodes"}},
    },
    "config": "[log]\nformat = 'json'\n",
    "kubelet": {"configDir": "/etc/kubernetes/kubelet.conf.d"},
    "runtimeClasses": [
        {"name": "fast", "handler": "crun", "overhead": {"memory": "4Mi"}},
        {"name": "slow", "handler": "runc"},
    ],
    "image": {"pullSecrets": [{"name": "secret"}]},
}


def run(*command: object, text: str = "", code: int = 0) -> str:
    done = subprocess.run(
        [str(word) for word in command], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def template(values: dict[str, Any] | None = None) -> str:
    return run(
        *(TOOLS / "helm", "template", "zos", CHART, "--namespace", "kube-system"),
        *("--kube-version", "1.37.0", "--values", "-"),
        text=json.dumps(values or {}),
    )


def objects(text: str) -> dict[tuple[str, str], Any]:
    found = [each for each in yaml.safe_load_all(text) if each]
    named = {(each["kind"], each["metadata"]["name"]): each for each in found}
    assert len(named) == len(found)
    return named


def test_lint() -> None:
    assert "0 chart(s) failed" in run(TOOLS / "helm", "lint", "--strict", CHART)


def test_versions_are_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == __version__


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["defaults", "everything"])
def test_is_right_by_the_schemas(values: dict[str, Any]) -> None:
    rendered = template(values)
    checker = (TOOLS / "kubeconform", "-strict", "-summary", "-schema-location", SCHEMAS)
    said = run(*checker, text=rendered)
    assert f"Valid: {len(objects(rendered))}, Invalid: 0, Errors: 0, Skipped: 0" in said
    wrong = rendered.replace("hostPID:", "hostPid:")
    assert "'hostPid' not allowed" in run(*checker, text=wrong, code=1)


def test_what_it_makes() -> None:
    made = objects(template(EVERYTHING))
    for action in ("install", "remove"):
        daemons = made["DaemonSet", f"zos-{action}"]["spec"]
        assert daemons["template"]["spec"]["nodeSelector"]["zos-cri.io/node"] == action
        labels = daemons["template"]["metadata"]["labels"]
        assert daemons["selector"]["matchLabels"].items() <= labels.items()
        (container,) = daemons["template"]["spec"]["containers"]
        assert container["command"] == ["sh", "/scripts/node.sh", action]
        assert container["image"] == f"localhost/zos-cri/deploy:{__version__}"
        done = {"install": "is-installed", "remove": "is-removed"}[action]
        assert container["readinessProbe"]["exec"]["command"][-1] == done
    # Its own pods' labels, by which the two select, differ.
    install, remove = (
        made["DaemonSet", f"zos-{action}"]["spec"]["selector"] for action in ("install", "remove")
    )
    assert install != remove
    data = made["ConfigMap", "zos-node"]["data"]
    assert data["node.sh"].strip() == (CHART / "files/node.sh").read_text().strip()
    assert "format = 'json'" in data["config.toml"]
    assert made["RuntimeClass", "fast"]["handler"] == "crun"
    assert made["RuntimeClass", "fast"]["overhead"] == {"podFixed": {"memory": "4Mi"}}
    assert made["RuntimeClass", "slow"]["scheduling"]["nodeSelector"] == {
        "zos-cri.io/node": "install"
    }
    assert made["Pod", "zos-test"]["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert made["Pod", "zos-test"]["spec"]["runtimeClassName"] == "fast"
    dashboard = made["ConfigMap", "zos-dashboard"]["data"]["zos-cri.json"]
    assert json.loads(dashboard) == json.loads((CHART / "files/dashboard.json").read_text())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("nodeLabel=", "nodeLabel"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=sha256:1", "digest"),
        ("metrics.port=70000", "port"),
        ("metrics.podMonitor.interval=often", "interval"),
        ("metrics.rules.failureShare=2", "failureShare"),
        ("runtimeClasses[0].handler=Run C", "handler"),
        ("kubelet.configDir=relative", "configDir"),
        ("metricz.port=1", "metricz"),
    ],
)
def test_wrong_values_are_named(setting: str, says: str) -> None:
    said = run(TOOLS / "helm", "template", "x", CHART, "--set", setting, code=1)
    assert "don't meet the specifications of the schema" in said
    assert says in said


def test_node_script_parses() -> None:
    run("dash", "-n", CHART / "files/node.sh")
    assert "usage: node.sh" in run("sh", CHART / "files/node.sh", "dance", code=64)


# ---- what is watched


def rules(**values: float) -> Any:
    made = objects(template({"metrics": {"rules": {"enabled": True, **values}}}))
    return made["PrometheusRule", "zos"]["spec"]


def test_rules_are_right_by_promtool(tmp_path: Any) -> None:
    text = yaml.safe_dump(rules())
    assert "@" not in text
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    assert "SUCCESS: 12 rules found" in run("promtool", "check", "rules", "--lint-fatal", path)


def test_every_alert_says_what_it_is_about() -> None:
    alerts = [rule for rule in rules()["groups"][0]["rules"] if "alert" in rule]
    assert len(alerts) == 10
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert set(alert["annotations"]) == {"summary", "description"}


# An alert, the series that make it fire within an hour, and labels that it then has.
JOB = 'job="kube-system/zos-cri",instance="n"'
FIRES = [
    ("ZosCriDown", [(f"up{{{JOB}}}", "0x60")], {}),
    (
        "ZosCriRestarts",
        [(f"process_start_time_seconds{{{JOB}}}", "1+60x60")],
        {},
    ),
    (
        "ZosCriFailures",
        [
            ('zos_cri_rpc_duration_seconds_count{instance="n",method="M",code="OK"}', "0+60x60"),
            (
                'zos_cri_rpc_duration_seconds_count{instance="n",method="M",code="INTERNAL"}',
                "0+6x60",
            ),
        ],
        {"method": "M"},
    ),
    (
        "ZosCriSlowStarts",
        [
            (
                f'zos_cri_rpc_duration_seconds_bucket{{instance="n",method="StartContainer",le="{le}"}}',
                v,
            )
            for le, v in (("10", "0+50x60"), ("60", "0+60x60"), ("+Inf", "0+60x60"))
        ],
        {"method": "StartContainer"},
    ),
    (
        "ZosCriStuckCalls",
        [('zos_cri_rpcs_in_flight{instance="n",method="StopPodSandbox"}', "1x60")],
        {"method": "StopPodSandbox"},
    ),
    ("ZosCriShimsLost", [('zos_cri_shims_lost_total{instance="n"}', "0x55 1x5")], {}),
    ("ZosCriLeaks", [('zos_cri_audit_findings{instance="n",verdict="stray"}', "2x60")], {}),
    ("ZosCriRecordsDamaged", [('zos_cri_records_damaged_total{instance="n"}', "3x60")], {}),
    (
        "ZosCriPullsFail",
        [
            ('zos_cri_image_pulls_total{instance="n",error=""}', "0+1x60"),
            ('zos_cri_image_pulls_total{instance="n",error="NotFound"}', "0+2x60"),
        ],
        {},
    ),
    (
        "ZosCriFewDescriptors",
        [(f"process_open_fds{{{JOB}}}", "90x60"), (f"process_max_fds{{{JOB}}}", "100x60")],
        {},
    ),
]


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Any) -> None:
    found = rules()
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(found))
    names = [rule["alert"] for rule in found["groups"][0]["rules"] if "alert" in rule]
    assert sorted(name for name, _, _ in FIRES) == sorted(names)
    tests = []
    for fires, series, labels in FIRES:
        (rule,) = [r for r in found["groups"][0]["rules"] if r.get("alert") == fires]
        expected = {**labels, **rule["labels"], "instance": "n"}
        query = f'count by (alertname) (ALERTS{{alertname="{fires}",alertstate="firing"}})'
        severity = f'ALERTS{{alertname="{fires}",alertstate="firing",' + ",".join(
            f'{k}="{v}"' for k, v in expected.items()
        )
        tests.append(
            {
                "interval": "1m",
                "input_series": [{"series": s, "values": v} for s, v in series],
                "promql_expr_test": [
                    {
                        "expr": query,
                        "eval_time": "1h",
                        "exp_samples": [{"labels": f'{{alertname="{fires}"}}', "value": 1}],
                    },
                    {
                        "expr": f"count({severity}}})",
                        "eval_time": "1h",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    },
                    # None of the others does.
                    {
                        "expr": 'count(ALERTS{alertstate="firing"})',
                        "eval_time": "1h",
                        "exp_samples": [{"labels": "{}", "value": 1}],
                    },
                ],
            }
        )
    healthy = [
        (f"up{{{JOB}}}", "1x60"),
        (f"process_start_time_seconds{{{JOB}}}", "1x60"),
        ('zos_cri_rpc_duration_seconds_count{instance="n",method="M",code="OK"}', "0+60x60"),
        ('zos_cri_rpc_duration_seconds_count{instance="n",method="M",code="NOT_FOUND"}', "0+60x60"),
        ('zos_cri_rpcs_in_flight{instance="n",method="StopPodSandbox"}', "1 0 1 0 1 0x55"),
        ('zos_cri_shims_lost_total{instance="n"}', "4x60"),
        ('zos_cri_audit_findings{instance="n",verdict="stray"}', "0x60"),
        ('zos_cri_records_damaged_total{instance="n"}', "0x60"),
    ]
    tests.append(
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in healthy],
            "promql_expr_test": [{"expr": "ALERTS", "eval_time": "1h", "exp_samples": []}],
        }
    )
    text = yaml.safe_dump(
        {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    )
    (tmp_path / "tests.yaml").write_text(text)
    assert "SUCCESS" in run("promtool", "test", "rules", tmp_path / "tests.yaml")


def test_thresholds_are_the_values() -> None:
    text = json.dumps(rules(startSeconds=2.5, failureShare=0.5))
    assert "> 2.5" in text
    assert "> 0.5" in text


def test_dashboard_has_a_panel_for_each_place() -> None:
    dashboard = json.loads((CHART / "files/dashboard.json").read_text())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & places, panel["title"]
        places |= cells
        for target in panel.get("targets", []):
            assert re.search(r'instance=~"\$instance"', target["expr"]), panel["title"]
