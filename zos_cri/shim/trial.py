"""Whether a handler's shim makes sandboxes, as `sandboxer = "shim"` wants of it: one is started.

A shim doesn't say so of itself: `-info` has nothing of it, and versions are each project's own.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from zos_cri.errors import Error, NotFound, Unimplemented, one_line
from zos_cri.log import get_log
from zos_cri.shim.bootstrap import DialectCache
from zos_cri.shim.events import EventServer
from zos_cri.shim.launch import Launcher
from zos_cri.shim.manager import ShimManager
from zos_cri.shim.sandbox import SERVICE

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.shim.handler import Handler

_log = get_log(__name__)

_NAMESPACE: Final = "zos-trial"


async def failure(shims: ShimManager, handler: Handler) -> str:
    """Starts a shim, asks for a sandbox that isn't there, and ends it.

    Returns:
        Why the handler makes no sandboxes; "" where it does.
    """
    group = secrets.token_hex(32)
    try:
        shim = await shims.start(group, handler)
        try:
            if shim.sandbox is not None:
                await shim.sandbox.status(group)
        except NotFound:
            pass
        finally:
            await shims.stop(group)
    except Unimplemented as error:
        return f"its shim has no sandbox API ({SERVICE.rpartition('.')[0]}): {one_line(error)}"
    except (Error, OSError) as error:
        return one_line(error)
    return ""


async def failure_by_itself(handler: Handler, directory: Path) -> str:
    """The same without a server.

    Args:
        directory: an empty one with a short path, for the shim's files.
    """
    address = str(directory / "events")
    events = EventServer(lambda event: None)
    await events.start(address)
    launcher = Launcher(
        namespace=_NAMESPACE,
        events_address=address,
        grpc_address=str(directory / "grpc"),
        publish_binary="/bin/true",
        socket_dir=str(directory / "s"),
        dialects=DialectCache(None),
    )
    shims = ShimManager(bundles=directory / "b", launcher=launcher, namespace=_NAMESPACE)
    try:
        return await failure(shims, handler)
    finally:
        await shims.close()
        await events.close()
