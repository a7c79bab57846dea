"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for probes.

Its threads are its own, so that a probe is answered, 503, where the event loop gives no answer.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import threading
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

from zos_cri.errors import InvalidArgument
from zos_cri.log import get_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AsyncExitStack

    from zos_cri.metrics import Metrics

_log = get_log(__name__)

# Seconds that the event loop has for an answer; a probe's own default deadline is 1.
LOOP_TIMEOUT: Final = 0.9
_TEXT: Final = (
    ("Content-Type", "text/plain; charset=utf-8"),
    ("X-Content-Type-Options", "nosniff"),
)


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing: a scrape every few seconds says nothing new."""


class Probes:
    """What the paths answer."""

    def __init__(self, metrics: Metrics, recovered: asyncio.Event) -> None:
        """To be made in the event loop that is probed."""
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(metrics.registry)
        self._recovered = recovered
        self._loop = asyncio.get_running_loop()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path not in ("/healthz", "/readyz"):
            return self._metrics(environ, start_response)
        failure = self.failure(ready=path == "/readyz")
        start_response("503 Service Unavailable" if failure else "200 OK", list(_TEXT))
        return [f"{failure or 'ok'}\n".encode()]

    def failure(self, *, ready: bool) -> str:
        """What is wrong, "" for nothing. Blocks up to `LOOP_TIMEOUT`; not for the loop's thread.

        Args:
            ready: whether changes must be possible too: they wait for the recovery.
        """
        asked = asyncio.run_coroutine_threadsafe(self._answer(), self._loop)
        try:
            recovered = asked.result(LOOP_TIMEOUT)
        except concurrent.futures.TimeoutError:
            asked.cancel()
            return f"the event loop has not answered for {LOOP_TIMEOUT:g} s"
        return "recovering" if ready and not recovered else ""

    async def _answer(self) -> bool:
        return self._recovered.is_set()


def serve(where: str, metrics: Metrics, recovered: asyncio.Event, undo: AsyncExitStack) -> None:
    """Serves them at an address and port.

    Raises:
        InvalidArgument: they can't be had.
    """
    address, _, port = where.rpartition(":")
    address = address.strip("[]")

    class Server(ThreadingWSGIServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET

    try:
        app: Any = Probes(metrics, recovered)
        server = make_server(address, int(port), app, Server, handler_class=_Quiet)
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"server.metrics: {where}: {error}") from error
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="metrics")
    thread.start()
    undo.callback(thread.join)
    undo.callback(server.server_close)
    undo.callback(server.shutdown)
    _log.info("metrics", address=f"{address}:{server.server_port}")
