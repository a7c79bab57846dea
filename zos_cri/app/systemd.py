"""systemd's watchdog, where it started us and watches; nothing where it doesn't."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from zos_cri.linux.notify import notify

if TYPE_CHECKING:
    from collections.abc import Mapping

_MICROSECOND = 1e-6


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
