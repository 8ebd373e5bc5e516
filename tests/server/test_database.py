"""Schema checks, caching, adapters and unsafe values on a real database."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from tests.server.conftest import Upstream, schema, zql
from zerocache.errors import UnsafeIntegerError
from zerocache.server import PsycopgConnection, SchemaMismatchError, Transaction, ZQLDatabase
from zerocache.server.schema_check import best_lower_collation
from zerocache.zql.schema import Schema, create_schema, json, number, string, table

WRONG = create_schema(
    [
        table("gone", {"id": string()}, primary_key="id"),
        table(
            "issue",
            {"id": number(), "title": string(), "rank": json(), "extra": string()},
            primary_key="id",
        ),
        table("odd", {"id": number(), "money": number(), "list": string()}, primary_key="id"),
    ]
)


async def run(database: str, checked: Schema) -> None:
    connection = PsycopgConnection(database)
    try:
        await ZQLDatabase(connection, checked).run(zql.issue)
    finally:
        await connection.close()


async def test_report_names_every_problem_at_once(database: str, upstream: Upstream) -> None:
    upstream.connection.execute("CREATE TABLE odd (id int PRIMARY KEY, money money, list int[])")
    with pytest.raises(SchemaMismatchError) as caught:
        await run(database, WRONG)
    lines = [line[4:] for line in str(caught.value).splitlines() if line.startswith("  - ")]
    assert lines == [
        'table "gone" does not exist',
        'column "id" of table "issue" is text: declare it string, not number',
        'column "rank" of table "issue" is int4: declare it number, not json',
        'column "extra" of table "issue" does not exist',
        'column "money" of table "odd" has type money, which clients cannot see',
        'column "list" of table "odd" is an array of int4: declare it json, not string',
    ]


async def test_failed_check_is_repeated_and_a_good_one_kept(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    upstream.connection.execute("ALTER TABLE issue RENAME title TO name")
    for _ in range(2):
        with pytest.raises(SchemaMismatchError):
            await db.run(zql.issue)
    upstream.connection.execute("ALTER TABLE issue RENAME name TO title")
    assert await db.run(zql.issue) == []
    # The check is not repeated: the query itself is what fails now.
    upstream.connection.execute("ALTER TABLE issue RENAME title TO name")
    with pytest.raises(psycopg.errors.UndefinedColumn):
        await db.run(zql.issue)


async def test_views_domains_and_partitioned_tables_pass_the_check(
    database: str, upstream: Upstream
) -> None:
    upstream.connection.execute(
        "CREATE DOMAIN word AS text; CREATE DOMAIN short_word AS word;"
        "CREATE TABLE part (id text, w short_word) PARTITION BY LIST (id);"
        "CREATE VIEW seen AS SELECT id, title FROM issue"
    )
    columns = {"id": string(), "w": string()}
    odd = create_schema(
        [
            table("part", columns, primary_key="id"),
            table("seen", {"id": string(), "title": string()}, primary_key="id"),
            schema.tables["issue"],
        ]
    )
    await run(database, odd)


async def test_integers_beyond_javascript_raise(db: ZQLDatabase, upstream: Upstream) -> None:
    upstream.connection.execute("ALTER TABLE issue ALTER rank TYPE int8")
    upstream.connection.execute("INSERT INTO issue VALUES ('a', 't', 9007199254740992)")
    with pytest.raises(UnsafeIntegerError, match='column "rank" of table "issue"'):
        await db.run(zql.issue)


async def test_transactions_roll_back_on_errors(db: ZQLDatabase, upstream: Upstream) -> None:
    async def work(tx: Transaction) -> None:
        await tx.mutate.issue.insert({"id": "a", "title": "t"})
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        await db.transaction(work)
    assert await db.run(zql.issue) == []


async def test_query_only_methods_do_not_exist_here(db: ZQLDatabase) -> None:
    async def work(tx: Any) -> None:
        assert (tx.client_id, tx.mutation_id) == ("", 0)
        tx.preload(zql.issue)

    with pytest.raises(AttributeError):
        await db.transaction(work)


def test_best_collation_for_ilike_is_chosen() -> None:
    assert best_lower_collation([{"name": "und-x-icu"}, {"name": "C"}]) == "und-x-icu"
    assert best_lower_collation([]) == "default"
