"""What the service manager is told: sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(text: str) -> None:
    """Tells systemd, `READY=1` say; nothing to do where it didn't start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.send(text.encode())
