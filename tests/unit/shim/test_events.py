"""Events as shims send them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from zos_cri import errors
from zos_cri._pb import events_pb2, ttrpc_events_pb2
from zos_cri.shim.client import Connection
from zos_cri.shim.events import METHOD, SERVICE, Event, EventServer, parse

if TYPE_CHECKING:
    from pathlib import Path


def envelope(type_url: str = "containerd.events.TaskExit", value: bytes | None = None) -> bytes:
    request = ttrpc_events_pb2.ForwardRequest()
    request.envelope.timestamp.FromNanoseconds(123)
    request.envelope.namespace = "zos"
    request.envelope.topic = "/tasks/exit"
    request.envelope.event.type_url = type_url
    exit_ = events_pb2.TaskExit(container_id="c", id="e", pid=9, exit_status=1)
    request.envelope.event.value = exit_.SerializeToString() if value is None else value
    return request.SerializeToString()


@pytest.mark.parametrize("prefix", ["", "types.googleapis.com/"])
def test_an_event(prefix: str) -> None:
    event = parse(envelope(prefix + "containerd.events.TaskExit"))
    assert event == Event(
        "/tasks/exit",
        "zos",
        123,
        events_pb2.TaskExit(container_id="c", id="e", pid=9, exit_status=1),
    )


def test_an_unknown_type_is_passed_over() -> None:
    assert parse(envelope("containerd.events.Future")) is None


@pytest.mark.parametrize("payload", [b"\xff", envelope(value=b"\xff")])
def test_what_is_no_event(payload: bytes) -> None:
    with pytest.raises(errors.InvalidArgument):
        parse(payload)


async def test_over_the_socket(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        raise KeyError("the consumer's bug")

    server = EventServer(take)
    await server.start(str(tmp_path / "events"))
    shim = await Connection.dial(str(tmp_path / "events"), peer="us")
    for payload in (envelope(), envelope("containerd.events.Future")):
        assert await shim.call(SERVICE, METHOD, payload, timeout=5, metadata={}) == b""
    with pytest.raises(errors.InvalidArgument):
        await shim.call(SERVICE, METHOD, b"\xff", timeout=5, metadata={})
    await shim.close()
    await server.close()
    assert [event.message.pid for event in events] == [9]
    assert "event not handled" in caplog.text
