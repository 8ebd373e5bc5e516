"""Threads that hydrate queries beside the engine's thread.

Owns the pool and the map of hydrations under way: groups that ask the same query at the same time
wait for one computation. A hydration nobody waits for any more is stopped. Used on the event loop;
the work itself is :func:`view_syncer.ivm.hydration.hydrate`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from view_syncer.ivm.encode import ClientTables
from view_syncer.ivm.hydration import (
    Hydration,
    HydrationLimits,
    HydrationRequest,
    hydrate,
)
from view_syncer.ivm.snapshot import ReaderPool
from zerocache.errors import QueryError
from zerocache.replica import damage
from zerocache.zql.shape import Instance

HYDRATION_THREADS = 2
"""More only make each other slower: they share one interpreter lock outside of SQLite."""


@dataclass(slots=True)
class _Running:
    request: HydrationRequest
    result: asyncio.Future[Hydration]
    waiters: int = 0


class Hydrator:
    """See the module docstring. Whoever got a hydration from :meth:`hydrate` gives it back with
    :meth:`release`; the snapshot it pins is let go when the last holder did."""

    def __init__(self, path: Path, limits: HydrationLimits) -> None:
        self._path = path
        self._readers = ReaderPool(path, max_idle=2 * HYDRATION_THREADS)
        self._limits = limits
        self._pool = ThreadPoolExecutor(HYDRATION_THREADS, thread_name_prefix="hydrate")
        # The schema is part of the key by identity: a request of an older one is another request.
        self._running: dict[tuple[int, Instance, ClientTables], _Running] = {}
        self._holders: dict[int, int] = {}

    async def hydrate(self, request: HydrationRequest) -> Hydration | QueryError:
        """The query, computed at some commit not older than this call; its error as a value."""
        key = (id(request.schema), request.instance, request.client)
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = self._start(request)
        running.waiters += 1
        try:
            hydration = await asyncio.shield(running.result)
        except QueryError as error:
            return error
        except asyncio.CancelledError:
            running.waiters -= 1
            if not running.waiters:
                running.request.cancelled.set()
                running.result.add_done_callback(_discard)
                self._forget(key, running)
            raise
        finally:
            if running.result.done():
                self._forget(key, running)
        self._holders[id(hydration)] = self._holders.get(id(hydration), 0) + 1
        return hydration

    def release(self, hydrations: Iterable[Hydration]) -> None:
        for hydration in hydrations:
            left = self._holders.pop(id(hydration)) - 1
            if left:
                self._holders[id(hydration)] = left
            else:
                hydration.close()

    async def close(self) -> None:
        for running in self._running.values():
            running.request.cancelled.set()
        await asyncio.to_thread(self._pool.shutdown)
        self._readers.close()

    def _start(self, request: HydrationRequest) -> _Running:
        loop = asyncio.get_running_loop()
        result = loop.run_in_executor(self._pool, self._hydrate, request)
        return _Running(request, result)

    def _hydrate(self, request: HydrationRequest) -> Hydration:
        with damage.reported(self._path):
            return hydrate(self._readers, request, self._limits)

    def _forget(self, key: tuple[int, Instance, ClientTables], running: _Running) -> None:
        if self._running.get(key) is running:
            del self._running[key]


def _discard(result: asyncio.Future[Hydration]) -> None:
    """Close what was computed for nobody; a cancellation or a failure left nothing to close."""
    if not result.cancelled() and result.exception() is None:
        result.result().close()
