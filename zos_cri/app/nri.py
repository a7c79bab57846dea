"""Builds what NRI plugins are told by, and brings them in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zos_cri.cri.nri import Nri
from zos_cri.cri.nri_views import NriViews
from zos_cri.nri.connect import Connector, Settings
from zos_cri.nri.plugin import Timeouts
from zos_cri.nri.plugins import Plugins
from zos_cri.nri.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AsyncExitStack

    from zos_cri.app.core import Core
    from zos_cri.config import Config
    from zos_cri.cri.cdi import CdiSpecs
    from zos_cri.cri.limits import Limits
    from zos_cri.cri.views import Views
    from zos_cri.oci.container import HandlerSettings


def build_nri(
    core: Core,
    views: Views,
    limits: Limits,
    cdi: CdiSpecs,
    handlers: Mapping[str, HandlerSettings],
) -> Nri:
    """What tells plugins, without any as yet."""
    nri = Nri(
        containers=core.containers,
        pods=core.database.sandboxes,
        views=NriViews(views, core.containers),
        limits=limits,
        cdi=cdi,
        handlers=handlers,
        host=core.host,
    )
    given = core.config.nri
    timeouts = Timeouts(registration=given.registration_timeout, request=given.request_timeout)
    nri.plugins = Plugins(nri, Telemetry(core.metrics), timeouts)
    return nri


async def bring_plugins(config: Config, nri: Nri, undo: AsyncExitStack) -> None:
    """Starts the installed plugins, and lets others connect. Nothing of it fails."""
    given = config.nri
    if not given.enabled:
        return
    settings = Settings(
        socket="" if given.disable_connections else given.socket,
        directory=Path(given.plugin_dir),
        config_directory=Path(given.plugin_config_dir),
    )
    connector = Connector(nri.plugins, settings)
    undo.push_async_callback(connector.aclose)
    await connector.start()
