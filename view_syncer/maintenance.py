"""What is done for client groups from time to time (api-and-auth.md §6.4).

Owns the deadlines: validating the credentials of each connection again, transforming the named
queries of each group again, and writing down how far its TTL clock is. Never acts on a connection
that was not admitted. Invariants: an authentication failure ends only the connection it is about;
any other failure postpones all of the group's calls of the application and ends nothing; clocks
are written down however long the application takes to answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from view_syncer.api_client import is_auth_failure
from view_syncer.audience import Client
from view_syncer.client_group import ClientGroup
from zerocache.errors import ClientFacingError

log = structlog.get_logger(__name__)

CHECK_S = 1.0
MAX_PARALLEL = 8
"""Groups that are worked on at the same time, so that a full house does not call all at once."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """An interval of 0 turns its timer off."""

    revalidate_s: float
    retransform_s: float
    touch_s: float = 60.0


@dataclass(slots=True)
class _Deadlines:
    """Of one group, in the time of the clock. ``deferred_until_s`` holds back what calls the
    application, ``asking`` is set while that is under way."""

    retransform_s: float
    touch_s: float
    deferred_until_s: float = 0.0
    asking: bool = False


class Maintenance:
    """One per worker.

    * ``groups`` gives those that are to be maintained; others are forgotten;
    * ``clock`` is that of :attr:`~view_syncer.audience.Client.validated_s` (loop time).
    """

    def __init__(
        self,
        groups: Callable[[], Iterable[ClientGroup]],
        intervals: Intervals,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._groups = groups
        self._intervals = intervals
        self._clock = clock or asyncio.get_running_loop().time
        self._deadlines: dict[ClientGroup, _Deadlines] = {}
        self._left: set[ClientGroup] = set()
        self._parallel = asyncio.Semaphore(MAX_PARALLEL)

    def left(self, group: ClientGroup) -> None:
        """Its last client is gone: its clock is written down at the next check, together with
        those of all that were left meanwhile."""
        self._left.add(group)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as asking:
            while True:
                await asyncio.sleep(CHECK_S)
                await self._touch_due()
                for group, deadlines in self._to_ask():
                    asking.create_task(self._ask(group, deadlines))

    async def check(self) -> None:
        """Do whatever is due."""
        await self._touch_due()
        await asyncio.gather(*(self._ask(group, deadlines) for group, deadlines in self._to_ask()))

    async def _touch_due(self) -> None:
        now = self._clock()
        groups = [group for group in self._groups() if group.admitted()]
        self._deadlines = {
            group: self._deadlines.get(group) or self._first(now) for group in groups
        }
        due = [group for group in groups if now >= self._deadlines[group].touch_s]
        for group in due:
            self._deadlines[group].touch_s = now + self._intervals.touch_s
        left, self._left = self._left, set()
        await asyncio.gather(*(group.touch() for group in {*due, *left}))

    def _first(self, now: float) -> _Deadlines:
        return _Deadlines(now + self._intervals.retransform_s, now + self._intervals.touch_s)

    def _to_ask(self) -> list[tuple[ClientGroup, _Deadlines]]:
        """Groups of which something must be asked of the application that is not yet."""
        now = self._clock()
        return [
            (group, deadlines)
            for group, deadlines in self._deadlines.items()
            if now >= deadlines.deferred_until_s
            and not deadlines.asking
            and (self._retransform_due(deadlines) or self._to_revalidate(group))
        ]

    def _retransform_due(self, deadlines: _Deadlines) -> bool:
        return self._intervals.retransform_s > 0 and self._clock() >= deadlines.retransform_s

    def _to_revalidate(self, group: ClientGroup) -> list[Client]:
        interval = self._intervals.revalidate_s
        if interval <= 0:
            return []
        return [c for c in group.admitted() if c.validated_s + interval <= self._clock()]

    async def _ask(self, group: ClientGroup, deadlines: _Deadlines) -> None:
        deadlines.asking = True
        try:
            async with self._parallel:
                await self._ask_now(group, deadlines, self._clock())
        finally:
            deadlines.asking = False

    async def _ask_now(self, group: ClientGroup, deadlines: _Deadlines, now: float) -> None:
        try:
            interval = self._intervals.revalidate_s
            for client in self._to_revalidate(group):
                await self._revalidate(group, client)
            if self._retransform_due(deadlines):
                interval = self._intervals.retransform_s
                await self._retransform(group)
                deadlines.retransform_s = now + interval
        except ClientFacingError as error:
            log.warning(
                "maintenance_deferred",
                clientGroupID=group.group_id,
                errorKind=error.kind,
                seconds=interval,
            )
            deadlines.deferred_until_s = now + interval

    async def _revalidate(self, group: ClientGroup, client: Client) -> None:
        try:
            await group.revalidate(client)
        except ClientFacingError as error:
            if not is_auth_failure(error):
                raise
            client.fail(error)

    async def _retransform(self, group: ClientGroup) -> None:
        """In the name of the newest connection whose credentials the application accepts."""
        for client in reversed(group.admitted()):
            try:
                await group.refresh_queries(client)
                return
            except ClientFacingError as error:
                if not is_auth_failure(error):
                    raise
                client.fail(error)
