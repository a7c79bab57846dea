"""A held socket: whoever calls while nobody serves is connected through later."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from zos_cri.app import listen
from zos_cri.app.grpc_services import HEALTH
from zos_cri.app.handover import Held, fresh, own
from zos_cri.app.listen import all_have_come
from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


async def serve(path: Path) -> asyncio.Server:
    """Another's socket, put over the name; answers what it's told."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        writer.close()

    server = await asyncio.start_unix_server(echo, str(fresh(path)))
    fresh(path).rename(path)
    return server


async def call(path: Path, text: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(text)
    answer = await reader.read()
    writer.close()
    return answer


async def test_who_calls_meanwhile_waits(tmp_path: Path) -> None:
    path = tmp_path / "s"
    held = Held.made(path, lambda _: None)
    assert path.stat().st_mode & 0o777 == 0o600
    early = asyncio.create_task(call(path, b"early\n"))
    held._set_aside()
    server = await serve(path)
    await held.relay()
    assert await early == b"early\n"
    assert await call(path, b"now\n") == b"now\n"
    held.give_back()
    server.close()
    late = asyncio.create_task(call(path, b"late\n"))
    again = Held(held.listening, path)
    again._set_aside()
    server = await serve(path)
    await again.relay()
    assert await late == b"late\n"
    again.give_back()
    server.close()
    held.listening.close()


def test_after_a_kill_the_held_socket_is_found_beside(tmp_path: Path) -> None:
    path = tmp_path / "s"
    held = Held.made(path, lambda _: None)
    held._set_aside()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(fresh(path)))
        fresh(path).rename(path)
    held._set_aside()
    path.with_name("s.h").unlink()
    with pytest.raises(FailedPrecondition, match="start its systemd unit again"):
        held._set_aside()
    held.listening.close()


@pytest.mark.parametrize(
    "environ",
    [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": str(os.getpid())}],
)
def test_none_was_handed_over(environ: dict[str, str], tmp_path: Path) -> None:
    assert Held.inherited(environ, tmp_path / "s") is None
    assert environ == {}  # nobody we start takes them for its own


async def test_who_is_in_the_queue_is_greeted_before_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = grpc.aio.server()
    # As every server of ours has it: a call that fails ends the waiting, and that is too early.
    checks: dict[str, Any] = {
        "Check": grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
    }
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(HEALTH.full_name, checks)]
    )
    server.add_insecure_port(f"unix:{own(path)}")
    clients = [await asyncio.open_unix_connection(str(own(path))) for _ in range(100)]
    for _, writer in clients:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SETTINGS)
    await server.start()
    await all_have_come(path)
    await server.stop(None)
    for reader, writer in clients:
        assert (await reader.readexactly(9))[3] == SETTINGS[3]
        writer.close()


async def test_a_server_that_hangs_ends_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "GREETING", 0.05)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(own(path)))
        silent.listen()
        await asyncio.wait_for(all_have_come(path), 10)
