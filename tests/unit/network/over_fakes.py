"""A node whose plugins do as they are told, and our networks over it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from tests.fakes.cni import FakeCni
from zos_cri.network.cni import Network
from zos_cri.network.pod import PodNetwork

if TYPE_CHECKING:
    from pathlib import Path

HOST = "/proc/self/ns/net"  # any namespace will do: the plugins here don't enter it
POD = PodNetwork(id="p1", name="web", namespace="default", uid="u", netns=HOST)
FAIL = {"exit": 1, "result": {"code": 11, "msg": "no"}}


def changed(**fields: Any) -> PodNetwork:
    return msgspec.structs.replace(POD, **fields)


class Net(FakeCni):
    """The plugins `a` and `b`, their network, and ours over them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.directory = directory
        self.plugin("a")
        self.plugin("b")
        self.network("net", "a", "b")
        self.cni = self.over()

    def over(self, **options: Any) -> Network:
        """As a server started anew: another `Network` over the same directories."""
        return Network(
            **{
                "conf_dir": self.conf,
                "bin_dirs": [self.bin],
                "cache_dir": self.directory / "records",
                "plugin_timeout": 20,
                **options,
            }
        )

    @property
    def recorded(self) -> list[str]:
        return sorted(path.parent.name for path in (self.directory / "records").rglob("*.json"))

    async def called(self, *said: str) -> None:
        """Waits until plugins were run so."""
        async with asyncio.timeout(20):
            while self.said() != list(said):
                await asyncio.sleep(0.005)
