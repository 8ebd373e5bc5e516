"""The demo's rows: enough of them, the same everywhere, written once."""

from __future__ import annotations

from typing import Any

import psycopg

from zerocache.dev.seed import seed


def rows(database: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


async def test_fresh_database_gets_some_thousands_of_rows(database: str) -> None:
    assert await seed(database)
    assert rows(database, "SELECT count(*) FROM issue") == [(2000,)]
    (comments,) = rows(database, "SELECT count(*) FROM comment")[0]
    assert comments > 4000
    silent = (
        "SELECT count(*) FROM issue i WHERE NOT EXISTS (SELECT FROM comment WHERE issue_id = i.id)"
    )
    assert rows(database, silent)[0][0] > 50


async def test_second_run_changes_nothing(database: str) -> None:
    await seed(database)
    rows(database, "DELETE FROM issue WHERE id = 'i1'")
    assert not await seed(database)
    assert rows(database, "SELECT count(*) FROM issue") == [(1999,)]


async def test_rows_are_the_same_on_every_machine(database: str) -> None:
    await seed(database)
    first = rows(database, "SELECT title, open, modified_at FROM issue WHERE id = 'i2000'")
    digest = "SELECT md5(string_agg(id || title || open::text, ',' ORDER BY id)) FROM issue"
    before = rows(database, digest)
    rows(database, 'DROP TABLE issue_label, comment, issue, label, "user" CASCADE')
    rows(database, "DROP TYPE issue_priority; DROP FUNCTION touch_issue")
    await seed(database)
    assert rows(database, digest) == before
    assert first[0][1] is True


async def test_every_foreign_key_has_an_index(database: str) -> None:
    await seed(database)
    missing = """
        SELECT conrelid::regclass, conkey FROM pg_constraint c WHERE contype = 'f' AND NOT EXISTS (
            SELECT FROM pg_index WHERE indrelid = c.conrelid AND indkey[0] = c.conkey[1])
    """
    assert rows(database, missing) == []


async def test_changing_an_issue_moves_its_time(database: str) -> None:
    await seed(database)
    rows(database, "UPDATE issue SET open = false WHERE id = 'i5'")
    newest = "SELECT id FROM issue ORDER BY modified_at DESC LIMIT 1"
    assert rows(database, newest) == [("i5",)]
