"""The sliding window of CRUD mutations."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from view_syncer.mutation_limit import MutationLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_without_a_maximum_everything_is_let_through() -> None:
    limit = MutationLimit(None, 1000, Clock())
    assert all(limit.admit("c", n) for n in range(1, 1000))


def test_window_slides_over_the_previous_bucket() -> None:
    clock = Clock()
    limit = MutationLimit(4, 1000, clock)
    assert [limit.admit("c", n) for n in range(1, 6)] == [True] * 4 + [False]
    clock.now_s = 1.2  # four fifths of the four still count
    assert limit.admit("c", 5)
    assert not limit.admit("c", 6)
    clock.now_s = 1.6
    assert limit.admit("c", 6)
    clock.now_s = 10.0
    assert [limit.admit("c", n) for n in range(7, 12)] == [True] * 4 + [False]


def test_nothing_overtakes_a_refused_mutation() -> None:
    clock = Clock()
    limit = MutationLimit(1, 1000, clock)
    assert limit.admit("c", 1)
    assert not limit.admit("c", 2)
    clock.now_s = 5.0
    assert not limit.admit("c", 3)
    assert limit.admit("d", 1)
    clock.now_s = 10.0
    assert limit.admit("c", 2)
    clock.now_s = 20.0
    assert limit.admit("c", 3)


@given(st.lists(st.floats(0, 2), max_size=60), st.integers(1, 5))
def test_no_window_ever_holds_more_than_twice_the_maximum(waits: list[float], most: int) -> None:
    """The weighting is an estimate; this is what it guarantees."""
    clock = Clock()
    limit = MutationLimit(most, 1000, clock)
    admitted: list[float] = []
    for number, wait in enumerate(waits, 1):
        clock.now_s += wait
        if limit.admit(str(number), 1):
            admitted.append(clock.now_s)
    for moment in admitted:
        assert sum(moment - 1 < other <= moment for other in admitted) <= 2 * most
