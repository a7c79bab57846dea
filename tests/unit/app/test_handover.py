"""A held socket: whoever calls while nobody serves is connected through later."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

from zos_cri.app.handover import Held, fresh
from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from pathlib import Path


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
