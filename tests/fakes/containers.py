"""Containers over fake shims, with a real state file and bundles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.fakes.tasks import FakeShims
from zos_cri.linux.moves import Moves
from zos_cri.metrics import Metrics
from zos_cri.module.containers import Containers
from zos_cri.module.types import NewContainer
from zos_cri.shim.handler import Handler
from zos_cri.store.db import Database
from zos_cri.store.model import ContainerMeta, ContainerStatus

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from zos_cri.module.types import ContainerNotice, ContainerRecord

ID = "c" * 64
HANDLER = Handler(name="runc")


class FakeOwner:
    """A layer above that notes what it is told, and fails as told."""

    shim_writes_log = False

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failures: dict[str, BaseException] = {}
        self.waits: dict[str, asyncio.Event] = {}

    def _note(self, name: str, id_: str) -> None:
        self.calls.append((name, id_))
        if name in self.failures:
            raise self.failures[name]

    async def starting(self, record: ContainerRecord) -> None:
        self._note("starting", record.meta.id)

    async def attaching(self, record: ContainerRecord) -> None:
        if "attaching" not in self.waits:
            self._note("attaching", record.meta.id)
            return
        self.calls.append(("attaching", record.meta.id))
        await self.waits["attaching"].wait()
        if "attaching" in self.failures:
            raise self.failures["attaching"]

    async def task_created(self, record: ContainerRecord, pid: int) -> None:
        self._note("task_created", record.meta.id)

    async def start_undone(self, record: ContainerRecord) -> None:
        self._note("start_undone", record.meta.id)

    async def exited(self, record: ContainerRecord) -> None:
        self._note("exited", record.meta.id)

    async def removing(self, record: ContainerRecord) -> None:
        self._note("removing", record.meta.id)

    async def removed(self, meta: ContainerMeta) -> None:
        self._note("removed", meta.id)


class Bench:
    """Containers, and all that stands around them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.db = Database(directory / "state.db")
        self.shims = FakeShims(directory / "bundles")
        self.tasks = self.shims.tasks
        self.metrics = Metrics()
        self.oom_kills: dict[str, int] = {}
        self.owner = FakeOwner()
        self.notices: list[ContainerNotice] = []
        self.containers = self.serve()

    def serve(self) -> Containers:
        """A server's containers; again for what comes after a restart."""
        containers = Containers(
            table=self.db.containers,
            shims=self.shims,  # type: ignore[arg-type]
            handlers={"runc": HANDLER},
            bundle_dir=self.shims.bundles,
            metrics=self.metrics,
            oom_counts=lambda _cgroup: dict(self.oom_kills),
            moves=Moves(None),
            drain_timeout=0.2,
        )
        containers.own("owner", self.owner)
        containers.subscribe(self.notices.append)
        containers.recovered.set()
        return containers

    async def aclose(self) -> None:
        self.tasks.heal()
        await self.containers.close()
        self.db.close()

    def told(self) -> list[str]:
        return [notice.kind.value for notice in self.notices]

    def status(self, id_: str = ID) -> ContainerStatus:
        return self.containers.find(id_).status

    async def create(self, id_: str = ID, **fields: Any) -> None:
        await self.containers.create(new(id_, **fields))

    async def run(self, id_: str = ID, **fields: Any) -> None:
        """Creates and starts."""
        await self.create(id_, **fields)
        await self.containers.start(id_)

    async def put(self, status: ContainerStatus, id_: str = ID, **fields: Any) -> None:
        """A record from an earlier server's life, with its bundle."""
        meta = ContainerMeta(
            bundle=str(self.shims.bundles / id_),
            handler="runc",
            **{"created_at": 1, **BASE, "id": id_, "name": id_, "group": "pod", **fields},
        )
        await self.db.containers.insert(meta, status)

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


BASE: dict[str, Any] = {"ns": "ns", "cgroup": "", "owner": "owner"}


def new(id_: str = ID, **fields: Any) -> NewContainer:
    spec = {"ociVersion": "1.0.2", "process": {"args": ["x"]}, "linux": {"resources": {}}}
    base = {"name": id_, "group": "pod", "handler": "runc", "rootfs": (), "spec": spec}
    return NewContainer(id=id_, **{**base, **BASE, **fields})
