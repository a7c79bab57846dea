from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.wire.reference import InvalidReference, Reference, is_digest, parse

SHA = "sha256:" + "a1" * 32
SHA512 = "sha512:" + "0f" * 64


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/busybox", "docker.io/a/busybox:latest"),
        ("library/busybox", "docker.io/library/busybox:latest"),
        ("grafana/grafana", "docker.io/grafana/grafana:latest"),
        ("localhost/a", "localhost/a:latest"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("host:5000/a/b/c:t", "host:5000/a/b/c:t"),
        ("127.0.0.1:5000/a:latest", "127.0.0.1:5000/a:latest"),
        ("[fd00::1]:5000/a", "[fd00::1]:5000/a:latest"),
        ("[::1]/a", "[::1]/a:latest"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ("Upper/path", "Upper/path:latest"),
        (f"busybox@{SHA}", f"docker.io/library/busybox@{SHA}"),
        (f"busybox:1.2@{SHA}", f"docker.io/library/busybox@{SHA}"),
        (f"a.b/c@{SHA512}", f"a.b/c@{SHA512}"),
        ("a/b__c-d.e---f:T_.-0", "docker.io/a/b__c-d.e---f:T_.-0"),
        ("deadbeef", "docker.io/library/deadbeef:latest"),
    ],
)
def test_normal_form(text: str, key: str) -> None:
    assert parse(text).key == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a" * 2000,
        ":tag",
        "@" + SHA,
        "Busybox",
        "a/Busybox",
        "a//b",
        "/a",
        "a/",
        "-a/b.c",
        "a_-b",
        "a..b",
        "a b",
        "a:",
        "a:-tag",
        "a:" + "t" * 129,
        "a:tag:tag",
        "a@",
        "a@sha256:abc",
        "a@sha256:" + "A1" * 32,
        "a@md5:" + "a1" * 16,
        f"a@{SHA}@{SHA}",
        "ab" * 32,
        "host:port/a",
        "http://host/a",
        "a\n",
        "a:tag\n",
        "ä",
        "host.example/" + "a/" * 130 + "a",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match="image reference"):
        parse(text)


def test_parts_and_text() -> None:
    parsed = parse(f"quay.io/a/b:v1@{SHA}")
    assert parsed == Reference("quay.io", "a/b", "v1", SHA)
    assert parsed.name == "quay.io/a/b"
    assert str(parsed) == f"quay.io/a/b:v1@{SHA}"
    assert parsed.with_digest(SHA512) == f"quay.io/a/b@{SHA512}"


def test_a_digest() -> None:
    assert is_digest(SHA)
    assert not is_digest(SHA[:-1])
    assert not is_digest("a1" * 32)


@given(st.text(alphabet="abcXYZ019.:/@-_[] \n", max_size=60))
def test_a_parsed_reference_parses_to_itself(text: str) -> None:
    try:
        parsed = parse(text)
    except InvalidReference:
        return
    assert parse(str(parsed)) == parsed
    assert parse(parsed.key).key == parsed.key
