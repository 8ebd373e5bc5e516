"""Threads that hydrate queries beside the engine's thread.

Owns the map of hydrations under way: groups that ask the same query at the same time wait for one
computation. A hydration nobody waits for any more is stopped. Which of them runs next, so that a
slow query holds up nobody else's, is decided in :mod:`view_syncer.lanes`. Used on the event loop;
the work itself is :func:`view_syncer.ivm.hydration.hydrate`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.hydration import (
    Hydration,
    HydrationCancelled,
    HydrationLimits,
    HydrationRequest,
    hydrate,
)
from view_syncer.ivm.snapshot import ReaderPool
from view_syncer.lanes import Job, LaneLimits, Lanes, Stopped
from zerocache.errors import QueryError
from zerocache.replica import damage
from zerocache.zql.shape import Instance

_Key = tuple[int, Instance, ClientTables, bool]
"""What is computed: identity of the schema, query, client schema, whether rows are encoded."""


@dataclass(slots=True)
class _Running:
    job: Job[Hydration]
    waiters: int = 0


class Hydrator:
    """See the module docstring. Whoever got a hydration from :meth:`hydrate` gives it back with
    :meth:`release`; the snapshot it pins is let go when the last holder did."""

    def __init__(
        self,
        path: Path,
        limits: HydrationLimits,
        lanes: LaneLimits = LaneLimits(),  # noqa: B008 (immutable)
    ) -> None:
        self._path = path
        self._readers = ReaderPool(path, max_idle=4 * lanes.quick)
        self._limits = limits
        self._lanes: Lanes[Hydration] = Lanes(lanes, Hydration.close, "hydrate")
        # The schema is part of the key by identity: a request of an older one is another request.
        self._running: dict[_Key, _Running] = {}
        self._holders: dict[Hydration, int] = {}

    async def hydrate(self, owner: Hashable, request: HydrationRequest) -> Hydration | QueryError:
        """The query, computed at some commit not older than this call; its error as a value.
        ``owner`` is who asks: owners take turns."""
        key = (id(request.schema), request.instance, request.client, request.encoder is not None)
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = self._start(owner, request)
        else:
            self._lanes.join(owner, running.job)
        running.waiters += 1
        try:
            hydration = await asyncio.shield(running.job.result)
        except QueryError as error:
            return error
        except asyncio.CancelledError:
            running.waiters -= 1
            if not running.waiters:
                self._lanes.cancel(running.job)
                self._forget(key, running)
            raise
        finally:
            if running.job.result.done():
                self._forget(key, running)
        self._holders[hydration] = self._holders.get(hydration, 0) + 1
        return hydration

    def release(self, hydrations: Iterable[Hydration]) -> None:
        for hydration in hydrations:
            left = self._holders.pop(hydration) - 1
            if left:
                self._holders[hydration] = left
            else:
                hydration.close()

    async def close(self) -> None:
        await self._lanes.close()
        self._readers.close()

    def _start(self, owner: Hashable, request: HydrationRequest) -> _Running:
        def work(stop: threading.Event) -> Hydration:
            try:
                with damage.reported(self._path):
                    return hydrate(self._readers, replace(request, cancelled=stop), self._limits)
            except HydrationCancelled as reason:
                raise Stopped from reason

        return _Running(self._lanes.submit(owner, work))

    def _forget(self, key: _Key, running: _Running) -> None:
        if self._running.get(key) is running:
            del self._running[key]
