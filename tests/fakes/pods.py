"""Sandboxes over fake shims and a fake network; namespaces and mounts are real (root)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fakes.containers import HANDLER, Bench, new
from tests.fakes.network import FakeNetwork
from tests.fakes.nri import NoPlugins
from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.sandboxes import Sandboxes
from zos_cri.cri.shim_sandboxes import ShimSandboxes
from zos_cri.linux.mount import mounts_below
from zos_cri.shim.handler import Handler
from zos_cri.shim.places import Places
from zos_cri.shim.pool import WarmShims

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.store.model import SandboxMeta, SandboxStatus


MACHINE = Handler(name="machine", sandboxer="shim")


class FakeInit:
    """Makes the init as a container like any other, and fails as told."""

    def __init__(self, bench: PodBench) -> None:
        self._bench = bench
        self.failure: BaseException | None = None

    async def start(self, meta: SandboxMeta, config: pb.PodSandboxConfig) -> None:
        containers = self._bench.containers
        await containers.create(
            new(meta.id, ns=meta.id, name="_init", group=meta.id, owner="pod-init")
        )
        if self.failure is not None:
            raise self.failure
        await containers.start(meta.id)


class PodBench(Bench):
    """Sandboxes, and all that stands around them."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.network = FakeNetwork()
        self.nri = NoPlugins()
        self.init = FakeInit(self)
        self.pods_per_shim: dict[str, int] = {}
        self.warm = WarmShims(self.shims, {}, {})  # type: ignore[arg-type]
        self.sandboxes = self.serve_pods()

    def serve_pods(self) -> Sandboxes:
        """A server's sandboxes; again for what comes after a restart."""
        self.by_shims = ShimSandboxes(
            containers=self.containers,
            shims=self.shims,  # type: ignore[arg-type]
            exits_grace=0.2,
        )
        return Sandboxes(
            table=self.db.sandboxes,
            containers=self.containers,
            shims=self.shims,  # type: ignore[arg-type]
            places=Places(self.shims, self.warm, self.pods_per_shim),  # type: ignore[arg-type]
            handlers={"runc": HANDLER, "other": HANDLER, "machine": MACHINE},
            default_handler="runc",
            network=self.network,  # type: ignore[arg-type]
            init=self.init,
            by_shims=self.by_shims,
            directory=self.directory / "sandboxes",
            metrics=self.metrics,
            nri=self.nri,
        )

    def pod(self, id_: str) -> SandboxStatus:
        return self.sandboxes.find(id_).status

    def leftovers(self) -> list[str]:
        """What is there of pods that are gone."""
        found = [m.target for m in mounts_below(str(self.directory / "sandboxes"))]
        for name in ("sandboxes", "bundles"):
            if (self.directory / name).exists():
                found += [str(path) for path in (self.directory / name).iterdir()]
        found += [*self.shims.shims, *self.network.connected]
        found += [record.meta.name for record in self.db.sandboxes]
        return found + [record.meta.name for record in self.db.containers]

    async def aclose(self) -> None:
        self.tasks.heal()
        self.network.failures.clear()
        await self.by_shims.aclose()
        await self.sandboxes.settle()
        for record in self.db.sandboxes:
            await self.sandboxes.remove(record.meta.id)
        await super().aclose()


def pod_config(name: str = "pod", **fields: Any) -> pb.PodSandboxConfig:
    """A pod with namespaces of its own, or with `host=True` with the host's; `shared_pid=True`."""
    mode = pb.NamespaceMode.NODE if fields.pop("host", False) else pb.NamespaceMode.POD
    pid = pb.NamespaceMode.POD if fields.pop("shared_pid", False) else pb.NamespaceMode.CONTAINER
    options = pb.NamespaceOption(network=mode, ipc=mode, pid=pid)
    context = pb.LinuxSandboxSecurityContext(namespace_options=options)
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, namespace="ns", uid="uid"),
        linux=pb.LinuxPodSandboxConfig(security_context=context),
        **fields,
    )
