"""Connections of our own and of a pool: reuse, bounds, clean-up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest

from tests.server.conftest import Upstream, schema, zql
from zerocache.server import (
    PsycopgConnection,
    PsycopgSyncConnection,
    SyncZQLDatabase,
    Transaction,
    ZQLDatabase,
)


async def pid(tx: Transaction) -> Any:
    return (await tx.db_transaction.query("SELECT pg_backend_pid() AS pid"))[0]["pid"]


async def test_lost_connections_are_replaced(db: ZQLDatabase, upstream: Upstream) -> None:
    first = await db.transaction(pid)
    assert await db.transaction(pid) == first
    upstream.all(f"SELECT pg_terminate_backend({first}, 5000)")
    assert await db.transaction(pid) != first


async def test_no_more_connections_than_allowed(db: ZQLDatabase) -> None:
    """The fixture allows two."""
    backends = await asyncio.gather(*(db.transaction(pid) for _ in range(8)))
    assert len(set(backends)) <= 2


async def test_connection_survives_a_failed_statement(db: ZQLDatabase) -> None:
    async def broken(tx: Transaction) -> None:
        await tx.db_transaction.query("SELECT 1 / 0")

    first = await db.transaction(pid)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await db.transaction(broken)
    assert await db.transaction(pid) == first


async def test_statements_without_rows_give_none(db: ZQLDatabase) -> None:
    async def work(tx: Transaction) -> Any:
        return await tx.db_transaction.query("DELETE FROM issue WHERE id = $1", ["a"])

    assert await db.transaction(work) == []


async def test_connections_may_come_from_a_pool(database: str, upstream: Upstream) -> None:
    class Pool:
        taken = 0

        @asynccontextmanager
        async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
            self.taken += 1
            async with await psycopg.AsyncConnection.connect(database) as connection:
                yield connection

    pool = Pool()
    adapter = PsycopgConnection(pool)
    await ZQLDatabase(adapter, schema).transaction(
        lambda tx: tx.mutate.issue.insert({"id": "a", "title": "t"})
    )
    await adapter.close()
    assert pool.taken == 1
    assert upstream.column("SELECT id FROM issue") == ["a"]


def test_blocking_connections_may_come_from_a_pool(database: str, upstream: Upstream) -> None:
    class Pool:
        @contextmanager
        def connection(self) -> Iterator[psycopg.Connection[Any]]:
            with psycopg.connect(database) as connection:
                yield connection

    db = SyncZQLDatabase(PsycopgSyncConnection(Pool()), schema)
    db.transaction(lambda tx: tx.mutate.issue.insert({"id": "a", "title": "t"}))
    assert [row["id"] for row in db.run(zql.issue)] == ["a"]
