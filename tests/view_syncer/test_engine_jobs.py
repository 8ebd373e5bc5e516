"""Jobs of the engine run one at a time and in order, whoever runs them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.view_syncer.server import until
from view_syncer import engine_jobs
from view_syncer.engine_jobs import EngineJobs, Job


class Clock:
    """Stands still but for what jobs say that they take."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Jobs:
    """What ran, in order, and on which thread."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.jobs = EngineJobs(asyncio.get_running_loop(), self.clock)
        self.ran: list[object] = []
        self.on_loop: list[bool] = []
        self.loop_thread = threading.get_ident()
        self.befores = 0
        self._running = threading.Lock()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        with suppress(ArithmeticError):
            self.jobs.run(self._before)

    def _before(self) -> None:
        self.befores += 1

    def job(self, name: object, takes_s: float = 0.0, then: Job | None = None) -> Job:
        def run() -> None:
            assert self._running.acquire(blocking=False), "two jobs at once"
            self.ran.append(name)
            self.on_loop.append(threading.get_ident() == self.loop_thread)
            self.clock.now_s += takes_s
            if then is not None:
                then()
            self._running.release()

        return run

    def hold(self) -> Callable[[], None]:
        """Keep the thread busy until the result is called."""
        entered, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            entered.set()
            assert go_on.wait(10)

        self.jobs.put(self.job("held", then=wait))
        assert entered.wait(10)
        return go_on.set

    async def done(self) -> None:
        await until(lambda: self.jobs.unfinished == 0)


@pytest.fixture
async def jobs() -> AsyncIterator[Jobs]:
    one = Jobs()
    yield one
    one.jobs.end()
    await asyncio.to_thread(one.thread.join, 10)
    assert not one.thread.is_alive()


async def test_short_jobs_run_on_the_event_loop_while_the_thread_is_idle(jobs: Jobs) -> None:
    jobs.jobs.put_short(jobs.job(1))
    jobs.jobs.put_short(jobs.job(2))
    assert jobs.ran == []  # not in the middle of who gives them
    await jobs.done()
    assert jobs.ran == [1, 2]
    assert jobs.on_loop == [True, True]


async def test_the_thread_runs_what_may_take_long(jobs: Jobs) -> None:
    jobs.jobs.put(jobs.job(1))
    await jobs.done()
    assert jobs.on_loop == [False]
    assert jobs.befores == 1


async def test_short_jobs_wait_for_the_thread_and_run_on_the_loop_then(jobs: Jobs) -> None:
    release = jobs.hold()
    for name in (1, 2):
        jobs.jobs.put_short(jobs.job(name))
    for _ in range(5):
        await asyncio.sleep(0)
    assert jobs.ran == ["held"]
    release()
    await jobs.done()
    assert jobs.ran == ["held", 1, 2]
    assert jobs.on_loop == [False, True, True]


async def test_nothing_overtakes_a_short_job(jobs: Jobs) -> None:
    jobs.jobs.put_short(jobs.job(1))
    jobs.jobs.put(jobs.job(2))
    jobs.jobs.put_short(jobs.job(3))
    await jobs.done()
    assert jobs.ran == [1, 2, 3]
    assert jobs.on_loop == [True, False, True]


async def test_what_is_put_aside_waits_for_no_short_job(jobs: Jobs) -> None:
    release = jobs.hold()
    for name in (1, 2):
        jobs.jobs.put_short(jobs.job(name))
    jobs.jobs.put_aside(jobs.job("aside"))
    await asyncio.sleep(0)
    release()
    await jobs.done()
    assert jobs.ran == ["held", "aside", 1, 2]


async def test_what_waits_at_the_end_is_still_run(jobs: Jobs) -> None:
    release = jobs.hold()
    jobs.jobs.put_short(jobs.job(1))
    jobs.jobs.put(jobs.job(2))
    jobs.jobs.put_short(jobs.job(3))
    await asyncio.sleep(0)
    jobs.jobs.end()
    release()
    await jobs.done()
    assert jobs.ran == ["held", 1, 2, 3]
    assert not any(jobs.on_loop)


async def test_the_loop_gets_its_turn_between_short_jobs(jobs: Jobs) -> None:
    seen: list[int] = []
    for name in range(4):
        jobs.jobs.put_short(jobs.job(name, takes_s=engine_jobs.TURN_S))
    while jobs.jobs.unfinished:
        seen.append(len(jobs.ran))
        await asyncio.sleep(0)
    assert {1, 2, 3} <= set(seen)


async def test_jobs_that_take_too_long_go_to_the_thread_until_that_is_made_up_for(
    jobs: Jobs,
) -> None:
    lost_s = 2 * engine_jobs.MOST_LOST_S
    jobs.jobs.put_short(jobs.job(1, takes_s=lost_s + engine_jobs.LONG_S))
    await jobs.done()
    jobs.jobs.put_short(jobs.job(2))
    await jobs.done()
    jobs.clock.now_s += 0.8 * engine_jobs.MOST_LOST_S / engine_jobs.LOST_SHARE
    jobs.jobs.put_short(jobs.job(3))
    await jobs.done()
    jobs.clock.now_s += 0.3 * engine_jobs.MOST_LOST_S / engine_jobs.LOST_SHARE
    jobs.jobs.put_short(jobs.job(4))
    await jobs.done()
    assert jobs.ran == [1, 2, 3, 4]
    assert jobs.on_loop == [True, False, False, True]


async def test_one_job_that_was_held_up_changes_nothing(jobs: Jobs) -> None:
    jobs.jobs.put_short(jobs.job(1, takes_s=engine_jobs.MOST_LOST_S))
    jobs.jobs.put_short(jobs.job(2))
    await jobs.done()
    assert jobs.on_loop == [True, True]


async def test_a_job_may_give_another(jobs: Jobs) -> None:
    more = jobs.job("more")
    jobs.jobs.put_short(jobs.job(1, then=lambda: jobs.jobs.put_aside(more)))
    await jobs.done()
    assert jobs.ran == [1, "more"]
    assert jobs.on_loop == [True, False]


async def test_a_job_of_the_loop_that_fails_does_not_stop_the_others(jobs: Jobs) -> None:
    failures: list[object] = []
    loop = asyncio.get_running_loop()
    handler = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: failures.append(context))

    def fail() -> None:
        raise ArithmeticError

    jobs.jobs.put_short(fail)
    jobs.jobs.put_short(jobs.job(2))
    await jobs.done()
    loop.set_exception_handler(handler)
    assert failures
    assert jobs.ran == [2]


async def test_after_the_end_nothing_is_run(jobs: Jobs) -> None:
    jobs.jobs.put_short(jobs.job(1))
    jobs.jobs.end()
    await asyncio.to_thread(jobs.thread.join, 10)
    jobs.jobs.put_short(jobs.job(2))
    jobs.jobs.put(jobs.job(3))
    for _ in range(5):
        await asyncio.sleep(0)
    assert jobs.ran == [1]


async def test_after_a_failure_of_the_thread_nothing_is_run() -> None:
    jobs = Jobs()

    def fail() -> None:
        raise ArithmeticError

    jobs.jobs.put(fail)
    await asyncio.to_thread(jobs.thread.join, 10)
    jobs.jobs.put_short(jobs.job(1))
    jobs.jobs.put(jobs.job(2))
    for _ in range(5):
        await asyncio.sleep(0)
    assert jobs.ran == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.sampled_from([0.0, 0.1]))))
async def test_whatever_is_given_runs_once_and_in_order(
    given_: list[tuple[bool, int, float]],
) -> None:
    jobs = Jobs()
    for number, (short, turns, takes_s) in enumerate(given_):
        put = jobs.jobs.put_short if short else jobs.jobs.put
        put(jobs.job(number, takes_s=takes_s))
        for _ in range(turns):
            await asyncio.sleep(0)
    await jobs.done()
    assert jobs.ran == list(range(len(given_)))
    jobs.jobs.end()
    await asyncio.to_thread(jobs.thread.join, 10)
