"""NRI for tests of what stands around it: the real thing over a bench, and one that only notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zos_cri.cri.cdi import CdiSpecs
from zos_cri.cri.limits import Limits
from zos_cri.cri.nri import Nri
from zos_cri.cri.nri_views import NriViews
from zos_cri.nri.plugin import Timeouts
from zos_cri.nri.plugins import Plugins
from zos_cri.nri.telemetry import Telemetry
from zos_cri.oci.container import HandlerSettings
from zos_cri.oci.host import HostFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.fakes.containers import Bench
    from zos_cri.cri.views import Views
    from zos_cri.store.model import SandboxMeta


HANDLER = HandlerSettings()
TIMEOUTS = Timeouts(5.0, 5.0)


def nri_over(
    bench: Bench,
    views: Views,
    *,
    handler: HandlerSettings = HANDLER,
    timeouts: Timeouts = TIMEOUTS,
    cdi: Sequence[str] = (),
) -> Nri:
    """The real one, without plugins as yet."""
    handlers = {"runc": handler}
    host = HostFacts()
    cgroups: Any = None  # nothing here changes an oom_score_adj
    nri = Nri(
        containers=bench.containers,
        pods=bench.db.sandboxes,
        views=NriViews(views, bench.containers),
        limits=Limits(
            containers=bench.containers,
            views=views,
            cgroups=cgroups,
            handlers=handlers,
            host=host,
        ),
        cdi=CdiSpecs(cdi),
        handlers=handlers,
        host=host,
    )
    nri.plugins = Plugins(nri, Telemetry(bench.metrics), timeouts)
    return nri


class NoPlugins:
    """Notes what plugins would be told, and refuses as told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failure: BaseException | None = None

    async def run_pod(self, meta: SandboxMeta, ips: Sequence[str]) -> None:
        self.calls.append(("run", meta.id))
        if self.failure is not None:
            raise self.failure

    async def stop_pod(self, meta: SandboxMeta) -> None:
        self.calls.append(("stop", meta.id))

    async def remove_pod(self, meta: SandboxMeta) -> None:
        self.calls.append(("remove", meta.id))
