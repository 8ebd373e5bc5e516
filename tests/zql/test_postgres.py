"""Result rows and result trees on a real PostgreSQL, against the corpus of zql.md §7."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster
from tests.zql.corpus import CASES, SEED, schema, zql
from tests.zql.oracle import fetch, read_tables, synced
from zerocache.zql.builder import QueryBuilder, to_server_names
from zerocache.zql.postgres import compile_run
from zerocache.zql.postgres_types import PostgresTable


@pytest.fixture(scope="module")
def seeded(
    postgres: PostgresCluster,
) -> Iterator[tuple[psycopg.Connection[Any], dict[str, PostgresTable]]]:
    name = postgres.create_database()
    with psycopg.connect(postgres.url_of(name), autocommit=True) as connection:
        connection.execute(SEED.encode())
        yield connection, read_tables(connection)
    postgres.drop_database(name)


Seeded = tuple[psycopg.Connection[Any], dict[str, PostgresTable]]


def run(seeded: Seeded, query: QueryBuilder) -> Any:
    connection, tables = seeded
    compiled = compile_run(query, schema, tables)
    [row] = fetch(connection, compiled.statement)
    return compiled.decode(row["result"])


@pytest.mark.parametrize("case", CASES)
def test_synced_rows_are_those_of_the_corpus(seeded: Seeded, case: str) -> None:
    query, expected = CASES[case]
    rows = synced(seeded[0], to_server_names(query, schema), seeded[1])
    found = ["-".join(str(v) for v in sorted(key, key=str)) if t == "account" else "-".join(
        str(row[c]) for c in schema.table(t).primary_key) for t, by_key in rows.items()
        for key, row in by_key.items()]  # fmt: skip
    assert sorted(found) == sorted(expected.split())


@pytest.mark.parametrize("case", [c for c in CASES if not CASES[c][0].ast.related])
def test_run_gives_the_root_rows_in_order(seeded: Seeded, case: str) -> None:
    query, expected = CASES[case]
    result = run(seeded, query)
    keys = [[str(row[c]) for c in schema.table(query.ast.table).primary_key] for row in result]
    if query.ast.table == "account":
        keys = [sorted(key) for key in keys]
    assert ["-".join(key) for key in keys] == expected.split()


def test_run_nests_related_rows_and_unwraps_one(seeded: Seeded) -> None:
    query = (
        zql.task.where("id", "t1")
        .related("ownerRow")
        .related("notes", lambda q: q.where("body", "y").related("authorRow"))
        .one()
    )
    assert run(seeded, query) == {
        "id": "t1",
        "owner": "u1",
        "reviewer": "u2",
        "rank": 10,
        "title": "a",
        "ownerRow": {"id": "u1", "name": "Ann", "boss": None},
        "notes": [
            {
                "id": "n2",
                "task": "t1",
                "author": "u2",
                "body": "y",
                "authorRow": {"id": "u2", "name": "Bo", "boss": "u1"},
            }
        ],
    }


def test_run_gives_none_for_a_missing_one(seeded: Seeded) -> None:
    assert run(seeded, zql.task.where("id", "t0").one()) is None
    [task] = run(seeded, zql.task.where("id", "t3").related("ownerRow").related("notes"))
    assert task["ownerRow"] is None
    assert task["notes"] == []


def test_run_walks_through_a_junction(seeded: Seeded) -> None:
    [first, second] = run(
        seeded, zql.task.where("id", "IN", ["t1", "t3"]).related("tags").order_by("id")
    )
    assert [tag["label"] for tag in first["tags"]] == ["red", "blue"]
    assert second["tags"] == []
