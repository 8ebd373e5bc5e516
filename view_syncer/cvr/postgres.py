"""Group records in PostgreSQL (``ZERO_CVR_DB``), schema ``{app}_{shard}/cvr``.

Owns the tables and what a database failure means to the callers: :class:`StoreUnavailable`, after
which nothing is known of what was written. Never hands out a record that was half written.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from view_syncer.cvr.record import ConfigChange, Desire, GroupRecord, QueryRecord
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from zerocache.errors import ConfigurationError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.versions import ViewVersion, Watermark

_Connection = AsyncConnection[TupleRow]


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
        await self._pool.close()

    async def load(self, group_id: str) -> GroupRecord:
        record = GroupRecord(group_id)
        async with self._connection() as db:
            # One statement, hence one snapshot: a concurrent save is seen whole or not at all.
            cursor = await db.execute(self._sql(_LOAD), {"group": group_id})
            row = await cursor.fetchone()
        if row is None:
            return record
        state, config, schema, profile, replica, clock, clients, queries, desires = row
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
        return record

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        async with self._connection() as db:
            await self._save_group(db, record, expected)
            await self._save_clients(db, record, change)
            await self._save_queries(db, record, change)
            await self._save_desires(db, record, change)
        record.exists = True

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

    async def _save_group(
        self, db: _Connection, record: GroupRecord, expected: ViewVersion
    ) -> None:
        schema = record.client_schema
        values: dict[str, Any] = {
            "group": record.group_id,
            "state": record.version.state,
            "config": record.version.config,
            "schema": None if schema is None else schema.canonical().decode(),
            "profile": record.profile_id,
            "replica": record.replica_version,
            "clock": record.ttl_clock_ms,
            "old_state": expected.state,
            "old_config": expected.config,
        }
        cursor = await db.execute(self._sql(_UPDATE if record.exists else _INSERT), values)
        if cursor.rowcount != 1:
            raise ConcurrentModification(
                f"client group {record.group_id!r} is no longer at version {expected.cookie()}: "
                "another server changed it; its clients must reconnect"
            )

    async def _save_clients(
        self, db: _Connection, record: GroupRecord, change: ConfigChange
    ) -> None:
        for client in change.clients:
            if client in record.clients:
                text = "INSERT INTO {schema}.clients VALUES (%s, %s) ON CONFLICT DO NOTHING"
            else:
                text = 'DELETE FROM {schema}.clients WHERE "clientGroupID" = %s AND "clientID" = %s'
            await db.execute(self._sql(text), (record.group_id, client))

    async def _save_queries(
        self, db: _Connection, record: GroupRecord, change: ConfigChange
    ) -> None:
        gone = [q for q in change.queries if q not in record.queries]
        if gone:
            await db.execute(
                self._sql(
                    'DELETE FROM {schema}.queries WHERE "clientGroupID" = %s '
                    'AND "queryHash" = ANY(%s)'
                ),
                (record.group_id, gone),
            )
        rows = [
            (record.group_id, q, _text(r.ast_json), r.name, _text(r.args_json), r.got)
            for q in change.queries
            if (r := record.queries.get(q)) is not None
        ]
        if rows:
            await db.cursor().executemany(self._sql(_PUT_QUERY), rows)

    async def _save_desires(
        self, db: _Connection, record: GroupRecord, change: ConfigChange
    ) -> None:
        for client, query in change.desires:
            if (client, query) not in record.desires:
                await db.execute(self._sql(_DELETE_DESIRE), (record.group_id, client, query))
        rows = [
            (record.group_id, *key, d.ttl_ms, d.inactivated_at_ms)
            for key in change.desires
            if (d := record.desires.get(key)) is not None
        ]
        if rows:
            await db.cursor().executemany(self._sql(_PUT_DESIRE), rows)


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


_LOAD = """
SELECT g."stateVersion", g."configVersion", g."clientSchema"::text, g."profileID",
       g."replicaVersion", g."ttlClock",
       (SELECT array_agg("clientID") FROM {schema}.clients c
         WHERE c."clientGroupID" = g."clientGroupID"),
       (SELECT json_agg(json_build_array("queryHash", ast::text, name, args::text, got))
          FROM {schema}.queries q WHERE q."clientGroupID" = g."clientGroupID"),
       (SELECT json_agg(json_build_array("clientID", "queryHash", "ttlMs", "inactivatedAtMs"))
          FROM {schema}.desires d WHERE d."clientGroupID" = g."clientGroupID")
  FROM {schema}.groups g WHERE g."clientGroupID" = %(group)s
"""
_INSERT = """
INSERT INTO {schema}.groups ("clientGroupID", "stateVersion", "configVersion", "clientSchema",
                             "profileID", "replicaVersion", "ttlClock")
VALUES (%(group)s, %(state)s, %(config)s, %(schema)s, %(profile)s, %(replica)s, %(clock)s)
ON CONFLICT DO NOTHING
"""
_UPDATE = """
UPDATE {schema}.groups
   SET "stateVersion" = %(state)s, "configVersion" = %(config)s, "clientSchema" = %(schema)s,
       "profileID" = %(profile)s, "replicaVersion" = %(replica)s, "ttlClock" = %(clock)s,
       "lastActive" = now()
 WHERE "clientGroupID" = %(group)s AND "stateVersion" = %(old_state)s
   AND "configVersion" = %(old_config)s
"""
_PUT_QUERY = """
INSERT INTO {schema}.queries VALUES (%s, %s, %s, %s, %s, %s)
ON CONFLICT ("clientGroupID", "queryHash")
DO UPDATE SET ast = excluded.ast, name = excluded.name, args = excluded.args, got = excluded.got
"""
_PUT_DESIRE = """
INSERT INTO {schema}.desires VALUES (%s, %s, %s, %s, %s)
ON CONFLICT ("clientGroupID", "clientID", "queryHash")
DO UPDATE SET "ttlMs" = excluded."ttlMs", "inactivatedAtMs" = excluded."inactivatedAtMs"
"""
_DELETE_DESIRE = """
DELETE FROM {schema}.desires
 WHERE "clientGroupID" = %s AND "clientID" = %s AND "queryHash" = %s
"""
