"""Levels: members by partition, and windows that agree with a fresh fetch at every step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.view_syncer.ivm.cases import c, q, rel
from tests.view_syncer.ivm.replica import Change, Replica, Table
from view_syncer.ivm.levels import (
    LevelDelta,
    PlainLevel,
    WindowLevel,
    encode_partitions,
    fetch_in_one_step,
    level_state,
)
from view_syncer.ivm.plan import Level, Partition, make_plan
from view_syncer.ivm.snapshot import SnapshotReader
from zerocache.replica.reader import load_schema
from zerocache.zql import ast
from zerocache.zql.shape import lift

TABLES = {
    "parent": Table({"id": "text", "x": "int4"}, ("id",)),
    "child": Table({"id": "int4", "p": "text", "x": "int4", "v": "int4"}, ("id",)),
}


def child(number: int, p: str | None, v: int | None, x: int | None = None) -> dict[str, Any]:
    return {"id": number, "p": p, "x": x, "v": v}


ROWS = {"child": [child(1, "a", 5), child(2, "a", 3), child(3, "b", 4), child(4, None, 1)]}


class Bench:
    """A replica and the child level of a query over it, moved by hand. Rowids equal ids."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.reader = SnapshotReader(replica.path)
        self.reader.begin()
        self.schema = load_schema(self.reader.db)

    def level(self, query: ast.Query, index: int) -> Any:
        instance = lift(query, self.schema, {})
        level: Level = make_plan(instance.shape, self.schema).levels[index]
        self.make: Callable[[], Any] = lambda: level_state(level, dict(instance.params))
        return self.make()

    def support(self, state: Any, *partitions: Partition) -> None:
        for partition in partitions:
            state.support[partition] = state.support.get(partition, 0) + 1
        state.hydrate(self.reader.db, state.support.keys())

    def update(
        self, state: Any, changes: list[Change], *, gained: tuple[Partition, ...] = (),
        lost: tuple[Partition, ...] = (), rows: set[int] | None = None,
    ) -> LevelDelta:  # fmt: skip
        """Commit, move the level, and compare it with one that starts now."""
        self.replica.commit(changes)
        self.reader.begin()
        touched = {c.key[0] if c.key else (c.row or {})["id"] for c in changes}
        state.support.update(dict.fromkeys(gained, 1))
        for partition in lost:
            del state.support[partition]
        before = dict(state.members)
        delta: LevelDelta = state.update(
            self.reader.db, touched if rows is None else rows, gained, lost
        )
        fresh = self.make()
        fresh.support = dict(state.support)
        fresh.hydrate(self.reader.db, fresh.support.keys())
        assert state.members == fresh.members
        after = {r: v for r, v in before.items() if r not in delta.left} | delta.entered
        assert after == state.members
        return delta


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    replica = Replica(tmp_path / "r.db", TABLES, ROWS)
    one = Bench(replica)
    yield one
    one.reader.close()
    replica.close()


def put(number: int, p: str | None, v: int | None, x: int | None = None) -> Change:
    return Change("put", "child", child(number, p, v, x))


def gone(number: int) -> Change:
    return Change("delete", "child", None, (number,))


def ids(delta: LevelDelta) -> tuple[set[int], set[int]]:
    return set(delta.entered), set(delta.left)


PLAIN = q("parent", rel=[rel("child", "id=p", where=c("v", ">", 0))])
ONE = q("parent", rel=[rel("child", "id=p", order="v↑", limit=1)])
PAIRS = q("parent", rel=[rel("child", "id+x=p+x")])


def test_a_limit_makes_a_window_level(bench: Bench) -> None:
    assert isinstance(bench.level(PLAIN, 1), PlainLevel)
    assert isinstance(bench.level(ONE, 1), WindowLevel)


@pytest.mark.parametrize(
    ("query", "members"), [(PLAIN, {1, 2}), (ONE, {2})], ids=["plain", "window"]
)
def test_only_supported_partitions_have_members(
    bench: Bench, query: ast.Query, members: set[int]
) -> None:
    state = bench.level(query, 1)
    bench.support(state, "a")
    assert set(state.members) == members
    assert ids(bench.update(state, [put(3, "b", 9)])) == (set(), set())


@pytest.mark.parametrize("query", [PLAIN, ONE], ids=["plain", "window"])
def test_partitions_are_gained_and_lost_as_a_whole(bench: Bench, query: ast.Query) -> None:
    state = bench.level(query, 1)
    bench.support(state, "a")
    held = set(state.members)
    assert ids(bench.update(state, [], gained=("b",))) == ({3}, set())
    assert ids(bench.update(state, [], lost=("a",))) == (set(), held)
    assert ids(bench.update(state, [], gained=("a",), lost=("b",))) == (held, {3})


@pytest.mark.parametrize("query", [PLAIN, ONE], ids=["plain", "window"])
def test_a_row_moves_from_a_lost_to_a_gained_partition(bench: Bench, query: ast.Query) -> None:
    state = bench.level(query, 1)
    bench.support(state, "a")
    delta = bench.update(state, [put(2, "b", 1)], gained=("b",), lost=("a",))
    assert 2 in delta.entered
    assert 2 in delta.left


@pytest.mark.parametrize("query", [PLAIN, ONE], ids=["plain", "window"])
def test_a_row_without_a_partition_is_nobodys(bench: Bench, query: ast.Query) -> None:
    state = bench.level(query, 1)
    bench.support(state, "a", "b")
    assert 4 not in state.members
    assert ids(bench.update(state, [put(3, None, 4)])) == (set(), {3})


def test_a_compound_partition_needs_every_part(bench: Bench) -> None:
    state = bench.level(PAIRS, 1)
    bench.support(state, ("a", 1))
    assert ids(bench.update(state, [put(5, "a", 1, 1)])) == ({5}, set())
    assert ids(bench.update(state, [put(5, "a", 1, None)])) == (set(), {5})


def test_a_row_looked_at_in_vain_changes_nothing(bench: Bench) -> None:
    for query in (PLAIN, ONE):
        state = bench.level(query, 1)
        bench.support(state, "a", "b")
        assert ids(bench.update(state, [], rows={1, 2, 3, 4, 99})) == (set(), set())


def test_a_window_swaps_its_last_row(bench: Bench) -> None:
    state = bench.level(ONE, 1)
    bench.support(state, "a")
    assert ids(bench.update(state, [put(2, "a", 9)])) == ({1}, {2})
    assert ids(bench.update(state, [put(5, "a", None)])) == ({5}, {1})


def test_a_window_emptied_beyond_its_reserve_is_fetched_again(bench: Bench) -> None:
    state = bench.level(q("child", order="v↑", limit=2), 0)
    bench.support(state)
    many = [put(n, "a", 10 + n) for n in range(5, 25)]
    bench.update(state, many, rows=set(range(1, 30)))
    bench.update(state, [gone(n) for n in (1, 2, 3, 4, 5, 6, 7, 8)], rows=set(range(1, 30)))
    assert set(state.members) == {9, 10}


def test_a_window_of_nothing_stays_empty(bench: Bench) -> None:
    state = bench.level(q("child", limit=0), 0)
    bench.support(state)
    assert ids(bench.update(state, [put(0, "a", 1)])) == (set(), set())
    assert state.members == {}


@pytest.mark.parametrize("limit", [None, 1, 3, 10])
def test_random_batches_leave_a_level_as_if_it_started_now(bench: Bench, limit: int | None) -> None:
    choose = random.Random(limit or 0)
    state = bench.level(q("parent", rel=[rel("child", "id=p", order="v↓", limit=limit)]), 1)
    bench.support(state, "a", "b")
    for _ in range(60):
        batch = [
            put(choose.randrange(40), choose.choice(["a", "b", "c", None]), choose.randrange(9))
            if choose.random() < 0.6
            else gone(choose.randrange(40))
            for _ in range(choose.choice([1, 5, 30]))
        ]
        supported = set(state.support)
        flip = {p for p in "abc" if choose.random() < 0.2}
        # Rowids differ from ids once rows were deleted, so everything is a candidate.
        bench.update(state, batch, gained=tuple(sorted(flip - supported)),
                     lost=tuple(sorted(flip & supported)), rows=set(range(200)))  # fmt: skip


def test_partitions_travel_as_json() -> None:
    assert encode_partitions(["a", 1, 1.5, ("x", 2)]) == '["a",1,1.5,["x",2]]'


# -- many rows in one step --------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
)


def in_one_step(values: Sequence[Any]) -> list[tuple[Any, ...]] | None:
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE t (v)")
    db.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
    sql = "SELECT json_group_array(json_array(_rowid_, v)) FROM (SELECT _rowid_, v FROM t)"
    return fetch_in_one_step(db, sql, {})


@given(st.lists(VALUES, max_size=20))
def test_values_fetched_in_one_step_are_exactly_those_of_the_rows(values: list[Any]) -> None:
    found = in_one_step(values)
    assert found is not None
    expected = [(rowid, value) for rowid, value in enumerate(values, 1)]
    assert found == expected
    assert [[type(v) for v in row] for row in found] == [[type(v) for v in r] for r in expected]


@pytest.mark.parametrize("value", [b"bytes", float("inf"), float("-inf")])
def test_values_without_a_form_in_json_are_left_to_the_rows(value: Any) -> None:
    assert in_one_step([1, value]) is None


@pytest.mark.parametrize("rows", [999, 1000, 1001, 1100])
def test_children_are_found_however_many_they_are(tmp_path: Path, rows: int) -> None:
    children = [child(n, "ab"[n % 2], n) for n in range(1, rows + 1)]
    replica = Replica(tmp_path / "replica.db", TABLES, {"child": children})
    one = Bench(replica)
    state = one.level(q("parent", rel=[rel("child", "id=p")]), 1)
    one.support(state, "a", "b")
    assert set(state.members) == set(range(1, rows + 1))
    one.reader.close()
    replica.close()
