"""Whether an OCI runtime runs containers on this host: one is run and removed.

A runtime's version doesn't tell: crun before 1.9 refuses hybrid cgroups, others refuse a
specification's version, a kernel, a cgroup that may not be written.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Any, Final

import msgspec

from zos_cri.errors import Error
from zos_cri.linux import blocking, spawn

if TYPE_CHECKING:
    from pathlib import Path

    from zos_cri.shim.handler import Handler

RUN_TIMEOUT: Final = 10.0  # it takes 50 ms
MEMORY: Final = 64 << 20  # bytes
_COMMAND: Final = "/bin/true"
_SYSTEM: Final = ("/bin", "/lib", "/lib32", "/lib64", "/usr")  # what a program of the host needs
_NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "cgroup")


async def failure(handler: Handler, directory: Path, *, oci_version: str) -> str:
    """Runs a container with a handler's OCI runtime: `true` of the host, with limits.

    Args:
        directory: where it may make a directory of its own, which is gone afterwards.
        oci_version: what specifications say that this handler is given.

    Returns:
        Why it doesn't run; "" where it does.

    Raises:
        Error: it couldn't be tried, or didn't end in time.
        OSError: the same.
    """
    name = f"zos-probe-{secrets.token_hex(6)}"
    bundle = directory / name
    runtime: tuple[str, ...] = (handler.runtime, "--root", str(bundle / "state"))
    if handler.systemd_cgroup:
        runtime += ("--systemd-cgroup",)
    spec = _spec(name, oci_version, systemd=handler.systemd_cgroup)
    try:
        await blocking.call(_write, bundle, spec)
        done = await spawn.run(
            [*runtime, "run", "--bundle", str(bundle), name], timeout=RUN_TIMEOUT
        )
        return "" if done.returncode == 0 else done.failure()
    finally:
        with contextlib.suppress(Error, OSError):  # it has gone with its process, as a rule
            await spawn.run([*runtime, "delete", "--force", name], timeout=RUN_TIMEOUT)
        await blocking.call(shutil.rmtree, bundle, True)


def _write(bundle: Path, spec: dict[str, Any]) -> None:
    (bundle / "rootfs").mkdir(parents=True, mode=0o711)
    (bundle / "config.json").write_bytes(msgspec.json.encode(spec))


def _spec(name: str, oci_version: str, *, systemd: bool) -> dict[str, Any]:
    bind = ["rbind", "ro", "nosuid", "nodev"]
    return {
        "ociVersion": oci_version,
        "root": {"path": "rootfs"},
        "process": {
            "args": [_COMMAND],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["PATH=/usr/bin:/bin"],
            "noNewPrivileges": True,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
            *(
                {"destination": path, "type": "bind", "source": path, "options": bind}
                for path in _SYSTEM
                if os.path.isdir(path)
            ),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "cgroupsPath": f"system.slice:zos-cri:{name}" if systemd else f"/{name}",
            "resources": {"memory": {"limit": MEMORY}, "cpu": {"shares": 2}},
        },
    }
