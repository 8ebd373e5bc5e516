"""Fair use of a few threads by work that may take a millisecond or a minute.

Owns the threads and who gets the next one. Quick work never waits for slow work: whatever runs
longer than ``patience_s`` counts as slow and moves over to one of the slow lanes, thread and all,
if it may; if it may not, it keeps its lane until somebody waits for that, and is then stopped and
begun anew when a slow lane is free. Waiting owners take turns. Nothing is known here of what the
work is; used on the event loop.

Invariant: a job at the head of its owner's queue starts at the latest when every quick lane has
been given up once, which takes ``patience_s`` each and the time to stop.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Work ended because its ``stop`` event was set."""


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """``quick`` threads for whatever comes, ``slow`` ones for what took longer than
    ``patience_s``. The last free slow lane goes to an owner that has none."""

    quick: int = 2
    slow: int = 3
    patience_s: float = 0.2


@dataclass(eq=False, slots=True)
class Job(Generic[T]):
    """``result``: what the work returned or raised; :class:`Stopped` when it was cancelled."""

    # Whoever waits for it. It may start when it is the turn of one of them.
    owners: set[Hashable]
    work: Callable[[threading.Event], T]
    result: asyncio.Future[T]
    # Replaced for every run, so that a run that was stopped stays stopped.
    stop: threading.Event = field(default_factory=threading.Event)
    timer: asyncio.TimerHandle | None = None
    # Ran longer than the patience at some time: waits for a slow lane only.
    slow: bool = False
    # Stopped to make room: to be run again.
    evicted: bool = False
    cancelled: bool = False


class TurnQueue(Generic[T]):
    """Jobs by owner; owners take turns."""

    def __init__(self) -> None:
        self._owners: dict[Hashable, deque[Job[T]]] = {}

    def __len__(self) -> int:
        """How many owners wait."""
        return len(self._owners)

    def add(self, job: Job[T], owners: Iterable[Hashable]) -> None:
        for owner in owners:
            self._owners.setdefault(owner, deque()).append(job)

    def take(self, may: Callable[[Job[T]], bool]) -> Job[T] | None:
        """The first job, in turn, that ``may`` run; its owner goes to the end."""
        for owner, jobs in self._owners.items():
            job = jobs[0]
            if may(job):
                self._owners[owner] = self._owners.pop(owner)
                self.discard(job)
                return job
        return None

    def discard(self, job: Job[T]) -> None:
        for owner in job.owners:
            jobs = self._owners.get(owner)
            if jobs is not None and job in jobs:
                jobs.remove(job)
                if not jobs:
                    del self._owners[owner]


class Lanes(Generic[T]):
    """See the module docstring.

    * Work is called on a thread with an event; soon after that is set it must raise
      :class:`Stopped` (or may still return);
    * ``discard`` is called with a result that nobody wants any more.
    """

    def __init__(self, limits: LaneLimits, discard: Callable[[T], None], name: str) -> None:
        self._limits = limits
        self._discard = discard
        self._pool = ThreadPoolExecutor(limits.quick + limits.slow, thread_name_prefix=name)
        self._waiting: TurnQueue[T] = TurnQueue()
        self._slow_waiting: TurnQueue[T] = TurnQueue()
        self._quick: list[Job[T]] = []
        self._slow: list[Job[T]] = []
        self._closed = False

    def submit(self, owner: Hashable, work: Callable[[threading.Event], T]) -> Job[T]:
        job = Job({owner}, work, asyncio.get_running_loop().create_future())
        self._waiting.add(job, job.owners)
        self._dispatch()
        return job

    def join(self, owner: Hashable, job: Job[T]) -> None:
        """``owner`` waits for ``job`` too: it now has the turns of all of them."""
        if owner in job.owners or job.result.done():
            return
        job.owners.add(owner)
        if job not in self._quick and job not in self._slow:
            (self._slow_waiting if job.slow else self._waiting).add(job, [owner])
            self._dispatch()

    def cancel(self, job: Job[T]) -> None:
        """Nobody waits for ``job`` any more, or will look at its result."""
        job.cancelled = True
        job.stop.set()
        self._waiting.discard(job)
        self._slow_waiting.discard(job)
        if not job.result.cancel() and job.result.exception() is None:
            self._discard(job.result.result())

    async def close(self) -> None:
        """Stop everything; whoever waits still gets :class:`Stopped`."""
        self._closed = True
        for job in (*self._quick, *self._slow):
            job.stop.set()
        for queue in (self._waiting, self._slow_waiting):
            while (waiting := queue.take(lambda _: True)) is not None:
                waiting.result.set_exception(Stopped())
        await asyncio.to_thread(self._pool.shutdown)

    # -- who runs next --------------------------------------------------------------------------

    def _dispatch(self) -> None:
        if self._closed:
            return
        while (ready := self._slow_waiting.take(self._may_go_slow)) is not None:
            self._start(ready, self._slow)
        for job in [j for j in self._quick if j.slow and not j.evicted]:
            if self._may_go_slow(job):
                self._quick.remove(job)
                self._slow.append(job)
        while len(self._quick) < self._limits.quick:
            ready = self._waiting.take(lambda _: True)
            if ready is None:
                return
            self._start(ready, self._quick)
        self._make_room()

    def _may_go_slow(self, job: Job[T]) -> bool:
        free = self._limits.slow - len(self._slow)
        return free > 1 or (free == 1 and all(job.owners.isdisjoint(o.owners) for o in self._slow))

    def _make_room(self) -> None:
        """Every quick lane is taken: end as many that overstayed as there are owners waiting."""
        overstayed = [job for job in self._quick if job.slow]
        for job in sorted(overstayed, key=lambda job: not job.evicted)[: len(self._waiting)]:
            job.evicted = True
            job.stop.set()

    def _start(self, job: Job[T], lane: list[Job[T]]) -> None:
        loop = asyncio.get_running_loop()
        lane.append(job)
        job.stop = threading.Event()
        if lane is self._quick:
            job.timer = loop.call_later(self._limits.patience_s, self._overdue, job)
        running = loop.run_in_executor(self._pool, job.work, job.stop)
        running.add_done_callback(partial(self._ended, job))

    def _overdue(self, job: Job[T]) -> None:
        job.slow = True
        self._dispatch()

    def _ended(self, job: Job[T], running: asyncio.Future[T]) -> None:
        if job.timer is not None:
            job.timer.cancel()
        (self._quick if job in self._quick else self._slow).remove(job)
        evicted, job.evicted = job.evicted, False
        error = running.exception()
        if evicted and isinstance(error, Stopped) and not (job.cancelled or self._closed):
            self._slow_waiting.add(job, job.owners)
        elif job.cancelled:
            if error is None:
                self._discard(running.result())
        elif error is None:
            job.result.set_result(running.result())
        else:
            job.result.set_exception(error)
        self._dispatch()
