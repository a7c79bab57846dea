"""What ends a session that nobody planned for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fakes.streaming_client import (
    open_stream,
    open_streams,
    read_all,
    read_status,
    spdy_session,
    until,
)
from zos_cri.streaming.backend import ExecRequest, PortForwardRequest

if TYPE_CHECKING:
    import pytest

    from tests.fakes.streaming import FakeBackend, FakeProcess
    from zos_cri.streaming.server import StreamingServer


async def test_a_mistake_of_ours_is_logged_and_said(
    server: StreamingServer,
    backend: FakeBackend,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def mistaken(*_request: object) -> FakeProcess:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(backend, "exec", mistaken)
    monkeypatch.setattr(backend, "port_forward", mistaken)
    url = server.exec_url(ExecRequest("c1", ("x",), stdout=True))
    async with spdy_session(url) as session:
        streams = await open_streams(session, "error", "stdout")
        assert "a mistake of the server" in (await read_status(streams["error"]))["message"]
    assert "streaming session failed" in caplog.text
    assert "ZeroDivisionError: ours" in caplog.text
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with spdy_session(url, "portforward.k8s.io") as session:
        fields = {"port": "7", "requestid": "0"}
        error = await open_stream(session, streamtype="error", **fields)
        await open_stream(session, streamtype="data", **fields)
        assert b"a mistake of the server" in await read_all(error)
    await until(lambda: server.connections == 0)


async def test_the_protocols_of_each_kind(server: StreamingServer) -> None:
    url = server.port_forward_url(PortForwardRequest("p1"))
    async with spdy_session(url, "v4.channel.k8s.io", "portforward.k8s.io") as session:
        session.goaway()
