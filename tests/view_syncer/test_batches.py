"""Items that come together go together; each gets what is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from view_syncer.batches import CROWD, GATHERING_TURNS, Batches


class Resource:
    """Records the batches it is asked for; each waits until it is let through."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()

    async def work(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        await self.gate.wait()
        return [ValueError(str(item)) if item < 0 else item * 10 for item in items]


async def started(count: int) -> None:
    for _ in range(count + GATHERING_TURNS):
        await asyncio.sleep(0)


async def test_first_item_goes_alone_and_what_comes_meanwhile_goes_together() -> None:
    resource = Resource()
    batches = Batches(resource.work, key=str, lanes=1, max_items=10)
    first = asyncio.create_task(batches.run(0))
    await started(3)
    others = [asyncio.create_task(batches.run(n)) for n in range(1, 13)]
    await started(3)
    assert resource.batches == [[0]]
    resource.gate.set()
    assert await asyncio.gather(first, *others) == [n * 10 for n in range(13)]
    assert resource.batches == [[0], list(range(1, 11)), [11, 12]]


async def test_further_lane_is_for_a_crowd() -> None:
    resource = Resource()
    batches = Batches(resource.work, key=str, lanes=2, max_items=CROWD)
    tasks = [asyncio.create_task(batches.run(0))]
    await started(3)
    tasks += [asyncio.create_task(batches.run(n)) for n in range(1, CROWD)]
    await started(3)
    assert resource.batches == [[0]]
    tasks.append(asyncio.create_task(batches.run(CROWD)))
    await started(3)
    assert resource.batches == [[0], list(range(1, CROWD + 1))]
    resource.gate.set()
    assert await asyncio.gather(*tasks) == [n * 10 for n in range(CROWD + 1)]


async def test_failure_of_one_item_is_not_that_of_its_batch() -> None:
    resource = Resource()
    resource.gate.set()
    batches = Batches(resource.work, key=str, lanes=1, max_items=10)
    results = await asyncio.gather(*(batches.run(n) for n in (1, -2, 3)), return_exceptions=True)
    assert [str(result) for result in results] == ["10", "-2", "30"]
    assert resource.batches == [[1, -2, 3]]


async def test_failure_of_the_work_is_everybodys_and_the_next_batch_goes_on() -> None:
    fail = True

    async def work(items: Sequence[int]) -> list[int | Exception]:
        if fail:
            raise OSError("away")
        return list(items)

    batches = Batches(work, key=str, lanes=1, max_items=10)
    results = await asyncio.gather(*(batches.run(n) for n in (1, 2)), return_exceptions=True)
    assert [str(result) for result in results] == ["away", "away"]
    fail = False
    assert await batches.run(3) == 3


async def test_item_nobody_waits_for_is_dropped_before_its_batch_begins() -> None:
    resource = Resource()
    batches = Batches(resource.work, key=str, lanes=1, max_items=10)
    tasks = [asyncio.create_task(batches.run(n)) for n in range(1)]
    await started(3)
    tasks += [asyncio.create_task(batches.run(n)) for n in (1, 2)]
    await started(3)
    tasks[1].cancel()
    await started(3)
    resource.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [results[0], results[2]] == [0, 20]
    await batches.join()
    assert resource.batches == [[0], [2]]


@given(
    items=st.lists(st.integers(0, 5), max_size=30), lanes=st.integers(1, 3), most=st.integers(1, 4)
)
def test_every_item_is_worked_on_once_and_equal_keys_are_never_together(
    items: list[int], lanes: int, most: int
) -> None:
    async def run() -> None:
        resource = Resource()
        resource.gate.set()
        batches = Batches(resource.work, key=str, lanes=lanes, max_items=most)
        assert await asyncio.gather(*map(batches.run, items)) == [n * 10 for n in items]
        assert sorted(n for batch in resource.batches for n in batch) == sorted(items)
        for batch in resource.batches:
            assert len(set(batch)) == len(batch) <= most

    asyncio.run(run())


@pytest.mark.parametrize("turns", [-GATHERING_TURNS, 3])
async def test_cancelled_work_cancels_those_who_wait(turns: int) -> None:
    resource = Resource()
    batches = Batches(resource.work, key=str, lanes=1, max_items=10)
    waiting = asyncio.create_task(batches.run(1))
    await asyncio.sleep(0)
    await started(turns)
    (lane,) = batches._running
    lane.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_lane_that_is_held_up_holds_up_nobody_else_for_long() -> None:
    """A database connection may hang, or read something large, and one client comes meanwhile."""
    held_up = asyncio.Event()

    async def work(items: Sequence[int]) -> list[int | Exception]:
        if 0 in items:
            await held_up.wait()
        return [*items]

    batches = Batches(work, key=str, lanes=2, max_items=10)
    first = asyncio.create_task(batches.run(0))
    await started(3)
    async with asyncio.timeout(2):
        assert await batches.run(1) == 1
    held_up.set()
    assert await first == 0
    await batches.join()
