"""Runs what many ask for at the same time as one piece of work.

Owns the queue in front of a resource that costs per call rather than per item (a database). An
item that finds all lanes free goes alone and at once; while one is busy, items gather and go
together: when that one is free again, or by another lane once they are many or that takes long.
Invariants: items of one batch arrived before its work began; every item gets its own result or its
own failure; an item nobody waits for any more is dropped if its batch did not begin.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


CROWD = 32
PATIENCE_S = 0.1
"""So many items, or one for so long, do not wait for a lane that is busy if there is another."""


GATHERING_TURNS = 3
"""Of the event loop, before a batch goes."""


class Batches(Generic[T, R]):
    """``work`` gets the items of a batch in order of arrival and returns as many results, where
    an exception is one item's failure; what it raises is the failure of all. Items with the same
    ``key`` are never in one batch."""

    def __init__(
        self,
        work: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        key: Callable[[T], Hashable],
        lanes: int,
        max_items: int,
    ) -> None:
        self._work = work
        self._key = key
        self._lanes = self._free_lanes = lanes
        self._max_items = max_items
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        # Set while items wait for a lane that is busy although another is free.
        self._patience: asyncio.TimerHandle | None = None

    async def run(self, item: T) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._start()
        return await future

    async def join(self) -> None:
        """Wait until nothing is under way."""
        while self._running:
            await asyncio.wait(self._running)

    def _start(self) -> None:
        if not (self._free_lanes and self._waiting):
            return
        if self._free_lanes == self._lanes or len(self._waiting) >= CROWD:
            self._start_lane()
        elif self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(PATIENCE_S, self._lose_patience)

    def _lose_patience(self) -> None:
        self._patience = None
        if self._free_lanes and self._waiting:
            self._start_lane()

    def _start_lane(self) -> None:
        self._free_lanes -= 1
        lane = asyncio.get_running_loop().create_task(self._lane())
        self._running.add(lane)
        lane.add_done_callback(self._ended)

    def _ended(self, lane: asyncio.Task[None]) -> None:
        self._running.discard(lane)
        if lane.cancelled():
            # The program ends: nobody would come for what waits.
            while self._waiting:
                self._waiting.popleft()[1].cancel()

    async def _lane(self) -> None:
        try:
            while batch := await self._gather():
                await self._run([item for item, _ in batch], [future for _, future in batch])
        finally:
            self._free_lanes += 1

    async def _gather(self) -> list[tuple[T, asyncio.Future[R]]]:
        """The next batch. A busy event loop is given the time to bring more; an idle one takes
        none."""
        for _ in range(GATHERING_TURNS):
            if len(self._waiting) >= self._max_items:
                break
            await asyncio.sleep(0)
        return self._take()

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        batch: dict[Hashable, tuple[T, asyncio.Future[R]]] = {}
        later: list[tuple[T, asyncio.Future[R]]] = []
        while self._waiting and len(batch) < self._max_items:
            item, future = self._waiting.popleft()
            if not future.done() and batch.setdefault(self._key(item), (item, future))[1] != future:
                later.append((item, future))
        self._waiting.extendleft(reversed(later))
        return list(batch.values())

    async def _run(self, items: list[T], futures: list[asyncio.Future[R]]) -> None:
        results: Sequence[R | Exception]
        try:
            results = await self._work(items)
        except Exception as error:
            results = [error] * len(items)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        for future, result in zip(futures, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
