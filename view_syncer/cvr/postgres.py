"""View records in PostgreSQL (``ZERO_CVR_DB``), schema ``{app}_{shard}/cvr``.

Owns the connections and what a database failure means to the callers: :class:`StoreUnavailable`,
after which nothing is known of what was written. Everything is one statement, hence one
transaction and one round trip; a record is never seen half written.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from view_syncer.cvr.postgres_tables import migrate
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.rows import DesireRow, GroupRow, QueryRow, Save, record_of, save_of
from view_syncer.cvr.statements import statement
from view_syncer.cvr.store import (
    Checkpoint,
    ConcurrentModification,
    Delta,
    StoredFacts,
    StoreUnavailable,
    UnitFacts,
    UnitWrite,
)
from zerocache.protocol.versions import ViewVersion, Watermark

_Connection = AsyncConnection[TupleRow]


class PostgresStore:
    """A :class:`~view_syncer.cvr.store.RecordStore` and
    :class:`~view_syncer.cvr.store.FactStore` over one small pool of connections."""

    def __init__(
        self,
        url: str,
        schema: str,
        *,
        max_connections: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._schema = schema
        self._clock = clock
        self._pool: AsyncConnectionPool[_Connection] = AsyncConnectionPool(
            url,
            min_size=1,
            max_size=max(1, max_connections),
            max_idle=60,
            kwargs={"application_name": "zero-cvr", "autocommit": True},
            open=False,
        )
        name = sql.Identifier(schema)
        self._load = statement("postgres_sql", "load", schema=name)
        self._save = statement("postgres_sql", "save", schema=name)
        self._touch = statement("postgres_sql", "touch", schema=name)
        self._start, self._continue = (
            statement(
                "postgres_sql",
                "write_facts",
                schema=name,
                author=statement("postgres_sql", author, schema=name),
            )
            for author in ("start_author", "continue_author")
        )
        self._read_facts = statement("postgres_sql", "read_facts", schema=name)
        self._drop_facts = statement("postgres_sql", "drop_facts", schema=name)
        # Authors that wrote through this object: one that is not there any more was forgotten.
        self._authors: set[str] = set()

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=30)
        async with self._pool.connection() as db:
            await migrate(db, self._schema)

    async def close(self) -> None:
        await self._pool.close()

    # -- records -------------------------------------------------------------------------------

    async def load(self, group_id: str) -> GroupRecord:
        async with self._connection() as db:
            cursor = await db.execute(self._load, {"groups": [group_id]})
            row = await cursor.fetchone()
        return GroupRecord(group_id) if row is None else _record(row)

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        save = save_of(record, change, expected)
        if record.group_id not in await self._write([save]):
            raise ConcurrentModification(
                f"client group {record.group_id!r} is no longer at version {expected.cookie()}: "
                "another server changed it; its clients must reconnect"
            )
        record.exists = True

    async def touch(self, group_id: str, ttl_clock_ms: float) -> None:
        values = {"groups": [group_id], "clocks": [ttl_clock_ms], "now": self._clock()}
        async with self._connection() as db:
            await db.execute(self._touch, values)

    async def _write(self, saves: Sequence[Save]) -> set[str]:
        """The ids of the groups whose record was where its save expected it."""
        values = _save_values(saves)
        async with self._connection() as db:
            cursor = await db.execute(self._save, {**values, "now": self._clock()})
            return {row[0] for row in await cursor.fetchall()}

    # -- facts ---------------------------------------------------------------------------------

    async def write_facts(
        self, author: str, complete_to: Watermark, writes: Sequence[UnitWrite]
    ) -> None:
        checkpoints = [(w.unit, c.version, c.body) for w in writes if (c := w.checkpoint)]
        deltas = [(w.unit, d.version, d.body) for w in writes if (d := w.delta)]
        values: dict[str, Any] = {
            "author": author,
            "complete_to": complete_to,
            "now": self._clock(),
            **_columns("c", checkpoints),
            **_columns("d", deltas),
        }
        known = author in self._authors
        async with self._connection() as db:
            cursor = await db.execute(self._continue if known else self._start, values)
            written = await cursor.fetchone() is not None
        if not written:
            self._authors.discard(author)
            raise StoreUnavailable(
                f"the facts of author {author!r} are gone: it was silent for too long, and no "
                "client group named it; all of them must be written again"
            )
        self._authors.add(author)

    async def read_facts(self, author: str, units: Collection[str]) -> StoredFacts:
        values = {"author": author, "units": list(units)}
        async with self._connection() as db:
            cursor = await db.execute(self._read_facts, values, binary=True)
            rows = await cursor.fetchall()
        return stored_facts(rows)

    async def drop_facts(self, author: str, units: Collection[str]) -> None:
        async with self._connection() as db:
            await db.execute(self._drop_facts, {"author": author, "units": list(units)})

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Connection]:
        """Whatever goes wrong with the database has one name."""
        try:
            async with self._pool.connection() as db:
                yield db
        except psycopg.Error as error:
            raise StoreUnavailable(
                f"the database of the view records failed ({type(error).__name__}: {error})"
            ) from error


def stored_facts(rows: Sequence[Sequence[Any]]) -> StoredFacts:
    """From rows (0, -, complete_to, -), (1, unit, version, body) of checkpoints, and (2, unit,
    version, body) of deltas in their order."""
    complete_to: Watermark | None = None
    checkpoints: dict[str, Checkpoint] = {}
    deltas: dict[str, list[Delta]] = {}
    for kind, unit, version, body in rows:
        if kind == 0:
            complete_to = version
        elif kind == 1:
            checkpoints[unit] = Checkpoint(version, body)
        else:
            deltas.setdefault(unit, []).append(Delta(version, body))
    return StoredFacts(
        complete_to,
        {
            unit: UnitFacts(checkpoints.get(unit), deltas.get(unit, []))
            for unit in checkpoints.keys() | deltas.keys()
        },
    )


_CLIENTS: msgspec.json.Decoder[list[str]] = msgspec.json.Decoder(list[str])
_QUERIES: msgspec.json.Decoder[list[QueryRow]] = msgspec.json.Decoder(list[QueryRow])
_DESIRES: msgspec.json.Decoder[list[DesireRow]] = msgspec.json.Decoder(list[DesireRow])


def _record(row: TupleRow) -> GroupRecord:
    *group, deleted, clients, queries, desires = row
    return record_of(
        GroupRow(*group),
        _CLIENTS.decode(clients),
        _QUERIES.decode(queries),
        _DESIRES.decode(desires),
        deleted=deleted,
    )


def _save_values(saves: Sequence[Save]) -> dict[str, str]:
    groups = [
        {
            "new": save.new,
            "old_state": save.expected.state,
            "old_config": save.expected.config,
            **msgspec.structs.asdict(save.group),
        }
        for save in saves
    ]
    values: dict[str, list[Any]] = {"groups": groups}
    for part in ("clients", "queries", "desires"):
        values[part] = [row for save in saves for row in getattr(save, part)]
        gone = f"{part}_gone"
        values[gone] = [row for save in saves for row in getattr(save, gone)]
    return {name: msgspec.json.encode(rows).decode() for name, rows in values.items()}


def _columns(prefix: str, rows: Sequence[tuple[str, str, bytes]]) -> dict[str, list[Any]]:
    return {
        f"{prefix}_units": [unit for unit, _, _ in rows],
        f"{prefix}_versions": [version for _, version, _ in rows],
        f"{prefix}_bodies": [body for _, _, body in rows],
    }
