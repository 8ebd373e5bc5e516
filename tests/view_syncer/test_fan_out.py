"""What a group is told of an advance is what its clients lack, and says what they never had."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.view_syncer.ivm.cases import c, q
from tests.view_syncer.ivm.replica import Change, Replica, Row, Table
from view_syncer.fan_out import FanOut, GroupUpdate, Prepared
from view_syncer.ivm.encode import ClientTables, SyncedTable
from view_syncer.ivm.engine import Engine
from view_syncer.membership import MembershipLog

TABLES = {
    "task": Table({"id": "text", "code": "text", "rank": "int4"}, ("id",), ("code",), (("code",),))
}
COLUMNS = ("id", "code", "rank")
BY_ID = ClientTables("by id", {"task": SyncedTable("task", COLUMNS, ("id",))})
# Rows change their name, and names their row.
BY_CODE = ClientTables("by code", {"task": SyncedTable("task", COLUMNS, ("code",))})
QUERIES = [
    q("task"),
    q("task", c("rank", "<", 2)),
    q("task", c("rank", ">", 0)),
    q("task", order="rank↑", limit=2),
    q("task", c("code", "=", "x")),
]
IDS, CODES = st.sampled_from("abcd"), st.sampled_from("xyzw")
ROWS = st.fixed_dictionaries({"id": IDS, "code": CODES, "rank": st.integers(0, 3)})
CHANGES = st.one_of(
    st.builds(lambda row: Change("put", "task", row), ROWS),
    st.builds(lambda row: Change("put", "task", row), ROWS),
    st.builds(lambda key: Change("delete", "task", key=(key,)), IDS),
    st.builds(lambda key, row: Change("move", "task", row, (key,)), IDS, ROWS),
)
GROUPS = st.lists(st.sets(st.sampled_from(range(len(QUERIES))), min_size=1), min_size=1, max_size=3)


class Store:
    """A client's rows by what names them to it."""

    def __init__(self, client: ClientTables) -> None:
        self.client = client
        self.rows: dict[tuple[Any, ...], Row] = {}

    def name(self, row: Row) -> tuple[Any, ...]:
        return tuple(row[column] for column in self.client.tables["task"].key)

    def apply(self, texts: Sequence[str]) -> None:
        for text in texts:
            operation = msgspec.json.decode(text)
            if operation["op"] == "put":
                self.rows[self.name(operation["value"])] = operation["value"]
            else:
                self.rows.pop(self.name(operation["id"]), None)

    def named(self, texts: list[str]) -> set[tuple[Any, ...]]:
        operations = map(msgspec.json.decode, texts)
        return {self.name(op.get("value") or op["id"]) for op in operations}

    def receive(self, update: GroupUpdate) -> None:
        puts = [text for run in update.puts for text in run]
        new = self.named(puts) - self.rows.keys()
        fresh = self.named([text for run in update.fresh for text in run])
        # Whatever is new is said to be, and what is said to be was not there, or goes first.
        assert new <= fresh
        assert fresh - new <= self.named(update.dels)
        self.apply(update.dels)
        self.apply(puts)


@settings(deadline=None)
@given(
    rows=st.lists(ROWS, max_size=4),
    groups=GROUPS,
    client=st.sampled_from([BY_ID, BY_CODE]),
    commits=st.lists(st.lists(CHANGES, min_size=1, max_size=4), max_size=4),
)
def test_every_group_ends_with_its_rows_and_knows_which_are_new(
    rows: list[Row], groups: list[set[int]], client: ClientTables, commits: list[list[Change]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        replica = Replica(Path(folder) / "replica.db", TABLES, {"task": rows})
        engine = Engine(replica.path)
        fan_out = FanOut(MembershipLog())
        stores = [Store(client) for _ in groups]
        try:
            for number, wanted in enumerate(groups):
                queries = {str(n): QUERIES[n] for n in wanted}
                begun = fan_out.reconcile(engine, number, client, queries, set(), {}, Prepared())
                stores[number].apply(begun.puts)
            for changes in commits:
                replica.commit(changes)
                advance = engine.advance()
                updates = {} if advance is None else fan_out.updates(advance)
                for number, store in enumerate(stores):
                    if number in updates:
                        store.receive(updates[number])
                    fresh = Store(client)
                    fresh.apply(fan_out.full_view(engine, number).puts)
                    assert store.rows == fresh.rows
        finally:
            engine.close()
            replica.close()


@pytest.mark.parametrize("change", ["put", "delete"])
@pytest.mark.parametrize("own", [False, True], ids=["same queries", "one of its own"])
def test_what_a_large_advance_costs_a_group_does_not_grow_with_its_rows(
    change: Literal["put", "delete"], own: bool, tmp_path: Path
) -> None:
    """Thousands of groups have the same rows; what is looked at for each of them must be less."""
    rows, groups = 500, 40
    all_rows: list[Row] = [{"id": f"i{n}", "code": f"c{n}", "rank": 1} for n in range(rows)]
    present = all_rows if change == "delete" else []
    replica = Replica(tmp_path / "replica.db", TABLES, {"task": present})
    engine = Engine(replica.path)
    fan_out = FanOut(MembershipLog())
    for group in range(groups):
        other = q("task", c("code", "=", f"c{group}")) if own else q("task", c("rank", "=", 1))
        queries = {"all": q("task"), "other": other}
        fan_out.reconcile(engine, group, BY_ID, queries, set(), {}, Prepared())
    if change == "put":
        replica.commit([Change("put", "task", row) for row in all_rows])
    else:
        replica.commit([Change("delete", "task", key=(row["id"],)) for row in all_rows])
    advance = engine.advance()
    assert advance is not None
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        updates = fan_out.updates(advance)
    finally:
        sys.setprofile(None)
    assert len(updates) == groups
    assert calls < 10 * rows + 150 * groups
    engine.close()
    replica.close()
