"""The changes of several plugins as one: each sees the earlier ones', and none undoes them unasked.

The rules are upstream's (pkg/adaptation/result.go). Where two plugins set the same thing, the
request fails with both their names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import FailedPrecondition
from zos_cri.nri.owners import Conflict, Owners, removed, split

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

    Field: TypeAlias = pb.Field.ValueType

_MEMORY: Final[Mapping[str, Field]] = {
    "limit": pb.MemLimit,
    "reservation": pb.MemReservation,
    "swap": pb.MemSwapLimit,
    "kernel": pb.MemKernelLimit,
    "kernel_tcp": pb.MemTCPLimit,
    "swappiness": pb.MemSwappiness,
    "disable_oom_killer": pb.MemDisableOomKiller,
    "use_hierarchy": pb.MemUseHierarchy,
}
_CPU: Final[Mapping[str, Field]] = {
    "shares": pb.CPUShares,
    "quota": pb.CPUQuota,
    "period": pb.CPUPeriod,
    "realtime_runtime": pb.CPURealtimeRuntime,
    "realtime_period": pb.CPURealtimePeriod,
    "cpus": pb.CPUSetCPUs,
    "mems": pb.CPUSetMems,
}
_SINGLE: Final[Mapping[str, Field]] = {
    "blockio_class": pb.BlockioClass,
    "rdt_class": pb.RdtClass,
    "pids": pb.PidsLimit,
}
# Of LinuxContainerAdjustment; the container that plugins see has them by the same names, but for
# the memory policy, which it doesn't have.
_LINUX: Final[Mapping[str, Field]] = {
    "cgroups_path": pb.CgroupsPath,
    "oom_score_adj": pb.OomScoreAdj,
    "io_priority": pb.IoPriority,
    "seccomp_policy": pb.SeccompPolicy,
    "scheduler": pb.LinuxSched,
    "memory_policy": pb.MemoryPolicy,
}
_RDT: Final[Mapping[str, Field]] = {
    "clos_id": pb.RdtClosID,
    "schemata": pb.RdtSchemata,
    "enable_monitoring": pb.RdtEnableMonitoring,
}


class _Named(NamedTuple):
    """A list, and which of its entries' fields is their name."""

    field: pb.Field.ValueType
    key: str


_MOUNTS: Final = _Named(pb.Mounts, "destination")
_DEVICES: Final = _Named(pb.Devices, "path")
_ENV: Final = _Named(pb.Env, "key")


class Creation:
    """What becomes of a container that is being made.

    Attributes:
        request: what the next plugin is sent.
        adjust: all changes together.
        evict: containers to be stopped.
    """

    def __init__(self, request: pb.CreateContainerRequest) -> None:
        self.request = request
        self.adjust = pb.ContainerAdjustment()
        self.owners = Owners()
        self.updates = Updates(self.owners, making=request.container.id)
        self.evict: list[pb.ContainerEviction] = []
        self._id = request.container.id

    def apply(self, response: pb.CreateContainerResponse, plugin: str) -> None:
        """Takes a plugin's answer.

        Raises:
            Conflict: it sets what another one has set.
            FailedPrecondition: it updates the container that is being made.
        """
        self._adjust(response.adjust, plugin)
        self._adjust_linux(response.adjust.linux, plugin)
        self.updates.add(response.update, plugin)
        self.evict += response.evict

    def _adjust(self, given: pb.ContainerAdjustment, plugin: str) -> None:
        container, adjust = self.request.container, self.adjust
        self._map(
            pb.Annotations, given.annotations, adjust.annotations, container.annotations, plugin
        )
        self._entries(_MOUNTS, given.mounts, adjust.mounts, container.mounts, plugin)
        self._env(given.env, plugin)
        self._args(given.args, plugin)
        self._hooks(given.hooks, plugin)
        for limit in given.rlimits:
            self.owners.claim(self._id, pb.Rlimits, plugin, limit.type)
            adjust.rlimits.append(limit)
            _drop(container.rlimits, "type", {limit.type})
            container.rlimits.append(limit)
        # Not in the container that the next one sees: nobody knows yet what they come to.
        for device in given.CDI_devices:
            self.owners.claim(self._id, pb.CdiDevices, plugin, device.name)
            adjust.CDI_devices.append(device)

    def _adjust_linux(self, given: pb.LinuxContainerAdjustment, plugin: str) -> None:
        container, adjust = self.request.container.linux, self.adjust.linux
        self._entries(_DEVICES, given.devices, adjust.devices, container.devices, plugin)
        if given.HasField("resources"):
            targets = (adjust.resources, container.resources)
            merge_resources(given.resources, targets, self.owners, self._id, plugin)
            for target in targets:
                target.devices.extend(given.resources.devices)
        for descriptor, value in given.ListFields():
            field = _LINUX.get(descriptor.name)
            if field is not None:
                self.owners.claim(self._id, field, plugin)
                for message in (adjust, container):
                    if descriptor.name in message.DESCRIPTOR.fields_by_name:
                        _set(message, descriptor, value)
        self._namespaces(given.namespaces, plugin)
        self._map(pb.Sysctl, given.sysctl, adjust.sysctl, container.sysctl, plugin)
        self._map(
            pb.LinuxNetDevices, given.net_devices, adjust.net_devices, container.net_devices, plugin
        )
        if given.HasField("rdt"):
            self._rdt(given.rdt, plugin)

    def _map(self, field: Field, given: Any, merged: Any, seen: Any, plugin: str) -> None:
        """A map from names to texts or messages."""
        add, gone = split(given)
        for name in gone:
            if name in merged:
                self.owners.take_away(self._id, field, plugin, name)
                del merged[name]
            if name in seen:
                del seen[name]
            if name not in add:
                _put(merged, removed(name), given[removed(name)])
        for name in add:
            self.owners.claim(self._id, field, plugin, name)
            _put(merged, name, given[name])
            _put(seen, name, given[name])

    def _entries(self, named: _Named, given: Any, merged: Any, seen: Any, plugin: str) -> None:
        """A list whose entries have names."""
        field, key = named
        add, gone = split(getattr(entry, key) for entry in given)
        self._take(field, {getattr(entry, key) for entry in merged} & gone, plugin)
        _drop(merged, key, gone | set(map(removed, add)))
        _drop(seen, key, gone | set(add))
        for entry in given:
            name = getattr(entry, key)
            if name in add:
                self.owners.claim(self._id, field, plugin, name)
                merged.append(entry)
                seen.append(entry)
            elif name[1:] not in add:
                merged.append(entry)

    def _env(self, given: Sequence[pb.KeyValue], plugin: str) -> None:
        seen: list[pb.KeyValue] = []
        self._entries(_ENV, given, self.adjust.env, seen, plugin)
        changed = {pair.key.removeprefix("-") for pair in given}
        kept = [e for e in self.request.container.env if e.partition("=")[0] not in changed]
        self.request.container.env[:] = kept + [f"{pair.key}={pair.value}" for pair in seen]

    def _args(self, given: Sequence[str], plugin: str) -> None:
        if not given:
            return
        args = list(given)
        if not args[0]:
            self.owners.take_away(self._id, pb.Args, plugin)
            args = args[1:]
        self.owners.claim(self._id, pb.Args, plugin)
        self.adjust.args[:] = args
        self.request.container.args[:] = args

    def _hooks(self, given: pb.Hooks, plugin: str) -> None:
        """All may add hooks, and they run in the plugins' order."""
        for descriptor, hooks in given.ListFields():
            for target in (self.adjust.hooks, self.request.container.hooks):
                getattr(target, descriptor.name).extend(hooks)
        if given.ListFields():
            self.owners.add(self._id, pb.OciHooks, plugin)

    def _namespaces(self, given: Iterable[pb.LinuxNamespace], plugin: str) -> None:
        seen = self.request.container.linux.namespaces
        for namespace in given:
            kind = namespace.type.removeprefix("-")
            self.owners.claim(self._id, pb.Namespace, plugin, kind)
            self.adjust.linux.namespaces.append(namespace)
            _drop(seen, "type", {kind})
            if kind == namespace.type:
                seen.append(namespace)

    def _rdt(self, given: pb.LinuxRdt, plugin: str) -> None:
        adjust, container = self.adjust.linux, self.request.container.linux
        if given.remove:
            for field in _RDT.values():
                self.owners.take_away(self._id, field, plugin)
            adjust.rdt.CopyFrom(pb.LinuxRdt(remove=True))
            container.ClearField("rdt")
        for descriptor, value in given.ListFields():
            if descriptor.name in _RDT:
                self.owners.claim(self._id, _RDT[descriptor.name], plugin)
                _set(adjust.rdt, descriptor, value)
                _set(container.rdt, descriptor, value)

    def _take(self, field: Field, names: Iterable[str], plugin: str) -> None:
        for name in names:
            self.owners.take_away(self._id, field, plugin, name)


class Updates:
    """New limits of containers that exist, by plugins that were asked about one of them."""

    def __init__(
        self,
        owners: Owners | None = None,
        *,
        making: str = "",
        request: pb.UpdateContainerRequest | None = None,
    ) -> None:
        """
        Args:
            making: the container that is being made, which can't be updated.
            request: the update that was asked for; what the next plugin is sent.
        """
        self.request = request
        self._owners = owners or Owners()
        self._making = making
        self._merged: dict[str, pb.ContainerUpdate] = {}

    def add(self, updates: Iterable[pb.ContainerUpdate], plugin: str) -> None:
        """Takes a plugin's updates; one that may fail and does is left out.

        Raises:
            Conflict: it sets what another one has set.
            FailedPrecondition: it updates the container that is being made.
        """
        for update in updates:
            if self._making and update.container_id == self._making:
                raise FailedPrecondition(
                    f'NRI plugin "{plugin}" updates container {self._making} while it is being made'
                )
            try:
                self._add(update, plugin)
            except Conflict:
                if not update.ignore_failure:
                    raise

    def _add(self, update: pb.ContainerUpdate, plugin: str) -> None:
        id_ = update.container_id
        present = self._merged.get(id_)
        merged = pb.ContainerUpdate(container_id=id_)
        if present is not None:
            merged.CopyFrom(present)
        elif self._is_requested(id_) and self.request is not None:
            merged.linux.resources.CopyFrom(self.request.linux_resources)
        with self._owners.all_or_nothing():
            target = (merged.linux.resources,)
            merge_resources(update.linux.resources, target, self._owners, id_, plugin)
        merged.ignore_failure = update.ignore_failure and (
            present is None or present.ignore_failure
        )
        self._merged[id_] = merged
        if self._is_requested(id_) and self.request is not None:
            self.request.linux_resources.CopyFrom(merged.linux.resources)

    def _is_requested(self, id_: str) -> bool:
        return self.request is not None and self.request.container.id == id_

    def others(self) -> list[pb.ContainerUpdate]:
        """Those of other containers than the one in question."""
        return [update for id_, update in self._merged.items() if not self._is_requested(id_)]

    def requested(self) -> pb.LinuxResources | None:
        """What is to become of the container in question, where a plugin has changed it."""
        for id_, update in self._merged.items():
            if self._is_requested(id_):
                return update.linux.resources
        return None


def merge_resources(
    given: pb.LinuxResources,
    targets: Sequence[pb.LinuxResources],
    owners: Owners,
    id_: str,
    plugin: str,
) -> None:
    """Lays limits over others, all but the rules for devices.

    Raises:
        Conflict: one of them is another plugin's.
    """
    for part, fields in (("memory", _MEMORY), ("cpu", _CPU)):
        for descriptor, value in getattr(given, part).ListFields():
            owners.claim(id_, fields[descriptor.name], plugin)
            for target in targets:
                _set(getattr(target, part), descriptor, value)
    for limit in given.hugepage_limits:
        owners.claim(id_, pb.HugepageLimits, plugin, limit.page_size)
        for target in targets:
            _drop(target.hugepage_limits, "page_size", {limit.page_size})
            target.hugepage_limits.append(limit)
    for key, value in given.unified.items():
        owners.claim(id_, pb.CgroupsUnified, plugin, key)
        for target in targets:
            target.unified[key] = value
    for name, field in _SINGLE.items():
        if given.HasField(name):  # type: ignore[arg-type]  # one of three
            owners.claim(id_, field, plugin)
            for target in targets:
                getattr(target, name).CopyFrom(getattr(given, name))


def _set(message: Message, descriptor: FieldDescriptor, value: Any) -> None:
    if descriptor.message_type is not None:
        getattr(message, descriptor.name).CopyFrom(value)
    else:
        setattr(message, descriptor.name, value)


def _put(target: Any, name: str, value: Any) -> None:
    """Into protobuf's map of texts or of messages."""
    if isinstance(value, str):
        target[name] = value
    else:
        target[name].CopyFrom(value)


def _drop(entries: Any, key: str, names: set[str]) -> None:
    """Removes a list's entries that have one of these names."""
    for index in reversed(range(len(entries))):
        if getattr(entries[index], key) in names:
            del entries[index]
