"""Long lists as several messages: what the Stream* RPCs answer with.

Each of those answers has one field, its first, with the items; so an answer is made by joining the
items' encodings, as `zos_cri.stats.messages` makes lists of samples.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from zos_cri.stats.messages import field

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable, Iterator

ITEMS: Final = 1  # the number of the field with the items, in cri.proto
# Bytes of an answer. A client's limit is 4 MiB where it has set none (gRPC's own default), and the
# kubelet's 16 MiB; the less, the sooner the other side can free what it has decoded.
MESSAGE_LIMIT: Final = (1 << 20) - 1
# Encoding one takes some 10 µs: other RPCs wait a few milliseconds for these at the most.
ITEMS_AT_ONCE: Final = 200


def as_fields(items: Iterable[bytes]) -> Iterator[bytes]:
    """Encoded messages as the answer's fields."""
    return (field(ITEMS, item) for item in items)


async def batches(items: Iterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Answers with all items in their order, each of at least one item and under 1 MiB.

    An item that is longer by itself is an answer of its own: it has to appear (cri-api), and a
    client that takes longer messages gets it.

    Args:
        items: encoded as the answer's fields; read only as the client takes the answers.
    """
    answer: list[bytes] = []
    size = 0
    for count, encoded in enumerate(items):
        if answer and size + len(encoded) > MESSAGE_LIMIT:
            yield b"".join(answer)
            answer, size = [], 0
        answer.append(encoded)
        size += len(encoded)
        if count % ITEMS_AT_ONCE == ITEMS_AT_ONCE - 1:
            await asyncio.sleep(0)  # others' turn
    if answer:
        yield b"".join(answer)
