"""CRUD mutations: what old clients write without the application (api-and-auth.md §5.1).

Owns the transactions. Invariant: a mutation's id, the check of its permissions and its effects are
one serializable transaction upstream; what is not permitted, or fails, still advances the id, so
that the client learns the outcome and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import structlog
from psycopg import AsyncConnection, IsolationLevel, sql
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from view_syncer.crud_rows import RowWriter, WriteDenied, WriteFailed
from zerocache.errors import ClientFacingError, QueryError, SdkError
from zerocache.protocol.messages import CrudMutation

log = structlog.get_logger(__name__)

ATTEMPTS = 10
"""How often a transaction is tried that could not be serialized with others."""
GAP_ATTEMPTS = 3
GAP_WAIT_S = 0.1
POOL_WAIT_S = 10.0
_UNAVAILABLE = frozenset({"08", "53", "57"})
"""Classes of SQLSTATE: connection, resources, somebody intervened."""
_SETTINGS = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 60000"


@dataclass(frozen=True, slots=True)
class Writer:
    """In whose name a mutation runs: group, verified claims, and the permissions deployed at
    present; ``tables`` are those that are replicated."""

    group_id: str
    claims: Mapping[str, Any] = field(default_factory=dict)
    permissions: Mapping[str, Any] | None = None
    tables: Collection[str] = ()


class CrudMutator:
    """One per worker.

    * ``waits_for_gaps``: the application also runs mutations, so a missing one may be on its way.
    """

    def __init__(
        self, url: str, shard_schema: str, *, max_connections: int, waits_for_gaps: bool
    ) -> None:
        self._clients = sql.Identifier(shard_schema, "clients")
        self._gap_attempts = GAP_ATTEMPTS if waits_for_gaps else 1
        self._pool: AsyncConnectionPool[AsyncConnection[Any]] = AsyncConnectionPool(
            url,
            min_size=0,
            max_size=max(1, max_connections),
            max_idle=60,
            timeout=POOL_WAIT_S,
            kwargs={"application_name": "zero-crud"},
            configure=_configure,
            open=False,
        )
        self._opened = False

    async def close(self) -> None:
        await self._pool.close()

    async def run(self, writer: Writer, mutation: CrudMutation) -> None:
        """Returns when the mutation is done, was denied, or had been done before.

        Raises ``InvalidPush`` for a gap, ``MutationFailed`` (which keeps the connection) when it
        could not be done and its id was used up, ``ServerOverloaded`` when nothing was done.
        """
        for attempt in range(1, self._gap_attempts + 1):
            last = await self._attempt(writer, mutation)
            if last is None or last >= mutation.id:
                return
            if attempt < self._gap_attempts:
                await asyncio.sleep(GAP_WAIT_S)
        raise ClientFacingError(
            "InvalidPush",
            f"Mutation {mutation.id} of client {mutation.client_id!r} came, but its last one was "
            f"{last}. The ids of a client's mutations must follow each other.",
        )

    async def _attempt(self, writer: Writer, mutation: CrudMutation) -> int | None:
        """None if it is done; else the last id before it."""
        try:
            return await self._serialized(lambda: self._transaction(writer, mutation, effects=True))
        except (WriteFailed, QueryError, SdkError, psycopg.Error) as error:
            if _is_lost(error):
                raise _unavailable() from error
            reason = str(error)
            log.warning(
                "mutation_failed",
                clientGroupID=writer.group_id,
                clientID=mutation.client_id,
                mutationID=mutation.id,
                error=type(error).__name__,
            )
        try:
            last = await self._serialized(
                lambda: self._transaction(writer, mutation, effects=False)
            )
        except psycopg.Error as error:
            raise _unavailable() from error
        if last is not None:
            return last
        raise ClientFacingError("MutationFailed", f"The mutation failed: {reason}", close_code=None)

    async def _serialized(self, attempt: Callable[[], Awaitable[int | None]]) -> int | None:
        for _ in range(ATTEMPTS):
            try:
                return await attempt()
            except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                continue
        raise _unavailable()

    async def _transaction(
        self, writer: Writer, mutation: CrudMutation, *, effects: bool
    ) -> int | None:
        other: int | None = None
        async with self._connection() as db, db.transaction() as transaction:
            await db.execute(_SETTINGS)
            last = await self._count(db, writer.group_id, mutation.client_id) - 1
            if last + 1 != mutation.id:
                other = last
                raise psycopg.Rollback(transaction)
            if effects:
                await self._effects(db, writer, mutation)
        return other

    async def _effects(
        self, db: AsyncConnection[Any], writer: Writer, mutation: CrudMutation
    ) -> None:
        """All operations, or none if one of them is not allowed."""
        try:
            async with db.transaction():
                rows = await RowWriter.make(db, writer.permissions, writer.claims)
                for op in mutation.ops:
                    if op.table_name not in writer.tables:
                        raise WriteFailed(f"the table {op.table_name!r} is not replicated")
                    await rows.write(op)
        except WriteDenied:
            log.info("mutation_denied", clientID=mutation.client_id, mutationID=mutation.id)

    async def _count(self, db: AsyncConnection[Any], group_id: str, client_id: str) -> int:
        """Advance the client's last mutation id; holds up other transactions of this client."""
        statement = sql.SQL(
            "INSERT INTO {clients} AS known "
            '("clientGroupID", "clientID", "lastMutationID") VALUES (%s, %s, 1) '
            'ON CONFLICT ("clientGroupID", "clientID") DO UPDATE '
            'SET "lastMutationID" = known."lastMutationID" + 1 RETURNING "lastMutationID"'
        ).format(clients=self._clients)
        cursor = await db.execute(statement, (group_id, client_id))
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[AsyncConnection[Any]]:
        if not self._opened:
            self._opened = True
            await self._pool.open()
        try:
            async with self._pool.connection() as db:
                yield db
        except PoolTimeout as error:
            raise _unavailable() from error


async def _configure(connection: AsyncConnection[Any]) -> None:
    await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
    # Tables may change under statements that were prepared.
    connection.prepare_threshold = None


def _is_lost(error: Exception) -> bool:
    """Whether the connection or the server failed, not the statement."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate[:2] in _UNAVAILABLE


def _unavailable() -> ClientFacingError:
    return ClientFacingError(
        "ServerOverloaded",
        "The mutation could not be written now; it will be sent again.",
        minBackoffMs=1000,
        maxBackoffMs=10000,
    )
