"""View records in PostgreSQL (``ZERO_CVR_DB``), schema ``{app}_{shard}/cvr``.

Owns the connections and what a database failure means to the callers: :class:`StoreUnavailable`,
after which nothing is known of what was written. Everything is one statement, hence one
transaction and one round trip; a record is never seen half written. Loads and saves that come
while others are under way go together: a wave of reconnecting groups costs the database a few
statements, not some per group.
"""

from __future__ import annotations

import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from view_syncer.batches import Batches
from view_syncer.cvr.postgres_tables import migrate
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.rows import (
    DesireRow,
    GroupRow,
    QueryRow,
    Save,
    record_of,
    save_of,
    stored_facts,
)
from view_syncer.cvr.statements import statement
from view_syncer.cvr.store import (
    AuthorForgotten,
    ConcurrentModification,
    StoredFacts,
    StoreUnavailable,
    UnitWrite,
)
from zerocache.errors import ClientFacingError
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import ViewVersion, Watermark

_Connection = AsyncConnection[TupleRow]
T = TypeVar("T")
R = TypeVar("R")

BATCHES_AT_ONCE = 2
"""One is prepared here while the database works on the other."""
MAX_BATCH = 100
MAX_CHUNK_BYTES = 16 * 1024 * 1024


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
        lanes = min(BATCHES_AT_ONCE, max(1, max_connections))
        self._loads = Batches(self._load_many, key=str, lanes=lanes, max_items=MAX_BATCH)
        self._saves = Batches(self._save_many, key=_group_of, lanes=lanes, max_items=MAX_BATCH)
        self._touches = Batches(self._touch_many, key=_first, lanes=1, max_items=MAX_BATCH)
        self._prepare_statements()

    def _prepare_statements(self) -> None:
        name = sql.Identifier(self._schema)
        self._load_sql = statement("postgres_sql", "load", schema=name)
        self._save_sql = statement("postgres_sql", "save", schema=name)
        self._touch_sql = statement("postgres_sql", "touch", schema=name)
        self._author_sql = statement("postgres_sql", "new_author", schema=name)
        self._write_sql = statement("postgres_sql", "write_facts", schema=name)
        self._read_sql = statement("postgres_sql", "read_facts", schema=name)
        self._claim_sql = statement("postgres_sql", "claim_purging", schema=name)
        self._purge_sql = statement("postgres_sql", "purge", schema=name)
        self._tombstones_sql = statement("postgres_sql", "forget_tombstones", schema=name)
        self._authors_sql = statement("postgres_sql", "forget_authors", schema=name)
        self._drop_sql = statement("postgres_sql", "drop_facts", schema=name)

    async def open(self) -> None:
        await self._pool.open(wait=True, timeout=30)
        async with self._pool.connection() as db:
            await migrate(db, self._schema)

    async def close(self) -> None:
        await self._saves.join()
        await self._touches.join()
        await self._pool.close()

    # -- records -------------------------------------------------------------------------------

    async def load(self, group_id: str) -> GroupRecord:
        return await self._loads.run(group_id)

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        # The rows are taken now: the record may change again while this waits for its turn.
        if not await self._saves.run(save_of(record, change, expected)):
            raise ConcurrentModification.of(record.group_id, expected)
        record.exists = True
        reach(Place.FLUSHED)

    async def touch(self, group_id: str, ttl_clock_ms: float) -> None:
        await self._touches.run((group_id, ttl_clock_ms))

    async def _load_many(self, group_ids: Sequence[str]) -> Sequence[GroupRecord | Exception]:
        return await _apart_if_refused(self._load_batch, group_ids)

    async def _save_many(self, saves: Sequence[Save]) -> Sequence[bool | Exception]:
        return await _apart_if_refused(self._save_batch, saves)

    async def _touch_many(self, touches: Sequence[tuple[str, float]]) -> Sequence[Exception | None]:
        return await _apart_if_refused(self._touch_batch, touches)

    async def _load_batch(self, group_ids: Sequence[str]) -> list[GroupRecord | Exception]:
        async with self._connection() as db:
            cursor = await db.execute(self._load_sql, {"groups": list(group_ids)})
            records = {row[0]: _record_or_error(row) for row in await cursor.fetchall()}
        return [records.get(group_id) or GroupRecord(group_id) for group_id in group_ids]

    async def _save_batch(self, saves: Sequence[Save]) -> list[bool]:
        values = _save_values(saves)
        async with self._connection() as db:
            cursor = await db.execute(self._save_sql, {**values, "now": self._clock()})
            saved = {row[0] for row in await cursor.fetchall()}
            reach(Place.MID_FLUSH)
        return [_group_of(save) in saved for save in saves]

    async def _touch_batch(self, touches: Sequence[tuple[str, float]]) -> list[None]:
        groups, clocks = [group for group, _ in touches], [clock for _, clock in touches]
        async with self._connection() as db:
            values = {"groups": groups, "clocks": clocks, "now": self._clock()}
            await db.execute(self._touch_sql, values)
        return [None] * len(touches)

    # -- facts ---------------------------------------------------------------------------------

    async def new_author(self) -> int:
        async with self._connection() as db:
            cursor = await db.execute(self._author_sql, {"now": self._clock()})
            row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def write_facts(
        self, author: int, complete_to: Watermark, writes: Sequence[UnitWrite]
    ) -> None:
        head = {"author": author, "complete_to": complete_to, "now": self._clock()}
        chunks = list(_chunks(writes))
        async with self._connection() as db:
            if len(chunks) == 1:
                await self._write_chunk(db, head, chunks[0])
                return
            async with db.transaction():
                for chunk in chunks:
                    await self._write_chunk(db, head, chunk)

    async def _write_chunk(
        self, db: _Connection, head: Mapping[str, Any], writes: Sequence[UnitWrite]
    ) -> None:
        drops = [(w.unit, w.drop_before) for w in writes if w.drop_before]
        values = {
            **head,
            "x_units": [unit for unit, _ in drops],
            "x_versions": [version for _, version in drops],
            **_columns("c", [(w.unit, c.version, c.body) for w in writes if (c := w.checkpoint)]),
            **_columns("d", [(w.unit, d.version, d.body) for w in writes if (d := w.delta)]),
        }
        cursor = await db.execute(self._write_sql, values)
        if await cursor.fetchone() is None:
            raise AuthorForgotten.of(head["author"])

    async def read_facts(self, author: int, units: Collection[str]) -> StoredFacts:
        values = {"author": author, "units": list(units)}
        async with self._connection() as db:
            cursor = await db.execute(self._read_sql, values, binary=True)
            rows = await cursor.fetchall()
        return stored_facts(rows)

    async def drop_facts(self, author: int, units: Collection[str]) -> None:
        async with self._connection() as db:
            await db.execute(self._drop_sql, {"author": author, "units": list(units)})

    # -- garbage collection --------------------------------------------------------------------

    async def claim_purging(self, worker: str, lease_s: float) -> bool:
        now = self._clock()
        values = {"worker": worker, "now": now, "until": now + lease_s}
        async with self._connection() as db:
            cursor = await db.execute(self._claim_sql, values)
            return await cursor.fetchone() is not None

    async def purge_groups(self, inactive_since_s: float, limit: int) -> int:
        values = {"before": inactive_since_s, "limit": limit, "now": self._clock()}
        async with self._connection() as db:
            return (await db.execute(self._purge_sql, values)).rowcount

    async def forget_tombstones(self, before_s: float) -> None:
        async with self._connection() as db:
            await db.execute(self._tombstones_sql, {"before": before_s})

    async def forget_authors(
        self, inactive_since_s: float, silent_since_s: float, keep: int
    ) -> None:
        values = {
            "inactive_since": inactive_since_s,
            "silent_since": silent_since_s,
            "keep": keep,
        }
        async with self._connection() as db:
            await db.execute(self._authors_sql, values)

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


async def _apart_if_refused(
    work: Callable[[Sequence[T]], Awaitable[Sequence[R]]], items: Sequence[T]
) -> Sequence[R | Exception]:
    """All at once; if the database refuses a value, each alone: what one client sent must not
    fail the others. Also if two servers got in each other's way: nothing was written then."""
    try:
        return await work(items)
    except StoreUnavailable as error:
        if len(items) == 1 or not isinstance(error.__cause__, _REFUSALS):
            raise
    results: list[R | Exception] = []
    for item in items:
        try:
            results += await work([item])
        except StoreUnavailable as error:
            results.append(error)
    return results


_REFUSALS = (
    psycopg.DataError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.DeadlockDetected,
)


def _group_of(save: Save) -> str:
    return save.group.group_id


def _first(touch: tuple[str, float]) -> str:
    return touch[0]


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


def _record_or_error(row: TupleRow) -> GroupRecord | Exception:
    """A record that cannot be read is its own clients' problem."""
    try:
        return _record(row)
    except ClientFacingError as error:
        return error


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


def _chunks(writes: Sequence[UnitWrite]) -> Iterator[list[UnitWrite]]:
    """``writes`` in parts that are no burden as one message; at least one, if only empty."""
    chunk: list[UnitWrite] = []
    size = 0
    for write in writes:
        size += sum(len(part.body) for part in (write.checkpoint, write.delta) if part)
        if chunk and size > MAX_CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(write)
    yield chunk


def _columns(prefix: str, rows: Sequence[tuple[str, str, bytes]]) -> dict[str, list[Any]]:
    return {
        f"{prefix}_units": [unit for unit, _, _ in rows],
        f"{prefix}_versions": [version for _, version, _ in rows],
        f"{prefix}_bodies": [body for _, _, body in rows],
    }
