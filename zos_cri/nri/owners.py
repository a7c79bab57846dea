"""Which plugin has set what of a container, and what two of them can't both set.

The rules are upstream's (pkg/api/owners.go): a field, or an entry of a map or list, is set by one
plugin, unless the later one takes the earlier one's away first.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from zos_cri._pb import nri_pb2 as pb
from zos_cri.errors import FailedPrecondition

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Field: TypeAlias = pb.Field.ValueType

_TAKEN_AWAY: Final = "-"


class Conflict(FailedPrecondition):
    """Two plugins want to set the same thing."""


@dataclass(slots=True)
class _Owner:
    plugin: str
    taken_away: bool = False  # by this plugin, of whoever had it

    def __str__(self) -> str:
        return f"{_TAKEN_AWAY}{self.plugin}" if self.taken_away else self.plugin


class Owners:
    """Who owns the fields of several containers."""

    def __init__(self) -> None:
        self._owners: dict[str, dict[tuple[Field, str | None], _Owner]] = {}

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Takes back what was claimed inside where that ends with an error."""
        before = {id_: dict(fields) for id_, fields in self._owners.items()}
        try:
            yield
        except BaseException:
            self._owners = before
            raise

    def claim(self, id_: str, field: Field, plugin: str, key: str | None = None) -> None:
        """Gives a plugin a field of a container.

        Args:
            key: of the entry, where the field has several.

        Raises:
            Conflict: another one has it.
        """
        fields = self._owners.setdefault(id_, {})
        owner = fields.get((field, key))
        if owner is not None and not (owner.taken_away and owner.plugin == plugin):
            what = pb.Field.Name(field) + (f" {key}" if key is not None else "")
            raise Conflict(f'NRI plugins "{plugin}" and "{owner.plugin}" both set {what}')
        fields[field, key] = _Owner(plugin)

    def take_away(self, id_: str, field: Field, plugin: str, key: str | None = None) -> None:
        """Lets a plugin set what another one has set before it."""
        self._owners.setdefault(id_, {})[field, key] = _Owner(plugin, taken_away=True)

    def add(self, id_: str, field: Field, plugin: str) -> None:
        """Notes one more plugin of a field that all may add to."""
        fields = self._owners.setdefault(id_, {})
        present = fields.get((field, None))
        fields[field, None] = _Owner(f"{present.plugin},{plugin}" if present else plugin)

    def message(self) -> pb.OwningPlugins:
        """All of it, for plugins that validate."""
        result = pb.OwningPlugins()
        for id_, fields in self._owners.items():
            own = result.owners[id_]
            for (field, key), owner in fields.items():
                if key is None:
                    own.simple[field] = str(owner)
                else:
                    own.compound[field].owners[key] = str(owner)
        return result


def split(names: Iterable[str]) -> tuple[list[str], set[str]]:
    """Names as plugins write them: those to set, and those (without the `-`) to take away."""
    given = list(names)
    return (
        [name for name in given if not name.startswith(_TAKEN_AWAY)],
        {name[1:] for name in given if name.startswith(_TAKEN_AWAY)},
    )


def removed(name: str) -> str:
    """How the removal of a name is written."""
    return _TAKEN_AWAY + name
