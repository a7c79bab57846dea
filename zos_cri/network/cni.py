"""A pod's networks: ADD, DEL, CHECK, GC and STATUS over chains of CNI plugins.

What holds, whatever happens:

- Before the first plugin runs there is a record on disk (`record.py`). It goes when DEL has
  succeeded, so whoever asks `pending()` after a crash knows everything that may be left.
- DEL uses the configuration and the arguments that ADD had, though net.d may have changed.
- An ADD that fails, or whose caller goes away, is taken back before the error is raised: DEL of
  the plugins that were begun, in reverse order. Should that fail too, the record stays.
- One pod's networks are attached and detached one after the other, never two at a time; different
  pods don't wait for each other.
- `status` answers from memory and a few stat calls, never from a plugin.

`lo` is not our business: whoever makes the namespace brings it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from zos_cri.errors import (
    AlreadyExists,
    DataLoss,
    Error,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from zos_cri.linux import blocking, spawn
from zos_cri.log import get_log
from zos_cri.network import plugin as plugins_
from zos_cri.network import template
from zos_cri.network.chain import Chains, is_netns, to_the_end
from zos_cri.network.conf import ConfDir, ConfError, NetworkConf, NoConf, at_least, parse_list
from zos_cri.network.gate import Gate, PodLocks
from zos_cri.network.plugin import BadReply, Call, PluginMissing, Plugins
from zos_cri.network.pod import CAP_PORT_MAPPINGS, PodNetwork
from zos_cri.network.record import IFNAME, Attachment, Records
from zos_cri.network.result import PREFERENCES, BadResult, Result, merge, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

_log = get_log(__name__)

# The kubelet gives RunPodSandbox 4 minutes and the others 2: with these the error it sees is ours,
# which names the plugin, and the taking back of a failed ADD is over by then too.
PLUGIN_TIMEOUT: Final = 60.0
ADD_TIMEOUT: Final = 120.0
UNDO_TIMEOUT: Final = 60.0
DELETE_TIMEOUT: Final = 90.0
# Nobody waits for these, but while collection runs ADDs do.
GC_TIMEOUT: Final = 30.0
GC_WAIT: Final = 10.0
STATUS_TIMEOUT: Final = 10.0
STATUS_INTERVAL: Final = 10.0
# The kubelet shows the reason to people; other runtimes use the same word.
NOT_READY: Final = "NetworkPluginNotReady"
GENERATED: Final = "10-zos-cri.conflist"
_MAX_TEMPLATE: Final = 1 << 20


class NotReady(Unavailable):
    """No network can be given to a pod now; the message says why."""


class NetworkStatus(msgspec.Struct, frozen=True):
    """Whether pods can have a network; `reason` and `message` are "" when they can."""

    ready: bool
    reason: str = ""
    message: str = ""


class Network:
    """The networks of this node's pods.

    Args:
        conf_dir: where the configurations are (`/etc/cni/net.d`).
        bin_dirs: where the plugins are, in the order in which they are searched.
        cache_dir: where our records of attachments go; nobody else's.
        plugin_timeout: seconds that one plugin run may take.
        max_conf_num: how many networks a pod gets, `eth0`, `eth1`, …; 0: all there are.
        conf_template: a template for `set_pod_cidr`, see `template.py`; None: none.
        ip_preference: which of a pod's addresses is the primary one: `ipv4`, `ipv6`, or `cni` (the
            first).
        env: environment for plugins, see `Plugins`.
        on_operation: hears of each plugin run, for metrics.
        run: how a program is run.
    """

    def __init__(
        self,
        *,
        conf_dir: str | os.PathLike[str],
        bin_dirs: Sequence[str | os.PathLike[str]],
        cache_dir: str | os.PathLike[str],
        plugin_timeout: float = PLUGIN_TIMEOUT,
        add_timeout: float = ADD_TIMEOUT,
        delete_timeout: float = DELETE_TIMEOUT,
        max_conf_num: int = 1,
        conf_template: str | os.PathLike[str] | None = None,
        ip_preference: str = "ipv4",
        ifname_prefix: str = "eth",
        env: Mapping[str, str] | None = None,
        on_operation: plugins_.OnOperation | None = None,
        run: plugins_.Run = spawn.run,
    ) -> None:
        if ip_preference not in PREFERENCES:
            raise InvalidArgument(f"ip_preference: {ip_preference!r} isn't of {PREFERENCES}")
        if not IFNAME.fullmatch(f"{ifname_prefix}00"):
            raise InvalidArgument(f"ifname_prefix: {ifname_prefix!r} can't begin an interface name")
        self._confs = ConfDir(os.fspath(conf_dir), max_conf_num)
        self._plugins = Plugins(
            [os.fspath(directory) for directory in bin_dirs],
            timeout=plugin_timeout,
            env=env,
            run=run,
            on_operation=on_operation,
        )
        self._records = Records(cache_dir)
        self._chains = Chains(plugins=self._plugins, records=self._records, confs=self._confs)
        self._add_timeout = add_timeout
        self._delete_timeout = delete_timeout
        self._template = None if conf_template is None else Path(conf_template)
        self._ip_preference = ip_preference
        self._prefix = ifname_prefix
        self._ranges: tuple[tuple[dict[str, str], ...], ...] = ()
        self._pods = PodLocks()
        self._gate = Gate()
        # What STATUS said last, and of which generation of the configuration.
        self._said: tuple[int, str] = (-1, "")

    # --- Readiness ---------------------------------------------------------------------------

    def status(self) -> NetworkStatus:
        """Whether a pod could be given its networks: configured, plugins there, none complaining.

        Never waits for a plugin: what STATUS said is from `status_plugins`.
        """
        try:
            networks = self._confs.networks()
        except (NoConf, ConfError) as error:
            return NetworkStatus(False, NOT_READY, f"cni plugin not initialized: {error}")
        for network in networks:
            for plugin in network.plugins:
                try:
                    self._plugins.find(plugin.type)
                except PluginMissing as error:
                    return NetworkStatus(False, NOT_READY, f"network {network.name}: {error}")
        generation, complaint = self._said
        if complaint and generation == self._confs.generation:
            return NetworkStatus(False, NOT_READY, complaint)
        return NetworkStatus(True)

    async def status_plugins(self) -> NetworkStatus:
        """Asks the plugins of 1.1 networks for their STATUS; `status` tells it from then on."""
        try:
            networks = self._confs.networks()
        except (NoConf, ConfError):
            return self.status()
        generation = self._confs.generation
        self._said = (generation, await self._complaint(networks))
        return self.status()

    async def watch_plugins(self, interval: float = STATUS_INTERVAL) -> None:
        """`status_plugins` every `interval` seconds, until cancelled; changes are logged."""
        ready = self.status().ready
        while True:
            status = await self.status_plugins()
            if status.ready != ready:
                _log.warning("network readiness changed", ready=status.ready, why=status.message)
                ready = status.ready
            await asyncio.sleep(interval)

    async def _complaint(self, networks: Sequence[NetworkConf]) -> str:
        deadline = _deadline(STATUS_TIMEOUT)
        for network in networks:
            version = await self._chains.version(network, deadline)
            for plugin in network.plugins if at_least(version, "1.1.0") else ():
                request = plugins_.request(plugin, network=network.name, version=version)
                try:
                    await self._plugins.run(
                        Call("STATUS", network.name, plugin.type, request), deadline=deadline
                    )
                except Error as error:
                    return str(error)
        return ""

    # --- A pod -------------------------------------------------------------------------------

    async def add(self, pod: PodNetwork) -> Result:
        """Attaches a pod to its networks. What an interrupted ADD left is taken off first.

        Raises:
            InvalidArgument: the pod's description would mislead a plugin.
            FailedPrecondition: its `netns` is no network namespace.
            NotReady: there is no network, or its configuration is broken.
            AlreadyExists: it is attached already; `delete` it first.
            PluginFailed, PluginTimeout, PluginMissing, BadReply: what happened in which plugin; all
                was taken off again, or is `pending()`.
        """
        pod.check()
        if not is_netns(pod.netns):
            raise FailedPrecondition(f"pod {pod.id}: {pod.netns!r} is not a network namespace")
        networks = self._networks()
        _warn_of_lost_ports(pod, networks)
        if not pod.ip_ranges:
            pod = msgspec.structs.replace(pod, ip_ranges=self._ranges)
        deadline = _deadline(self._add_timeout)
        async with self._pods.hold(pod.id), self._gate.shared():
            await self._take_off_leftovers(pod)
            try:
                attachments = [
                    await self._chains.attach(
                        pod, network, index=i, ifname=f"{self._prefix}{i}", deadline=deadline
                    )
                    for i, network in enumerate(networks)
                ]
                result = self._result(attachments)
                await self._chains.complete(attachments)
            except BaseException as error:
                await to_the_end(self._undo(pod, error))
                raise
            return result

    async def delete(self, pod: PodNetwork) -> None:
        """Takes a pod off its networks, by the records. Nothing recorded: nothing to do.

        All networks are tried. `pod` needs no more than `id` and `netns` ("" when it is gone).

        Raises:
            PluginFailed, PluginTimeout, PluginMissing: the first of what failed; the record stays,
                so call again, or `forget`.
            DataLoss: a record is damaged and no network of its name is configured.
        """
        async with self._pods.hold(pod.id), self._gate.shared():
            attachments = await self._chains.records(pod.id)
            failed = await self._chains.detach_all(
                attachments, pod, _deadline(self._delete_timeout)
            )
            await self._chains.on_disk(self._records.tidy, pod.id)
        if failed:
            raise failed[0]

    async def check(self, pod: PodNetwork) -> None:
        """Asks the plugins whether the pod's networks are as ADD left them.

        Networks before 0.4.0, and those with `disableCheck`, are taken to be well.

        Raises:
            NotFound: the pod isn't attached.
            PluginFailed, PluginTimeout, PluginMissing: what isn't well, or couldn't be asked.
        """
        deadline = _deadline(self._add_timeout)
        async with self._pods.hold(pod.id), self._gate.shared():
            attachments = await self._chains.records(pod.id)
            if not any(attachment.complete for attachment in attachments):
                raise NotFound(f"pod {pod.id} is not attached to a network")
            for attachment in attachments:
                netns = pod.netns or attachment.netns
                await self._chains.check(attachment, netns, deadline)

    async def result(self, pod_id: str) -> Result | None:
        """What the last `add` of a pod gave, from the records; None where it isn't attached.

        Raises:
            DataLoss: a record doesn't make sense.
        """
        attachments = await self._chains.records(pod_id)
        if not attachments or not all(attachment.complete for attachment in attachments):
            return None
        try:
            return self._result(attachments)
        except BadResult as error:
            raise DataLoss(f"CNI record of pod {pod_id}: {error}") from error

    async def forget(self, pod_id: str) -> None:
        """Drops a pod's records though DEL hasn't succeeded: for one who has given up."""
        async with self._pods.hold(pod_id):
            for attachment in await self._chains.records(pod_id):
                _log.warning("attachment given up", pod=pod_id, network=attachment.network)
                await self._chains.on_disk(self._records.remove, attachment)

    # --- All pods ----------------------------------------------------------------------------

    async def pending(self) -> list[Attachment]:
        """Every attachment there is a record of, finished or not: what may hold addresses."""
        return await self._chains.on_disk(self._records.every)

    async def gc(self, valid_ids: Callable[[], Collection[str]]) -> None:
        """Takes off every recorded pod that isn't among `valid_ids`, then has the plugins collect.

        Plugins collect in networks of version 1.1 without `disableGC`. What is told them to be
        valid errs on the safe side: attachments whose DEL failed are among it (GC is no substitute
        for DEL), and valid pods without a record.

        Args:
            valid_ids: the ids of all pods that are to stay, those being made included. It is asked
                after the records were read, so that a pod made meanwhile isn't taken for a stray.

        Raises:
            Unavailable: other operations left no quiet moment; call again later.
            Error: the first of what failed; everything else was done.
        """
        recorded = await self._chains.on_disk(self._records.ids)
        stale = set(recorded) - set(valid_ids())
        failed: list[Error] = []
        for pod_id in sorted(stale):
            try:
                await self.delete(PodNetwork(id=pod_id))
            except Error as error:
                _log.warning("stale attachment stays", pod=pod_id, error=error)
                failed.append(error)
        with contextlib.suppress(NotReady):
            failed += await self._collect(self._networks(), valid_ids)
        if failed:
            raise failed[0]

    async def _collect(
        self, networks: Sequence[NetworkConf], valid_ids: Callable[[], Collection[str]]
    ) -> list[Error]:
        """GC of each plugin; what failed. Goes on after an error, as the specification says."""
        failed: list[Error] = []
        async with self._gate.exclusive(wait=GC_WAIT):
            deadline = _deadline(GC_TIMEOUT)
            records = await self._chains.on_disk(self._records.every)
            for index, network in enumerate(networks):
                version = await self._chains.version(network, deadline)
                if network.disable_gc or not at_least(version, "1.1.0"):
                    continue
                known = {each.container_id for each in records}
                valid = {(e.container_id, e.ifname) for e in records if e.network == network.name}
                valid |= {(pod_id, f"{self._prefix}{index}") for pod_id in set(valid_ids()) - known}
                for plugin in network.plugins:
                    request = plugins_.request(
                        plugin, network=network.name, version=version, attachments=sorted(valid)
                    )
                    call = Call("GC", network.name, plugin.type, request)
                    try:
                        await self._plugins.run(call, deadline=deadline)
                    except Error as error:
                        _log.warning("garbage collection failed", error=error)
                        failed.append(error)
        return failed

    async def set_pod_cidr(self, cidr: str) -> None:
        """Takes the node's pod CIDRs, and writes a configuration for them from the template.

        Plugins with the capability `ipRanges` are given them with each pod from then on. Nothing is
        written without a template or a CIDR, and when there is a configuration already,
        ours of an earlier call included: a network's addresses don't change under its pods.

        Raises:
            InvalidArgument: `cidr` isn't a comma-separated list of networks.
            FailedPrecondition: the template can't be read, rendered or used.
        """
        if not cidr.strip():
            return
        cidrs = template.pod_cidrs(cidr)
        self._ranges = tuple(({"subnet": each},) for each in cidrs)
        if self._template is None:
            return
        try:
            self._confs.networks()
        except ConfError:
            return  # broken, but somebody's
        except NoConf:
            await blocking.call(_generate, self._template, cidrs, Path(self._confs.directory))

    # --- Parts -------------------------------------------------------------------------------

    def _networks(self) -> tuple[NetworkConf, ...]:
        try:
            return self._confs.networks()
        except (NoConf, ConfError) as error:
            raise NotReady(f"cni plugin not initialized: {error}") from error

    async def _take_off_leftovers(self, pod: PodNetwork) -> None:
        attachments = await self._chains.records(pod.id)
        if attachments and all(attachment.complete for attachment in attachments):
            first = attachments[0]
            raise AlreadyExists(
                f"pod {pod.id} is attached to network {first.network} by {first.ifname} already"
            )
        failed = await self._chains.detach_all(attachments, pod, _deadline(self._delete_timeout))
        if failed:
            raise failed[0]

    def _result(self, attachments: Sequence[Attachment]) -> Result:
        results = [parse(each.result or b"{}", ifname=each.ifname) for each in attachments]
        if not results[0].addresses:
            raise BadReply(
                f"network {attachments[0].network}: ADD gave no address for {results[0].ifname}"
            )
        return merge(results, preference=self._ip_preference)

    async def _undo(self, pod: PodNetwork, cause: BaseException) -> None:
        """Takes off what a failed ADD has done. Its own failures are logged and left in records."""
        try:
            attachments = await self._chains.records(pod.id)
        except Error as error:
            _log.error("records can't be read", pod=pod.id, error=error)
            return
        for failure in await self._chains.detach_all(attachments, pod, _deadline(UNDO_TIMEOUT)):
            _log.warning("taking back a failed ADD failed", pod=pod.id, error=failure, cause=cause)


def _deadline(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


def _warn_of_lost_ports(pod: PodNetwork, networks: Sequence[NetworkConf]) -> None:
    wanted = any(mapping.host_port for mapping in pod.port_mappings)
    plugins = [plugin for network in networks for plugin in network.plugins]
    if wanted and not any(CAP_PORT_MAPPINGS in plugin.capabilities for plugin in plugins):
        _log.warning("host ports have no effect: no plugin takes portMappings", pod=pod.id)


def _generate(path: Path, cidrs: Sequence[str], directory: Path) -> None:
    """Renders the template into the configuration directory; checked before it is put there."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_TEMPLATE).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"CNI template {path}: {error}") from error
    rendered = template.render(text, cidrs, source=str(path)).encode()
    parse_list(rendered, source=f"{path}, rendered for {','.join(cidrs)}")
    directory.mkdir(parents=True, exist_ok=True)
    # Not a name that anybody who reads the directory would take for a configuration.
    temporary = directory / f".{GENERATED}.new"
    temporary.write_bytes(rendered)
    temporary.chmod(0o644)
    temporary.replace(directory / GENERATED)
    _log.info("CNI configuration written", path=str(directory / GENERATED))
