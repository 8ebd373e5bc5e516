"""Tables of every age become those of today, or the server says why not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.record import ConfigChange, Desire, GroupRecord, QueryRecord
from zerocache.errors import ConfigurationError
from zerocache.protocol.versions import NEVER, ViewVersion, Watermark

OLD_TABLES = (Path(__file__).parent / "postgres_1.sql").read_text()
OLD = ViewVersion(Watermark("0z"), 3)
_SHAPE = """
SELECT table_name, column_name, data_type, collation_name, is_nullable, column_default
  FROM information_schema.columns WHERE table_schema = %(schema)s
UNION ALL
SELECT tablename, indexname, replace(indexdef, %(schema)s, ''), NULL, NULL, NULL
  FROM pg_indexes WHERE schemaname = %(schema)s
UNION ALL
SELECT conrelid::regclass::text, contype::text, NULL, NULL, NULL, NULL
  FROM pg_constraint WHERE connamespace = to_regnamespace(quote_ident(%(schema)s))
   AND contype <> 'n'
"""


def store_of(database: str, schema: str) -> PostgresStore:
    return PostgresStore(database, schema, max_connections=1)


async def create_old(database: str, schema: str) -> None:
    """What version 1 left behind: a group with a query that is got and one that is not."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as db:
        name = sql.Identifier(schema)
        await db.execute(sql.SQL("CREATE SCHEMA {}").format(name))
        await db.execute(sql.SQL(OLD_TABLES).format(schema=name))
        await db.execute(sql.SQL("SET search_path TO {}").format(name))
        await db.execute(
            "INSERT INTO groups VALUES ('g', '0z', 3, NULL, 'p', '05', 7.5);"
            "INSERT INTO clients VALUES ('g', 'c');"
            "INSERT INTO queries VALUES ('g', 'got', NULL, 'n', '[]', true),"
            "                           ('g', 'new', '{\"table\":\"t\"}', NULL, NULL, false);"
            "INSERT INTO desires VALUES ('g', 'c', 'got', 10, 2), ('g', 'c', 'new', 20, NULL)"
        )


async def shape(database: str, schema: str) -> set[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(database) as db:
        rows = await (await db.execute(_SHAPE, {"schema": schema})).fetchall()
    return {tuple(str(value).replace(f'"{schema}".', "") for value in row) for row in rows}


async def open_and_close(database: str, schema: str) -> None:
    store = store_of(database, schema)
    try:
        await store.open()
    finally:
        await store.close()


async def test_migrated_tables_are_those_a_new_server_creates(database: str) -> None:
    await create_old(database, "old/cvr")
    await open_and_close(database, "old/cvr")
    await open_and_close(database, "new/cvr")
    assert await shape(database, "old/cvr") == await shape(database, "new/cvr")
    assert len(await shape(database, "new/cvr")) > 50


async def test_records_of_version_1_are_kept_but_nobody_below_is_caught_up(database: str) -> None:
    await create_old(database, "old/cvr")
    store = store_of(database, "old/cvr")
    await store.open()
    record = await store.load("g")
    assert record == GroupRecord(
        "g",
        version=OLD,
        exists=True,
        profile_id="p",
        replica_version=Watermark("05"),
        ttl_clock_ms=7.5,
        provable_from=OLD,
        clients={"c"},
        queries={
            "got": QueryRecord(None, "n", b"[]", OLD),
            "new": QueryRecord(b'{"table":"t"}'),
        },
        desires={("c", "got"): Desire(10, 2), ("c", "new"): Desire(20)},
    )
    change = ConfigChange()
    await store.save(record, change, OLD)
    assert await store.load("g") == record
    await store.close()


async def test_servers_that_start_at_once_migrate_once(database: str) -> None:
    await create_old(database, "old/cvr")
    await asyncio.gather(*(open_and_close(database, "old/cvr") for _ in range(4)))
    async with await psycopg.AsyncConnection.connect(database) as db:
        rows = await (await db.execute('SELECT version FROM "old/cvr".view_meta')).fetchall()
    assert rows == [(2,)]


async def test_tables_of_a_newer_server_are_refused(database: str) -> None:
    await open_and_close(database, "x/cvr")
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute('UPDATE "x/cvr".view_meta SET version = 99')
    with pytest.raises(ConfigurationError, match=r"'x/cvr', have version 99.*up to 2"):
        await open_and_close(database, "x/cvr")


async def test_tables_of_the_reference_server_are_left_alone(database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute(
            'CREATE SCHEMA "ref/cvr"; SET search_path TO "ref/cvr";'
            "CREATE TABLE instances (x int); CREATE TABLE clients (x int); "
            "CREATE TABLE groups (x int); INSERT INTO clients VALUES (1)"
        )
    store = store_of(database, "ref/cvr")
    await store.open()
    change = ConfigChange()
    record = GroupRecord("g", version=OLD)
    record.add_client("c", change)
    await store.save(record, change, NEVER)
    assert await store.load("g") == record
    await store.close()
    async with await psycopg.AsyncConnection.connect(database) as db:
        assert await (await db.execute('SELECT x FROM "ref/cvr".clients')).fetchall() == [(1,)]
