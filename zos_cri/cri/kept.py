"""Records' messages, encoded once.

A list is its entries' encodings one after the other (protobuf's repeated fields), so an answer is
made by joining bytes, and most records don't change between two answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zos_cri.stats.messages import field

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from google.protobuf.message import Message

    from zos_cri.store.db import Record

R = TypeVar("R", bound="Record[Any, Any]")


class Kept(Generic[R]):
    """One kind of messages, by records' ids.

    Args:
        make: a record's message. It must follow from the record alone.
        number: of the field in the answer that holds it.
    """

    def __init__(self, make: Callable[[R], Message], number: int) -> None:
        self._make = make
        self._number = number
        self._kept: dict[str, tuple[R, bytes]] = {}

    def get(self, record: R) -> bytes:
        """The record's message as a field of an answer, encoded."""
        id_ = record.meta.id
        kept = self._kept.get(id_)
        # A record is replaced as a whole when anything of it changes.
        if kept is not None and kept[0] is record:
            return kept[1]
        data = field(self._number, self._make(record).SerializeToString())
        self._kept[id_] = record, data
        return data

    def fields(self, records: Iterable[R], number: int) -> bytes:
        """Several as fields of that number, up to 15, whose tag is one byte as well."""
        tag = bytes((number << 3 | 2,))
        return b"".join(tag + self.get(record)[1:] for record in records)

    def join(self, records: Iterable[R]) -> bytes:
        """An answer that is a list of them and nothing else, encoded."""
        return b"".join(map(self.get, records))

    def forget(self, id_: str) -> None:
        self._kept.pop(id_, None)

    def __len__(self) -> int:
        return len(self._kept)
