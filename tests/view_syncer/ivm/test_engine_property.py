"""The engine's invariant, against two oracles: a fresh hydration, and PostgreSQL itself.

After every batch of changes (a) the incremental row set equals a fresh hydration, (b) applying
the emitted patches to what a client had gives those rows with their present contents, and (c) the
fresh hydration equals PostgreSQL's answer to the same question.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import PostgresCluster
from tests.view_syncer.ivm import world as w
from tests.zql.oracle import read_tables, synced
from view_syncer.ivm.encode import ClientTables, SyncedTable
from view_syncer.ivm.engine import Engine, Subscription
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql import ast
from zerocache.zql.postgres_types import PostgresTable
from zerocache.zql.shape import TRUE, lift

CLIENT = ClientTables(
    "world",
    {n: SyncedTable(n, tuple(cols), key) for n, (cols, key) in w.DEFINITIONS.items()},
)
Rows = dict[tuple[str, str], Any]
Upstream = tuple[psycopg.Connection[Any], dict[str, PostgresTable]]
PROFILE = settings(
    max_examples=int(os.environ.get("ZEROCACHE_FUZZ_EXAMPLES", "120")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def upstream(postgres: PostgresCluster) -> Iterator[Upstream]:
    name = postgres.create_database()
    with psycopg.connect(postgres.url_of(name), autocommit=True) as connection:
        w.create_upstream(connection)
        yield connection, read_tables(connection)
    postgres.drop_database(name)


def _client_key(table: str, value: dict[str, Any]) -> tuple[str, str]:
    key = {c: value[c] for c in w.DEFINITIONS[table][1]}
    return table, msgspec.json.encode(key, order="sorted").decode()


def _apply(rows: Rows, operations: Sequence[str]) -> None:
    for text in operations:
        op = msgspec.json.decode(text)
        if op["op"] == "put":
            rows[_client_key(op["tableName"], op["value"])] = op["value"]
        else:
            rows.pop(_client_key(op["tableName"], op["id"]), None)


def _hydrate(path: Path, query: ast.Query) -> Rows:
    engine = Engine(path)
    rows: Rows = {}
    _apply(rows, engine.rows(engine.subscribe(query, CLIENT)))
    engine.close()
    return rows


def _advance(engine: Engine, held: list[tuple[Subscription, Rows]]) -> None:
    result = engine.advance()
    if result is None:
        return
    for subscription, rows in held:
        patch = result.patches.get(subscription.pipeline, {}).get(CLIENT)
        if patch is not None:
            _apply(rows, [text for _, _, text in patch.dels])
            _apply(rows, patch.puts)


class _Recomputing(Engine):
    """Takes every change of some tables for a mass change."""

    recomputed: frozenset[str] | set[str] = frozenset()

    def _recomputes(self, table: str, rows: int) -> bool:
        return table in self.recomputed


@PROFILE
@given(
    seed=w.seeds,
    recomputed=st.sets(st.sampled_from(sorted(w.DEFINITIONS))),
    queries=st.lists(w.queries(), min_size=1, max_size=3),
    steps=st.lists(st.lists(w.batches, min_size=1, max_size=2), min_size=1, max_size=4),
)
def test_incremental_rows_equal_a_fresh_hydration(
    seed: dict[str, list[w.Row]],
    recomputed: set[str],
    queries: list[ast.Query],
    steps: list[list[list[w.Change]]],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = w.World(Path(folder) / "replica.db", seed)
        engine = _Recomputing(world.path)
        engine.recomputed = recomputed
        held: list[tuple[Subscription, Rows]] = []
        for query in queries:
            subscription = engine.subscribe(query, CLIENT)
            rows: Rows = {}
            _apply(rows, engine.rows(subscription))
            held.append((subscription, rows))
        for transactions in steps:
            world.apply(transactions)
            _advance(engine, held)
            for query, (subscription, rows) in zip(queries, held, strict=True):
                fresh = _hydrate(world.path, query)
                incremental: Rows = {}
                _apply(incremental, engine.rows(subscription))
                assert incremental == fresh
                assert rows == fresh
        engine.close()
        world.close()


def _with_witnesses(query: ast.Query, schema: ReplicaSchema) -> ast.Query:
    """The query whose *result rows* are what the engine syncs for ``query``: each synced EXISTS
    becomes a ``related`` of its three first children by key."""
    related = [
        msgspec.structs.replace(r, subquery=_with_witnesses(r.subquery, schema))
        for r in query.related or ()
    ]
    decisive = _exists_of(query.where, lambda leaf: _is_certain(leaf, query.table, schema))
    for number, condition in enumerate(decisive):
        hop = condition.related
        if condition.op == "NOT EXISTS" or hop.system == "permissions" or hop.subquery.limit == 0:
            continue
        witness = _with_witnesses(
            msgspec.structs.replace(
                hop.subquery, alias=f"witness{number}", limit=3, order_by=None, related=None
            ),
            schema,
        )
        related.append(ast.CorrelatedSubquery(hop.correlation, witness))
    return msgspec.structs.replace(query, related=related or None)


def _exists_of(
    condition: ast.Condition | None, is_certain: Callable[[ast.Condition], bool]
) -> list[ast.Exists]:
    """Those that may decide. Beside a branch that is true whatever the data they do not, and need
    no witnesses (zql.md §4.3)."""
    if isinstance(condition, ast.Exists):
        return [condition]
    if isinstance(condition, ast.Or) and any(_holds(c, is_certain) for c in condition.conditions):
        return []
    if isinstance(condition, (ast.And, ast.Or)):
        return [e for c in condition.conditions for e in _exists_of(c, is_certain)]
    return []


def _holds(condition: ast.Condition, is_certain: Callable[[ast.Condition], bool]) -> bool:
    match condition:
        case ast.And(conditions):
            return all(_holds(c, is_certain) for c in conditions)
        case ast.Or(conditions):
            return any(_holds(c, is_certain) for c in conditions)
    return is_certain(condition)


def _is_certain(leaf: ast.Condition, table: str, schema: ReplicaSchema) -> bool:
    query = ast.Query(table=table, where=leaf)
    return lift(query, schema, CLIENT.row_keys).shape.where == TRUE


def test_what_cannot_decide_needs_no_witness() -> None:
    exists = ast.Exists(
        op="EXISTS",
        related=ast.CorrelatedSubquery(
            ast.Correlation(["node"], ["id"]), ast.Query(table="node", alias="e")
        ),
    )
    true, false = ast.And([]), ast.Or([])
    cases: list[tuple[ast.Condition, bool]] = [
        (exists, True),
        (ast.And([exists, true]), True),
        (ast.Or([exists, false]), True),
        (ast.Or([exists, true]), False),
        (ast.And([exists, ast.Or([exists, true])]), True),
        (ast.Or([ast.And([exists, true]), ast.Or([true])]), False),
    ]
    for condition, decides in cases:
        assert bool(_exists_of(condition, lambda _: False)) == decides


@PROFILE
@given(seed=w.seeds, query=w.queries(), batch=w.batches)
def test_a_hydration_equals_the_answer_of_postgresql(
    upstream: Upstream, seed: dict[str, list[w.Row]], query: ast.Query, batch: list[w.Change]
) -> None:
    connection, tables = upstream
    with tempfile.TemporaryDirectory() as folder:
        world = w.World(Path(folder) / "replica.db", seed)
        world.apply([batch])
        w.copy_upstream(connection, world)
        expected: Rows = {}
        with contextlib.closing(open_replica(world.path)) as replica:
            schema = load_schema(replica)
        for table, rows in synced(connection, _with_witnesses(query, schema), tables).items():
            for row in rows.values():
                expected[_client_key(table, row)] = row
        assert _hydrate(world.path, query) == expected
        world.close()
