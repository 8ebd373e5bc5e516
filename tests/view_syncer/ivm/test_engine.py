"""The engine as a whole: who shares a pipeline, how long it lives, and what voids everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.view_syncer.ivm.cases import TABLES, all_of, any_of, c, ex, q, rel, seed_rows
from tests.view_syncer.ivm.group import Group
from tests.view_syncer.ivm.replica import Change, Replica, Row, Table, client_tables
from view_syncer.ivm import engine as engine_module
from view_syncer.ivm.encode import ClientTables, SyncedTable
from view_syncer.ivm.engine import Engine
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.zql import ast

ALL = client_tables(TABLES)
NO_NOTES = ClientTables("no notes", {"task": SyncedTable("task", ("id", "rank"), ("id",))})


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    one = Replica(tmp_path / "replica.db", TABLES, seed_rows())
    yield one
    one.close()


@pytest.fixture
def engine(replica: Replica) -> Iterator[Engine]:
    one = Engine(replica.path)
    yield one
    one.close()


def task(name: str, **columns: Any) -> Change:
    row = {"id": name, "owner": None, "reviewer": None, "rank": None, "title": None}
    return Change("put", "task", {**row, **columns})


def note(name: str, task: str) -> Change:
    return Change("put", "note", {"id": name, "task": task, "author": None, "body": None})


def sql(replica: Replica, statement: str) -> None:
    """What the writer does when it must, without waiting for it."""
    db = apsw.Connection(str(replica.path))
    db.execute(statement)
    db.close()


# -- sharing -----------------------------------------------------------------------------------


def test_equal_queries_share_one_pipeline_also_between_client_schemas(engine: Engine) -> None:
    one = engine.subscribe(q("task", c("rank", "=", 20)), ALL)
    other = engine.subscribe(q("task", c("rank", "=", 20)), NO_NOTES)
    assert one.pipeline is other.pipeline
    assert engine.pipeline_count == 1
    assert [sorted(json.loads(r)["value"]) for r in engine.rows(other)] == [["id", "rank"]] * 2
    assert "title" in json.loads(engine.rows(one)[0])["value"]


def test_another_value_is_another_pipeline_of_the_same_plan(engine: Engine) -> None:
    one = engine.subscribe(q("task", c("rank", "=", 20)), ALL)
    other = engine.subscribe(q("task", c("rank", "=", 10)), ALL)
    assert one.pipeline is not other.pipeline
    assert one.pipeline.plan is other.pipeline.plan


def test_plans_of_shapes_that_nobody_uses_are_forgotten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_max_plans", 3)
    kept = engine.subscribe(q("task", c("rank", "=", 20)), ALL)
    for limit in range(1, 8):
        engine.unsubscribe(engine.subscribe(q("task", limit=limit), ALL))
        monkeypatch.setattr(engine, "_max_plans", 3)
    assert len(engine._plans) <= 3
    again = engine.subscribe(q("task", c("rank", "=", 10)), ALL)
    assert again.pipeline.plan is kept.pipeline.plan


def test_client_schemas_that_nobody_uses_are_forgotten(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients may invent any number of them."""
    monkeypatch.setattr(engine_module, "MAX_ENCODERS", 3)
    monkeypatch.setattr(engine, "_max_encoders", 3)
    kept = engine.subscribe(q("task", c("rank", "=", 20)), ALL)
    encoder = engine.encoder(ALL)
    for number in range(20):
        invented = ClientTables(f"schema {number}", NO_NOTES.tables)
        subscription = engine.subscribe(q("task", c("rank", "=", 20)), invented)
        assert len(engine.rows(subscription)) == 2
        engine.unsubscribe(subscription)
    assert len(engine._encoders) <= 4
    assert engine.encoder(kept.client) is encoder


def test_a_query_that_matches_nothing_does_not_share_with_all_rows(engine: Engine) -> None:
    nothing, everything = engine.subscribe(q("task", any_of()), ALL), engine.subscribe(
        q("task", all_of()), ALL
    )  # fmt: skip
    assert engine.rows(nothing) == []
    assert len(engine.rows(everything)) == 5


def test_a_client_with_another_key_orders_ties_its_own_way(tmp_path: Path) -> None:
    rows = [{"region": "a", "no": 2, "name": "x"}, {"region": "b", "no": 1, "name": "x"}]
    replica = Replica(tmp_path / "r.db", {"account": TABLES["account"]}, {"account": rows})
    columns = ("region", "no", "name")
    engine = Engine(replica.path)
    found = []
    for key in (("region", "no"), ("no", "region")):
        client = ClientTables(str(key), {"account": SyncedTable("account", columns, key)})
        [row] = engine.rows(engine.subscribe(q("account", order="name↑", limit=1), client))
        found.append(json.loads(row)["value"]["region"])
    assert found == ["a", "b"]
    engine.close()
    replica.close()


def test_each_client_schema_gets_the_patches_of_a_shared_pipeline(
    replica: Replica, engine: Engine
) -> None:
    query = q("task", rel=[rel("note")])
    groups = [Group(engine, ALL), Group(engine, NO_NOTES)]
    for group in groups:
        group.add("q", query)
    note = {"id": "n9", "task": "t1", "author": None, "body": None}
    replica.commit([task("t9", rank=1), Change("put", "note", note)])
    advance = engine.advance()
    for group in groups:
        group.receive(advance)
    assert {op["tableName"] for op in groups[0].last} == {"task", "note"}
    assert [op["value"] for op in groups[1].last] == [{"id": "t9", "rank": 1}]


# -- life --------------------------------------------------------------------------------------


def test_a_pipeline_lives_until_its_last_subscriber_leaves(
    replica: Replica, engine: Engine
) -> None:
    query = q("task", ex("note"), rel=[rel("note")])
    subscriptions = [engine.subscribe(query, client) for client in (ALL, ALL, NO_NOTES)]
    for subscription in subscriptions[:2]:
        engine.unsubscribe(subscription)
    assert engine.pipeline_count == 1
    replica.commit([task("t1", rank=11)])
    advance = engine.advance()
    assert advance is not None
    assert set(advance.patches[subscriptions[2].pipeline]) == {NO_NOTES}
    engine.unsubscribe(subscriptions[2])
    assert engine.pipeline_count == 0


def test_a_released_pipeline_costs_an_advance_nothing(replica: Replica, engine: Engine) -> None:
    engine.unsubscribe(engine.subscribe(q("task", rel=[rel("note")]), ALL))
    replica.commit([task("t1", rank=11)])
    advance = engine.advance()
    assert advance is not None
    assert advance.deltas == {}


def test_a_query_started_again_is_hydrated_at_the_present_version(
    replica: Replica, engine: Engine
) -> None:
    query = q("task", c("id", "=", "t9"))
    engine.unsubscribe(engine.subscribe(query, ALL))
    replica.commit([task("t9")])
    engine.advance()
    assert len(engine.rows(engine.subscribe(query, ALL))) == 1


def test_a_query_that_cannot_be_compiled_leaves_nothing_behind(engine: Engine) -> None:
    with pytest.raises(QueryError, match="'nope'"):
        engine.subscribe(ast.Query(table="nope"), ALL)
    assert engine.pipeline_count == 0


# -- versions ----------------------------------------------------------------------------------


def test_an_advance_without_a_commit_is_none(replica: Replica, engine: Engine) -> None:
    assert engine.advance() is None
    replica.commit([task("t9")])
    assert engine.advance() is not None
    assert engine.advance() is None


def test_what_is_read_stays_at_the_version_until_the_advance(
    replica: Replica, engine: Engine
) -> None:
    subscription = engine.subscribe(q("task"), ALL)
    before = engine.version
    replica.commit([task("t9")])
    assert len(engine.rows(subscription)) == 5
    assert engine.version == before
    advance = engine.advance()
    assert advance is not None
    assert (advance.old_version, advance.version) == (before, engine.version)
    assert engine.version > before
    assert len(engine.rows(subscription)) == 6


def test_a_commit_that_touches_no_query_moves_the_version_without_patches(
    replica: Replica, engine: Engine
) -> None:
    engine.subscribe(q("task"), ALL)
    replica.commit([Change("delete", "tag", None, ("g1",))])
    advance = engine.advance()
    assert advance is not None
    assert (advance.patches, advance.deltas, advance.reset) == ({}, {}, False)


# -- failures and resets -------------------------------------------------------------------------


def test_an_unsafe_integer_is_reported_per_pipeline_and_client(tmp_path: Path) -> None:
    tables = {"big": Table({"id": "text", "v": "int8"}, ("id",))}
    replica = Replica(tmp_path / "r.db", tables)
    engine = Engine(replica.path)
    client = client_tables(tables)
    narrow = ClientTables("narrow", {"big": SyncedTable("big", ("id",), ("id",))})
    subscriptions = [engine.subscribe(q("big"), cl) for cl in (client, narrow)]
    replica.commit([Change("put", "big", {"id": "x", "v": 2**53})])
    advance = engine.advance()
    assert advance is not None
    pipeline = subscriptions[0].pipeline
    assert isinstance(advance.failed[pipeline, client], UnsafeIntegerError)
    assert len(advance.patches[pipeline][narrow].puts) == 1
    assert client not in advance.patches[pipeline]
    engine.close()
    replica.close()


@pytest.mark.parametrize(
    "statement",
    [
        # X3: what the writer logs when a table's columns change.
        'INSERT INTO "_zero.changeLog" (version, "table", row, op) '
        "VALUES ('zz', 'task', 0, 'r')",
        'UPDATE "_zero.replicationConfig" SET replicaVersion = \'zz\'',
        'UPDATE "_zero.replicationState" SET logFloor = logPos + 1; '
        "UPDATE \"_zero.tableMetadata\" SET minRowVersion = 'zz'",
    ],
    ids=["schema changed", "new generation", "log trimmed past a change of the schema"],
)  # fmt: skip
def test_what_cannot_be_followed_voids_every_subscription(
    replica: Replica, engine: Engine, statement: str
) -> None:
    old = engine.subscribe(q("task"), ALL)
    replica.commit([task("t8")])
    engine.advance()
    sql(replica, statement)
    sql(
        replica,
        "UPDATE \"_zero.replicationState\" SET stateVersion = 'zz', logPos = logPos + 1",
    )
    advance = engine.advance()
    assert advance is not None
    assert advance.reset
    assert advance.patches == {}
    assert engine.pipeline_count == 0
    engine.unsubscribe(old)  # harmless
    fresh = engine.subscribe(q("task"), ALL)
    assert fresh.pipeline is not old.pipeline
    assert len(engine.rows(fresh)) == 6


@pytest.mark.parametrize("order", ["f↑", "f↓"])
def test_a_number_json_cannot_express_is_null_even_where_null_is_forbidden(
    tmp_path: Path, order: str
) -> None:
    """NaN and infinities are stored as NULL, whatever upstream says of the column."""
    tables = {"m": Table({"id": "text", "f": "float8"}, ("id",), ("f",))}
    rows: list[Row] = [{"id": "a", "f": 1.5}, {"id": "b", "f": None}, {"id": "c", "f": -2.5}]
    replica = Replica(tmp_path / "r.db", tables, {"m": rows})
    engine = Engine(replica.path)
    group = Group(engine, client_tables(tables))
    group.add("q", q("m", order=order, limit=2))
    expected = {"f↑": ["b", "c"], "f↓": ["a", "c"]}[order]
    assert sorted(row["id"] for row in group.store.values()) == expected
    replica.commit([Change("put", "m", {"id": "a", "f": None})])
    group.advance()
    expected = {"f↑": ["a", "b"], "f↓": ["a", "c"]}[order]
    assert sorted(row["id"] for row in group.store.values()) == expected
    engine.close()
    replica.close()


def test_after_a_reset_commits_are_followed_again(replica: Replica, engine: Engine) -> None:
    sql(replica, "UPDATE \"_zero.replicationConfig\" SET replicaVersion = 'a'")
    assert engine.advance() is not None
    group = Group(engine, ALL)
    group.add("q", q("task", c("rank", ">", 15)))
    replica.commit([task("t9", rank=99)])
    group.advance()
    assert [op["value"]["id"] for op in group.last] == ["t9"]


def test_a_query_that_sqlite_refuses_in_an_advance_fails_alone(
    replica: Replica, engine: Engine
) -> None:
    """A statement may be refused that no earlier one of the query foretold."""
    good = engine.subscribe(q("task"), ALL)
    query = q("task", c("rank", ">", 0), rel=[rel("note")])
    bad = engine.subscribe(query, ALL)
    level = bad.pipeline.plan.levels[0]
    level.__dict__["sql_candidate"] = "SELECT no_such_function()"
    replica.commit([task("new", rank=1.0)])
    advance = engine.advance()
    assert advance is not None
    assert isinstance(advance.failed[bad.pipeline, ALL], QueryError)
    assert advance.patches[bad.pipeline] == {}
    assert len(advance.patches[good.pipeline][ALL].puts) == 1
    # It is as if it had never run: who asks again starts anew, and nothing leads to the old one.
    del level.__dict__["sql_candidate"]
    again = engine.subscribe(query, ALL)
    assert again.pipeline is not bad.pipeline
    engine.unsubscribe(bad)
    replica.commit([task("newer", rank=1.0)])
    advance = engine.advance()
    assert advance is not None
    assert advance.deltas.keys() == {good.pipeline, again.pipeline}


def test_a_query_whose_changes_sqlite_refuses_to_trace_fails_alone(
    replica: Replica, engine: Engine
) -> None:
    """The way from a row inside an EXISTS to the rows it concerns is a statement too."""
    good = engine.subscribe(q("task"), ALL)
    query = q("task", ex("note"))
    bad = engine.subscribe(query, ALL)
    twin = engine.subscribe(q("task", all_of(c("rank", ">", 0), ex("note"))), ALL)
    (climb,) = bad.pipeline.plan.levels[0].climbs
    climb.__dict__["sql"] = "SELECT no_such_function()"
    replica.commit([task("new", rank=1.0), note("nn", "new")])
    advance = engine.advance()
    assert advance is not None
    assert advance.failed.keys() == {(bad.pipeline, ALL)}
    assert "no_such_function" in str(advance.failed[bad.pipeline, ALL])
    assert advance.patches[bad.pipeline] == {}
    assert len(advance.patches[good.pipeline][ALL].puts) == 1
    assert len(advance.patches[twin.pipeline][ALL].puts) == 2
    del climb.__dict__["sql"]
    again = engine.subscribe(query, ALL)
    engine.unsubscribe(bad)
    assert "new" in str([*engine.rows(again)])
    replica.commit([task("newer", rank=1.0), note("no", "newer")])
    advance = engine.advance()
    assert advance is not None
    assert advance.deltas.keys() == {good.pipeline, again.pipeline, twin.pipeline}
