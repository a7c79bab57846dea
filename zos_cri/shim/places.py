"""Which pods are in which shim.

A pod's shim is one that was kept warm, or one that other pods are in too where the handler says so,
or one that is started for it. It lets go of it when it ends, and then an empty shim is kept for the
next pod where one is wanted, and ended where not. So a shim that isn't the pod's alone has an id of
its own; without warm shims and with one pod in a shim it has the pod's.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from zos_cri.shim.pool import is_empty

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zos_cri.shim.manager import ShimManager
    from zos_cri.shim.pool import WarmShims

# Pods in a shim's life, one after the other: whatever its process may gather is bounded.
MAX_PODS: Final = 100


class _Held:
    """A shim that pods are in; `lost` where it has died, and takes no more."""

    def __init__(self, handler: str) -> None:
        self.handler = handler
        self.pods: set[str] = set()
        self.lost = False


class Places:
    """The pods' places in shims.

    Args:
        pods_per_shim: how many pods a shim holds at once, by handler; 1 where it isn't told.
    """

    def __init__(
        self, shims: ShimManager, warm: WarmShims, pods_per_shim: Mapping[str, int]
    ) -> None:
        self.warm = warm
        self._shims = shims
        self._pods_per_shim = pods_per_shim
        self._held: dict[str, _Held] = {}
        self._served: dict[str, int] = {}  # pods that a group's shim has had

    @property
    def groups(self) -> set[str]:
        """The groups that pods are in."""
        return set(self._held)

    def take(self, handler: str) -> tuple[str, str]:
        """A place for a new pod.

        Returns:
            The pod's id, and the group whose shim is to be started, or runs already.
        """
        group = self._with_room(handler) or self.warm.take(handler) or secrets.token_hex(32)
        own = self._pods_per_shim.get(handler, 1) == 1 and not self.warm.wants(handler)
        id_ = group if own else secrets.token_hex(32)
        self.hold(id_, group, handler)
        self._served[group] = self._served.get(group, 0) + 1
        return id_, group

    def hold(self, id_: str, group: str, handler: str) -> None:
        """A pod is in a shim: one of an earlier server's as well."""
        self._held.setdefault(group, _Held(handler)).pods.add(id_)

    def _with_room(self, handler: str) -> str | None:
        limit = self._pods_per_shim.get(handler, 1)
        for group, held in self._held.items():
            if held.handler == handler and not held.lost and len(held.pods) < limit:
                return group
        return None

    def give_back(self, id_: str, group: str) -> None:
        """The pod is not made, and nothing was asked of its shim."""
        held = self._held[group]
        held.pods.discard(id_)
        if not held.pods:
            del self._held[group]
            self.warm.give_back(group)

    def lost(self, group: str) -> None:
        """A group's shim has died: no further pod goes there."""
        if group in self._held:
            self._held[group].lost = True
        self._served.pop(group, None)

    async def leave(self, id_: str, group: str, tasks: Iterable[str]) -> None:
        """A pod needs its shim no more: others have it, or it is kept for one to come, or ended.

        Nothing to do where the pod has left before.

        Args:
            tasks: the pod's containers that are recorded still. All have ended; a shim that has
                one of their tasks for all that, or had too many pods, is ended.

        Raises:
            Unavailable: the shim can't be ended; a further call tries again.
        """
        held = self._held.get(group)
        if held is not None:
            held.pods.discard(id_)
            if held.pods:
                return
            del self._held[group]
        elif group in self.warm.groups:
            return
        if held is not None and await self._keep(group, held, tasks):
            return
        await self._shims.stop(group)
        self._served.pop(group, None)

    async def _keep(self, group: str, held: _Held, tasks: Iterable[str]) -> bool:
        shim = self._shims.get(group)
        if shim is None or held.lost or not self.warm.has_room(held.handler):
            return False
        if self._served.get(group, 0) >= MAX_PODS or not await is_empty(shim, tasks):
            return False
        return await self.warm.keep(group)
