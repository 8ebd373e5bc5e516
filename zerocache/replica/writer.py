"""The only writer of a finished replica.

Owns transactions: it applies upstream transactions in commit order, several of them in one SQLite
transaction if the caller likes, and moves the replica's state and change log in that same SQLite
transaction. Readers therefore see either all of an upstream transaction, with its schema changes,
its log entries and its version, or nothing of it. It never acknowledges anything: callers ask
:meth:`ReplicaWriter.durable` first.

How rows are applied is relation.py's affair, schema changes schema_apply.py's, backfills
refresh.py's, the log change_log.py's, the WAL file wal.py's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import apsw
import structlog

from zerocache.errors import ReplicaError, ResyncRequired
from zerocache.protocol.versions import Watermark, lexi_decode, lexi_encode
from zerocache.replica import auto_index
from zerocache.replica.auto_index import AutoIndex, IndexWish
from zerocache.replica.change_log import ChangeLog
from zerocache.replica.last_writer import note_writer
from zerocache.replica.layout import (
    FORMAT_VERSION,
    REPLICATION_STATE,
    TableFacts,
    load_config,
    load_tables,
    row_key,
)
from zerocache.replica.pending import Pending, forget_pending, load_pending
from zerocache.replica.planner_statistics import assume_growth
from zerocache.replica.reader import ReplicaState, read_state
from zerocache.replica.refresh import TableRefresh
from zerocache.replica.relation import RelationWriter
from zerocache.replica.schema_apply import announce, apply_changes, build_indexes, shapes
from zerocache.replica.schema_change import AlterTable, Change, CreateTable, disturbs
from zerocache.replica.sql import quote
from zerocache.replica.types import UNCHANGED, SQLiteValue, StoredRow
from zerocache.replica.wal import WalFile

DEFAULT_LOG_ENTRIES = 200_000
DEFAULT_WAL_LIMIT_BYTES = 16 * 1024 * 1024
_BUSY_TIMEOUT_MS = 30_000
_TRUNCATE_WAIT_MS = 4
_END_BUSY_MS = 1_000
_STATEMENT_CACHE = 2_000
_PROGRESS_STEPS = 100_000
_PRAGMAS = (
    "PRAGMA journal_mode = wal",
    "PRAGMA synchronous = normal",
    "PRAGMA cache_size = -65536",
    "PRAGMA temp_store = memory",
    "PRAGMA analysis_limit = 1000",
    "PRAGMA optimize = 0x10002",
)

log = structlog.get_logger(__name__)
T = TypeVar("T")


class ReplicaWriter:
    """Writes upstream transactions into the replica at ``path``.

    * ``begin_transaction`` / row changes / ``end_transaction``, any number of times, then
      ``commit``. Watermarks must rise.
    * ``rollback`` drops *everything* since the last ``commit``, ended transactions included;
      ``state.version`` then says where to resume.
    * Not thread-safe: one thread at a time, except for ``durable``.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        log_entries: int = DEFAULT_LOG_ENTRIES,
        wal_limit_bytes: int = DEFAULT_WAL_LIMIT_BYTES,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._path = Path(path)
        self._now_ms = now_ms
        self._connection = _open(self._path)
        self._state = read_state(self._connection)
        self._tables = load_tables(self._connection)
        self._log = ChangeLog(self._connection, keep=log_entries)
        # Writers of relations in use; the key is everything their SQL depends on.
        self._relations: dict[
            tuple[str, tuple[str, ...], tuple[str, ...] | None], RelationWriter
        ] = {}
        # Backfills that are not complete, by oid of the table, and the one that is under way.
        self._pending = load_pending(self._connection)
        self._refresh: TableRefresh | None = None
        # Tables that the open SQLite transaction leaves incomplete: see interrupted.
        self._interrupted: set[int] = set()
        # True while the open SQLite transaction has changed the schema.
        self._schema_changed = False
        # Rises with every change of a table's facts; who holds a RelationWriter asks anew then.
        self.generation = 0
        # Watermark of the newest ended transaction that is not committed yet.
        self._ended: str | None = None
        self._note_begin()
        self._wal = WalFile(self._connection, self._path, limit_bytes=wal_limit_bytes)

    @property
    def state(self) -> ReplicaState:
        """The state after the last commit: what readers see, and where to resume."""
        return self._state

    @property
    def in_transaction(self) -> bool:
        """True while there is something ``commit`` would commit or ``rollback`` would drop."""
        return self._connection.in_transaction

    def facts(self, table: str) -> TableFacts:
        """What the table was built from; ``ResyncRequired`` if the replica has no such table."""
        try:
            return self._tables[table]
        except KeyError:
            raise ResyncRequired(
                f"upstream sent rows of table {table}, which the replica does not have: it was "
                "added after the initial sync; a new initial sync is needed"
            ) from None

    def relation(
        self, table: str, columns: Sequence[str], key_columns: Sequence[str] | None
    ) -> RelationWriter:
        """The writer for tuples of that shape; see :class:`RelationWriter`."""
        key = None if key_columns is None else tuple(key_columns)
        shape = (table, tuple(columns), key)
        relation = self._relations.get(shape)
        if relation is None:
            relation = RelationWriter(self._connection, self._log, self.facts(table), columns, key)
            if self._refresh is not None and self._refresh.facts.table.wire_name == table:
                relation.watch = self._refresh.watch
            self._relations[shape] = relation
        return relation

    def tables(self) -> Mapping[str, TableFacts]:
        """What every table was built from, by wire name."""
        return self._tables

    def change_schema(self, changes: Sequence[Change]) -> None:
        """Make schema changes, as part of the open upstream transaction."""
        self._log.open_version()
        self._schema_changed = True
        self._interrupted |= _interrupted(changes)
        apply_changes(self._connection, self._log, changes)
        refresh = self._refresh
        if refresh is not None and any(disturbs(change, refresh.facts) for change in changes):
            refresh.watch.cancelled = True
        self._reload()

    @property
    def pending(self) -> Mapping[int, Pending]:
        """Backfills that are not complete, by oid of the table."""
        return self._pending

    @property
    def interrupted(self) -> Collection[int]:
        """Oids of tables of which a commit now would show outdated values, or hide some, until a
        backfill has ended: it is worth a short wait."""
        return self._interrupted & self._pending.keys()

    @property
    def position(self) -> Watermark:
        """The newest ended transaction, whether committed or not."""
        return Watermark(self._ended or self._state.version)

    def start_refresh(self, oid: int) -> TableRefresh:
        """Begin to watch the stream's changes of a table whose rows will be read again."""
        self.stop_refresh()
        facts = next(facts for facts in self._tables.values() if facts.table.oid == oid)
        pending = self._pending[oid]
        hidden = None if pending.whole else pending.hidden_columns(facts)
        self._refresh = TableRefresh(self._connection, self._log, facts, hidden=hidden)
        for relation in self._relations.values():
            if relation.table == facts.table.wire_name:
                relation.watch = self._refresh.watch
        return self._refresh

    def stop_refresh(self) -> None:
        self._refresh = None
        for relation in self._relations.values():
            relation.watch = None

    def end_refresh(self) -> None:
        """The table of the running refresh is complete: show all of it; in a transaction."""
        refresh = self._refresh
        assert refresh is not None
        before = shapes(self._connection)
        self._schema_changed = True
        # The table as it is now: changes that did not disturb the refresh may have altered it.
        facts = self.facts(refresh.facts.table.wire_name)
        forget_pending(self._connection, facts.table.oid)
        build_indexes(self._connection, [facts])
        self._connection.execute(f"ANALYZE {quote(facts.table.wire_name)}")
        assume_growth(self._connection)
        announce(self._connection, self._log, before)
        self.stop_refresh()
        self._reload()

    def next_minor(self) -> str:
        """The version after the newest transaction for what no upstream transaction did."""
        major, _, minor = self.position.partition(".")
        return f"{major}.{lexi_encode(lexi_decode(minor) + 1 if minor else 1)}"

    def begin_transaction(self, watermark: str) -> None:
        """Open an upstream transaction; ``watermark`` becomes the version of what it writes."""
        if self._log.version is not None:
            raise ReplicaError(
                f"transaction {watermark} begins inside transaction {self._log.version}: "
                "upstream transactions do not nest; end or roll back the open one"
            )
        newest = self._ended or self._state.version
        if watermark <= newest:
            raise ReplicaError(
                f"transaction {watermark} is not newer than {newest}, which the replica already "
                "has: versions must rise; skip transactions up to the state's version"
            )
        if not self._connection.in_transaction:
            self._begin()
        self._log.version = watermark

    def end_transaction(self) -> None:
        self._ended = self._log.open_version()
        self._log.version = None

    def commit(self) -> ReplicaState:
        """Commit every ended transaction; returns the state readers see from now on."""
        if self._log.version is not None:
            raise ReplicaError(
                f"transaction {self._log.version} is still open: readers must not see part of "
                "it; call end_transaction() first"
            )
        if self._ended is None:
            return self._state
        old = self._state
        log_pos, log_floor = self._log.finish(old.log_pos, old.log_floor)
        state = ReplicaState(Watermark(self._ended), log_pos, log_floor, old.replica_version)
        self._connection.execute(
            f"UPDATE {REPLICATION_STATE} SET stateVersion = ?, writeTimeMs = ?, "  # noqa: S608
            "logPos = ?, logFloor = ?",
            (state.version, self._now_ms(), state.log_pos, state.log_floor),
        )
        self._connection.execute("COMMIT")
        self._state = state
        self._ended = None
        self._schema_changed = False
        self._interrupted.clear()
        return state

    def rollback(self) -> ReplicaState:
        """Forget everything since the last commit."""
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._log.discard()
        self._ended = None
        # It has seen writes that are undone.
        self.stop_refresh()
        self._interrupted.clear()
        if self._schema_changed:
            self._schema_changed = False
            self._reload()
        return self._state

    def durable(self) -> ReplicaState:
        """The state when called, once it survives a power loss (wal.py says why).

        May run in another thread than the writes; upstream may be acknowledged up to the result.
        """
        state = self._state
        self._wal.sync()
        return state

    def maintain(self, move_readers: Callable[[], None] | None = None) -> None:
        """Keep the WAL small; call after commits, once readers have been told of them.

        ``move_readers`` announces the current version again (notifier.py).
        """
        if not self._connection.in_transaction:
            self._wal.maintain(move_readers, wait_ms=_TRUNCATE_WAIT_MS)

    def read(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run a function that only reads; inside a transaction it sees what is uncommitted."""
        return function(self._connection)

    def auto_indexes(self) -> list[AutoIndex]:
        """The indexes of the engine's own, by name."""
        return auto_index.auto_indexes(self._connection)

    def change_auto_indexes(
        self,
        change: Callable[[apsw.Connection], None],
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run ``change`` (made of auto_index.py's functions) in a transaction of its own.

        Only between transactions. ``apsw.InterruptError`` once ``interrupted`` returns True; like
        after any other exception nothing is changed then.
        """
        if self.in_transaction:
            raise ReplicaError(
                "the automatic indexes cannot be changed inside a transaction: building one may "
                "fail, and must not take rows with it; commit first"
            )
        self._begin()
        self._connection.set_progress_handler(interrupted, _PROGRESS_STEPS)
        try:
            change(self._connection)
        except BaseException:
            self._connection.set_progress_handler(None)
            self.rollback()
            raise
        self._connection.set_progress_handler(None)
        self._connection.execute("COMMIT")

    def create_auto_index(self, wish: IndexWish, interrupted: Callable[[], bool]) -> None:
        """Build an index of the engine's own; see :meth:`change_auto_indexes`."""
        # The keys of a large table are sorted on disk, not in memory.
        self._connection.execute("PRAGMA temp_store = file")
        try:
            self.change_auto_indexes(
                lambda db: auto_index.create_auto_index(db, wish, self._now_ms()), interrupted
            )
        finally:
            self._connection.execute("PRAGMA temp_store = memory")

    def drop_auto_indexes(self, names: Iterable[str]) -> None:
        def drop(connection: apsw.Connection) -> None:
            for name in names:
                auto_index.drop_auto_index(connection, name)

        self.change_auto_indexes(drop)

    def close(self) -> None:
        """Roll back what is not committed and close the file."""
        self.rollback()
        self._note_end()
        self._wal.close()
        self._connection.close()

    def insert(self, table: str, values: Mapping[str, SQLiteValue]) -> None:
        self._default_relation(table).insert(self._row(table, values))

    def update(
        self, table: str, key: Mapping[str, SQLiteValue] | None, values: Mapping[str, SQLiteValue]
    ) -> None:
        """Update the row with the old ``key``; without one, the row ``values`` identifies.

        Columns missing from ``values`` keep theirs.
        """
        new = self._row(table, values)
        if key is None:
            self._default_relation(table).update(None, new)
        else:
            self._keyed_relation(table, key).update(self._row(table, key), new)

    def delete(self, table: str, key: Mapping[str, SQLiteValue]) -> None:
        self._keyed_relation(table, key).delete(self._row(table, key))

    def truncate(self, tables: Iterable[str]) -> None:
        for table in tables:
            self._default_relation(table).truncate()

    def _default_relation(self, table: str) -> RelationWriter:
        facts = self.facts(table)
        return self.relation(table, self._column_names(facts), row_key(facts))

    def _keyed_relation(self, table: str, key: Mapping[str, SQLiteValue]) -> RelationWriter:
        columns = self._column_names(self.facts(table))
        whole_row = len(key) == len(columns)
        return self.relation(table, columns, None if whole_row else tuple(sorted(key)))

    def _column_names(self, facts: TableFacts) -> tuple[str, ...]:
        return tuple(column.name for column in facts.table.columns)

    def _row(self, table: str, values: Mapping[str, SQLiteValue]) -> StoredRow:
        return [values.get(name, UNCHANGED) for name in self._column_names(self.facts(table))]

    def _reload(self) -> None:
        """Read again what the schema is; writers of relations made before are void."""
        self._tables = load_tables(self._connection)
        self._pending = load_pending(self._connection)
        self._relations.clear()
        self.generation += 1

    def _begin(self) -> None:
        while True:
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except apsw.BusyError:
                # Only foreign tools compete for this lock; giving up would not release it.
                log.warning("replica_locked", path=str(self._path), waited_ms=_BUSY_TIMEOUT_MS)
            else:
                return

    def _note_end(self) -> None:
        """Without the note the next start may read the file in full, and that is all."""
        self._connection.set_busy_timeout(_END_BUSY_MS)
        try:
            with self._connection:
                note_writer(self._connection, ended=True)
        except apsw.Error as error:
            log.info("end_not_noted", path=str(self._path), reason=str(error))

    def _note_begin(self) -> None:
        """A write that changes nothing readers look at; from here on the WAL file exists."""
        self._begin()
        note_writer(self._connection, ended=False)
        self._connection.execute("COMMIT")


def _interrupted(changes: Iterable[Change]) -> set[int]:
    return {
        change.new.table.oid
        for change in changes
        if isinstance(change, AlterTable) and (change.hidden or change.refresh)
    } | {
        change.facts.table.oid
        for change in changes
        if isinstance(change, CreateTable) and change.backfill
    }


def _open(path: Path) -> apsw.Connection:
    if not path.is_file():
        raise ReplicaError(
            f"the replica {path} does not exist: there is nothing to apply changes to; "
            "run the initial sync first",
            code="ZC301",
        )
    connection = apsw.Connection(
        str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=_STATEMENT_CACHE
    )
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    config = load_config(connection)
    if config is None or config.format_version != FORMAT_VERSION:
        found = "no replica" if config is None else f"a replica of format {config.format_version}"
        connection.close()
        raise ReplicaError(
            f"{path} holds {found}: this program reads and writes format {FORMAT_VERSION}; "
            "delete the file so that a new initial sync creates it"
        )
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    assume_growth(connection)
    return connection
