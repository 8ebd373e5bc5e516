"""Counting connections: limits, and nothing that is gone is counted."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from zerocache.connection_counts import ConnectionCounts

ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"])
steps = st.lists(
    st.tuples(st.sampled_from(["serve", "cancel", "end", "die"]), ADDRESSES, st.integers(1, 3)),
    max_size=60,
)


@given(steps=steps, most=st.integers(0, 8), per_address=st.integers(0, 4))
def test_counts_are_those_of_the_connections_that_are_there(
    steps: list[tuple[str, str, int]], most: int, per_address: int
) -> None:
    counts = ConnectionCounts(most, per_address)
    there: Counter[tuple[str, int]] = Counter()
    for step, address, process in steps:
        if step in ("serve", "cancel"):
            of_address = sum(n for (a, _), n in there.items() if a == address)
            refusal = counts.reserve(address)
            full = bool(most and there.total() >= most)
            assert (refusal is not None) == (
                full or bool(per_address and of_address >= per_address)
            )
            if refusal is None and step == "serve":
                counts.assign(address, process)
                there[address, process] += 1
            elif refusal is None:
                counts.cancel(address)
        elif step == "end":
            counts.release(address, process)
            if there[address, process]:
                there[address, process] -= 1
        else:
            counts.forget(process)
            there = Counter({k: n for k, n in there.items() if k[1] != process})
        assert counts.total == there.total()
        assert counts.of_process(process) == sum(n for k, n in there.items() if k[1] == process)


def test_node_is_nearly_full_above_95_percent() -> None:
    counts = ConnectionCounts(100)
    for number in range(95):
        counts.reserve(str(number))
    assert not counts.is_nearly_full
    counts.reserve("x")
    assert counts.is_nearly_full
    assert not ConnectionCounts().is_nearly_full


def test_end_of_a_connection_that_was_refused_frees_nothing() -> None:
    counts = ConnectionCounts(1)
    assert counts.reserve("a") is None
    counts.assign("a", 1)
    assert counts.reserve("a") is not None
    counts.release("", 1)
    assert (counts.total, counts.refused) == (1, 1)
