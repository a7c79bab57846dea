from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zos_cri.wire.wwwauth import Challenge, parse

REALM = {"realm": "https://auth.example/token", "service": "registry.example"}


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ("", []),
        ("Basic", [Challenge("basic")]),
        ('Basic realm="a b"', [Challenge("basic", {"realm": "a b"})]),
        (
            'Bearer realm="https://auth.example/token",service="registry.example"',
            [Challenge("bearer", REALM)],
        ),
        (
            'bearer Realm="https://auth.example/token" , service=registry.example',
            [Challenge("bearer", REALM)],
        ),
        (
            'Bearer realm="r",scope="repository:a/b:pull,push",error="insufficient_scope"',
            [
                Challenge(
                    "bearer",
                    {
                        "realm": "r",
                        "scope": "repository:a/b:pull,push",
                        "error": "insufficient_scope",
                    },
                )
            ],
        ),
        (
            'Negotiate, Basic realm="x", Bearer realm="y",service="z"',
            [
                Challenge("negotiate"),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y", "service": "z"}),
            ],
        ),
        ("NTLM abc==, Basic realm=x", [Challenge("ntlm"), Challenge("basic", {"realm": "x"})]),
        (
            r'Basic realm="a \"quoted\" \\ one"',
            [Challenge("basic", {"realm": 'a "quoted" \\ one'})],
        ),
        ('Basic realm="first", realm="second"', [Challenge("basic", {"realm": "first"})]),
        ('Basic realm="never ends', [Challenge("basic")]),
        ("=,=,", []),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse(header) == challenges


@given(st.text(alphabet='Basicer =,"\\x-/:\t', max_size=200))
def test_anything_parses(header: str) -> None:
    for challenge in parse(header):
        assert challenge.scheme == challenge.scheme.lower()
