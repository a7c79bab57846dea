"""The init container of a pod that shares its pid namespace.

It is catatonit, from the distribution: it holds the pid namespace and reaps the pod's orphans. Its
root filesystem is a directory of ours with nothing but that binary, bound read-only.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zos_cri.cri import userns
from zos_cri.errors import FailedPrecondition
from zos_cri.linux import blocking
from zos_cri.linux.mount import Mount
from zos_cri.module.types import NewContainer
from zos_cri.oci.namespaces import NamespacePaths
from zos_cri.oci.sandbox import sandbox_init_spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.module.containers import Containers
    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts
    from zos_cri.store.model import SandboxMeta

OWNER: Final = "pod-init"
NAME: Final = "_init"  # no CRI container's name: those end in _<attempt>
BINARY: Final = "catatonit"  # in the root filesystem
MOUNT_POINTS: Final = ("dev", "proc", "sys")  # the root is read-only: they must be there
_LIMIT: Final = 64 << 20  # bytes; catatonit has less than one MiB


class PodInits:
    """Makes pods' init containers."""

    def __init__(
        self,
        *,
        containers: Containers,
        program: str,
        directory: Path,
        handlers: Mapping[str, HandlerSettings],
        host: HostFacts,
    ) -> None:
        """
        Args:
            program: catatonit: a name on PATH or a path.
            directory: where its root filesystem is kept.
        """
        self._containers = containers
        self._program = program
        self._directory = directory
        self._making = asyncio.Lock()
        self._roots: dict[tuple[str, int, int], Path] = {}  # by path, inode and mtime
        self._handlers = handlers
        self._host = host

    async def start(self, meta: SandboxMeta, config: pb.PodSandboxConfig) -> None:
        """Creates and starts the init of a pod; its id is the pod's.

        Raises:
            FailedPrecondition: catatonit isn't installed.
            Error: it could not be started.
        """
        root = await self._root()
        handler = self._handlers[meta.handler]
        root_uid, root_gid = userns.root_of(userns.of_pod(config))
        spec = sandbox_init_spec(
            sandbox_id=meta.id,
            sandbox=config,
            paths=NamespacePaths(
                network=meta.netns, ipc=meta.ipcns, uts=meta.utsns, user=meta.userns
            ),
            handler=handler,
            host=self._host,
            args=(f"/{BINARY}", "-P"),
        )
        await self._containers.create(
            NewContainer(
                id=meta.id,
                ns=meta.id,
                name=NAME,
                group=meta.group,
                handler=meta.handler,
                spec=spec,
                cgroup="",
                rootfs=(Mount(type="bind", source=str(root), options=("rbind", "ro")),),
                stop_timeout=0,
                root_uid=root_uid,
                root_gid=root_gid,
                owner=OWNER,
            )
        )
        await self._containers.start(meta.id)

    async def _root(self) -> Path:
        """The root filesystem, made where it isn't there: one for each version of the binary."""
        found = shutil.which(self._program)
        if found is None:
            raise FailedPrecondition(
                f'no "{self._program}" on this host: pods that share a pid namespace need it as'
                " their init (Debian: apt install catatonit)"
            )
        seen = os.stat(found)
        version = (found, seen.st_ino, seen.st_mtime_ns)
        async with self._making:  # many pods at once may be the first
            if version not in self._roots:
                self._roots = {version: await blocking.call(self._make, found)}
            return self._roots[version]

    def _make(self, program: str) -> Path:
        with Path(program).open("rb") as file:
            data = file.read(_LIMIT)
        root = self._directory / hashlib.sha256(data).hexdigest()[:16]
        if not root.exists():
            staged = root.with_name(f".{root.name}")
            shutil.rmtree(staged, ignore_errors=True)
            for mount_point in MOUNT_POINTS:
                (staged / mount_point).mkdir(parents=True)
            (staged / BINARY).write_bytes(data)
            (staged / BINARY).chmod(0o755)
            staged.chmod(0o755)
            staged.rename(root)
        return root
