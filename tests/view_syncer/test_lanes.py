"""Lanes: slow work holds up nobody but its owner, owners take turns, nothing is lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from view_syncer.lanes import Job, LaneLimits, Lanes, Stopped


class Work:
    """One piece of work that goes on until it is told to finish, or stopped."""

    def __init__(self, name: str, started: Callable[[str], None]) -> None:
        self.name = name
        self.runs = 0
        self._started = started
        self._wake = threading.Condition()
        self._finished = False

    def __call__(self, stop: threading.Event) -> str:
        self.runs += 1
        self._started(self.name)
        with self._wake:
            # Only what is stopped or finished ends; the interval is how soon a stop is noticed.
            while not self._wake.wait_for(lambda: self._finished or stop.is_set(), 0.001):
                pass
        if stop.is_set() and not self._finished:
            raise Stopped
        return self.name

    def finish(self) -> None:
        with self._wake:
            self._finished = True
            self._wake.notify()


class Bench:
    def __init__(self, limits: LaneLimits) -> None:
        self._loop = asyncio.get_running_loop()
        self.discarded: list[str] = []
        self.lanes: Lanes[str] = Lanes(limits, self.discarded.append, "test")
        self.starts: asyncio.Queue[str] = asyncio.Queue()
        self.work: dict[str, Work] = {}
        self.jobs: dict[str, Job[str]] = {}

    def submit(self, owner: str, name: str, *, done: bool = False) -> Job[str]:
        def started(n: str) -> None:
            self._loop.call_soon_threadsafe(self.starts.put_nowait, n)

        work = Work(name, started)
        if done:
            work.finish()
        self.work[name] = work
        self.jobs[name] = self.lanes.submit(owner, work)
        return self.jobs[name]

    async def started(self, count: int) -> list[str]:
        async with asyncio.timeout(20):
            return [await self.starts.get() for _ in range(count)]

    async def result(self, name: str) -> str:
        async with asyncio.timeout(20):
            return await self.jobs[name].result


async def _bench(quick: int, slow: int, patience_s: float) -> AsyncIterator[Bench]:
    bench = Bench(LaneLimits(quick, slow, patience_s))
    yield bench
    for work in bench.work.values():
        work.finish()
    async with asyncio.timeout(20):
        await bench.lanes.close()


@pytest.fixture
async def strict() -> AsyncIterator[Bench]:
    """One quick and one slow lane; whatever does not end at once is slow."""
    async for bench in _bench(1, 1, 0.0):
        yield bench


@pytest.fixture
async def lenient() -> AsyncIterator[Bench]:
    """Two quick lanes; nothing ever counts as slow."""
    async for bench in _bench(2, 2, 1000.0):
        yield bench


async def test_slow_work_makes_way_for_the_next(strict: Bench) -> None:
    strict.submit("a", "long")
    assert await strict.started(1) == ["long"]
    strict.submit("b", "short", done=True)
    assert await strict.result("short") == "short"
    assert strict.work["long"].runs == 1
    strict.work["long"].finish()
    assert await strict.result("long") == "long"


async def test_quick_work_gets_through_when_every_lane_is_slow(strict: Bench) -> None:
    """The third long one has no lane to go to: it is stopped, and begun anew later."""
    names = ["one", "two", "three"]
    for name in names:
        strict.submit("a", name)
    assert sorted(await strict.started(2)) == ["one", "two"]
    for n in range(5):
        strict.submit("b", f"short{n}", done=True)
        assert await strict.result(f"short{n}") == f"short{n}"
    for name in names:
        strict.work[name].finish()
    assert [await strict.result(name) for name in names] == names
    assert strict.work["one"].runs == 1


async def test_overstaying_is_no_harm_while_nobody_waits(strict: Bench) -> None:
    for name in ("one", "two"):
        strict.submit("a", name)
    await strict.started(2)
    for name in ("two", "one"):
        strict.work[name].finish()
        assert await strict.result(name) == name
        assert strict.work[name].runs == 1


async def test_owners_take_turns(lenient: Bench) -> None:
    for name in ("a1", "a2", "a3", "a4"):
        lenient.submit("a", name)
    assert sorted(await lenient.started(2)) == ["a1", "a2"]
    for owner in ("b", "c"):
        lenient.submit(owner, f"{owner}1")
        lenient.submit(owner, f"{owner}2")
    order = []
    for name in ("a1", "a2", "a3", "b1", "c1", "a4"):
        lenient.work[name].finish()
        order += await lenient.started(1)
    assert order == ["a3", "b1", "c1", "a4", "b2", "c2"]


async def test_the_last_slow_lane_is_for_somebody_else() -> None:
    async for bench in _bench(1, 2, 0.0):
        for name in ("a1", "a2", "a3"):
            bench.submit("a", name)
        await bench.started(2)
        bench.submit("b", "b1")
        bench.submit("b", "b2")
        running: set[str] = set()
        while "b1" not in running:
            running |= set(await bench.started(1))
        bench.submit("c", "short", done=True)
        assert await bench.result("short") == "short"
        # Neither the first of one owner nor the first of the other was ever put back.
        assert (bench.work["a1"].runs, bench.work["b1"].runs) == (1, 1)


async def test_a_job_has_the_turns_of_all_who_wait_for_it(lenient: Bench) -> None:
    for name in ("a1", "a2", "a3", "shared"):
        lenient.submit("a", name)
    await lenient.started(2)
    lenient.submit("b", "b1")
    lenient.lanes.join("c", lenient.jobs["shared"])
    order = []
    for name in ("a1", "a2", "a3"):
        lenient.work[name].finish()
        order += await lenient.started(1)
    assert order == ["a3", "b1", "shared"]
    lenient.work["shared"].finish()
    assert await lenient.result("shared") == "shared"
    assert lenient.work["shared"].runs == 1


async def test_a_finished_job_is_joined_without_running_again(lenient: Bench) -> None:
    job = lenient.submit("a", "done", done=True)
    await lenient.result("done")
    lenient.lanes.join("b", job)
    lenient.submit("b", "next", done=True)
    assert await lenient.result("next") == "next"
    assert lenient.work["done"].runs == 1


async def test_cancelled_work_is_stopped_or_never_begun(lenient: Bench) -> None:
    for name in ("one", "two", "three"):
        lenient.submit("a", name)
    await lenient.started(2)
    for name in ("three", "one"):
        lenient.lanes.cancel(lenient.jobs[name])
    lenient.submit("a", "four", done=True)
    assert await lenient.result("four") == "four"
    assert lenient.work["three"].runs == 0
    assert lenient.jobs["one"].result.cancelled()


async def test_a_result_that_came_too_late_is_discarded(lenient: Bench) -> None:
    job = lenient.submit("a", "done", done=True)
    assert await lenient.result("done") == "done"
    lenient.lanes.cancel(job)
    assert lenient.discarded == ["done"]


async def test_a_failure_is_the_result() -> None:
    async for bench in _bench(1, 1, 0.0):

        def fail(_: threading.Event) -> str:
            raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            await bench.lanes.submit("a", fail).result


async def test_closing_ends_what_runs_and_what_waits(lenient: Bench) -> None:
    jobs = [lenient.submit("a", name) for name in ("one", "two", "three")]
    await lenient.started(2)
    async with asyncio.timeout(20):
        await lenient.lanes.close()
        results = await asyncio.gather(*(j.result for j in jobs), return_exceptions=True)
    assert [type(r) for r in results] == [Stopped] * 3


@pytest.mark.parametrize("seed", range(6))
async def test_everything_ends_in_its_own_result(seed: int) -> None:
    """Work of many owners, long and short, some of it cancelled, in any order."""
    choose = random.Random(seed)
    async for bench in _bench(choose.randint(1, 2), choose.randint(1, 3), 0.0):
        kept: list[str] = []
        for n in range(60):
            name = f"w{n}"
            bench.submit(choose.choice("abcd"), name, done=choose.random() < 0.6)
            if choose.random() < 0.2:
                bench.lanes.cancel(bench.jobs[name])
            else:
                kept.append(name)
            if choose.random() < 0.3:
                bench.lanes.join(choose.choice("abcd"), bench.jobs[choose.choice(kept or [name])])
            await asyncio.sleep(0)
        choose.shuffle(kept)
        for name in kept:
            bench.work[name].finish()
            await asyncio.sleep(0)
        assert [await bench.result(name) for name in kept] == kept
