"""View records in an SQLite file (``ZERO_CVR_DB=sqlite:/path``).

Owns two connections, each in a thread of its own: one writes, one reads. Writes that come while
others are under way share one transaction, so that a wave of them waits for the disk once; each is
all or nothing for itself. A failure has one name, :class:`StoreUnavailable`, after which nothing is
known of what was written.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import apsw
import msgspec

from view_syncer.batches import Batches
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
from view_syncer.cvr.sqlite_file import connect, open_file, path_of
from view_syncer.cvr.store import (
    AuthorForgotten,
    Checkpoint,
    ConcurrentModification,
    Delta,
    StoredFacts,
    StoreUnavailable,
    UnitWrite,
)
from zerocache.protocol.versions import ViewVersion, Watermark

T = TypeVar("T")
_Work = Callable[[apsw.Connection], Any]

MAX_BATCH = 500


class SqliteStore:
    """A :class:`~view_syncer.cvr.store.RecordStore` and
    :class:`~view_syncer.cvr.store.FactStore`."""

    def __init__(self, url: str, schema: str, *, clock: Callable[[], float] = time.time) -> None:
        self._path, self._schema, self._clock = path_of(url), schema, clock
        self._writes = _Lane("cvr-write", "IMMEDIATE")
        self._reads = _Lane("cvr-read", "DEFERRED")

    async def open(self) -> None:
        await self._writes.open(lambda: open_file(self._path, self._schema))
        await self._reads.open(lambda: connect(self._path))

    async def close(self) -> None:
        await self._reads.close()
        await self._writes.close()

    # -- records -------------------------------------------------------------------------------

    async def load(self, group_id: str) -> GroupRecord:
        record = await self._reads.run(lambda db: _load(db, group_id))
        return record or GroupRecord(group_id)

    async def save(self, record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> None:
        # The rows are taken now: the record may change again while this waits for its turn.
        save, now = save_of(record, change, expected), self._clock()
        if not await self._writes.run(lambda db: _save(db, save, now)):
            raise ConcurrentModification.of(record.group_id, expected)
        record.exists = True

    async def touch(self, group_id: str, ttl_clock_ms: float) -> None:
        values = (ttl_clock_ms, self._clock(), group_id)
        await self._writes.run(lambda db: db.execute(_TOUCH, values))

    # -- facts ---------------------------------------------------------------------------------

    async def new_author(self) -> int:
        now = self._clock()
        return await self._writes.run(lambda db: _new_author(db, now))

    async def write_facts(
        self, author: int, complete_to: Watermark, writes: Sequence[UnitWrite]
    ) -> None:
        progress = (complete_to, self._clock(), author)
        parts = (
            (_PUT_CHECKPOINT, [(author, w.unit, *_of(c)) for w in writes if (c := w.checkpoint)]),
            (_DROP_DELTAS_BEFORE, [(author, w.unit, v) for w in writes if (v := w.drop_before)]),
            (_PUT_DELTA, [(author, w.unit, *_of(d)) for w in writes if (d := w.delta)]),
        )

        def write(db: apsw.Connection) -> None:
            if not db.execute(_NOTE_PROGRESS, progress).fetchall():
                raise AuthorForgotten.of(author)
            for statement, rows in parts:
                db.executemany(statement, rows)

        await self._writes.run(write)

    async def read_facts(self, author: int, units: Collection[str]) -> StoredFacts:
        wanted = msgspec.json.encode(list(units)).decode()

        def read(db: apsw.Connection) -> StoredFacts:
            return stored_facts(
                db.execute(_READ_FACTS, {"author": author, "units": wanted}).fetchall()
            )

        return await self._reads.run(read)

    async def drop_facts(self, author: int, units: Collection[str]) -> None:
        values = [(author, unit) for unit in units]

        def drop(db: apsw.Connection) -> None:
            db.executemany(_DROP_CHECKPOINT, values)
            db.executemany(_DROP_DELTAS, values)

        await self._writes.run(drop)

    # -- garbage collection --------------------------------------------------------------------

    async def claim_purging(self, worker: str, lease_s: float) -> bool:
        now = self._clock()
        values = {"worker": worker, "now": now, "until": now + lease_s}
        return await self._writes.run(lambda db: bool(db.execute(_CLAIM, values).fetchall()))

    async def purge_groups(self, inactive_since_s: float, limit: int) -> int:
        now = self._clock()
        return await self._writes.run(lambda db: _purge(db, inactive_since_s, limit, now))

    async def forget_tombstones(self, before_s: float) -> None:
        await self._writes.run(lambda db: db.execute(_FORGET_TOMBSTONES, (before_s,)))

    async def forget_authors(
        self, inactive_since_s: float, silent_since_s: float, keep: int
    ) -> None:
        values = {
            "inactive_since": inactive_since_s,
            "silent_since": silent_since_s,
            "keep": keep,
        }
        await self._writes.run(lambda db: _forget_authors(db, values))


class _Lane:
    """One connection in one thread, and the transactions of what waits for it."""

    def __init__(self, name: str, kind: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._begin = f"BEGIN {kind}"
        self._numbers = itertools.count()
        self._batches: Batches[tuple[int, _Work], Any] = Batches(
            self._run_many, key=lambda item: item[0], lanes=1, max_items=MAX_BATCH
        )
        self._db: apsw.Connection | None = None

    async def open(self, make: Callable[[], apsw.Connection]) -> None:
        self._db = await asyncio.get_running_loop().run_in_executor(self._thread, make)

    async def close(self) -> None:
        await self._batches.join()
        if self._db is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
        self._thread.shutdown()

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        """``work`` in a transaction that is over, and durable, when this returns."""
        result: T = await self._batches.run((next(self._numbers), work))
        return result

    async def _run_many(self, items: Sequence[tuple[int, _Work]]) -> Sequence[Any]:
        works = [work for _, work in items]
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._transaction, works)
        except apsw.Error as error:
            raise _unavailable(error) from error

    def _transaction(self, works: Sequence[_Work]) -> list[Any]:
        db = self._db
        if db is None:
            raise StoreUnavailable("the store of the view records is not open")
        db.execute(self._begin)
        try:
            results = [_apart(db, work) for work in works]
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return results


def _apart(db: apsw.Connection, work: _Work) -> Any:
    """The result, or the failure of this work alone, of which nothing stays."""
    try:
        with db:
            return work(db)
    except Exception as error:
        if not db.in_transaction:
            # A full disk, for instance: SQLite rolled back what the others wrote, too.
            raise
        return _unavailable(error) if isinstance(error, apsw.Error) else error


def _unavailable(error: Exception) -> StoreUnavailable:
    failure = StoreUnavailable(
        f"the file of the view records failed ({type(error).__name__}: {error})"
    )
    failure.__cause__ = error
    return failure


def _new_author(db: apsw.Connection, now: float) -> int:
    db.execute(_NEW_AUTHOR, (now,))
    return db.last_insert_rowid()


def _of(written: Checkpoint | Delta) -> tuple[str, bytes]:
    return written.version, written.body


def _load(db: apsw.Connection, group_id: str) -> GroupRecord | None:
    group = db.execute(_LOAD_GROUP, (group_id,)).fetchone()
    if group is None:
        return None
    *columns, deleted = group
    return record_of(
        GroupRow(*columns),
        [client for (client,) in db.execute(_LOAD_CLIENTS, (group_id,))],
        [QueryRow(*row) for row in db.execute(_LOAD_QUERIES, (group_id,))],
        [DesireRow(*row) for row in db.execute(_LOAD_DESIRES, (group_id,))],
        deleted=bool(deleted),
    )


def _save(db: apsw.Connection, save: Save, now: float) -> bool:
    """Whether the record was where the save expected it; otherwise nothing is written."""
    values = {
        **msgspec.structs.asdict(save.group),
        "now": now,
        "old_state": save.expected.state,
        "old_config": save.expected.config,
    }
    if not db.execute(_INSERT if save.new else _UPDATE, values).fetchall():
        return False
    for statement, rows in (
        (_DELETE_CLIENT, save.clients_gone),
        (_PUT_CLIENT, save.clients),
        (_DELETE_QUERY, save.queries_gone),
        (_PUT_QUERY, save.queries),
        (_DELETE_DESIRE, save.desires_gone),
        (_PUT_DESIRE, save.desires),
    ):
        db.executemany(statement, [msgspec.structs.astuple(row) for row in rows])
    return True


def _purge(db: apsw.Connection, inactive_since_s: float, limit: int, now: float) -> int:
    groups = db.execute(_INACTIVE, (inactive_since_s, limit)).fetchall()
    for statement in (_PURGE_CLIENTS, _PURGE_QUERIES, _PURGE_DESIRES):
        db.executemany(statement, groups)
    db.executemany(_BURY, [(now, group) for (group,) in groups])
    return len(groups)


def _forget_authors(db: apsw.Connection, values: dict[str, float]) -> None:
    authors = db.execute(_FORGET_AUTHORS, values).fetchall()
    for statement in (_FORGET_CHECKPOINTS, _FORGET_DELTAS):
        db.executemany(statement, authors)


_LOAD_GROUP = """
SELECT "clientGroupID", "stateVersion", "configVersion", "clientSchema", "profileID",
       "replicaVersion", "ttlClock", "provableState", "provableConfig", takeovers,
       "deletedAt" IS NOT NULL
  FROM view_groups WHERE "clientGroupID" = ?
"""
_LOAD_CLIENTS = 'SELECT "clientID" FROM view_clients WHERE "clientGroupID" = ?'
_LOAD_QUERIES = 'SELECT * FROM view_queries WHERE "clientGroupID" = ?'
_LOAD_DESIRES = 'SELECT * FROM view_desires WHERE "clientGroupID" = ?'
_INSERT = """
INSERT INTO view_groups (
    "clientGroupID", "stateVersion", "configVersion", "clientSchema", "profileID",
    "replicaVersion", "ttlClock", "provableState", "provableConfig", takeovers,
    "lastActive")
VALUES (:group_id, :state_version, :config_version, :client_schema, :profile_id,
        :replica_version, :ttl_clock, :provable_state, :provable_config, :takeovers,
        :now)
ON CONFLICT DO NOTHING
RETURNING 1
"""
_UPDATE = """
UPDATE view_groups
   SET "stateVersion" = :state_version, "configVersion" = :config_version,
       "clientSchema" = :client_schema, "profileID" = :profile_id,
       "replicaVersion" = :replica_version, "ttlClock" = :ttl_clock,
       "provableState" = :provable_state,
       "provableConfig" = :provable_config, takeovers = :takeovers, "lastActive" = :now
 WHERE "clientGroupID" = :group_id AND "deletedAt" IS NULL
   AND "stateVersion" = :old_state AND "configVersion" = :old_config
RETURNING 1
"""
_TOUCH = """
UPDATE view_groups SET "ttlClock" = max("ttlClock", ?), "lastActive" = ?
 WHERE "clientGroupID" = ? AND "deletedAt" IS NULL
"""
_DELETE_CLIENT = 'DELETE FROM view_clients WHERE "clientGroupID" = ? AND "clientID" = ?'
_PUT_CLIENT = "INSERT OR IGNORE INTO view_clients VALUES (?, ?)"
_DELETE_QUERY = 'DELETE FROM view_queries WHERE "clientGroupID" = ? AND "queryHash" = ?'
_PUT_QUERY = "INSERT OR REPLACE INTO view_queries VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_DELETE_DESIRE = """
DELETE FROM view_desires WHERE "clientGroupID" = ? AND "clientID" = ? AND "queryHash" = ?
"""
_PUT_DESIRE = "INSERT OR REPLACE INTO view_desires VALUES (?, ?, ?, ?, ?)"
_NEW_AUTHOR = """
INSERT INTO fact_authors ("completeTo", "lastActive") VALUES ('00', ?)
"""
_NOTE_PROGRESS = """
UPDATE fact_authors SET "completeTo" = ?, "lastActive" = ? WHERE author = ? RETURNING 1
"""
_PUT_CHECKPOINT = "INSERT OR REPLACE INTO fact_checkpoints VALUES (?, ?, ?, ?)"
_PUT_DELTA = "INSERT OR REPLACE INTO fact_deltas VALUES (?, ?, ?, ?)"
_DROP_DELTAS_BEFORE = "DELETE FROM fact_deltas WHERE author = ? AND unit = ? AND version < ?"
_DROP_CHECKPOINT = "DELETE FROM fact_checkpoints WHERE author = ? AND unit = ?"
_DROP_DELTAS = "DELETE FROM fact_deltas WHERE author = ? AND unit = ?"
_READ_FACTS = """
SELECT 0, NULL, "completeTo", NULL FROM fact_authors WHERE author = :author
UNION ALL
SELECT 1, unit, version, body FROM fact_checkpoints
 WHERE author = :author AND unit IN (SELECT value FROM json_each(:units))
UNION ALL
SELECT 2, unit, version, body FROM fact_deltas
 WHERE author = :author AND unit IN (SELECT value FROM json_each(:units))
 ORDER BY 1, 2, 3
"""
_CLAIM = """
UPDATE view_meta SET reaper = :worker, "reaperUntil" = :until
 WHERE reaper IS NULL OR reaper = :worker OR "reaperUntil" < :now
RETURNING 1
"""
_INACTIVE = """
SELECT "clientGroupID" FROM view_groups WHERE "deletedAt" IS NULL AND "lastActive" < ?
 ORDER BY "lastActive" LIMIT ?
"""
_PURGE_CLIENTS = 'DELETE FROM view_clients WHERE "clientGroupID" = ?'
_PURGE_QUERIES = 'DELETE FROM view_queries WHERE "clientGroupID" = ?'
_PURGE_DESIRES = 'DELETE FROM view_desires WHERE "clientGroupID" = ?'
_BURY = """
UPDATE view_groups
   SET "deletedAt" = ?, "stateVersion" = '00', "configVersion" = 0, "clientSchema" = NULL,
       "replicaVersion" = NULL, "ttlClock" = 0, "provableState" = '00', "provableConfig" = 0,
       takeovers = '[]'
 WHERE "clientGroupID" = ?
"""
_FORGET_TOMBSTONES = 'DELETE FROM view_groups WHERE "deletedAt" < ?'
_FORGET_AUTHORS = """
DELETE FROM fact_authors
 WHERE "lastActive" < :silent_since
   AND ("lastActive" < :inactive_since
        OR author NOT IN (SELECT author FROM fact_authors WHERE "lastActive" < :silent_since
                           ORDER BY author DESC LIMIT :keep))
RETURNING author
"""
_FORGET_CHECKPOINTS = "DELETE FROM fact_checkpoints WHERE author = ?"
_FORGET_DELTAS = "DELETE FROM fact_deltas WHERE author = ?"
