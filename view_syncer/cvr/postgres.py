"""Group records in PostgreSQL (``ZERO_CVR_DB``), schema ``{app}_{shard}/cvr``.

Owns the tables and what a database failure means to the callers: :class:`StoreUnavailable`, after
which nothing is known of what was written. Never hands out a record that was half written. Loads
and saves that come while others are under way go together, as one statement: a wave of
reconnecting groups costs the database a few round trips, not some per group.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from view_syncer.batches import Batches
from view_syncer.cvr.record import ConfigChange, Desire, GroupRecord, QueryRecord
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from zerocache.errors import ConfigurationError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.versions import ViewVersion, Watermark

_Connection = AsyncConnection[TupleRow]
T = TypeVar("T")
R = TypeVar("R")

BATCHES_AT_ONCE = 2
"""One is prepared here while the database works on the other."""
MAX_BATCH = 100


class PostgresRecordStore:
    """A :class:`~view_syncer.cvr.store.RecordStore` over a small connection pool."""

    def __init__(self, url: str, schema: str, *, max_connections: int) -> None:
        self._schema = sql.Identifier(schema)
        self._lock_name = f"migrate-schema:{schema}"
        self._pool: AsyncConnectionPool[_Connection] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max(1, max_connections),
            max_idle=60,
            kwargs={"application_name": "zero-cvr"},
            open=False,
        )
        lanes = min(BATCHES_AT_ONCE, max(1, max_connections))
        self._loads = Batches(self._load_many, key=str, lanes=lanes, max_items=MAX_BATCH)
        self._saves = Batches(self._save_many, key=_group_of, lanes=lanes, max_items=MAX_BATCH)
        sources = files("view_syncer.cvr")
        self._load_sql = self._sql(sources.joinpath("load.sql").read_text())
        self._save_sql = self._sql(sources.joinpath("save.sql").read_text())

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=30)
        try:
            await self._create_tables()
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                f"The user of ZERO_CVR_DB may not create the tables it needs: {error}. Grant it "
                "CREATE on the database, or set ZERO_CVR_DB to one where it has that right."
            ) from error

    async def _create_tables(self) -> None:
        ddl = files("view_syncer.cvr").joinpath("schema.sql").read_text()
        async with self._pool.connection() as db:
            await db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._lock_name,))
            await db.execute(self._sql("CREATE SCHEMA IF NOT EXISTS {schema}"))
            for statement in ddl.split(";"):
                if statement.strip():
                    await db.execute(self._sql(statement))

    async def close(self) -> None:
        await self._saves.join()
        await self._pool.close()

    async def load(self, group_id: str) -> GroupRecord:
        return await self._loads.run(group_id)

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        # Encoded now: the record may change again while this waits for its turn.
        written = await self._saves.run(_entry(record, change, expected))
        if not written:
            raise ConcurrentModification(
                f"client group {record.group_id!r} is no longer at version {expected.cookie()}: "
                "another server changed it; its clients must reconnect"
            )
        record.exists = True

    async def _load_many(self, group_ids: Sequence[str]) -> Sequence[GroupRecord | Exception]:
        return await _apart_if_refused(self._load_batch, group_ids)

    async def _save_many(self, entries: Sequence[Mapping[str, Any]]) -> Sequence[bool | Exception]:
        return await _apart_if_refused(self._save_batch, entries)

    async def _load_batch(self, group_ids: Sequence[str]) -> list[GroupRecord]:
        records = {group_id: GroupRecord(group_id) for group_id in group_ids}
        async with self._connection() as db:
            # One statement, hence one snapshot: a concurrent save is seen whole or not at all.
            cursor = await db.execute(self._load_sql, {"groups": list(records)})
            for row in await cursor.fetchall():
                _fill(records[row[0]], row)
        return [records[group_id] for group_id in group_ids]

    async def _save_batch(self, entries: Sequence[Mapping[str, Any]]) -> list[bool]:
        # In the same order everywhere, so that two servers do not wait for each other.
        ordered = sorted(entries, key=_group_of)
        batch = msgspec.json.encode(ordered).decode()
        async with self._connection() as db:
            cursor = await db.execute(self._save_sql, {"batch": batch})
            written = {row[0] for row in await cursor.fetchall()}
        return [entry["group"] in written for entry in entries]

    async def touch(self, group_id: str, ttl_clock_ms: float) -> None:
        async with self._connection() as db:
            await db.execute(
                self._sql(
                    "UPDATE {schema}.groups "
                    'SET "ttlClock" = greatest("ttlClock", %s), "lastActive" = now() '
                    'WHERE "clientGroupID" = %s'
                ),
                (ttl_clock_ms, group_id),
            )

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """A transaction of its own; whatever goes wrong with the database has one name."""
        try:
            async with self._pool.connection() as db:
                yield db
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"the database of the client view records failed ({type(error).__name__}: {error})"
            ) from error

    def _sql(self, text: str) -> sql.Composed:
        # Only literals and the schema's identifier are ever formatted in.
        return sql.SQL(text).format(schema=self._schema)


async def _apart_if_refused(
    work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T]
) -> Sequence[R | Exception]:
    """All at once; if the database refuses a value, each alone: what one client sent must not
    fail the others."""
    try:
        return await work(items)
    except StoreUnavailable as error:
        if len(items) == 1 or not isinstance(error.__cause__, psycopg.DataError):
            raise
    results: list[R | Exception] = []
    for item in items:
        try:
            results += await work([item])
        except StoreUnavailable as error:
            results.append(error)
    return results


def _fill(record: GroupRecord, row: TupleRow) -> None:
    _, state, config, schema, profile, replica, clock, clients, queries, desires = row
    record.exists = True
    record.version = ViewVersion(Watermark(state), config)
    record.client_schema = None if schema is None else ClientSchema.from_json(schema)
    record.profile_id, record.replica_version = profile, replica
    record.ttl_clock_ms = clock
    record.clients = set(clients or ())
    for query, ast, name, args, got in queries or ():
        record.queries[query] = QueryRecord(_bytes(ast), name, _bytes(args), got)
    for client, query, ttl, inactivated in desires or ():
        record.desires[client, query] = Desire(ttl, inactivated)


def _group_of(entry: Mapping[str, Any]) -> str:
    return str(entry["group"])


def _entry(record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> dict[str, Any]:
    """One element of the array that ``save.sql`` takes."""
    schema = record.client_schema
    queries = [(q, record.queries.get(q)) for q in change.queries]
    desires = [(key, record.desires.get(key)) for key in change.desires]
    return {
        "group": record.group_id,
        "new": not record.exists,
        "state": record.version.state,
        "config": record.version.config,
        "schema": None if schema is None else schema.canonical().decode(),
        "profile": record.profile_id,
        "replica": record.replica_version,
        "clock": record.ttl_clock_ms,
        "old_state": expected.state,
        "old_config": expected.config,
        "clients": [c for c in change.clients if c in record.clients],
        "gone_clients": [c for c in change.clients if c not in record.clients],
        "queries": [
            (q, _text(r.ast_json), r.name, _text(r.args_json), r.got)
            for q, r in queries
            if r is not None
        ],
        "gone_queries": [q for q, r in queries if r is None],
        "desires": [(*key, d.ttl_ms, d.inactivated_at_ms) for key, d in desires if d is not None],
        "gone_desires": [key for key, d in desires if d is None],
    }


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
