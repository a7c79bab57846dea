"""Templates for a node's pod CIDRs, containerd's own among them."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.errors import InvalidArgument
from zos_cri.network.template import TemplateError, pod_cidrs, render

V4, V6 = "10.1.0.0/24", "fd00:1::/64"
DUAL = """{
  "ipam": {
    "subnet": "{{.PodCIDR}}",
    "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}
      [{"subnet": "{{$range}}"}]{{end}}],
    "routes": [
      {{- range $i, $route := .Routes}}
      {{- if $i}}, {{end}}{"dst": "{{ $route }}"}
      {{- end }}
    ] {{- /* a comment */ -}}
  }
}"""


@pytest.mark.parametrize(
    ("cidrs", "routes"),
    [((V4,), ["0.0.0.0/0"]), ((V6,), ["::/0"]), ((V6, V4), ["0.0.0.0/0", "::/0"])],
)
def test_as_people_have_them(cidrs: Any, routes: Any) -> None:
    ipam = json.loads(render(DUAL, cidrs, source="t"))["ipam"]
    assert ipam["subnet"] == cidrs[0]
    assert ipam["ranges"] == [[{"subnet": cidr}] for cidr in cidrs]
    assert [route["dst"] for route in ipam["routes"]] == routes


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("no action { }", "no action { }"),
        ("{{range .PodCIDRRanges}}<{{.}}>{{end}}", f"<{V4}><{V6}>"),
        ("{{range $x := .PodCIDRRanges}}{{$x}} {{end}}", f"{V4} {V6} "),
        ("{{.PodCIDRRanges}}", f"[{V4} {V6}]"),
        ("{{if .PodCIDR}}a{{else}}b{{end}}", "a"),
        ("{{range $i, $x := .Routes}}{{if $i}}b{{else}}a{{end}}{{end}}", "ab"),
        ("a {{- .PodCIDR -}} b", f"a{V4}b"),
        ("a {{.PodCIDR}} b", f"a {V4} b"),
    ],
)
def test_actions(template: Any, text: Any) -> None:
    assert render(template, (V4, V6), source="t") == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Nope}}", "t: .Nope isn't known; there are .PodCIDR"),
        ("{{$x}}", r"t: \$x isn't known"),
        ("{{printf 1}}", "t: the action {{printf 1}} isn't known"),
        ("{{.PodCIDR | html}}", "isn't known here"),
        ("{{end}}", "the action {{end}}"),
        ("{{if .PodCIDR}}", "1 {{end}} missing"),
        ("{{else}}", "the action {{else}}"),
        ("{{if .PodCIDR}}{{else}}{{else}}{{end}}", "the action {{else}}"),
        ("{{range .PodCIDR}}{{end}}", "which isn't a list"),
    ],
)
def test_refused(template: Any, message: Any) -> None:
    with pytest.raises(TemplateError, match=message):
        render(template, (V4,), source="t")


@given(st.text(alphabet="{}.-$ PodCIDRrangeifls:=,/*", max_size=60))
def test_nothing_else_is_raised(template: Any) -> None:
    with contextlib.suppress(TemplateError):
        render(template, (V4,), source="t")


def test_cidrs() -> None:
    assert pod_cidrs("10.1.0.0/24, fd00:1::/64") == (V4, V6)
    assert pod_cidrs("10.1.0.7/24") == (V4,)
    for bad in ("", "x", "10.0.0.0/99", f"{V4},", '10.0.0.0/8"}'):
        with pytest.raises(InvalidArgument, match=r"network_config.pod_cidr"):
            pod_cidrs(bad)
