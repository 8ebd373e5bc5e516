"""Reads tables again beside the running stream, for what the stream does not bring.

Owns the passes over one table at a time: a temporary slot yields a snapshot at an exact position, a
thread copies the table out of it, and the stream's thread merges chunks between upstream's
transactions, once the stream itself has passed the snapshot. It commits nothing: that is the
stream's part, which holds commits back for a moment (:attr:`Backfiller.holds`) where a backfill
that ends soon spares readers an interruption. The list of what is to be done is in
the replica (pending.py) and how rows are merged in refresh.py. Invariant: rows of a snapshot are
only applied when every transaction before it has been applied, and none of the schema changes that
followed it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import apsw
import psycopg
import structlog
from msgspec import structs

from replication_manager.refused_values import refused
from replication_manager.signals import Stopped, StopSignal
from replication_manager.table_copy import copy_tables, lock_tables, open_snapshot, read_sizes
from replication_manager.walsender import ReplicationConnection, StreamEnded
from zerocache.errors import ZerocacheError
from zerocache.failpoints import Place, reach
from zerocache.postgres.connection import abort, connect
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn, lsn_from_watermark, watermark_from_lsn
from zerocache.replica.copy_text import decode_rows
from zerocache.replica.published import PublishedTable
from zerocache.replica.refresh import TableRefresh
from zerocache.replica.types import SQLiteValue, column_decoder
from zerocache.replica.writer import ReplicaWriter

_SLOT_LOCK_TIMEOUT_MS = 29_000
_FIRST_BACKOFF_S = 2.0
_LONGEST_BACKOFF_S = 60.0
# The schema moved on while a pass began; the announcement is on its way.
_MISMATCH_RETRY_S = 0.2
# How long readers are kept at the time before a schema change that takes something from them.
# Nothing else is replicated meanwhile.
_HOLD_S = 3.0
_CHUNKS_AHEAD = 2
_QUEUE_POLL_S = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The copy begins; ``table`` as the snapshot has it, None if it is not published there."""

    position: Lsn
    table: PublishedTable | None


@dataclass(frozen=True, slots=True)
class Rows:
    rows: list[tuple[SQLiteValue, ...]]


@dataclass(frozen=True, slots=True)
class Copied:
    """The last row has been handed over."""


@dataclass(frozen=True, slots=True)
class Failed:
    error: Exception


Item = Snapshot | Rows | Copied | Failed


class _Reader:
    """One copy of one table; items appear in :attr:`items`, the last one Copied or Failed."""

    def __init__(self, url: str, shard: ShardNames, oid: int) -> None:
        self._url = url
        self._shard = shard
        self._oid = oid
        self._stop = StopSignal()
        # What the thread may be waiting for when it is asked to end.
        self._connection: psycopg.Connection[Any] | None = None
        self.items: queue.Queue[Item] = queue.Queue(maxsize=_CHUNKS_AHEAD)
        self._thread = threading.Thread(target=self._run, name="backfill", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        connection = self._connection
        if connection is not None:
            abort(connection)
        self._thread.join()
        self._stop.close()

    def _run(self) -> None:
        try:
            self._copy()
            self._put(Copied())
        except Stopped:
            return
        except (psycopg.Error, ZerocacheError, StreamEnded, OSError, ValueError) as error:
            self._report(error)

    def _report(self, error: Exception) -> None:
        try:
            self._put(Failed(error))
        except Stopped:
            return

    def _put(self, item: Item) -> None:
        while True:
            self._stop.check()
            try:
                self.items.put(item, timeout=_QUEUE_POLL_S)
            except queue.Full:
                continue
            return

    def _copy(self) -> None:
        name = f"{self._shard.slot_prefix}bf_{time.time_ns() // 1_000_000}_{self._oid}"
        with ReplicationConnection(self._url, "backfill-slot", self._stop) as walsender:
            # Creating a slot waits for all running transactions: those that wrote before the
            # table was published would be in neither the snapshot nor the stream otherwise.
            slot = walsender.create_slot(
                name, failover=False, lock_timeout_ms=_SLOT_LOCK_TIMEOUT_MS, temporary=True
            )
            connection = open_snapshot(self._url, "backfill-copy", slot.snapshot)
        self._connection = connection
        with connection:
            schema = read_published_schema(connection, self._shard.all_publications)
            table = next((table for table in schema.tables if table.oid == self._oid), None)
            if table is not None:
                lock_tables(connection, [table])
            self._move_stream()
            self._put(Snapshot(slot.consistent_point, table))
            if table is not None:
                sizes = read_sizes(connection, [table])
                sink = self._sink(table)
                copy_tables(self._url, [connection], [table], sizes, sink, self._stop)

    def _move_stream(self) -> None:
        """A transaction after the snapshot, so that an idle stream passes it, too."""
        with connect(self._url, "backfill") as connection:
            connection.execute(
                "SELECT pg_logical_emit_message(true, %s, '')", [self._shard.backfill_prefix]
            )

    def _sink(self, table: PublishedTable) -> Callable[[PublishedTable, bytes, int], None]:
        decoders = [column_decoder(column) for column in table.columns]

        def store(_: PublishedTable, lines: bytes, count: int) -> None:
            self._put(Rows([*decode_rows(lines, decoders)]))

        return store


@dataclass(slots=True)
class _Pass:
    oid: int
    refresh: TableRefresh
    reader: _Reader
    snapshot: Snapshot | None = None
    # Whether the first chunk was merged.
    begun: bool = False
    rows: int = 0


def _row_shape(table: PublishedTable) -> tuple[object, ...]:
    """What rows are read and matched by: GRANT, VACUUM FULL or SET DEFAULT change nothing of it."""
    columns = [
        structs.replace(column, default=None, written="", has_missing=False, default_oid=0)
        for column in table.columns
    ]
    return columns, table.primary_key, table.wire_name


class Backfiller:
    """Belongs to the stream's thread. ``step`` is called between transactions, often; what it
    writes are ended transactions of the writer."""

    def __init__(
        self,
        url: str,
        shard: ShardNames,
        writer: ReplicaWriter,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._shard = shard
        self._writer = writer
        self._now = monotonic
        self._pass: _Pass | None = None
        # When a table that failed may be tried again, and how long it waits the next time.
        self._not_before: dict[int, float] = {}
        self._backoff_s: dict[int, float] = {}
        # When the hold ends that is under way.
        self._hold_until: float | None = None

    @property
    def holds(self) -> bool:
        """Whether commits should wait: a table that readers use is about to be complete again."""
        if not self._writer.interrupted:
            self._hold_until = None
            return False
        if self._hold_until is None:
            self._hold_until = self._now() + _HOLD_S
        return self._now() < self._hold_until

    @property
    def active(self) -> bool:
        """Whether chunks may arrive at any moment."""
        return self._pass is not None

    @property
    def active_or_due(self) -> bool:
        return self._pass is not None or bool(self._writer.pending)

    def close(self) -> None:
        self._end_pass()

    def step(self) -> bool:
        """Do a little; True if something was written. Never waits for upstream."""
        running = self._pass
        if running is None:
            self._begin_pass()
            return False
        if running.refresh.watch.cancelled or running.oid not in self._writer.pending:
            log.info("backfill_cancelled", table=running.refresh.facts.table.wire_name)
            self._end_pass()
            return False
        if running.snapshot is not None and not self._has_passed(running.snapshot):
            return False
        try:
            item = running.reader.items.get_nowait()
        except queue.Empty:
            return False
        return self._handle(running, item)

    def _has_passed(self, snapshot: Snapshot) -> bool:
        return lsn_from_watermark(self._writer.position) >= snapshot.position

    def _begin_pass(self) -> None:
        now = self._now()
        interrupted = self._writer.interrupted
        for oid in sorted(self._writer.pending, key=lambda oid: oid not in interrupted):
            if self._not_before.get(oid, 0.0) <= now:
                # The watch begins before the snapshot is taken: nothing falls between them.
                refresh = self._writer.start_refresh(oid)
                self._pass = _Pass(oid, refresh, _Reader(self._url, self._shard, oid))
                log.info("backfill_started", table=refresh.facts.table.wire_name)
                return

    def _end_pass(self) -> None:
        if self._pass is not None:
            self._pass.reader.close()
            self._pass = None
            self._writer.stop_refresh()

    def _handle(self, running: _Pass, item: Item) -> bool:
        if isinstance(item, Snapshot):
            running.snapshot = item
            return False
        if isinstance(item, Failed):
            self._retry_later(running, item.error)
            return False
        if not self._fits(running):
            self._not_before[running.oid] = self._now() + _MISMATCH_RETRY_S
            self._end_pass()
            return False
        if isinstance(item, Rows):
            return self._merge(running, item)
        return self._finish(running)

    def _fits(self, running: _Pass) -> bool:
        """Whether the snapshot's table is the one the replica has now."""
        table = running.snapshot.table if running.snapshot else None
        facts = running.refresh.facts.table
        return table is not None and _row_shape(table) == _row_shape(facts)

    def _merge(self, running: _Pass, item: Rows) -> bool:
        refresh = running.refresh
        if not refresh.is_possible:
            self._retry_later(running, None)
            return False
        self._begin_transaction(running)
        try:
            refresh.apply(item.rows)
        except apsw.TooBigError as error:
            raise refused(error, refresh.facts.table.wire_name) from None
        self._writer.end_transaction()
        reach(Place.MID_BACKFILL)
        running.rows += len(item.rows)
        return True

    def _finish(self, running: _Pass) -> bool:
        table = running.refresh.facts.table.wire_name
        self._begin_transaction(running)
        complete = not running.refresh.is_possible or running.refresh.finish()
        if complete:
            self._writer.end_refresh()
        self._writer.end_transaction()
        if complete:
            log.info("backfill_finished", table=table, rows=running.rows)
            self._backoff_s.pop(running.oid, None)
            self._end_pass()
        else:
            log.info("backfill_repeated", table=table, rows=running.rows)
            self._repeat(running)
        return True

    def _begin_transaction(self, running: _Pass) -> None:
        self._writer.begin_transaction(self._writer.next_minor())
        if not running.begun and running.snapshot is not None:
            running.begun = True
            running.refresh.begin(watermark_from_lsn(running.snapshot.position))

    def _repeat(self, running: _Pass) -> None:
        """Another pass for the rows that changed too fast; what is good stays good."""
        running.reader.close()
        running.refresh.watch.next_pass()
        running.reader = _Reader(self._url, self._shard, running.oid)
        running.snapshot = None
        running.begun = False

    def _retry_later(self, running: _Pass, error: Exception | None) -> None:
        wait_s = self._backoff_s.get(running.oid, _FIRST_BACKOFF_S)
        self._backoff_s[running.oid] = min(2 * wait_s, _LONGEST_BACKOFF_S)
        self._not_before[running.oid] = self._now() + wait_s
        if self._hold_until is not None:
            self._hold_until = self._now()
        reason = "the table has no key to match rows by" if error is None else str(error)
        log.warning(
            "backfill_failed",
            table=running.refresh.facts.table.wire_name,
            reason=reason,
            retry_s=wait_s,
        )
        self._end_pass()
