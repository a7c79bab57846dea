"""The executable for shims that publish events by running one."""

from __future__ import annotations

import io
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from zos_cri._pb import events_pb2
from zos_cri.linux import spawn
from zos_cri.shim import publish
from zos_cri.shim.events import Event, EventServer
from zos_cri.shim.handler import pack

if TYPE_CHECKING:
    from pathlib import Path

EVENT = pack(events_pb2.TaskOOM(container_id="c")).SerializeToString()
ARGUMENTS = ["--address", "/a", "publish", "--topic", "/tasks/oom", "--namespace", "zos"]


async def test_an_event_arrives(tmp_path: Path) -> None:
    events: list[Event] = []
    server = EventServer(events.append)
    address = str(tmp_path / "events")
    await server.start(address)
    publish.write_executable(tmp_path / "publish", address)
    argv = [str(tmp_path / "publish"), *ARGUMENTS]
    done = await spawn.run(argv, stdin=EVENT, timeout=20, env={"PATH": "/usr/bin:/bin"}, cwd="/")
    assert (done.returncode, done.stderr) == (0, b"")
    elsewhere = {"PATH": "/usr/bin:/bin", "TTRPC_ADDRESS": str(tmp_path / "elsewhere")}
    done = await spawn.run(argv, stdin=EVENT, timeout=20, env=elsewhere)
    assert done.returncode == 1
    assert done.stderr.startswith(b"publish /tasks/oom: ")
    done = await spawn.run(argv, stdin=b"\xff", timeout=20)
    assert done.returncode == 1
    await server.close()
    (event,) = events
    assert (event.topic, event.namespace, event.message.container_id) == ("/tasks/oom", "zos", "c")
    assert event.timestamp_ns > 0


@pytest.mark.parametrize("answer", [b"", b"\xff" * 10])
def test_a_server_that_does_not_answer(
    tmp_path: Path,
    answer: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(EVENT)))
    monkeypatch.setenv("TTRPC_ADDRESS", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.send(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        assert publish.main(ARGUMENTS) == 1
        thread.join()
    assert capsys.readouterr().err.startswith("publish /tasks/oom: ")
