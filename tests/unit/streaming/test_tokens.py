"""Single-use tokens."""

from __future__ import annotations

import base64

import pytest

from zos_cri.errors import ResourceExhausted, grpc_code
from zos_cri.streaming.tokens import Tokens


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(clock: Clock) -> Tokens[str]:
    return Tokens(clock=clock)


def test_a_token_works_once(tokens: Tokens[str]) -> None:
    token = tokens.issue("request")
    assert tokens.peek(token) == tokens.peek(token) == "request"
    assert tokens.redeem(token) == "request"
    assert tokens.redeem(token) is None
    assert tokens.peek(token) is None


def test_tokens_have_256_bits(tokens: Tokens[str]) -> None:
    issued = {tokens.issue("") for _ in range(100)}
    assert len(issued) == 100
    assert {len(base64.urlsafe_b64decode(token + "=")) for token in issued} == {32}


def test_tokens_live_a_minute(tokens: Tokens[str], clock: Clock) -> None:
    token = tokens.issue("request")
    clock.now += 59.9
    assert tokens.peek(token) == "request"
    clock.now += 0.1
    assert tokens.redeem(token) is None


def test_a_thousand_may_wait(tokens: Tokens[str], clock: Clock) -> None:
    first = tokens.issue("first")
    clock.now += 1
    for _ in range(999):
        tokens.issue("")
    with pytest.raises(ResourceExhausted, match="1000 streaming requests") as caught:
        tokens.issue("one more")
    assert grpc_code(caught.value) == "RESOURCE_EXHAUSTED"
    clock.now += 59  # the first has expired, the others haven't
    assert tokens.redeem(first) is None
    tokens.issue("there is room")
    with pytest.raises(ResourceExhausted):
        tokens.issue("one more")
    assert len(tokens) == 1000


def test_a_used_token_makes_room(clock: Clock) -> None:
    tokens: Tokens[int] = Tokens(clock=clock, limit=1)
    tokens.redeem(tokens.issue(1))
    tokens.issue(2)
    with pytest.raises(ResourceExhausted):
        tokens.issue(3)
