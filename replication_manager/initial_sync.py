"""The initial sync: a new replica from a snapshot of upstream.

Owns the sequence slot → snapshot → copy → indexes → rename, and its progress reports. The replica's
own path is touched by nothing but the final rename, so a crash at any moment leaves either the
old replica or the new one, and leftovers (temporary file, slot, ``replicas`` row) that the next
attempt removes. Invariant: a replica that is in place has a finished ``replicas`` row upstream
whose slot yields every transaction after the snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
import structlog

from replication_manager.refused_values import refused
from replication_manager.signals import StopSignal
from replication_manager.slot import ClaimedSlot, claim_new_slot, finish_claim
from replication_manager.table_copy import (
    BinaryCopies,
    TableSize,
    copy_tables,
    lock_tables,
    open_snapshot,
    read_sizes,
    share_locks,
)
from zerocache.errors import UpstreamSetupError
from zerocache.failpoints import Place, reach
from zerocache.postgres.connection import MISSING_PRIVILEGE, explain, redact
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.shard import ShardNames
from zerocache.postgres.validation import check_schema
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.copy_binary import plan_of
from zerocache.replica.copy_text import decode_fields
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import PublishedSchema, PublishedTable
from zerocache.replica.types import SQLiteValue, TextDecoder, column_decoder

_REPORT_INTERVAL_S = 1.0
_MEGABYTE = 1_000_000

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SyncSettings:
    """``report`` gets a line for people about once a second, ``claimed`` the new slot's name."""

    url: str
    shard: ShardNames
    replica_file: Path
    workers: int
    failover: bool = False
    report: Callable[[str], None] = lambda _: None
    claimed: Callable[[str], object] = lambda _: None
    monotonic: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class _Progress:
    """Counts rows and bytes, and reports them now and then."""

    settings: SyncSettings
    total_rows: int
    total_tables: int
    started_s: float
    rows: int = 0
    size_bytes: int = 0
    # Names of tables of which at least one row has arrived.
    seen: set[str] = field(default_factory=set)
    reported_s: float = 0.0

    def add(self, table: PublishedTable, rows: int, size_bytes: int) -> None:
        self.rows += rows
        self.size_bytes += size_bytes
        self.seen.add(table.wire_name)
        now = self.settings.monotonic()
        if now - self.reported_s >= _REPORT_INTERVAL_S:
            self.reported_s = now
            self.settings.report(self._line(now))

    def _line(self, now: float) -> str:
        elapsed = max(now - self.started_s, 0.001)
        rate = self.rows / elapsed
        missing = self.total_rows - self.rows
        # Estimates of never analysed tables are zero: then there is no telling.
        eta = f", about {missing / rate:.0f} s left" if missing > 0 and rate > 0 else ""
        return (
            f"initial sync: {self.rows:,} of about {max(self.total_rows, self.rows):,} rows, "
            f"{self.size_bytes / _MEGABYTE:.1f} MB, {rate:,.0f} rows/s, "
            f"{len(self.seen)} of {self.total_tables} tables begun{eta}"
        )

    def finish(self) -> None:
        seconds = self.settings.monotonic() - self.started_s
        self.settings.report(
            f"initial sync: copied {self.rows:,} rows ({self.size_bytes / _MEGABYTE:.1f} MB) of "
            f"{self.total_tables} tables in {seconds:.2f} s"
        )


def run_initial_sync(settings: SyncSettings, stop: StopSignal) -> None:
    """Replace the replica file by a fresh one; upstream must have been set up.

    Raises ``Stopped`` when asked to end, ``ConfigurationError`` for what an operator must change
    and ``ReplicationError`` or ``psycopg.Error`` for what another attempt may cure.
    """
    settings.report("initial sync: creating a replication slot")
    with claim_new_slot(settings.url, settings.shard, stop, failover=settings.failover) as claimed:
        reach(Place.SLOT_CLAIMED)
        settings.claimed(claimed.name)
        try:
            _build_replica(settings, claimed, stop)
        except psycopg.errors.InsufficientPrivilege as error:
            raise UpstreamSetupError(
                f"the initial sync may not read everything that is published "
                f"({error.diag.message_primary}): GRANT SELECT on the published tables and USAGE "
                "on their schemas to the role, which must not be subject to row security either",
                code=MISSING_PRIVILEGE,
            ) from error
        except psycopg.OperationalError as error:
            raise explain(error, settings.url, "the initial sync") from error


def _build_replica(settings: SyncSettings, claimed: ClaimedSlot, stop: StopSignal) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(
            open_snapshot(settings.url, "initial-sync-copy", claimed.snapshot)
        )
        schema = read_published_schema(first, settings.shard.all_publications)
        check_schema(schema, settings.shard)
        lock_tables(first, schema.tables)
        sizes = read_sizes(first, schema.tables)
        connections = [first]
        for _ in range(min(settings.workers, len(schema.tables)) - 1):
            connection = stack.enter_context(
                open_snapshot(settings.url, "initial-sync-copy", claimed.snapshot)
            )
            if not share_locks(connection, schema.tables):
                log.warning("initial_sync_less_parallel", connections=len(connections))
                break
            connections.append(connection)
        loader = stack.enter_context(
            BulkLoader(settings.replica_file, _replica_config(settings, claimed), schema)
        )
        log.info("initial_sync_started", upstream=redact(settings.url), version=claimed.version)
        _copy(settings, schema, sizes, connections, loader, stop)
        _finish(settings, claimed, schema, loader)


def _replica_config(settings: SyncSettings, claimed: ClaimedSlot) -> ReplicaConfig:
    return ReplicaConfig(
        replica_version=claimed.version,
        publications=settings.shard.all_publications,
        app_id=settings.shard.app_id,
        shard_num=settings.shard.number,
    )


def _copy(
    settings: SyncSettings,
    schema: PublishedSchema,
    sizes: dict[int, TableSize],
    connections: list[psycopg.Connection[Any]],
    loader: BulkLoader,
    stop: StopSignal,
) -> None:
    progress = _Progress(
        settings,
        total_rows=sum(size.rows for size in sizes.values()),
        total_tables=len(schema.tables),
        started_s=settings.monotonic(),
    )
    decoders: dict[int, list[TextDecoder | None]] = {
        table.oid: [column_decoder(column) for column in table.columns] for table in schema.tables
    }

    def store_values(
        table: PublishedTable, values: list[SQLiteValue], rows: int, size: int
    ) -> None:
        try:
            loader.insert_values(table.wire_name, values)
        except apsw.TooBigError as error:
            raise refused(error, table.wire_name) from None
        progress.add(table, rows, size)
        reach(Place.COPYING)

    def store(table: PublishedTable, lines: bytes, count: int) -> None:
        if not table.columns:
            loader.insert_rows(table.wire_name, [()] * count)
            return
        try:
            values = decode_fields(lines, decoders[table.oid])
        except ValueError as error:
            raise refused(error, table.wire_name) from None
        store_values(table, values, count, len(lines) + 1)

    plans = {table.oid: plan for table in schema.tables if (plan := plan_of(table)) is not None}
    binary = BinaryCopies(plans, store_values)
    copy_tables(settings.url, connections, schema.tables, sizes, store, stop, binary)
    progress.finish()


def _finish(
    settings: SyncSettings, claimed: ClaimedSlot, schema: PublishedSchema, loader: BulkLoader
) -> None:
    context = msgspec.json.encode({"finishedAtMs": time.time_ns() // 1_000_000})

    def tell(text: str) -> None:
        settings.report(f"initial sync: {text}")
        reach(Place.INDEXING)

    loader.complete(tell)
    reach(Place.COPY_DURABLE)
    # Before the rename, and right before it: a finished row without a file costs a slot until the
    # next take-over, a file without a finished row would cost the whole sync.
    finish_claim(settings.url, settings.shard, claimed, msgspec.json.encode(schema), context)
    reach(Place.CLAIM_FINISHED)
    loader.replace()
    reach(Place.REPLICA_REPLACED)
    log.info("initial_sync_finished", version=claimed.version, slot=claimed.name)
