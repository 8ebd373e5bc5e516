"""How much one client may ask for, and what it hears when it asks for more.

Owns token buckets: per connection, per user and per address. Must never answer a client itself:
a limit that is passed is a :class:`~zerocache.errors.ClientFacingError` or a time to wait.
Invariant: what is remembered is bounded by who asked for something within the last minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field

from zerocache.errors import ClientFacingError
from zerocache.options_limits import ClientLimits
from zerocache.protocol.messages import Ping, Push, UpstreamMessage

MAX_PUSH_DELAY_S = 5.0
"""A push that comes too early is first held back, and with it whatever its socket sends next."""
_PERIOD_S = 60.0
_SWEEP_ABOVE = 1000


@dataclass(slots=True)
class Bucket:
    """Holds a minute's worth of tokens and fills at an even rate."""

    per_minute: int
    tokens: float
    filled_s: float

    def take(self, now_s: float) -> float:
        """Take a token; returns for how many seconds there will be none, and then takes none."""
        self.fill(now_s)
        if self.tokens >= 1:
            self.tokens -= 1
            return 0.0
        return (1 - self.tokens) * _PERIOD_S / self.per_minute

    def fill(self, now_s: float) -> None:
        gained = (now_s - self.filled_s) * self.per_minute / _PERIOD_S
        self.tokens = min(float(self.per_minute), self.tokens + gained)
        self.filled_s = now_s


class Buckets:
    """One bucket per key; full ones are forgotten. ``per_minute`` 0 does not limit."""

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: dict[Hashable, Bucket] = {}
        self._sweep_above = _SWEEP_ABOVE

    def take(self, key: Hashable) -> float:
        """As :meth:`Bucket.take`."""
        if not self._per_minute:
            return 0.0
        now = self._clock()
        bucket = self._buckets.get(key)
        if bucket is None:
            self._sweep(now)
            bucket = self._buckets[key] = Bucket(self._per_minute, float(self._per_minute), now)
        return bucket.take(now)

    def __len__(self) -> int:
        return len(self._buckets)

    def _sweep(self, now_s: float) -> None:
        if len(self._buckets) < self._sweep_above:
            return
        for key, bucket in list(self._buckets.items()):
            bucket.fill(now_s)
            if bucket.tokens >= self._per_minute:
                del self._buckets[key]
        self._sweep_above = max(_SWEEP_ABOVE, 2 * len(self._buckets))


@dataclass
class Limits:
    """The limits of one sync worker."""

    options: ClientLimits
    clock: Callable[[], float] = field(default_factory=lambda: asyncio.get_running_loop().time)
    hold: Callable[[float], Awaitable[None]] = asyncio.sleep

    def __post_init__(self) -> None:
        # Messages, groups and clients that were too many, since the worker started.
        self.refused = 0
        self._by_connection = Buckets(self.options.max_messages_per_minute, self.clock)
        self._by_user = Buckets(self.options.max_messages_per_minute, self.clock)
        self._new_groups = Buckets(self.options.new_groups_per_minute, self.clock)

    async def message(
        self, message: UpstreamMessage, connection: Hashable, user_id: str | None
    ) -> None:
        """To be awaited before a message is processed; ``ServerOverloaded`` if there were too
        many. Official clients come back by themselves and send again what was not processed."""
        if isinstance(message, Ping):
            return
        wait_s = self._take(connection, user_id)
        if wait_s and isinstance(message, Push):
            await self.hold(min(wait_s, MAX_PUSH_DELAY_S))
            wait_s = self._take(connection, user_id)
        if wait_s:
            raise self._overloaded("Too many messages", wait_s)

    def _take(self, connection: Hashable, user_id: str | None) -> float:
        wait_s = self._by_connection.take(connection)
        # Users who are not logged in are not one user.
        return wait_s or (self._by_user.take(user_id) if user_id is not None else 0.0)

    def new_group(self, address: str) -> None:
        """A connection from ``address`` starts a client group that is not served here yet."""
        wait_s = self._new_groups.take(address)
        if wait_s:
            raise self._overloaded("Too many new client groups from your address", wait_s)

    def group_size(self, clients: int) -> None:
        """A client joins a group that has ``clients`` connections, its own not counted."""
        most = self.options.max_clients_per_group
        if most and clients >= most:
            raise self._overloaded(f"This client group has {most} connections already", 10.0)

    def _overloaded(self, what: str, wait_s: float) -> ClientFacingError:
        self.refused += 1
        backoff_ms = max(1000, round(wait_s * 1000))
        return ClientFacingError(
            "ServerOverloaded",
            f"{what}; come back in {backoff_ms / 1000:.0f} s.",
            minBackoffMs=backoff_ms,
            maxBackoffMs=max(backoff_ms, 30_000),
        )
