"""A network that connects pods on paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zos_cri.network.result import Dns, Result

if TYPE_CHECKING:
    from zos_cri.network.pod import PodNetwork


class FakeNetwork:
    """Notes what is added and deleted, and fails as told: `failures["add"] = error`."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.connected: dict[str, PodNetwork] = {}
        self.failures: dict[str, BaseException] = {}

    def _enter(self, name: str, pod: PodNetwork) -> None:
        self.calls.append((name, pod.netns))
        if name in self.failures:
            raise self.failures[name]

    async def add(self, pod: PodNetwork) -> Result:
        self.connected[pod.id] = pod  # before it fails: a plugin may have made half of it
        self._enter("add", pod)
        return Result(("10.0.0.7", "fd00::7"), (), (), Dns(), b"[]")

    async def delete(self, pod: PodNetwork) -> None:
        self._enter("delete", pod)
        self.connected.pop(pod.id, None)
