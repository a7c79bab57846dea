"""What is counted of plugins."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from zos_cri.errors import grpc_code

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zos_cri.metrics import Metrics

MAX_NAMES: Final = 64  # plugins that have series of their own; who connects chooses a name
OTHERS: Final = "(other)"


class Telemetry:
    """Metrics by plugin and operation."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._names: set[str] = set()

    def _label(self, plugin: str) -> str:
        if len(self._names) < MAX_NAMES:
            self._names.add(plugin)
        return plugin if plugin in self._names else OTHERS

    @contextmanager
    def call(self, plugin: str, operation: str) -> Iterator[None]:
        """Times a call, and counts how it ends."""
        label, begun = self._label(plugin), time.perf_counter()
        status, code = "success", ""
        try:
            yield
        except Exception as error:
            status, code = "error", grpc_code(error).lower()
            raise
        finally:
            seconds = time.perf_counter() - begun
            self._metrics.nri_latency.labels(label, operation).observe(seconds)
            self._metrics.nri_invocations.labels(label, operation, status, code).inc()

    def adjusted(self, plugin: str, operation: str, **counts: int) -> None:
        """Counts what a plugin changes: `adjust`, `update`, `evict`."""
        for kind, count in counts.items():
            if count:
                self._metrics.nri_adjustments.labels(self._label(plugin), operation, kind).inc(
                    count
                )

    def active(self, count: int) -> None:
        """How many plugins there are."""
        self._metrics.nri_plugins.set(count)
