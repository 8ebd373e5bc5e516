"""The rate at which clients are let in, so that those who are in do not notice a storm.

Owns the turns of whatever brings a client up to date: its queries hydrated, its record saved, its
first poke made. Each turn is short, but a thousand at once would hold up every poke of the worker
for as long as all of them take. So only some run at the same time, in order of arrival; whoever is
in already and asks for another query goes first. How many depends on how late the event loop is:
it falls quickly when the loop falls behind and rises slowly while it is punctual.

Never refuses by itself: :meth:`Intake.check` does, for a client that would wait longer than a
client does, and tells it when to come back; each is told another time, or all would be back at
once. Invariant: a turn that was begun is never taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Callable

from zerocache.errors import ClientFacingError

MOST_TURNS = 128
FEWEST_TURNS = 32
LATE_S = 0.05
"""An event loop later than this has too much to do."""
PUNCTUAL_S = 0.01
CHECK_S = 0.05
MAX_WAIT_S = 20.0
"""Expected waiting time beyond which a client is better off coming back later."""
LONGEST_BACKOFF_S = 60.0
LONGEST_TURN_S = 0.25
"""Whoever needs longer goes on without a turn: it waits for a slow query, not for the loop."""
RATE_AFTER_S = 3.0
"""How long a queue must have been there before its speed is believed: the first of a storm pay for
the plans that the others share."""


class Turn:
    """One turn of an :class:`Intake`, from :meth:`begin` to :meth:`end`, or for the length of an
    ``async with`` block. It is counted until then, or until it took too long to be."""

    def __init__(self, intake: Intake, *, urgent: bool) -> None:
        self._intake = intake
        self._urgent = urgent
        self._counted = False
        self._timer: asyncio.TimerHandle | None = None

    async def begin(self) -> None:
        """Wait for the turn."""
        await self._intake._take(urgent=self._urgent)
        self._counted = True
        # A query that takes long waits for its thread, and costs the event loop nothing.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._intake.longest_s, self._count_out)

    def end(self) -> None:
        """Also of one that did not begin."""
        if self._timer is not None:
            self._timer.cancel()
        self._count_out()

    def _count_out(self) -> None:
        if self._counted:
            self._counted = False
            self._intake._ended_one()

    async def __aenter__(self) -> None:
        await self.begin()

    async def __aexit__(self, *_: object) -> None:
        self.end()


class Intake:
    """``clock`` is that of the event loop; ``spread`` gives a number from 0 to 1."""

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        spread: Callable[[], float] = random.random,
        longest_s: float = LONGEST_TURN_S,
    ) -> None:
        self.longest_s = longest_s
        self._clock = clock or asyncio.get_running_loop().time
        self._spread = spread
        self.limit = MOST_TURNS // 2
        self._running = 0
        # The future of each turn that waits; what is urgent stands before the rest.
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        # Turns ended since the queue was last empty, and when that was: what the rate is from.
        self._ended = 0
        self._since_s = self._clock()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def expected_wait_s(self) -> float:
        """How long a client that comes now would wait, going by those before it."""
        elapsed = self._clock() - self._since_s
        if not self._waiting or not self._ended or elapsed < RATE_AFTER_S:
            return 0.0
        return len(self._waiting) * elapsed / self._ended

    def check(self) -> None:
        """Raise ``ServerOverloaded`` if a client that comes now would wait too long."""
        wait_s = self.expected_wait_s()
        if wait_s <= MAX_WAIT_S:
            return
        backoff_s = min(wait_s, LONGEST_BACKOFF_S) * (1 + self._spread())
        raise ClientFacingError(
            "ServerOverloaded",
            f"{len(self._waiting)} clients are waiting to be let in; come back later.",
            minBackoffMs=round(backoff_s * 1000),
            maxBackoffMs=round(backoff_s * 2000),
        )

    def turn(self, *, urgent: bool) -> Turn:
        return Turn(self, urgent=urgent)

    async def _take(self, *, urgent: bool) -> None:
        if self._running >= self.limit:
            await self._wait(self._urgent if urgent else self._waiting)
        else:
            self._running += 1

    def _ended_one(self) -> None:
        self._running -= 1
        self._ended += 1
        self._admit()

    async def _wait(self, queue: deque[asyncio.Future[None]]) -> None:
        """Returns with :attr:`_running` counting the caller."""
        if not self._waiting:
            self._ended, self._since_s = 0, self._clock()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with contextlib.suppress(ValueError):  # passed over and taken out already
                    queue.remove(turn)
            else:  # it was this one's turn already: the next may go instead
                self._running -= 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._running < self.limit and (queue := self._urgent or self._waiting):
            turn = queue.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)

    async def run(self) -> None:
        """Adapt to the event loop, until cancelled."""
        while True:
            due_s = self._clock() + CHECK_S
            await asyncio.sleep(CHECK_S)
            self.adapt(self._clock() - due_s)

    def adapt(self, late_s: float) -> None:
        """The event loop was late by this much."""
        if late_s > LATE_S:
            self.limit = max(FEWEST_TURNS, self.limit // 2)
        elif late_s < PUNCTUAL_S and self.limit < MOST_TURNS:
            self.limit += 1
            self._admit()
