"""The default handler's OCI runtime, where the configuration leaves it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zos_cri.config import handlers
from zos_cri.log import get_log
from zos_cri.shim.choice import Choice, choose

if TYPE_CHECKING:
    from zos_cri.config import Config

_log = get_log(__name__)


async def decided(config: Config) -> tuple[Config, Choice]:
    """The configuration with a runtime in the default handler, and why it is that one."""
    name = config.default_handler
    settings = config.handlers[name]
    handler = handlers(config)[name]
    if not settings.runtime_is_open:
        return config, Choice(runtime=handler.runtime, why="configured")
    choice = await choose(
        handler,
        config.run_dir,
        oci_version=settings.oci_version,
        known=config.state_dir / "runtime.json",
    )
    _log.info("runtime chosen", handler=name, runtime=choice.runtime, why=choice.why)
    settings = msgspec.structs.replace(settings, runtime=choice.runtime)
    changed = {**config.handlers, name: settings}
    return msgspec.structs.replace(config, handlers=changed), choice
