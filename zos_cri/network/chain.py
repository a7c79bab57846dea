"""One pod's attachment to one network: the chain of its plugins, forwards and backwards.

Here is what a record says when: `begun` is raised before a plugin runs, its result is written with
the next plugin's intent, `complete` when the pod is attached to all its networks. DEL runs the
plugins begun, in reverse order, each with the last result there is: with it, plugins such as
firewall find what to remove even where the ADD of a later one has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from zos_cri.errors import DataLoss, Error, FailedPrecondition, Internal, ResourceExhausted
from zos_cri.failpoints import step
from zos_cri.linux import blocking, namespaces
from zos_cri.log import get_log
from zos_cri.network import plugin as plugins_
from zos_cri.network.conf import ConfDir, ConfError, NetworkConf, NoConf, PluginConf, at_least
from zos_cri.network.plugin import Call, PluginFailed, Plugins
from zos_cri.network.record import Attachment, Records

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from zos_cri.network.pod import PodNetwork

T = TypeVar("T")

_log = get_log(__name__)

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Chains:
    """Attaches and detaches, keeping the records.

    The caller sees to it that a pod has one operation at a time.
    """

    def __init__(self, *, plugins: Plugins, records: Records, confs: ConfDir) -> None:
        self._plugins = plugins
        self._records = records
        self._confs = confs

    async def version(self, network: NetworkConf, deadline: float) -> str:
        """The highest version that the network and all its plugins support.

        Asking is the specification's MAY; without it a configuration for new plugins and old ones
        (`cniVersions`) fails with the old ones. A plugin that can't answer is left to say so
        itself, when it is needed.
        """
        supported = set(network.versions)
        if len(supported) > 1:
            programs = {plugin.type for plugin in network.plugins}
            programs |= {plugin.ipam for plugin in network.plugins if plugin.ipam}
            for program in sorted(programs):
                with contextlib.suppress(Error):
                    supported &= set(await self._plugins.versions(program, deadline=deadline))
        return max(supported or network.versions, key=network.versions.index)

    async def attach(
        self, pod: PodNetwork, network: NetworkConf, *, index: int, ifname: str, deadline: float
    ) -> Attachment:
        """ADD of a network's plugins; the record, not complete yet, with the result.

        Raises:
            PluginFailed, PluginTimeout, PluginMissing, BadReply; and as `on_disk`.
        """
        version = await self.version(network, deadline)
        attachment = Attachment(
            container_id=pod.id,
            network=network.name,
            ifname=ifname,
            index=index,
            netns=pod.netns,
            version=version,
            args=pod.args(),
            capabilities=pod.capabilities(),
            conf=network,
        )
        for number, plugin in enumerate(network.plugins, start=1):
            attachment = msgspec.structs.replace(attachment, begun=number)
            async with step("cni.record"):
                await self.on_disk(self._records.save, attachment)
            call = call_for("ADD", attachment, plugin, pod.netns)
            async with step("cni.add"):
                out = await self._plugins.add(
                    call, version=version, ifname=ifname, deadline=deadline
                )
            attachment = msgspec.structs.replace(attachment, result=out)
        return attachment

    async def complete(self, attachments: Sequence[Attachment]) -> None:
        """Writes into the records that the pod is attached to all its networks."""
        for attachment in attachments:
            done = msgspec.structs.replace(attachment, complete=True)
            async with step("cni.complete"):
                await self.on_disk(self._records.save, done)

    async def check(self, attachment: Attachment, netns: str, deadline: float) -> None:
        """CHECK of all plugins; raises as `Plugins.run`."""
        conf = attachment.conf
        if conf is None or conf.disable_check or not at_least(attachment.version, "0.4.0"):
            return
        for plugin in conf.plugins:
            await self._plugins.run(call_for("CHECK", attachment, plugin, netns), deadline=deadline)

    async def detach_all(
        self, attachments: Sequence[Attachment], pod: PodNetwork, deadline: float
    ) -> list[Error]:
        """DEL of each, the last one first, whatever becomes of the others; what failed."""
        failed: list[Error] = []
        for attachment in reversed(attachments):
            try:
                await self._detach(attachment, pod, deadline)
            except Error as error:
                failed.append(error)
        return failed

    async def records(self, pod_id: str) -> list[Attachment]:
        """A pod's records, in the order of ADD. Raises as `on_disk`."""
        return await self.on_disk(self._records.of, pod_id)

    async def on_disk(self, fn: Callable[..., T], *args: Any) -> T:
        """A method of the records, run off the loop and always to its end.

        Were a cancelled caller not to wait, a record could be written after its removal.

        Raises:
            ResourceExhausted: the disk is full.
            Internal: it fails otherwise.
        """
        try:
            return await to_the_end(blocking.call(fn, *args))
        except OSError as error:
            kind = ResourceExhausted if error.errno in _FULL else Internal
            raise kind(f"CNI record {error.filename}: {error.strerror}") from error

    async def _detach(self, attachment: Attachment, pod: PodNetwork, deadline: float) -> None:
        attachment, conf = self._readable(attachment, pod)
        netns = pod.netns or attachment.netns
        if not is_netns(netns):
            netns = ""
        for plugin in reversed(conf.plugins[: attachment.begun]):
            try:
                call = call_for("DEL", attachment, plugin, netns)
                async with step("cni.del"):
                    await self._plugins.run(call, deadline=deadline)
            except PluginFailed as error:
                if netns or not _says_gone(error):
                    raise
                # An empty CNI_NETNS must not be an error, yet old plugins trip over it.
                _log.warning("DEL without a namespace", pod=pod.id, error=error)
        async with step("cni.forget"):
            await self.on_disk(self._records.remove, attachment)

    def _readable(self, attachment: Attachment, pod: PodNetwork) -> tuple[Attachment, NetworkConf]:
        """The attachment with a configuration: the present one of that name for a damaged record.

        Raises:
            FailedPrecondition: a later release wrote it.
            DataLoss: there is no such network.
        """
        if attachment.conf is not None:
            return attachment, attachment.conf
        if attachment.newer:
            raise FailedPrecondition(attachment.damage)
        with contextlib.suppress(NoConf, ConfError):
            for network in self._confs.networks():
                if network.name != attachment.network:
                    continue
                _log.warning("present configuration serves DEL", damage=attachment.damage)
                stand_in = msgspec.structs.replace(
                    attachment,
                    conf=network,
                    version=network.versions[0],
                    begun=len(network.plugins),
                    args=pod.args(),
                    capabilities=pod.capabilities(),
                )
                return stand_in, network
        raise DataLoss(f"{attachment.damage}; and network {attachment.network} isn't configured")


def call_for(command: str, attachment: Attachment, plugin: PluginConf, netns: str) -> Call:
    """A plugin's run for an attachment, with the result that the record has.

    For ADD that is the previous plugin's, for DEL and CHECK the last one's.
    """
    prev_result = attachment.result
    if command == "DEL" and not at_least(attachment.version, "0.4.0"):
        prev_result = None  # DEL has it from 0.4.0 on
    return Call(
        command=command,
        network=attachment.network,
        plugin=plugin.type,
        request=plugins_.request(
            plugin,
            network=attachment.network,
            version=attachment.version,
            capabilities=attachment.capabilities,
            prev_result=prev_result,
        ),
        parameters={
            "CNI_CONTAINERID": attachment.container_id,
            "CNI_NETNS": netns,
            "CNI_IFNAME": attachment.ifname,
            "CNI_ARGS": attachment.args,
        },
    )


def is_netns(path: str) -> bool:
    """Whether there is a network namespace at a path; "" is none."""
    try:
        return bool(path) and namespaces.kind_of(path) == "net"
    except OSError:
        return False


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits work that must not stop half-way: cancelling the caller takes effect afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            _log.warning("failed while being cancelled", error=failure)
        raise cancelled
    return task.result()


def _says_gone(error: PluginFailed) -> bool:
    text = str(error).lower()
    return "no such file or directory" in text or "not found" in text
