"""Random queries: Postgres and the naive evaluator must agree on trees and on synced rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import PostgresCluster
from tests.zql.corpus import SEED, schema, zql
from tests.zql.naive import Naive
from tests.zql.oracle import fetch, read_tables, synced
from zerocache.zql.ast import Condition
from zerocache.zql.builder import QueryBuilder, to_server_names
from zerocache.zql.expression import ExpressionBuilder
from zerocache.zql.postgres import compile_run
from zerocache.zql.postgres_types import PostgresTable
from zerocache.zql.shape import compare

MORE = """
INSERT INTO task SELECT 'x' || i, 'u' || i % 4, 'u' || i % 3, nullif(i % 5, 2), chr(97 + i % 4)
    FROM generate_series(1, 12) i;
INSERT INTO note SELECT 'm' || i, 'x' || i % 7, 'u' || i % 5, chr(119 + i % 4)
    FROM generate_series(1, 20) i;
INSERT INTO task_tag SELECT 'x' || i % 6, 'g' || 1 + i % 2 FROM generate_series(1, 12) i
    ON CONFLICT DO NOTHING;
INSERT INTO person VALUES ('u0', 'É', 'u0'), ('u9', '😀', 'u4');
"""
STRINGS = [
    "u1",
    "u2",
    "t1",
    "x3",
    "n3",
    "g1",
    "eu",
    "a",
    "x",
    "",
    "É",
    "😀",
    "\ufffd",
    "%",
    "_",
    "U%",
]
NUMBERS = [0, 1, 2, 3, 10, 20, 20.5, -1]
DEPTH = 2


@dataclass
class World:
    connection: psycopg.Connection[Any]
    tables: dict[str, PostgresTable]
    naive: Naive


@pytest.fixture(scope="module")
def world(postgres: PostgresCluster) -> Iterator[World]:
    name = postgres.create_database()
    with psycopg.connect(postgres.url_of(name), autocommit=True) as connection:
        connection.execute((SEED + MORE).encode())
        tables = read_tables(connection)
        rows = {
            table: list(synced(connection, zql[table].ast, tables)[table].values())
            for table in schema.tables
        }
        # The oracle completes orders with the replica's keys, mutators with the declared ones.
        yield World(connection, tables, Naive(rows, {t: tables[t].primary_key for t in rows}))
    postgres.drop_database(name)


def literals(column_type: str) -> st.SearchStrategy[Any]:
    own = st.sampled_from(NUMBERS if column_type == "number" else STRINGS)
    # Now and then a literal of another type.
    return st.one_of(own, own, own, st.sampled_from([None, True, 1, "a"]))


@st.composite
def comparisons(draw: st.DrawFn, table: str) -> Condition:
    columns = schema.table(table).columns
    name = draw(st.sampled_from(sorted(columns)))
    values = literals(columns[name].type)
    operators = ["=", "!=", "IS", "IS NOT", "<", ">", "<=", ">=", "IN", "NOT IN", "LIKE", "ILIKE",
                 "NOT LIKE", "NOT ILIKE"]  # fmt: skip
    op = draw(st.sampled_from(operators))
    if op.endswith("IN"):
        value: Any = draw(st.lists(values.filter(lambda v: v is not None), max_size=3))
    else:
        value = draw(values)
    return ExpressionBuilder.cmp(name, op, value)


@st.composite
def conditions(draw: st.DrawFn, query: QueryBuilder, depth: int) -> Condition:
    kinds = ["compare"] * 3 + (["and", "or", "not", "exists"] if depth else [])
    kind = draw(st.sampled_from(kinds))
    relationships = sorted(schema.relationships.get(query.ast.table, {}))
    if kind == "compare" or (kind == "exists" and not relationships):
        return draw(comparisons(query.ast.table))
    if kind == "exists":
        name = draw(st.sampled_from(relationships))
        refined = draw(st.booleans())
        found = query.where_exists(
            name, lambda q: draw(filtered(q, depth - 1)) if refined else q
        ).ast.where
        assert found is not None
        return found
    if kind == "not":
        return ExpressionBuilder.not_(draw(conditions(query, depth - 1)))
    members = draw(st.lists(conditions(query, depth - 1), max_size=3))
    combine = ExpressionBuilder.and_ if kind == "and" else ExpressionBuilder.or_
    return combine(*members)


@st.composite
def filtered(draw: st.DrawFn, query: QueryBuilder, depth: int) -> QueryBuilder:
    plain = QueryBuilder(schema, zql[query.ast.table].ast)
    return query.where(draw(conditions(plain, depth)))


@st.composite
def queries(draw: st.DrawFn, query: QueryBuilder, depth: int = DEPTH) -> QueryBuilder:
    columns = schema.table(query.ast.table).columns
    if draw(st.booleans()):
        query = draw(filtered(query, depth))
    if query.junction is None:
        for name in draw(st.lists(st.sampled_from(sorted(columns)), max_size=2, unique=True)):
            query = query.order_by(name, draw(st.sampled_from(["asc", "desc"])))
        if draw(st.booleans()):
            query = query.limit(draw(st.integers(0, 4)))
    if draw(st.integers(0, 3)) == 0:
        # A cursor says something only about the columns of the order.
        ordered = [name for name, _ in query.ast.order_by or []] + ["id"]
        names = [n for n in ordered if n in columns and draw(st.integers(0, 4))]
        row = {n: draw(st.none() | st.sampled_from(
            NUMBERS if columns[n].type == "number" else STRINGS)) for n in names}  # fmt: skip
        query = query.start(row, inclusive=draw(st.booleans()))
    relationships = sorted(schema.relationships.get(query.ast.table, {}))
    if depth and relationships:
        for name in draw(st.lists(st.sampled_from(relationships), max_size=2)):
            query = query.related(name, lambda q: draw(queries(q, depth - 1)))
    if draw(st.integers(0, 5)) == 0:
        query = query.one()
    return query


any_query = st.sampled_from(sorted(schema.tables)).flatmap(lambda name: queries(zql[name]))
# The module's database is only read, so sharing it between examples is fine.
relaxed = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@relaxed
@given(query=any_query)
def test_synced_rows_are_those_of_the_plain_reading(world: World, query: QueryBuilder) -> None:
    found = synced(world.connection, to_server_names(query, schema), world.tables)
    keys = {(table, key) for table, rows in found.items() for key in rows}
    assert keys == world.naive.synced(query.ast)


@relaxed
@given(query=any_query)
def test_trees_are_those_of_the_plain_reading(world: World, query: QueryBuilder) -> None:
    compiled = compile_run(query, schema, world.tables)
    [row] = fetch(world.connection, compiled.statement)
    keys = {name: table.primary_key for name, table in schema.tables.items()}
    naive = Naive(world.naive.rows, keys)
    assert compiled.decode(row["result"]) == naive.tree(query.ast, query.format)


def test_literal_comparison_is_type_strict() -> None:
    """The one thing the naive evaluator takes from the engine."""
    assert not compare(True, "=", 1)
    assert not compare("1", "=", 1)
    assert compare(1.0, "=", 1)
    assert compare("É", "ILIKE", "é")
    assert not compare(None, "NOT IN", [])
