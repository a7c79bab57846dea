"""sd_notify, against a socket of ours."""

import socket
from pathlib import Path

import pytest

from zos_cri.linux.notify import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = f"{'@' if abstract else ''}{tmp_path}/n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(10)
        manager.bind("\0" + path[1:] if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_nobody_to_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    notify("READY=1")
