"""Who runs the engine's jobs: its thread, or the event loop.

The engine has a thread so that nothing it does holds up the event loop. But both share one
interpreter, and passing that back and forth with every statement of a job of half a millisecond
costs as much again (benchmarks/storms.py: 600 against 690 new groups a second, 595 against 720
after a restart). So a job that is known to be short runs on the event loop itself while the thread
has nothing to do: a few of them, then whatever else the loop has.

Owns order and exclusion. Invariants: one job runs at a time; jobs run in the order in which they
are given, whoever runs them, but for those put aside, which nobody waits for.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable

Job = Callable[[], None]

TURN_S = 0.001
"""After this the event loop goes on with something else, and comes back."""
LONG_S = 0.005
"""A short job that takes longer waited for a disk, or was none. The rest is lost for the loop."""
MOST_LOST_S = 0.05
LOST_SHARE = 0.05
"""Beyond :data:`MOST_LOST_S`, of which this share of all time is forgiven, the thread runs them."""


class EngineJobs:
    """:meth:`put`, :meth:`put_short` and :meth:`end` are for the event loop, :meth:`put_aside` for
    jobs too; :meth:`run` is the thread's life."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        # What the event loop has not come to yet, and whether it is short; the first one is.
        self._given: deque[tuple[Job, bool]] = deque()
        # Had by whoever runs a job.
        self._turn = threading.Lock()
        # Jobs given to the thread and not done yet, and whether short ones wait for their end.
        self._outstanding = 0
        self._awaited = False
        self._count = threading.Lock()
        # What the event loop lost by jobs that were not short, and when that was last looked at.
        self._lost_s = 0.0
        self._looked_s = clock()

    @property
    def unfinished(self) -> int:
        """How many jobs were given and are not done."""
        return len(self._given) + self._outstanding

    def put(self, job: Job) -> None:
        """Have the thread run it."""
        if self._given:
            self._given.append((job, False))
        else:
            self.put_aside(job)

    def put_aside(self, job: Job) -> None:
        """Have the thread run it, whatever else waits here for its turn."""
        with self._count:
            self._outstanding += 1
        self._queue.put(job)

    def put_short(self, job: Job) -> None:
        """Have it run soon, by whoever is free. Its time must be bounded, whatever the data."""
        self._given.append((job, True))
        if len(self._given) == 1:
            self._loop.call_soon(self._run_given)

    def end(self) -> None:
        """The thread ends once it has run what was given so far; nothing given later is run."""
        self._hand_over()
        self._lost_s = math.inf
        self._queue.put(None)

    def run(self, before: Job) -> None:
        """Run jobs until :meth:`end`, each after ``before``. If one fails, none is run any more."""
        while (job := self._queue.get()) is not None:
            with self._turn:
                before()
                job()
            with self._count:
                self._outstanding -= 1
                awaited = self._awaited and not self._outstanding
                self._awaited = self._awaited and not awaited
            if awaited and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._run_given)

    def _run_given(self) -> None:
        if self._lost_much():
            self._hand_over()
        while self._given and not self._given[0][1]:
            self.put_aside(self._given.popleft()[0])
        if not self._given:
            return
        with self._count:
            self._awaited = self._outstanding > 0
        if self._awaited:
            return
        try:
            with self._turn:
                self._run_short()
        finally:
            if self._given:
                self._loop.call_soon(self._run_given)

    def _run_short(self) -> None:
        begin = now = self._clock()
        while self._given and self._given[0][1] and now - begin < TURN_S:
            job, _ = self._given.popleft()
            job()
            before, now = now, self._clock()
            self._lost_s += max(0.0, now - before - LONG_S)

    def _lost_much(self) -> bool:
        before, self._looked_s = self._looked_s, self._clock()
        self._lost_s = max(0.0, self._lost_s - LOST_SHARE * (self._looked_s - before))
        return self._lost_s > MOST_LOST_S

    def _hand_over(self) -> None:
        while self._given:
            self.put_aside(self._given.popleft()[0])
