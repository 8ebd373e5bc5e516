"""psycopg 3 as the driver of a :class:`~zerocache.server.database.ZQLDatabase`.

Owns the connections it opens itself (from a URL) and nothing of a pool it is given. Queries use
``$1`` placeholders (raw cursors). Invariant: a connection that comes back has no open transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import Any, Protocol

import psycopg
from psycopg.rows import dict_row

Rows = list[dict[str, Any]]


class AsyncPool(Protocol):
    """``psycopg_pool.AsyncConnectionPool`` or anything like it."""

    def connection(self) -> AbstractAsyncContextManager[psycopg.AsyncConnection[Any]]: ...


class SyncPool(Protocol):
    """``psycopg_pool.ConnectionPool`` or anything like it."""

    def connection(self) -> AbstractContextManager[psycopg.Connection[Any]]: ...


class PsycopgTransaction:
    """A transaction on an asynchronous connection."""

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self.wrapped_transaction = connection

    async def query(self, text: str, params: Sequence[Any] = ()) -> Rows:
        async with psycopg.AsyncRawCursor(self.wrapped_transaction, row_factory=dict_row) as cursor:
            await cursor.execute(text.encode(), params or None)
            return await cursor.fetchall() if cursor.description else []


class PsycopgConnection:
    """Transactions on connections of ``source``: a URL, or a pool.

    From a URL at most ``max_size`` connections are open at a time; idle ones are kept until
    :meth:`close`.
    """

    def __init__(self, source: str | AsyncPool, *, max_size: int = 10) -> None:
        self._pool = _OwnPool(source, max_size) if isinstance(source, str) else source

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PsycopgTransaction]:
        async with self._pool.connection() as connection, connection.transaction():
            yield PsycopgTransaction(connection)

    async def close(self) -> None:
        """Close idle connections of our own; a pool that was passed in is left alone."""
        if isinstance(self._pool, _OwnPool):
            await self._pool.close()


class _OwnPool:
    def __init__(self, url: str, max_size: int) -> None:
        self._url = url
        self._slots = asyncio.Semaphore(max_size)
        self._idle: list[psycopg.AsyncConnection[Any]] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with self._slots:
            connection = await self._take()
            try:
                yield connection
            except BaseException:
                if connection.closed or connection.broken:
                    await connection.close()
                else:
                    self._idle.append(connection)
                raise
            self._idle.append(connection)

    async def _take(self) -> psycopg.AsyncConnection[Any]:
        while self._idle:
            connection = self._idle.pop()
            try:
                # The server may have gone since: a mutation must not fail for that.
                await connection.execute("SELECT 1")
                return connection
            except psycopg.OperationalError:
                await connection.close()
        return await psycopg.AsyncConnection.connect(self._url, autocommit=True)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()


class PsycopgSyncTransaction:
    """A transaction on a blocking connection; its coroutines never suspend."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.wrapped_transaction = connection

    async def query(self, text: str, params: Sequence[Any] = ()) -> Rows:
        with psycopg.RawCursor(self.wrapped_transaction, row_factory=dict_row) as cursor:
            cursor.execute(text.encode(), params or None)
            return cursor.fetchall() if cursor.description else []


class PsycopgSyncConnection:
    """Blocking transactions, for :class:`~zerocache.server.sync.SyncZQLDatabase`.

    ``source`` is a URL (one connection per transaction; usable from any thread) or a pool.
    """

    def __init__(self, source: str | SyncPool) -> None:
        self._source = source

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PsycopgSyncTransaction]:
        with self._connection() as connection, connection.transaction():
            yield PsycopgSyncTransaction(connection)

    def _connection(self) -> AbstractContextManager[psycopg.Connection[Any]]:
        if isinstance(self._source, str):
            return psycopg.connect(self._source, autocommit=True)
        return self._source.connection()
