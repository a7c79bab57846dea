"""Awaitables that are side by side, and all come to their ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable

A = TypeVar("A")
B = TypeVar("B")


@overload
async def together(first: Awaitable[A], second: Awaitable[B], /) -> tuple[A, B]: ...
@overload
async def together(*work: Awaitable[Any]) -> tuple[Any, ...]: ...
async def together(*work: Awaitable[Any]) -> tuple[Any, ...]:
    """The results, in order, once all have ended; the first error in that order where there is one.

    None is cancelled for another's failure: each is bounded, and what it made must be known.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return tuple(results)
