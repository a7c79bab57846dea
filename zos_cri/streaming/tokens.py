"""Single-use tokens: what stands in a streaming URL instead of the request itself.

Whoever holds a token may run its command, so it has 256 random bits, lives a minute and works
once. The limits are those of the kubelet's own library.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from zos_cri.errors import ResourceExhausted

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

LIFETIME: Final = 60.0  # seconds; the kubelet connects at once
MAX_WAITING: Final = 1000  # more at a time is a client that doesn't connect
_BYTES: Final = 32


class Tokens(Generic[T]):
    """Requests that wait for their client to connect."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        lifetime: float = LIFETIME,
        limit: int = MAX_WAITING,
    ) -> None:
        """`clock` gives monotonic seconds."""
        self._clock = clock
        self._lifetime = lifetime
        self._limit = limit
        self._waiting: OrderedDict[str, tuple[float, T]] = OrderedDict()  # oldest first

    def issue(self, request: T) -> str:
        """A new token for a request.

        Raises:
            ResourceExhausted: as many are waiting as may.
        """
        self._drop_expired()
        if len(self._waiting) >= self._limit:
            raise ResourceExhausted(
                f"{self._limit} streaming requests wait for their client: try again in "
                f"{self._lifetime:.0f} s"
            )
        token = secrets.token_urlsafe(_BYTES)
        self._waiting[token] = (self._clock() + self._lifetime, request)
        return token

    def peek(self, token: str) -> T | None:
        """The request of a token, which stays valid; None for one unknown, used or too old."""
        self._drop_expired()
        entry = self._waiting.get(token)
        return None if entry is None else entry[1]

    def redeem(self, token: str) -> T | None:
        """As `peek`, and the token is used up."""
        request = self.peek(token)
        self._waiting.pop(token, None)
        return request

    def __len__(self) -> int:
        self._drop_expired()
        return len(self._waiting)

    def _drop_expired(self) -> None:
        now = self._clock()
        while self._waiting:
            token, (expires, _) = next(iter(self._waiting.items()))
            if expires > now:
                return
            del self._waiting[token]
