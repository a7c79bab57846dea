"""The spec of the init of a pod whose containers share a pid namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from zos_cri.oci import (
    base,
    capabilities,
    cri_annotations,
    namespaces,
    process,
    resources,
    seccomp,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri._pb import cri_pb2
    from zos_cri.oci.container import HandlerSettings
    from zos_cri.oci.host import HostFacts, Spec

_MOUNTS: Final[tuple[Mapping[str, Any], ...]] = (
    {
        "destination": "/proc",
        "type": "proc",
        "source": "proc",
        "options": ["nosuid", "noexec", "nodev"],
    },
    # A runtime makes /dev/null and others: not in the directory that pods share.
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "noexec", "mode=755", "size=64k"],
    },
)


def sandbox_init_spec(
    *,
    sandbox_id: str,
    sandbox: cri_pb2.PodSandboxConfig,
    paths: namespaces.NamespacePaths,
    handler: HandlerSettings,
    host: HostFacts,
    args: tuple[str, ...] = ("/catatonit", "-P"),
) -> Spec:
    """The spec of a pod's init, which holds its pid namespace and reaps its orphans.

    Its root filesystem has nothing but the binary and is read only; it has no capabilities, and
    joins the pod's namespaces, so that its own are what a pause container's would be.

    Args:
        sandbox_id: The pod's; its cgroup is the init's too.
        sandbox: The pod's config.
        paths: The pod's pinned namespaces.
        handler: For the cgroup driver and the annotations.
        host: What this host allows.
        args: The binary's path in that root filesystem, and its arguments.

    Raises:
        InvalidArgument: see `namespaces.pod_plan` and `resources.cgroups_path`.
    """
    cgroup = resources.cgroups_path(
        "linux.cgroup_parent",
        sandbox.linux.cgroup_parent,
        sandbox_id,
        systemd=handler.systemd_cgroup,
    )
    passed = cri_annotations.passed_on(sandbox.annotations, handler.pod_annotations)
    return {
        "ociVersion": handler.oci_version,
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(args),
            "env": [process.DEFAULT_PATH],
            "cwd": "/",
            "capabilities": capabilities.sets(()),
            "noNewPrivileges": True,
            # Killed last: with it goes every process of the pod.
            "oomScoreAdj": max(-998, host.oom_score_adj_min),
        },
        "root": {"path": base.ROOTFS, "readonly": True},
        "mounts": [dict(mount) for mount in _MOUNTS],
        "annotations": {**passed, **cri_annotations.of_sandbox(sandbox_id, sandbox)},
        "linux": _linux(sandbox, paths, cgroup, host),
    }


def _linux(
    sandbox: cri_pb2.PodSandboxConfig,
    paths: namespaces.NamespacePaths,
    cgroup: str,
    host: HostFacts,
) -> dict[str, Any]:
    pod = namespaces.pod_plan(sandbox)
    kinds: dict[str, str | None] = {
        "pid": None if pod.host_pid else "",
        "mount": "",
        "network": None if pod.host_network else paths.network,
        "ipc": None if pod.host_ipc else paths.ipc,
        "uts": None if pod.host_network else paths.uts,
    }
    if pod.user_namespace:
        kinds["user"] = paths.user  # Its mappings are with it already.
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        # The least: it only ever waits.
        "resources": {
            "devices": base.device_rules((), all_allowed=False),
            "cpu": {"shares": 2},
        },
        "maskedPaths": base.masked_paths(host),
        "readonlyPaths": list(base.READONLY_PATHS),
        "namespaces": base.namespaces(kinds),
    }
    if host.seccomp:
        linux["seccomp"] = seccomp.default_profile((), host)
    return linux
