"""A runtime handler: which shim, which OCI runtime, which options (RuntimeClass's `handler`)."""

from __future__ import annotations

import os
from typing import Any, Final

import msgspec
from google.protobuf import any_pb2

from zos_cri import errors
from zos_cri._pb import runc_options_pb2, runtimeoptions_pb2

DEFAULT_SHIM: Final = "io.containerd.runc.v2"
# Who makes a pod's sandbox, by containerd's names: we do, of namespaces and files; or its shim
# does, which has the sandbox API for that (a virtual machine's).
PODSANDBOX: Final = "podsandbox"
SHIM: Final = "shim"
# OCI runtimes whose containers' processes are the host's own, not a virtual machine's or gVisor's.
_ON_HOST: Final = ("runc", "crun", "youki")


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """What `ShimManager.start` starts.

    Attributes:
        name: RuntimeClass's handler, "" for the default.
        shim: a type name (`io.containerd.runc.v2` → `containerd-shim-runc-v2` on PATH), or an
            absolute path.
        runtime: the OCI runtime that a runc shim runs: a name on PATH, or a path.
        root: the OCI runtime's state directory; the shim puts the namespace's name behind it.
        systemd_cgroup: cgroupsPath is `slice:prefix:name`, and systemd makes it.
        shim_cgroup: an existing cgroup to put the shim in, "" for none.
        options: further fields of containerd.runc.v1.Options by their names (no_pivot_root, …).
        config_path: for shims that aren't runc's (kata, gVisor): their configuration file, sent as
            runtimeoptions.v1.Options instead.
        config_type: its type URL there.
        sandboxer: `PODSANDBOX` or `SHIM`.
    """

    name: str = ""
    shim: str = DEFAULT_SHIM
    runtime: str = "runc"
    root: str = "/run/zos-cri/runc"
    systemd_cgroup: bool = False
    shim_cgroup: str = ""
    options: dict[str, Any] = {}
    config_path: str = ""
    config_type: str = ""
    sandboxer: str = PODSANDBOX

    @property
    def makes_sandboxes(self) -> bool:
        """Whether its shims make the pods' sandboxes, and are spoken to in the sandbox API."""
        return self.sandboxer == SHIM

    @property
    def on_host(self) -> bool:
        """Whether a container's pid is that of its own first process."""
        others = self.config_path or self.makes_sandboxes
        return not others and os.path.basename(self.runtime) in _ON_HOST

    def task_options(self, **changes: Any) -> any_pb2.Any:
        """The options of `TaskClient.create`, and what a shim gets at its start.

        Args:
            changes: fields of containerd.runc.v1.Options for this task (io_uid, io_gid, …).

        Raises:
            InvalidArgument: no such field, or a value of another type.
        """
        if self.config_path:
            return pack(
                runtimeoptions_pb2.Options(type_url=self.config_type, config_path=self.config_path)
            )
        fields = {
            "binary_name": self.runtime,
            "root": self.root,
            "systemd_cgroup": self.systemd_cgroup,
            "shim_cgroup": self.shim_cgroup,
            **self.options,
            **changes,
        }
        try:
            return pack(runc_options_pb2.Options(**fields))
        except (ValueError, TypeError) as error:
            raise errors.InvalidArgument(f"handler {self.name!r}: options: {error}") from error


def pack(message: Any) -> any_pb2.Any:
    """A protobuf message as an Any with a bare type URL, as containerd's typeurl writes it."""
    return any_pb2.Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())
