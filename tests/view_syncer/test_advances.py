"""The order of advances, and what a lost engine makes void."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from view_syncer import advances
from view_syncer.advances import AdvanceQueue, GroupAdvance, Superseded
from view_syncer.fan_out import GroupUpdate
from zerocache.errors import ClientFacingError
from zerocache.protocol.versions import Watermark


def advance(version: str) -> GroupAdvance:
    return GroupAdvance(Watermark(version), GroupUpdate(()), None)


def recorded() -> tuple[AdvanceQueue, list[str]]:
    applied: list[str] = []

    def merge(version: Watermark, parts: Sequence[GroupAdvance]) -> GroupAdvance:
        return advance(" ".join([version, "of", *(part.version for part in parts)]))

    queue = AdvanceQueue(lambda a: applied.append(a.version), merge, lambda: queue.void())
    return queue, applied


def test_advances_wait_for_the_last_hold() -> None:
    queue, applied = recorded()
    queue.put(advance("01"))
    with queue.held():
        with queue.held():
            queue.put(advance("02"))
        queue.put(advance("03"))
        assert applied == ["01"]
        queue.drain(Watermark("02"))
        assert applied == ["01", "02"]
    assert applied == ["01", "02", "03"]


def test_hold_that_fails_applies_nothing_and_loses_nothing() -> None:
    queue, applied = recorded()

    def fail() -> None:
        with queue.held():
            queue.put(advance("01"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert applied == []
    queue.put(advance("02"))
    assert applied == ["01", "02"]


def test_void_forgets_what_waits_and_hears_nothing_until_it_listens_again() -> None:
    queue, applied = recorded()
    with queue.held():
        queue.put(advance("01"))
        queue.void()
        queue.put(advance("02"))
    queue.put(advance("03"))
    queue.deaf = False
    queue.put(advance("04"))
    assert applied == ["04"]


def test_too_much_that_waits_is_void(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advances, "MAX_WAITING_OPERATIONS", 4)
    queue, applied = recorded()
    with queue.held():
        queue.put(GroupAdvance(Watermark("01"), GroupUpdate((), dels=["x"] * 9), None))
        assert not queue.deaf  # a single one may be of any size
        queue.drain(Watermark("01"))
        for version in ("02", "03", "04", "05"):
            queue.put(advance(version))
        assert not queue.deaf
        queue.put(advance("06"))
        assert queue.deaf
    assert applied == ["01"]


async def test_answer_of_an_epoch_that_ended_is_refused() -> None:
    queue, _ = recorded()
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(queue.of_engine(answer, queue.epoch))
    await asyncio.sleep(0)
    answer.set_result(1)
    queue.void()
    with pytest.raises(Superseded):
        await waiting


async def test_failure_of_an_epoch_that_ended_is_none() -> None:
    queue, _ = recorded()
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(queue.of_engine(answer, queue.epoch))
    await asyncio.sleep(0)
    answer.set_exception(KeyError("a column that is gone"))
    queue.void()
    with pytest.raises(Superseded):
        await waiting


async def test_refusal_is_one_in_any_epoch() -> None:
    """It is the client's: whoever may not come in does not come in by a reset."""
    queue, _ = recorded()
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answer.set_exception(ClientFacingError("Unauthorized", "another user"))
    epoch = queue.epoch
    queue.void()
    with pytest.raises(ClientFacingError):
        await queue.of_engine(answer, epoch)


async def test_answer_of_the_present_epoch_is_given() -> None:
    queue, _ = recorded()
    queue.void()
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answer.set_result(7)
    assert await queue.of_engine(answer, queue.epoch) == 7


def test_barred_advances_wait_until_somebody_makes_something_of_them() -> None:
    queue, applied = recorded()
    assert queue.bar(Watermark("02"))
    assert queue.bar(Watermark("04"))  # the earlier one still stands
    for version in ("01", "02", "03", "05"):
        queue.put(advance(version))
    queue.drain(None)
    assert applied == ["01"]
    assert queue.take(Watermark("01")) == []
    with queue.held():
        assert [taken.version for taken in queue.take(Watermark("03"))] == ["02", "03"]
        assert applied == ["01"]
    assert applied == ["01", "05"]


def test_lifted_bar_lets_everything_through_in_order() -> None:
    queue, applied = recorded()
    queue.bar(Watermark("01"))
    queue.put(advance("01"))
    with queue.held():
        queue.lift()
        queue.put(advance("02"))
        assert applied == []
    assert applied == ["01", "02"]


def test_lifted_bar_skips_what_was_between_two_changes() -> None:
    queue, applied = recorded()
    queue.bar(Watermark("02"))
    queue.bar(Watermark("05"))
    for version in ("01", "02", "04", "06"):
        queue.put(advance(version))
    queue.drain(None)
    assert applied == ["01"]
    with queue.held():
        queue.lift()
        queue.put(advance("07"))
    assert applied == ["01", "05 of 02 04", "06", "07"]
    queue.bar(Watermark("08"))
    queue.bar(Watermark("09"))
    queue.lift()
    queue.put(advance("08"))
    assert applied[-1] == "08"


def test_void_ends_a_bar_and_allows_none() -> None:
    queue, applied = recorded()
    queue.bar(Watermark("01"))
    queue.void()
    assert not queue.bar(Watermark("01"))
    queue.deaf = False
    queue.put(advance("02"))
    assert applied == ["02"]
