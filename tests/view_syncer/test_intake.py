"""Turns: how many, in which order, and what a client hears that would wait too long."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.view_syncer.server import until
from view_syncer import intake as module
from view_syncer.intake import Intake
from zerocache.errors import ClientFacingError


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Guest:
    """Somebody who has or waits for a turn."""

    def __init__(self, intake: Intake, *, urgent: bool = False) -> None:
        self.has_turn = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(intake, urgent))

    async def _stay(self, intake: Intake, urgent: bool) -> None:
        async with intake.turn(urgent=urgent):
            self.has_turn = True
            await self._leave.wait()
        self.has_turn = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task
        await settle()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def let_in(guests: list[Guest]) -> list[bool]:
    return [guest.has_turn for guest in guests]


async def test_as_many_as_the_limit_are_let_in_and_the_others_in_order() -> None:
    intake = Intake()
    intake.limit = 2
    guests = [Guest(intake) for _ in range(4)]
    await settle()
    assert let_in(guests) == [True, True, False, False]
    await guests[1].leave()
    assert let_in(guests) == [True, False, True, False]
    for guest in (guests[0], guests[2], guests[3]):
        await guest.leave()
    assert intake.waiting == 0


async def test_who_is_in_already_goes_before_who_waits_to_be_let_in() -> None:
    intake = Intake()
    intake.limit = 1
    first, waiting = Guest(intake), Guest(intake)
    await settle()
    urgent = Guest(intake, urgent=True)
    await settle()
    await first.leave()
    assert let_in([waiting, urgent]) == [False, True]
    await urgent.leave()
    assert waiting.has_turn
    await waiting.leave()


async def test_one_who_gave_up_waiting_takes_nobodys_turn() -> None:
    intake = Intake()
    intake.limit = 1
    first, gone, last = Guest(intake), Guest(intake), Guest(intake)
    await settle()
    gone.task.cancel()
    await settle()
    await first.leave()
    assert last.has_turn
    await last.leave()


async def test_one_who_gives_up_in_the_moment_of_its_turn_passes_it_on() -> None:
    intake = Intake()
    intake.limit = 1
    first, gone, last = Guest(intake), Guest(intake), Guest(intake)
    await settle()
    first._leave.set()
    first.task.add_done_callback(lambda _: gone.task.cancel())
    await settle()
    await settle()
    assert gone.task.cancelled()
    assert last.has_turn
    await last.leave()


async def test_turn_that_takes_long_holds_up_nobody() -> None:
    intake = Intake(longest_s=0.0)
    intake.limit = 1
    slow, other = Guest(intake), Guest(intake)
    await until(lambda: other.has_turn)
    assert slow.has_turn
    await slow.leave()
    await other.leave()
    assert intake._running == 0


async def test_late_loop_lets_fewer_in_and_a_punctual_one_more() -> None:
    intake = Intake()
    for _ in range(10):
        intake.adapt(module.LATE_S * 2)
    assert intake.limit == module.FEWEST_TURNS
    guests = [Guest(intake) for _ in range(module.FEWEST_TURNS + 1)]
    await settle()
    assert let_in(guests) == [True] * module.FEWEST_TURNS + [False]
    intake.adapt(0.0)
    await settle()
    assert all(let_in(guests))
    intake.adapt((module.LATE_S + module.PUNCTUAL_S) / 2)
    assert intake.limit == module.FEWEST_TURNS + 1
    for guest in guests:
        await guest.leave()
    for _ in range(100):
        intake.adapt(0.0)
    assert intake.limit == module.MOST_TURNS


async def test_client_that_would_wait_too_long_is_told_when_to_come_back() -> None:
    clock = Clock()
    intake = Intake(clock, lambda: 0.5)
    intake.limit = 1
    guests = [Guest(intake) for _ in range(12)]
    await settle()
    intake.check()  # nothing is known of the rate yet
    clock.now_s += 3.0
    await guests[0].leave()  # a turn takes 3 s, ten still wait
    with pytest.raises(ClientFacingError) as refusal:
        intake.check()
    assert refusal.value.kind == "ServerOverloaded"
    assert refusal.value.extra == {"minBackoffMs": 45_000, "maxBackoffMs": 90_000}
    for guest in guests[1:]:
        await guest.leave()
    intake.check()


@given(limits=st.lists(st.floats(0, 0.1), max_size=20), guests=st.integers(1, 30))
def test_everybody_gets_a_turn_and_never_too_many_at_once(limits: list[float], guests: int) -> None:
    async def run() -> None:
        intake = Intake()
        inside = most = 0

        async def visit() -> None:
            nonlocal inside, most
            async with intake.turn(urgent=False):
                inside += 1
                most = max(most, inside)
                await settle()
                inside -= 1

        visits = asyncio.gather(*(visit() for _ in range(guests)))
        for late_s in limits:
            intake.adapt(late_s)
            await asyncio.sleep(0)
        await visits
        assert most <= module.MOST_TURNS
        assert (intake.waiting, intake._running) == (0, 0)

    asyncio.run(run())
