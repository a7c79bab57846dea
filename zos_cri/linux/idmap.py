"""The id mappings of a user namespace, as those need them who make files and mounts for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from zos_cri.linux.namespaces import IdMap

if TYPE_CHECKING:
    from collections.abc import Sequence


class IdMappings(msgspec.Struct, frozen=True, kw_only=True):
    """A user namespace's mappings; 0 is mapped in both."""

    uids: tuple[IdMap, ...]
    gids: tuple[IdMap, ...]

    @property
    def root(self) -> tuple[int, int]:
        """The uid and gid that root inside has on the host."""
        return self.owner(0, 0)

    def owner(self, uid: int, gid: int) -> tuple[int, int]:
        """An owner inside as the host knows it; root inside stands for ids that aren't mapped."""
        return _outside(self.uids, uid), _outside(self.gids, gid)

    def mount_options(self) -> tuple[str, ...]:
        """What a shim of containerd 2 or later takes as an order to map a mount's files.

        For an overlay it maps the lower directories; the upper one has the host's ids anyhow.
        """
        return f"uidmap={_text(self.uids)}", f"gidmap={_text(self.gids)}"


def _outside(mappings: Sequence[IdMap], id_: int) -> int:
    for known in mappings:
        if 0 <= id_ - known.container_id < known.size:
            return known.host_id + id_ - known.container_id
    if id_ == 0:
        raise ValueError("0 is not mapped")
    return _outside(mappings, 0)


def _text(mappings: Sequence[IdMap]) -> str:
    return ",".join(f"{m.container_id}:{m.host_id}:{m.size}" for m in mappings)
