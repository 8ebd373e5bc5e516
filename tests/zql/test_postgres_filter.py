"""Every operator on every type of column, against the truth table of zql.md §2.2 in Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import psycopg
import pytest
from psycopg import sql

from tests.conftest import PostgresCluster
from tests.zql.oracle import fetch, read_tables
from zerocache.errors import QueryError
from zerocache.zql import ast
from zerocache.zql.postgres import Statement, synced_rows
from zerocache.zql.postgres_filter import FilterCompiler
from zerocache.zql.postgres_types import PostgresTable, needs_nesting, nest_array
from zerocache.zql.shape import compare

SEED = """
CREATE TYPE mood AS ENUM ('zen', 'angry');
CREATE DOMAIN short AS text;
CREATE TABLE kinds (
    id int PRIMARY KEY, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric,
    b bool, t text, v varchar(20), c char(4), u uuid, ip inet, m mood,
    d date, ts timestamp, tz timestamptz, ti time, tt timetz,
    j json, jb jsonb, a int[], da date[], hidden bytea, dom short
);
INSERT INTO kinds VALUES
 (1, 1, 1, 1, 1.1, 1.5, 1.0, true, 'a', 'a', 'a', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',
  '10.0.0.1', 'zen', '1970-01-02', '1970-01-01 00:00:01.5', '1970-01-01 00:00:01+00',
  '00:00:01.0019', '23:30:00-02', '"a"', '1', '{1,2}', '{{1970-01-02,1970-01-03}}', '\\x00', 'a'),
 (2, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
 (3, -5, 20, 9007199254740991, 'NaN', 'Infinity', 'NaN', false, 'A%_\\', 'Été', 'ab', NULL, NULL,
  'angry', 'infinity', '-infinity', '2000-01-01 00:00:00+02', '24:00', '00:30:00+02',
  'null', 'null', '{}', '{}', NULL, 'b'),
 (4, 0, 0, 0, 0, -0.0, 12345.678, true, '😀', E'x\\ny', '', NULL, 'fe80::1/64', 'zen',
  '0044-03-15 BC', '2019-01-11 23:17:15.381101', '1969-12-31 23:59:59.999+00', NULL, NULL,
  '{"a": 1}', '[1]', '{NULL,3}', NULL, NULL, 'c'),
 (5, 7, 7, 7, 7, 7, 7, false, '', '', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
  'true', '1.5', NULL, NULL, NULL, NULL);
"""
EXPECTED: dict[str, list[Any]] = {
    "i8": [1, None, 9007199254740991, 0, 7],
    "f4": [1.1, None, None, 0, 7],
    "f8": [1.5, None, None, 0, 7],
    "n": [1, None, None, 12345.678, 7],
    "c": ["a   ", None, "ab  ", "    ", None],
    "ip": ["10.0.0.1", None, None, "fe80::1/64", None],
    "d": [86400000, None, None, -63517824000000, None],
    "ts": [1500, None, None, 1547248635381.101, None],
    "tz": [1000, None, 946677600000, -1, None],
    "ti": [1001, None, 86400000, None, None],
    "tt": [5400000, None, 81000000, None, None],
    "j": ["a", None, None, {"a": 1}, True],
    "jb": [1, None, None, [1], 1.5],
    "a": [[1, 2], None, [], [None, 3], None],
    "da": [[[86400000, 172800000]], None, [], None, None],
}
LITERALS: list[Any] = [
    None, 0, 1, 1.0, 1.5, 1.1, -5, 7, 20, 1e300, 2**53 - 1, 12345.678, 1500, 86400000, -1, 5400000,
    "", "a", "A", "b", "ab  ", "a%", "A\\%\\_\\\\", "😀", "_", "%é%", "x_y", "zen", "10.0.0.1", "1",
    "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a\0", "\uffff",
    True, False,
]  # fmt: skip
LISTS: list[Any] = [[], [1], ["a", 1, True], [False, "zen", 1.5], ["", "a\0", 7, "ab  "]]
OPERATORS = get_args(ast.SimpleOperator)

Kinds = tuple[psycopg.Connection[Any], PostgresTable]


@pytest.fixture(scope="module")
def kinds(postgres: PostgresCluster) -> Iterator[Kinds]:
    name = postgres.create_database()
    with psycopg.connect(postgres.url_of(name), autocommit=True) as connection:
        connection.execute(SEED.encode())
        yield connection, read_tables(connection)["kinds"]
    postgres.drop_database(name)


def client_rows(kinds: Kinds) -> list[dict[str, Any]]:
    connection, table = kinds
    [level] = synced_rows(ast.Query("kinds"), {"kinds": table})
    rows = fetch(connection, level.statement)
    for column in filter(needs_nesting, table.visible_columns):
        for row in rows:
            row[column.name] = nest_array(row[column.name])
    return rows


def test_values_are_those_clients_see(kinds: Kinds) -> None:
    rows = client_rows(kinds)
    assert {name: [row[name] for row in rows] for name in EXPECTED} == EXPECTED


def test_columns_clients_cannot_see_are_left_out(kinds: Kinds) -> None:
    names = set(client_rows(kinds)[0])
    assert {"hidden", "dom"}.isdisjoint(names)
    assert "m" in names


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_follow_the_truth_table(kinds: Kinds, operator: ast.SimpleOperator) -> None:
    connection, table = kinds
    rows = client_rows(kinds)
    literals = [None, *LISTS] if operator.endswith("IN") else LITERALS
    for column in table.visible_columns:
        compiler = FilterCompiler({"kinds": table})
        tests = [
            compiler.condition(
                ast.Simple(operator, ast.ColumnRef(column.name), ast.LiteralRef(literal)),
                table,
                "k",
            )
            for literal in literals
        ]
        outputs = [
            sql.SQL("({}) IS TRUE AS {}").format(test, sql.Identifier(str(at)))
            for at, test in enumerate(tests)
        ]
        text = sql.SQL("SELECT {} FROM kinds AS k ORDER BY id").format(sql.SQL(", ").join(outputs))
        found = fetch(connection, Statement(text.as_string(), compiler.parameters.values))
        for row, answers in zip(rows, found, strict=True):
            for at, literal in enumerate(literals):
                expected = truth(row[column.name], operator, literal)
                where = f"{column.name} = {row[column.name]!r} {operator} {literal!r}"
                assert answers[str(at)] == expected, where


def truth(value: Any, operator: str, literal: Any) -> bool:
    if isinstance(value, list | dict) and literal is not None:
        # Never equal, never ordered, never matched: only the negations hold.
        return operator in ("!=", "IS NOT", "NOT IN", "NOT LIKE", "NOT ILIKE")
    if operator.endswith("LIKE") and None not in (value, literal):
        if not (isinstance(value, str) and isinstance(literal, str)):
            return operator.startswith("NOT ")
        if "\0" in literal:
            return operator.startswith("NOT ")
    if value is None and literal is not None and operator == "IS NOT":
        return True
    return compare(value, operator, literal)


@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_every_cursor_splits_the_order(kinds: Kinds, direction: ast.Direction) -> None:
    connection, table = kinds
    for column in ("f8", "t", "b", "m", "ts", "c", "d"):
        order: list[tuple[str, ast.Direction]] = [(column, direction)]
        query = ast.Query("kinds", order_by=order)
        ids = ordered_ids(connection, table, query)
        for row, exclusive in itertools.product(client_rows(kinds), (True, False)):
            start = ast.Start({column: row[column], "id": row["id"]}, exclusive)
            after = ordered_ids(connection, table, ast.Query("kinds", order_by=order, start=start))
            assert after == ids[ids.index(row["id"]) + exclusive :], (column, row["id"])


def ordered_ids(
    connection: psycopg.Connection[Any], table: PostgresTable, query: ast.Query
) -> list[int]:
    """The order shows when rows are taken one more at a time."""
    ids: list[int] = []
    for limit in range(1, 6):
        limited = ast.Query("kinds", order_by=query.order_by, start=query.start, limit=limit)
        [level] = synced_rows(limited, {"kinds": table})
        found = {row["id"] for row in fetch(connection, level.statement)}
        ids.extend(found - set(ids))
    return ids


@pytest.mark.parametrize(
    "query",
    [
        ast.Query("kinds", where=ast.Simple("LIKE", ast.ColumnRef("t"), ast.LiteralRef("a\\"))),
        ast.Query("kinds", where=ast.Simple("IN", ast.ColumnRef("t"), ast.LiteralRef("a"))),
        ast.Query("kinds", where=ast.Simple("=", ast.ColumnRef("t"), ast.LiteralRef(["a"]))),
        ast.Query("kinds", where=ast.Simple("=", ast.ColumnRef("dom"), ast.LiteralRef("a"))),
        ast.Query(
            "kinds",
            where=ast.Simple("=", ast.ColumnRef("t"), ast.StaticRef("authData", "sub")),
        ),
        ast.Query("kinds", order_by=[("missing", "asc")]),
        ast.Query("missing"),
    ],
)
def test_meaningless_queries_are_refused(kinds: Kinds, query: ast.Query) -> None:
    with pytest.raises(QueryError):
        synced_rows(query, {"kinds": kinds[1]})


def test_values_are_never_pasted_into_statements(kinds: Kinds) -> None:
    literal = "'; DROP TABLE kinds; --"
    where = ast.Simple("=", ast.ColumnRef("t"), ast.LiteralRef(literal))
    [level] = synced_rows(ast.Query("kinds", where=where, limit=77), {"kinds": kinds[1]})
    assert "DROP" not in level.statement.text
    assert level.statement.params == [literal, "77"]
