"""The module's use of `oci`: specs and usage figures of its own containers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from zos_cri.module.model import Usage
from zos_cri.oci.module import ModuleContainer, ModuleMount, module_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from zos_cri.linux.cgroup import Cgroups
    from zos_cri.module.model import Container
    from zos_cri.oci.base import DeviceNode
    from zos_cri.oci.host import HostFacts


class ModuleSpecs:
    """Makes OCI specs of module containers, with this host's facts."""

    def __init__(
        self,
        host: HostFacts,
        oci_version: str,
        devices: Callable[[], tuple[DeviceNode, ...]] = tuple,
    ) -> None:
        """
        Args:
            devices: finds the host's, for elevated containers; some milliseconds.
        """
        self._host = host
        self._oci_version = oci_version
        self._devices = devices

    def __call__(self, *, id: str, container: Container, cgroup: str) -> dict[str, Any]:  # noqa: A002
        """The spec.

        Raises:
            InvalidArgument: a field is wrong; the message names it.
        """
        return module_spec(
            ModuleContainer(
                id=id,
                args=tuple(container.argv()),
                network_namespace=container.network.path,
                env=tuple(f"{name}={value}" for name, value in container.env.items()),
                working_dir=container.working_dir,
                hostname=container.name,
                mounts=tuple(
                    ModuleMount(
                        source=m.source, target=m.target, type=m.type or "bind", options=m.options
                    )
                    for m in container.mounts
                ),
                cpu=container.cpu,
                memory=container.memory,
                interactive=container.interactive,
                elevated=container.elevated,
                cgroups_path=cgroup,
            ),
            self._host,
            oci_version=self._oci_version,
            devices=self._devices() if container.elevated else (),
        )


def usage(cgroups: Cgroups, cgroup: str) -> Usage:
    """What a cgroup uses. Blocks for some file reads.

    Raises:
        NotFound: there is no such cgroup (any more).
    """
    stats = cgroups.stats(cgroup)
    return Usage(
        timestamp=time.time_ns(),
        cpu=stats.cpu.usage_ns if stats.cpu is not None else 0,
        memory=stats.memory.usage if stats.memory is not None else 0,
        pids=stats.pids or 0,
    )
