"""What each runtime handler can do: from its configuration and from its shim's own word."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from zos_cri._pb import cri_pb2 as pb
from zos_cri.config_handlers import base_spec, block_io, rlimits
from zos_cri.oci.container import HandlerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zos_cri.config import Config
    from zos_cri.shim.launch import Features


_SCHEDULING: Final = (1, 1)  # OCI runtime specifications have scheduler and ioPriority since then
_MAPPED_LAYERS: Final = (5, 19)  # the first Linux with overlays of id-mapped layers


def handler_features(
    features: Mapping[str, Features | None], *, release: str = os.uname().release
) -> dict[str, pb.RuntimeHandlerFeatures]:
    """The features that Status tells, by handler; a shim that tells nothing has none.

    Args:
        release: the kernel's, as uname(2) has it.
    """
    able = _maps_layers(release)
    return {
        name: pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=_recursive(found),
            user_namespaces=able and _id_mapped(found),
        )
        for name, found in features.items()
    }


def handler_settings(
    config: Config, features: Mapping[str, Features | None]
) -> dict[str, HandlerSettings]:
    """What specs depend on, by handler. Reads the base specs' files.

    Raises:
        InvalidArgument: one of them isn't what it was when the configuration was checked.
    """
    classes = {name: block_io(name, entries) for name, entries in config.blockio_classes.items()}
    return {
        name: HandlerSettings(
            oci_version=handler.oci_version,
            systemd_cgroup=handler.systemd_cgroup,
            cgroup_writable=handler.cgroup_writable,
            recursive_read_only=_recursive(features[name]),
            id_mapped_mounts=_id_mapped(features[name]),
            seccomp=_seccomp(features[name]),
            privileged_without_host_devices=handler.privileged_without_host_devices,
            all_devices_allowed=handler.all_devices_allowed,
            device_ownership_from_security_context=handler.device_ownership_from_security_context,
            pod_annotations=handler.pod_annotations,
            container_annotations=handler.container_annotations,
            base_spec=base_spec(name, handler),
            snapshot_options=handler.snapshot_options,
            unset_seccomp_profile=handler.unset_seccomp_profile,
            rlimits=rlimits(name, handler),
            pids_limit=handler.pids_limit,
            tolerate_missing_hugetlb=handler.tolerate_missing_hugetlb,
            blockio_classes=classes,
            rdt_classes=config.rdt_classes,
            oci_fields=_fields(features[name]),
        )
        for name, handler in config.handlers.items()
    }


def _maps_layers(release: str) -> bool:
    version = re.match(r"(\d+)\.(\d+)", release)
    return version is not None and (int(version[1]), int(version[2])) >= _MAPPED_LAYERS


def _recursive(features: Features | None) -> bool:
    """Whether the runtime knows the mount option rro (OCI features: mountOptions)."""
    options = features.oci.get("mountOptions") if features is not None else None
    return isinstance(options, list) and "rro" in options


def _id_mapped(features: Features | None) -> bool:
    """Whether the runtime makes id-mapped mounts (OCI features: linux.mountExtensions.idmap)."""
    return _said(features, "linux", "mountExtensions", "idmap", "enabled") is True


def _seccomp(features: Features | None) -> bool:
    """False only where the runtime says so (OCI features: linux.seccomp.enabled)."""
    return _said(features, "linux", "seccomp", "enabled") is not False


def _fields(features: Features | None) -> frozenset[str]:
    """The OCI fields that NRI's plugins may set and that older runtimes pass over."""
    latest = re.match(r"(\d+)\.(\d+)", str(_said(features, "ociVersionMax")))
    known = {
        "linux.netDevices": _said(features, "linux", "netDevices", "enabled") is True,
        "linux.memoryPolicy": bool(_said(features, "linux", "memoryPolicy", "modes")),
        "linux.intelRdt": _said(features, "linux", "intelRdt", "enabled") is True,
        "linux.intelRdt.schemata": _said(features, "linux", "intelRdt", "schemata") is True,
        "linux.intelRdt.enableMonitoring": (
            _said(features, "linux", "intelRdt", "monitoring") is True
        ),
    }
    if latest is not None and (int(latest[1]), int(latest[2])) >= _SCHEDULING:
        known |= {"process.scheduler": True, "process.ioPriority": True}
    return frozenset(name for name, yes in known.items() if yes)


def _said(features: Features | None, *keys: str) -> object:
    found: object = features.oci if features is not None else None
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found
