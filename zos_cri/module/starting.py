"""What of a start is done side by side: the task's creation, and the reading of its output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.together import together

if TYPE_CHECKING:
    from zos_cri.module.types import ContainerRecord, Owner
    from zos_cri.shim.manager import Shim
    from zos_cri.store.model import ContainerMeta


async def create_task(record: ContainerRecord, owner: Owner | None, shim: Shim) -> int:
    """Creates a container's task, whose output is read when this returns; its pid.

    Raises:
        Error: the owner's, or the shim's. There may be a task all the same.
    """
    if owner is None:
        return await _create(record.meta, shim)
    # In this order: whoever kills us between the two requests leaves no shim that waits for a
    # reader of its FIFOs.
    _, pid = await together(owner.attaching(record), _create(record.meta, shim))
    return pid


async def _create(meta: ContainerMeta, shim: Shim) -> int:
    return await shim.task.create(
        meta.id,
        meta.bundle,
        meta.rootfs,
        terminal=meta.stdio.terminal,
        stdin=meta.stdio.stdin,
        stdout=meta.stdio.stdout,
        stderr=meta.stdio.stderr,
        options=shim.handler.task_options(io_uid=meta.root_uid, io_gid=meta.root_gid),
        checkpoint=meta.checkpoint,
    )
