"""The search for the highest rate that is followed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from benchmarks.sustained_writes import Step, climb


def machine(
    follows: float, writer: float = 1e9
) -> tuple[list[float], Callable[[float], Awaitable[Step]]]:
    """A server that follows up to a rate, and the rates it was asked for."""
    tried: list[float] = []

    async def step(rate: float) -> Step:
        tried.append(rate)
        lag = 10.0 if min(rate, writer) <= follows else 9000.0
        return Step(rate, min(rate, writer), lag, lag, 2000.0, 1, 0.0, 0.0)

    return tried, step


def best(steps: list[Step]) -> float:
    return max(step.committed_per_s for step in steps if step.followed)


@pytest.mark.parametrize("border", [3.0, 80.0, 700.0])
async def test_the_border_is_found_from_both_sides(border: float) -> None:
    _, step = machine(border)
    steps = await climb(step, 80.0)
    assert border / 1.6 < best(steps) <= border


async def test_the_climb_ends_where_the_writer_is_the_limit() -> None:
    tried, step = machine(1e9, writer=1000.0)
    steps = await climb(step, 80.0)
    assert best(steps) == 1000.0
    assert tried == sorted(tried)
