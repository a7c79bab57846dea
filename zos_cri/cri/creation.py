"""CreateContainer's work: from CRI's configuration to a module container."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zos_cri.cri import facts, looks, userns
from zos_cri.cri.creation_parts import (
    cgroup_of,
    image_volumes,
    kept,
    log_file,
    pid_namespace,
    private_pid,
    volume_mounts,
)
from zos_cri.cri.nri import New
from zos_cri.cri.restores import check_spec
from zos_cri.cri.views import OWNER, listed
from zos_cri.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from zos_cri.failpoints import step
from zos_cri.images.store import is_flist
from zos_cri.linux import apparmor, blocking
from zos_cri.log import bind, get_log
from zos_cri.module.types import NewContainer
from zos_cri.oci import fields, mounts, namespaces, security, signals, users
from zos_cri.oci.container import ContainerInputs, container_spec
from zos_cri.shim.handler import SHIM
from zos_cri.store.joins import Joins
from zos_cri.store.lifecycle import ContainerState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zos_cri._pb import cri_pb2 as pb
    from zos_cri.cri.cdi import CdiSpecs
    from zos_cri.cri.nri import Nri
    from zos_cri.cri.output import Output
    from zos_cri.cri.restores import Checkpoint, Restores
    from zos_cri.cri.sandboxes import Sandboxes
    from zos_cri.cri.views import Views
    from zos_cri.images.model import Image
    from zos_cri.images.store import ImageStore
    from zos_cri.linux.idmap import IdMappings
    from zos_cri.linux.mount import Mount
    from zos_cri.metrics import Metrics
    from zos_cri.module.containers import Containers
    from zos_cri.module.types import ContainerRecord
    from zos_cri.oci.base import DeviceNode
    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts
    from zos_cri.store.model import ContainerMeta, SandboxMeta

_log = get_log(__name__)

ACCOUNT_FILES: Final = ("etc/passwd", "etc/group")


class Creation:
    """Makes CRI's containers, and gives back what was lent to them when they are removed."""

    def __init__(
        self,
        *,
        containers: Containers,
        sandboxes: Sandboxes,
        images: ImageStore,
        output: Output,
        views: Views,
        handlers: Mapping[str, HandlerSettings],
        host: HostFacts,
        metrics: Metrics,
        cdi: CdiSpecs,
        restores: Restores,
        nri: Nri,
    ) -> None:
        self._containers = containers
        self._sandboxes = sandboxes
        self._images = images
        self._output = output
        self._views = views
        self._handlers = handlers
        self._host = host
        self._metrics = metrics
        self._cdi = cdi
        self._restores = restores
        self._nri = nri
        self._joins: Joins[str] = Joins()
        containers.own(OWNER, self)

    def container(self, id_: str) -> ContainerRecord:
        """CRI's container with this id or unambiguous beginning of one.

        Raises:
            NotFound: there is none.
        """
        record = self._containers.find(id_)
        if not listed(record):
            raise NotFound(f'no container with id "{id_}"')
        return record

    async def create(
        self, sandbox_id: str, config: pb.ContainerConfig, *, captured: Path | None = None
    ) -> str:
        """Makes a container in a pod, or finds the one of the same name and configuration.

        Where its image is a checkpoint, it goes on from there when it is started.

        Args:
            captured: the archive of a checkpoint that the configuration describes.

        Raises:
            InvalidArgument: the configuration is wrong.
            NotFound: no such pod, or no such image.
            FailedPrecondition: the pod isn't ready.
            AlreadyExists: the name belongs to another container of the pod.
            Error: a stage failed; what was made is undone.
        """
        sandbox = self._sandboxes.ready(sandbox_id).meta
        if not config.metadata.name:
            raise InvalidArgument("config.metadata.name: is empty")
        name = f"{config.metadata.name}_{config.metadata.attempt}"
        encoded = config.SerializeToString(deterministic=True)
        return await self._joins.run(
            f"{sandbox.id}/{name}",
            encoded,
            lambda: self._create(sandbox, name, config, captured=captured),
        )

    async def _create(
        self,
        sandbox: SandboxMeta,
        name: str,
        config: pb.ContainerConfig,
        *,
        captured: Path | None,
    ) -> str:
        encoded = config.SerializeToString(deterministic=True)
        present = self._containers.table.by_key(f"{sandbox.id}/{name}")
        if present is not None:
            # An earlier one's remains, where its failure could not be undone to the end.
            if present.status.state in (ContainerState.REMOVING, ContainerState.CREATING):
                await self._containers.remove(present.meta.id)
            elif self._views.parts(present)[0].config == encoded:
                return present.meta.id
            else:
                raise AlreadyExists(
                    f'container "{name}" exists in the pod: {present.meta.id} is'
                    f" {present.status.state} and has another configuration"
                )
        id_ = secrets.token_hex(32)
        with bind(pod=sandbox.id, container=id_):
            source = await self._source(id_, config, captured)
            try:
                await self._make(id_, sandbox, name, config, source)
            except BaseException:
                await asyncio.shield(self._restores.forget(id_))
                raise
            _log.info("container created", name=name, image=config.image.image)
        return id_

    async def _make(
        self,
        id_: str,
        sandbox: SandboxMeta,
        name: str,
        config: pb.ContainerConfig,
        source: tuple[Image, Checkpoint | None],
    ) -> None:
        image, checkpoint = source
        volume_images = await self._volume_images(config)
        handler = self._handler(sandbox)
        inputs = await self._inputs(id_, sandbox, config, image)
        pod_config = self._views.config(sandbox)
        id_mappings = userns.of_pod(pod_config)
        root_uid, root_gid = userns.root_of(id_mappings)
        log_path = log_file(pod_config.log_directory, config.log_path)
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._release_rootfs, id_)
            rootfs = await self._rootfs(id_, source, id_mappings, handler.snapshot_options)
            volumes = await self._image_volumes(id_, config, image)
            found = await self._mount_facts(id_, sandbox, config, volume_images)
            spec = container_spec(
                replace(inputs, mount_facts=found, extra_mounts=volume_mounts(volumes)),
                sandbox=pod_config,
                config=config,
                image=image.config,
                handler=handler,
                host=await self._current_host(),
            )
            if checkpoint is not None and checkpoint.described:
                check_spec(checkpoint, image, spec)
            undo.push_async_callback(self._nri.undo_create, id_)
            spec, limits = await self._nri.create(New(id_, sandbox, config, image.id, spec))
            await looks.relabel(spec, config, found)
            stop_signal = signals.of_container(config.stop_signal, image.config.stop_signal)
            await self._containers.create(
                NewContainer(
                    id=id_,
                    ns=sandbox.id,
                    name=name,
                    group=sandbox.group,
                    handler=sandbox.handler,
                    spec=spec,
                    cgroup=cgroup_of(spec, sandbox, systemd=handler.systemd_cgroup),
                    rootfs=rootfs,
                    stdio=self._output.stdio(id_, stdin=config.stdin, terminal=config.tty),
                    stop_signal=stop_signal,
                    kill_all=not private_pid(spec),
                    root_uid=root_uid,
                    root_gid=root_gid,
                    owner=OWNER,
                    extra=kept(config, image, spec, log_path, stop_signal),
                    checkpoint=checkpoint.criu_images if checkpoint is not None else "",
                    resources=limits,
                )
            )
            undo.push_async_callback(self._containers.remove, id_)
            self._sandboxes.ready(sandbox.id)  # nobody would remove it where the pod went meanwhile
            undo.pop_all()

    async def _rootfs(
        self,
        id_: str,
        source: tuple[Image, Checkpoint | None],
        id_mappings: IdMappings | None,
        options: Sequence[str],
    ) -> tuple[Mount, ...]:
        image, checkpoint = source
        with self._metrics.stage("create_container", "rootfs"):
            async with step("rootfs.prepare"):
                rootfs = await self._images.prepare_rootfs(
                    image.id, id_, id_mappings=id_mappings, options=options
                )
            if checkpoint is not None:
                await self._restores.apply(checkpoint, id_)
        return rootfs

    async def _image_volumes(
        self, id_: str, config: pb.ContainerConfig, image: Image
    ) -> Mapping[str, str]:
        with self._metrics.stage("create_container", "volumes"):
            async with step("rootfs.volumes"):
                return await self._images.prepare_volumes(
                    image.id, id_, image_volumes(config, image)
                )

    def _handler(self, sandbox: SandboxMeta) -> HandlerSettings:
        """
        Raises:
            FailedPrecondition: the configuration has lost it since the pod was made.
        """
        try:
            return self._handlers[sandbox.handler]
        except KeyError:
            raise FailedPrecondition(
                f'pod sandbox {sandbox.id}: its runtime handler "{sandbox.handler}" is not'
                " configured any more"
            ) from None

    async def _source(
        self, id_: str, config: pb.ContainerConfig, captured: Path | None
    ) -> tuple[Image, Checkpoint | None]:
        """The image that a container is made from, and where it goes on from, if it does."""
        reference = config.image.image
        if captured is None and reference.startswith("/") and not is_flist(reference):
            checkpoint = await self._restores.open(id_, Path(reference))
            return checkpoint.image, checkpoint
        image = await self._image("config.image.image", config.image)
        if captured is not None:
            return image, (await self._restores.open(id_, captured))._replace(described=True)
        found = await self._restores.of_image(id_, image)
        return (image if found is None else found.image), found

    async def _image(self, field: str, spec: pb.ImageSpec) -> Image:
        if not spec.image:
            raise InvalidArgument(f"{field}: is empty")
        try:
            image = await self._images.status(spec.image)
        except InvalidArgument as error:
            raise InvalidArgument(f"{field}: {error}") from error
        if image is None:
            raise NotFound(f'{field}: "{spec.image}" is not on this host: pull it first')
        return image

    async def _volume_images(self, config: pb.ContainerConfig) -> dict[int, Image]:
        """The images that are mounted as volumes, by the mount's index."""
        found = {}
        for index, mount in enumerate(config.mounts):
            if mount.HasField("image"):
                fields.text(f"mounts[{index}].image_sub_path", mount.image_sub_path)
                found[index] = await self._image(f"mounts[{index}].image.image", mount.image)
        return found

    async def _mount_facts(
        self,
        id_: str,
        sandbox: SandboxMeta,
        config: pb.ContainerConfig,
        volume_images: Mapping[int, Image],
    ) -> tuple[mounts.MountFacts, ...]:
        """Looks at the sources of all mounts, and mounts those that are images."""
        found = await looks.mount_facts(config)
        for index, image in volume_images.items():
            with self._metrics.stage("create_container", "image_mounts"):
                place = await self._images.mount_view(
                    image.id,
                    id_,
                    str(index),
                    config.mounts[index].image_sub_path,
                    userns=sandbox.userns,
                )
            found[index] = mounts.MountFacts(source=str(place or ""), exists=place is not None)
        return tuple(found[index] for index in range(len(config.mounts)))

    async def _inputs(
        self, id_: str, sandbox: SandboxMeta, config: pb.ContainerConfig, image: Image
    ) -> ContainerInputs:
        files = self._sandboxes.files(sandbox.id)
        pod_config = self._views.config(sandbox)
        context = config.linux.security_context
        accounts = await self._images.read_files(
            image.id, ACCOUNT_FILES, users.MAX_ACCOUNT_FILE + 1
        )
        devices: tuple[DeviceNode, ...] = ()
        if context.privileged:
            devices = await blocking.call(facts.host_devices)
        return ContainerInputs(
            id=id_,
            sandbox_id=sandbox.id,
            image_name=config.image.user_specified_image or config.image.image,
            hostname=files.hostname.read_text().strip(),  # on the loop: some bytes of ours in /run
            accounts=users.Accounts(passwd=accounts["etc/passwd"], group=accounts["etc/group"]),
            namespaces=self._namespaces(sandbox, context.namespace_options),
            files=mounts.PodFiles(
                hosts=str(files.hosts),
                hostname=str(files.hostname),
                resolv_conf=str(files.resolv_conf),
                shm=files.shm(pod_config),
            ),
            device_facts=await looks.device_facts(config),
            host_devices=devices,
            seccomp_localhost=await self._seccomp(sandbox, context),
            cdi=await self._cdi.edits(config.CDI_devices),
        )

    async def _current_host(self) -> HostFacts:
        """With the AppArmor profiles of now: they are loaded and removed at any time."""
        if not self._host.apparmor:
            return self._host
        profiles = await blocking.call(apparmor.loaded)
        return replace(self._host, apparmor_profiles=profiles)

    async def _seccomp(
        self, sandbox: SandboxMeta, context: pb.LinuxContainerSecurityContext
    ) -> bytes | None:
        """The file of the container's seccomp profile, where it has one of its own."""
        unset = self._handler(sandbox).unset_seccomp_profile
        path = security.localhost_path(context, unset=unset)
        if not path:
            return None
        field = f"{security.seccomp_choice(context, unset=unset)[0]}.localhost_ref"
        return await looks.look(partial(facts.seccomp_file, field, path), path)

    def _namespaces(
        self, sandbox: SandboxMeta, options: pb.NamespaceOption
    ) -> namespaces.NamespacePaths:
        target = ""
        if options.pid == namespaces.TARGET:
            target = self._target(sandbox, options.target_id)
        return namespaces.NamespacePaths(
            network=sandbox.netns,
            ipc=sandbox.ipcns,
            uts=sandbox.utsns,
            user=sandbox.userns,
            pid=self._shared_pid(sandbox),
            target_pid=target,
        )

    def _shared_pid(self, sandbox: SandboxMeta) -> str:
        """The pid namespace that the pod's containers share, "" where they don't."""
        if not sandbox.shared_pid:
            return ""
        if sandbox.sandboxer == SHIM:
            return f"/proc/{self._sandboxes.ready(sandbox.id).status.pid}/ns/pid"
        init = self._containers.get(sandbox.id)
        return pid_namespace(init) if init is not None else ""

    def _target(self, sandbox: SandboxMeta, id_: str) -> str:
        """The pid namespace of the container whose processes are to be seen."""
        field = "linux.security_context.namespace_options.target_id"
        if not id_:
            raise fields.bad(field, "is empty, and pid is TARGET")
        try:
            record = self._containers.running(self.container(id_).meta.id)
        except NotFound as error:
            raise NotFound(f"{field}: {error}") from None
        except FailedPrecondition as error:
            raise FailedPrecondition(f"{field}: {error}") from None
        if record.meta.ns != sandbox.id:
            raise fields.bad(field, f"{fields.quote(id_)} is a container of another pod")
        return pid_namespace(record)

    # ---- Owner: called by Containers

    shim_writes_log: Final = False

    async def starting(self, record: ContainerRecord) -> None:
        """Makes the container's streams: the shim would block on FIFOs that nobody holds open."""
        # Asked again now that the start is recorded: who stops the pod waits for it from here on.
        self._sandboxes.ready(record.meta.ns)
        await self._output.make(record.meta)

    async def attaching(self, record: ContainerRecord) -> None:
        """Has the logger read them: it takes its 2 ms while the runtime creates the container."""
        extra, _ = self._views.parts(record)
        sandbox = self._sandboxes.find(record.meta.ns).meta
        await self._output.attach(
            record.meta,
            log_path=extra.log_path,
            log_root=self._views.config(sandbox).log_directory if extra.log_path else "",
        )

    async def task_created(self, record: ContainerRecord, pid: int) -> None:
        """NRI's plugins see it before its first instruction, and may refuse it."""
        await self._nri.start(record, pid)

    async def start_undone(self, record: ContainerRecord) -> None:
        """The root filesystem was mounted once: it is made fit to be mounted again."""
        extra, _ = self._views.parts(record)
        pod = self._views.config(self._sandboxes.find(record.meta.ns).meta)
        await self._images.prepare_rootfs(
            extra.image_id, record.meta.id, id_mappings=userns.of_pod(pod)
        )

    async def exited(self, record: ContainerRecord) -> None:
        """Waits, within bounds, until the log has the container's last line."""
        await self._output.finish(record.meta.id)

    async def removing(self, record: ContainerRecord) -> None:
        await self._nri.remove(record)

    async def removed(self, meta: ContainerMeta) -> None:
        if meta.checkpoint:
            await self._restores.forget(meta.id)
        await asyncio.gather(self._output.detach(meta.id), self._release_rootfs(meta.id))
        self._views.forget(meta.id)

    async def settle(self) -> None:
        """Waits for what is under way, at shutdown."""
        await self._joins.settle()

    async def _release_rootfs(self, id_: str) -> None:
        async with step("rootfs.release"):
            await self._images.release_rootfs(id_)
