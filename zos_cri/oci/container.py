"""The spec of a CRI container.

`container_spec` gathers what the modules beside it decide, each about its own fields of the
configs: this one has no rules of its own but which depends on which.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from zos_cri.oci import (
    base,
    capabilities,
    cdi,
    cri_annotations,
    devices,
    mounts,
    namespaces,
    process,
    resources,
    security,
    users,
)
from zos_cri.oci.fields import bad, quote, text

if TYPE_CHECKING:
    from zos_cri._pb import cri_pb2
    from zos_cri.oci.host import HostFacts, Spec

_CONTEXT: Final = "linux.security_context"


class HandlerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What of a runtime handler's configuration and features a spec depends on."""

    oci_version: str = base.OCI_VERSION
    systemd_cgroup: bool = False
    cgroup_writable: bool = False
    """Containers may write to their own cgroup (cgroup v2)."""
    recursive_read_only: bool = False
    """The runtime knows `rro` mounts."""
    id_mapped_mounts: bool = False
    """The runtime knows user namespaces with id-mapped mounts."""
    seccomp: bool = True
    """The runtime was built with it: another one passes over a profile without a word."""
    privileged_without_host_devices: bool = False
    all_devices_allowed: bool = False
    """Privileged containers without the host's devices may make any of their own."""
    device_ownership_from_security_context: bool = False
    pod_annotations: tuple[str, ...] = ()
    """Globs of the pod's annotations that go into the spec."""
    container_annotations: tuple[str, ...] = ()
    base_spec: Mapping[str, Any] | None = None
    """What each spec begins with: see `container_spec`."""
    snapshot_options: tuple[str, ...] = ()
    """More mount options of the root filesystem, which isn't a spec's but goes with it."""
    unset_seccomp_profile: str = ""
    """For containers that name none: runtime/default, unconfined, localhost/…"""
    rlimits: tuple[base.Rlimit, ...] = ()
    pids_limit: int = 0
    """0: none of our own."""
    tolerate_missing_hugetlb: bool = True
    blockio_classes: Mapping[str, Mapping[str, Any]] = {}
    """Name → OCI's linux.resources.blockIO."""
    rdt_classes: tuple[str, ...] = ()
    oci_fields: frozenset[str] = frozenset()
    """Younger fields of OCI's that the runtime says it knows: others would pass over them."""


class ContainerInputs(msgspec.Struct, frozen=True, kw_only=True):
    """All about one container that its spec is made from, found out beforehand."""

    id: str
    sandbox_id: str
    image_name: str
    """As the user wrote it."""
    hostname: str
    """The pod's."""
    accounts: users.Accounts = users.Accounts()
    namespaces: namespaces.NamespacePaths = namespaces.NamespacePaths()
    files: mounts.PodFiles = mounts.PodFiles()
    mount_facts: tuple[mounts.MountFacts, ...] = ()
    """One for each of config.mounts."""
    extra_mounts: tuple[mounts.BindMount, ...] = ()
    """The image's volumes and the like."""
    device_facts: tuple[devices.DeviceFacts, ...] = ()
    """One for each of config.devices."""
    host_devices: tuple[base.DeviceNode, ...] = ()
    """All of the host's; used for privileged containers only."""
    seccomp_localhost: bytes | None = None
    """The content of the file that `security.localhost_path` names."""
    cdi: cdi.Edits | None = None
    """What `cdi.edits_for` made of config.CDI_devices."""


class _Given(NamedTuple):
    """The arguments of `container_spec`, for the functions that share its work."""

    inputs: ContainerInputs
    sandbox: cri_pb2.PodSandboxConfig
    config: cri_pb2.ContainerConfig
    image: process.Image
    pod: namespaces.PodPlan
    handler: HandlerSettings
    host: HostFacts


def container_spec(
    inputs: ContainerInputs,
    *,
    sandbox: cri_pb2.PodSandboxConfig,
    config: cri_pb2.ContainerConfig,
    image: process.Image,
    handler: HandlerSettings,
    host: HostFacts,
) -> Spec:
    """The OCI spec of a CRI container.

    A handler's base spec gives what CRI has no field for: hooks, rlimits, annotations, sysctls,
    mounts and devices of its own, resources, a seccomp profile for containers that name none.
    What the configs say comes on top of it.

    Raises:
        InvalidArgument: a field is wrong; the message names it.
        PermissionDenied: a capability that this host can't give.
        FailedPrecondition: the pod lacks a namespace that it should have.
    """
    context = config.linux.security_context
    if context.privileged and not sandbox.linux.security_context.privileged:
        raise bad(f"{_CONTEXT}.privileged", "is true, and the pod's is not")
    pod = namespaces.pod_plan(sandbox)
    if pod.user_namespace and not handler.id_mapped_mounts:
        field = f"{_CONTEXT}.namespace_options.userns_options"
        raise bad(field, "the runtime handler has no user namespaces")
    held = capabilities.of_container(
        context.capabilities,
        privileged=context.privileged,
        user_namespace=pod.user_namespace,
        host=host,
    )
    given = _Given(
        inputs=inputs,
        sandbox=sandbox,
        config=config,
        image=image,
        pod=pod,
        handler=handler,
        host=host,
    )
    spec: Spec = copy.deepcopy(dict(handler.base_spec or {}))
    spec["ociVersion"] = handler.oci_version
    spec["root"] = {"path": base.ROOTFS, "readonly": context.readonly_rootfs}
    _merge(spec, "process", _process(given))
    spec["process"]["capabilities"] = held
    _merge(spec, "linux", _linux(given))
    _add_mounts(spec, given)
    _add_profiles(spec, given)
    _add_annotations(spec, given)
    return cdi.apply(spec, inputs.cdi) if inputs.cdi is not None else spec


def _merge(spec: Spec, key: str, values: Mapping[str, Any]) -> None:
    spec[key] = {**spec.get(key, {}), **values}


def _process(given: _Given) -> dict[str, Any]:
    context = given.config.linux.security_context
    result: dict[str, Any] = {
        "terminal": given.config.tty,
        "user": users.entry(users.resolve(context, given.image.user, given.inputs.accounts)),
        "args": process.arguments(given.config, given.image),
        "env": process.of_container(given.config, given.image, hostname=given.inputs.hostname),
        "cwd": process.working_dir(given.config, given.image),
        "noNewPrivileges": context.no_new_privs,
    }
    limits = base.rlimits("handler.rlimits", given.handler.rlimits, given.host)
    if limits:
        result["rlimits"] = limits
    # Always, or the container would have the shim's, which is meant to be killed last.
    wanted = given.config.linux.resources.oom_score_adj
    adjusted = base.oom_score_adj("linux.resources.oom_score_adj", wanted, given.host)
    result["oomScoreAdj"] = adjusted
    return result


def _linux(given: _Given) -> dict[str, Any]:
    context = given.config.linux.security_context
    # A container that says nothing of its namespaces goes by its pod's (crictl's configs do so).
    own = context if context.HasField("namespace_options") else given.sandbox.linux.security_context
    kinds = namespaces.of_container(
        given.pod,
        own.namespace_options,
        given.inputs.namespaces,
        privileged=context.privileged,
        host=given.host,
    )
    paths = {"maskedPaths": context.masked_paths, "readonlyPaths": context.readonly_paths}
    result: dict[str, Any] = {
        "namespaces": base.namespaces(kinds),
        "cgroupsPath": resources.cgroups_path(
            "linux.cgroup_parent",
            given.sandbox.linux.cgroup_parent,
            given.inputs.id,
            systemd=given.handler.systemd_cgroup,
        ),
    }
    for key, listed in paths.items():
        # CRI has the paths in full: none given is none hidden (ProcMount Unmasked).
        result[key] = [] if context.privileged else _paths(key, listed)
    # A joined user namespace has its mappings: given again they are to be an error (runc 1.5).
    return result | _limits_and_devices(given)


def _paths(key: str, paths: Sequence[str]) -> list[str]:
    name = {"maskedPaths": "masked_paths", "readonlyPaths": "readonly_paths"}[key]
    result = []
    for index, path in enumerate(paths):
        field = f"{_CONTEXT}.{name}[{index}]"
        if not text(field, path).startswith("/"):
            raise bad(field, f"{quote(path)} is not an absolute path")
        result.append(path)
    return result


def _limits_and_devices(given: _Given) -> dict[str, Any]:
    context = given.config.linux.security_context
    own = copy.deepcopy(dict((given.handler.base_spec or {}).get("linux", {})))
    limits: dict[str, Any] = own.get("resources", {})
    limits |= resources.linux_resources(
        given.config.linux.resources,
        given.host,
        tolerate_missing_hugetlb=given.handler.tolerate_missing_hugetlb,
    )
    if given.handler.pids_limit:
        limits["pids"] = {"limit": given.handler.pids_limit}
    with_host = context.privileged and not given.handler.privileged_without_host_devices
    owner = (0, 0)
    if given.handler.device_ownership_from_security_context:
        owner = (context.run_as_user.value, context.run_as_group.value)
    planned = devices.plan(
        given.config.devices,
        given.inputs.device_facts,
        host_devices=given.inputs.host_devices if with_host else (),
        all_allowed=with_host or (context.privileged and given.handler.all_devices_allowed),
        owner=owner,
    )
    limits["devices"] = list(planned.rules)
    nodes = [*own.get("devices", ()), *planned.entries]
    result: dict[str, Any] = {"resources": limits, "devices": nodes}
    return result | _classes(limits, given)


def _classes(limits: dict[str, Any], given: _Given) -> dict[str, Any]:
    """Block I/O and RDT classes: the first goes into `limits`, the second is returned."""
    name, own = given.config.metadata.name, given.config.annotations
    pods = given.sandbox.annotations
    blockio = cri_annotations.resource_class("blockio", name, own, pods)
    if blockio:
        if blockio not in given.handler.blockio_classes:
            raise bad("annotations", f"no block I/O class {quote(blockio)} is configured")
        limits["blockIO"] = copy.deepcopy(dict(given.handler.blockio_classes[blockio]))
    rdt = cri_annotations.resource_class("rdt", name, own, pods)
    if not rdt:
        return {}
    if rdt not in given.handler.rdt_classes:
        raise bad("annotations", f"no RDT class {quote(rdt)} is configured")
    return {"intelRdt": {"closID": rdt}}


def _add_mounts(spec: Spec, given: _Given) -> None:
    context = given.config.linux.security_context
    kinds = {entry["type"] for entry in spec["linux"]["namespaces"]}
    writable = context.privileged or (given.handler.cgroup_writable and given.host.unified)
    defaults = base.default_mounts(
        given.host,
        writable_sys=context.privileged,
        writable_cgroups=writable,
        cgroup_namespace="cgroup" in kinds,
        host_sys=given.pod.host_network and given.pod.user_namespace,
    )
    own = mounts.pod_mounts(given.inputs.files, readonly=context.readonly_rootfs)
    planned = mounts.plan(
        given.config.mounts,
        given.inputs.mount_facts,
        (*own, *given.inputs.extra_mounts),
        pod=given.pod,
        recursive_read_only=given.handler.recursive_read_only,
        id_mapped_mounts=given.handler.id_mapped_mounts,
    )
    targets = {mount["destination"] for mount in planned.mounts}
    extra = [mount for mount in spec.get("mounts", ()) if mount["destination"] not in targets]
    spec["mounts"] = base.merge_mounts(defaults, [*extra, *planned.mounts])
    if planned.rootfs_propagation:
        spec["linux"]["rootfsPropagation"] = planned.rootfs_propagation


def _add_profiles(spec: Spec, given: _Given) -> None:
    context = given.config.linux.security_context
    filters = security.seccomp_profile(
        context,
        localhost=given.inputs.seccomp_localhost,
        capabilities=spec["process"]["capabilities"]["bounding"],
        host=given.host,
        unset=given.handler.unset_seccomp_profile,
    )
    named = context.HasField("seccomp") or context.seccomp_profile_path
    if filters is not None:
        if not given.handler.seccomp:
            field, _ = security.seccomp_choice(context, unset=given.handler.unset_seccomp_profile)
            raise bad(field, "the handler's runtime was built without seccomp")
        spec["linux"]["seccomp"] = filters
    elif named or context.privileged:
        spec["linux"].pop("seccomp", None)
    apparmor = security.apparmor_profile(context, given.host)
    if apparmor:
        spec["process"]["apparmorProfile"] = apparmor
    options, field = context.selinux_options, f"{_CONTEXT}.selinux_options"
    if not context.HasField("selinux_options"):
        options = given.sandbox.linux.security_context.selinux_options
    process_label, mount_label = security.selinux_labels(field, options, given.host)
    if process_label and not context.privileged:
        spec["process"]["selinuxLabel"] = process_label
        spec["linux"]["mountLabel"] = mount_label


def _add_annotations(spec: Spec, given: _Given) -> None:
    spec["annotations"] = {
        **spec.get("annotations", {}),
        **cri_annotations.passed_on(given.sandbox.annotations, given.handler.pod_annotations),
        **cri_annotations.passed_on(given.config.annotations, given.handler.container_annotations),
        **cri_annotations.of_container(
            given.inputs.sandbox_id,
            given.sandbox,
            name=given.config.metadata.name,
            image=given.inputs.image_name,
        ),
    }
