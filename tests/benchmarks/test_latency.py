"""How the latency benchmark assigns arrivals to writes."""

from __future__ import annotations

from benchmarks.latency import Watch
from benchmarks.sync_messages import Poke, PokePart, RowOp
from benchmarks.writer import Plan, Written


def poke(received_ns: int, *rows: tuple[str, int]) -> Poke:
    ops = [RowOp("put", "issues", {"id": key, "votes": votes}) for key, votes in rows]
    return Poke("00", "01", (PokePart("p", rows=ops),), (), len(ops), 0, 3, received_ns)


def test_a_write_arrives_with_its_row_and_its_value_or_a_later_one() -> None:
    plan = Plan("", ["a", "b"], 10, 4, first_sequence=5)  # a=5, b=6, a=7, b=8
    written = Written(0, [1_000_000, 2_000_000, 3_000_000, 4_000_000], 0.0, 0.0)
    watch = Watch()
    watch.on_poke(poke(6_000_000, ("a", 7)))  # 5 and 7 were coalesced
    watch.on_poke(poke(7_000_000, ("b", 6)))
    watch.on_poke(poke(9_000_000, ("b", 8)))
    assert watch.delays_ms(plan, written) == [5.0, 5.0, 3.0, 5.0]
    assert (watch.pokes, watch.highest) == (3, 8)
