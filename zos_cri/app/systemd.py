"""What systemd is told (sd_notify(3)), where it started us; nothing where it didn't."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_MICROSECOND = 1e-6


def notify(text: str) -> None:
    """Sends one message, `READY=1` for instance."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.connect("\0" + address[1:] if address.startswith("@") else address)
        notify.send(text.encode())


def watchdog_timeout(environ: Mapping[str, str]) -> float | None:
    """Seconds after which systemd holds us for hung (WatchdogSec=); None where it doesn't watch.

    Another process's setting, which we inherited, is none of ours (sd_watchdog_enabled(3)).
    """
    pid, text = environ.get("WATCHDOG_PID", ""), environ.get("WATCHDOG_USEC", "")
    if pid not in ("", str(os.getpid())) or not (text.isascii() and text.isdecimal()):
        return None
    return int(text) * _MICROSECOND or None


async def keep_alive(timeout: float) -> None:
    """Tells systemd twice in `timeout` seconds that the event loop turns, until cancelled."""
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(timeout / 2)
