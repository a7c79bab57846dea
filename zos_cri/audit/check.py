"""The audit itself: looks, compares, and removes what is proved to be a stray and dead.

Records are made before what they name, and go after it. So a thing without a record that was there
before the records were read, and is there still afterwards, is a stray, whatever a server has done
meanwhile: two rounds, each of a look and a reading of the records, tell it without asking anyone.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from zos_cri.audit.expected import needs
from zos_cri.audit.model import Finding, Kind, lasting, removable, spares
from zos_cri.cri.pods import PodFiles
from zos_cri.errors import Error, FailedPrecondition, one_line
from zos_cri.linux import blocking, mount, namespaces
from zos_cri.log import get_log
from zos_cri.shim import bundle as bundles

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from zos_cri.audit.expected import Records
    from zos_cri.audit.present import Look
    from zos_cri.linux.cgroup import Cgroups

_log = get_log(__name__)

# Between the two rounds. An exit is recorded up to 2 s (exec.drain_timeout) after the process went.
SETTLE: Final = 3.0
CGROUP_TIMEOUT: Final = 5.0


class Hands(Protocol):
    """What takes more than a system call to remove."""

    async def detach(self, pod_id: str) -> None:
        """Has the CNI plugins take a pod off its networks."""

    async def release(self, container_id: str) -> None:
        """Removes a container's writable layer."""

    async def forget(self, container_id: str) -> None:
        """Has the logger let go of a container."""


class Removed(msgspec.Struct, frozen=True):
    """What became of strays."""

    removed: tuple[Finding, ...] = ()
    failed: tuple[tuple[Finding, str], ...] = ()


async def once(look: Look, read: Callable[[], Awaitable[Records]]) -> list[Finding]:
    """What differs at this moment, what is just being made or removed included."""
    things = await blocking.call(look.things, await read())
    records = await read()
    needed = needs(records)
    for thing in things:
        if thing.id in records.damaged:
            needed.free(thing.group)  # whoever else is in its shim, it can't be told
    unknown = [group for group in spares(things, records.ended()) if not needed.knows(group)]
    for group in unknown[: look.warm]:
        needed.free(group)
    return needed.difference(things)


async def audit(
    look: Look, read: Callable[[], Awaitable[Records]], *, settle: float = SETTLE
) -> list[Finding]:
    """What differs and stays so.

    Args:
        read: gives the records as they are now.
        settle: seconds between the rounds; there is no second where the first finds nothing.
    """
    first = await once(look, read)
    if not first:
        return []
    await asyncio.sleep(settle)
    return lasting(first, await once(look, read))


async def fix(findings: Iterable[Finding], hands: Hands, cgroups: Cgroups) -> Removed:
    """Removes the strays that are proved ours and dead; the others are not touched."""
    removed, failed = [], []
    for finding in removable(findings):
        try:
            await _remove(finding, hands, cgroups)
        except (Error, OSError) as error:
            failed.append((finding, one_line(error)))
            _log.error("stray not removed", kind=finding.kind, id=finding.id, error=one_line(error))
        else:
            removed.append(finding)
            _log.warning("stray removed", kind=finding.kind, id=finding.id, where=finding.where)
    return Removed(tuple(removed), tuple(failed))


async def _remove(finding: Finding, hands: Hands, cgroups: Cgroups) -> None:
    match finding.kind:
        case Kind.NETWORK:
            await hands.detach(finding.id)
        case Kind.LAYER:
            await hands.release(finding.id)
        case Kind.LOG:
            await hands.forget(finding.id)
        case Kind.CGROUP:
            await cgroups.remove(finding.where, timeout=CGROUP_TIMEOUT)
        case _:
            await blocking.call(_remove_now, finding.kind, Path(finding.where))


def _remove_now(kind: Kind, path: Path) -> None:
    match kind:
        case Kind.NAMESPACE:
            namespaces.unpin_now(str(path))
        case Kind.MOUNT:
            mount.unmount(str(path))
        case Kind.SANDBOX:
            PodFiles(path).remove()
        case Kind.BUNDLE:
            bundles.remove(path.with_name(path.name.lstrip(".")))
        case Kind.SOCKET | Kind.ADDRESS:
            path.unlink(missing_ok=True)
        case Kind.TASK | Kind.EXEC | Kind.FIFO:
            if mount.mounts_below(str(path)):
                raise FailedPrecondition(f"{path}: something is mounted in it, so it stays")
            if path.exists():
                shutil.rmtree(path)
        case _:
            raise FailedPrecondition(f"{kind} {path}: it runs")
