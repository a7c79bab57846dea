from __future__ import annotations

import asyncio

import pytest

from zos_cri._pb import cri_pb2 as pb
from zos_cri.cri.batches import ITEMS_AT_ONCE, MESSAGE_LIMIT, as_fields, batches


async def answers(sizes):
    items = (pb.Container(id=str(n), image_ref="x" * s) for n, s in enumerate(sizes))
    return [
        answer async for answer in batches(as_fields(item.SerializeToString() for item in items))
    ]


def ids(encoded):
    return [[c.id for c in pb.StreamContainersResponse.FromString(e).containers] for e in encoded]


async def test_nothing_is_no_answer():
    assert await answers([]) == []


async def test_few_items_are_one_answer():
    assert ids(await answers([10, 10, 10])) == [["0", "1", "2"]]


@pytest.mark.parametrize("size", [0, 10, 3_000, 70_000, 400_000, 600_000])
async def test_each_item_once_in_order_and_every_answer_under_the_limit(size):
    count = min(3 * MESSAGE_LIMIT // max(size, 100), 5_000)
    encoded = await answers([size] * count)
    assert [id_ for answer in ids(encoded) for id_ in answer] == [str(n) for n in range(count)]
    assert all(len(answer) < 1 << 20 for answer in encoded)
    # No more answers than needed: none could have taken the next one's first item as well.
    assert all(len(a) + size + 100 > MESSAGE_LIMIT for a in encoded[:-1])


async def test_an_answer_may_be_exactly_as_long_as_the_limit():
    whole = await answers([MESSAGE_LIMIT - 100])
    rest = MESSAGE_LIMIT - len(whole[0])
    assert [len(e) for e in await answers([MESSAGE_LIMIT - 100 + rest])] == [MESSAGE_LIMIT]


async def test_an_item_over_the_limit_is_an_answer_of_its_own():
    assert ids(await answers([5, MESSAGE_LIMIT + 5, 5])) == [["0"], ["1"], ["2"]]


async def test_others_get_their_turn():
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    await answers([0] * (10 * ITEMS_AT_ONCE))
    counting.cancel()
    assert turns >= 9


async def test_items_are_read_only_as_answers_are_taken():
    read = 0

    def items():
        nonlocal read
        for _ in range(10):
            read += 1
            yield b"x" * (MESSAGE_LIMIT // 2 + 1)

    stream = batches(items())
    await anext(stream)
    assert read == 2
    await stream.aclose()
