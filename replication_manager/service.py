"""The replication process' work, from an empty disk to a stream that outlives restarts.

Owns the order of things (set-up, replica, slot, stream), and what follows from each failure: try
again, sync anew, or give up. It runs in one thread of its own and never serves anybody; what
others need to know goes through the callbacks. Invariant: a replica that cannot follow upstream is
replaced or left as it stands, never patched up. Changes of the schema are followed where event
triggers announce them; without those they are looked for, and end in a new sync.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
import structlog

from replication_manager.announcer import HiddenAnnouncer
from replication_manager.applier import Applier
from replication_manager.backfill import Backfiller
from replication_manager.change_log import ChangeLogKeeper
from replication_manager.change_store import LOG_BYTES
from replication_manager.history import read_history, require_same_past
from replication_manager.indexes import IndexKeeper
from replication_manager.initial_sync import SyncSettings, run_initial_sync
from replication_manager.lag_reports import LagReports
from replication_manager.local_replica import require_usable
from replication_manager.memory import return_free_memory
from replication_manager.partition_roots import StreamOutdated
from replication_manager.position import SlotPosition
from replication_manager.schema_drift import SchemaWatch, by_name, drift_error, schema_differences
from replication_manager.schema_events import SchemaEvents, SchemaMemory
from replication_manager.schema_guard import SchemaGuard
from replication_manager.signals import Stopped, StopSignal
from replication_manager.slot import (
    Displaced,
    UsableSlot,
    check_replication_role,
    find_slot,
    start_streaming,
    take_over,
)
from replication_manager.slot_guard import SlotGuard
from replication_manager.stream import ChangeStream, StreamLimits
from replication_manager.walsender import ReplicationConnection, StreamEnded
from zerocache.config import Config
from zerocache.errors import (
    ConfigurationError,
    ReplicaError,
    ReplicationError,
    ResyncRequired,
)
from zerocache.metrics import Metrics
from zerocache.postgres.connection import connect, is_transient
from zerocache.postgres.setup import Upstream, set_up_upstream
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Watermark, lsn_from_watermark, lsn_to_text
from zerocache.replica import damage
from zerocache.replica.layout import load_tables
from zerocache.replica.reader import open_replica, read_state
from zerocache.replica.writer import ReplicaWriter

_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 15.0
# How long a database may be away when we start; containers often start before it.
_STARTUP_PATIENCE_S = 60.0
_STABLE_AFTER_S = 30.0
# Of the disk, or of the limits set for this process.
_NOT_WRITABLE = (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.ReadOnlyError, OSError)
# Those of them that say that the path is wrong, if it never could be written.
_WRONG_PATH = (
    apsw.CantOpenError, apsw.ReadOnlyError,
    PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError,
)  # fmt: skip
_DECODING_ATTEMPTS = 5
# With these the server ends a stream that can never get further.
_UNUSABLE = (psycopg.errors.UndefinedObject, psycopg.errors.ObjectNotInPrerequisiteState)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """All are called from the service's thread."""

    ready: Callable[[], None]
    publish: Callable[[Watermark], None]
    progress: Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _SchemaCalls:
    """What the stream tells who looks after the schema: now and then, before the rows of a relation
    (with the position), and after an announced change."""

    check: Callable[[], None]
    confirm: Callable[[int], None]
    changed: Callable[[], None]


class ReplicationService:
    """``run`` returns when asked to stop and raises what only an operator can mend."""

    def __init__(
        self,
        config: Config,
        callbacks: Callbacks,
        stop: StopSignal,
        indexes: IndexKeeper,
        metrics: Metrics,
    ) -> None:
        self._config = config
        self._callbacks = callbacks
        self._stop = stop
        self._indexes = indexes
        self._url = config.upstream.db
        self._file = Path(config.replica.file)
        self._shard = ShardNames(
            config.app.id, config.shard.num, tuple(sorted(config.app.publications))
        )
        self._metrics = metrics
        self._change_log = ChangeLogKeeper(config, self._shard, metrics)
        self._reports = LagReports(self._shard, metrics)
        # What was found about the slot; None before the first stream.
        self._guard: SlotGuard | None = None
        # The newest version that was announced.
        self._version: Watermark | None = None
        # Tells our walsender from that of another node in pg_stat_activity, which cuts at 63.
        self._purpose = f"replication-{config.task_id}"[:58]
        self._hidden = HiddenAnnouncer()
        # What transactions under way may still bring.
        self._memory = SchemaMemory()
        self._backoff_s = _FIRST_BACKOFF_S
        # Since when the upstream database may have been away.
        self._started_s = time.monotonic()
        # True once a stream was begun: from then on workers serve, and only waiting is left.
        self._was_ready = False
        # How often in a row the server ended the stream with an internal error.
        self._decoding_failures = 0
        # Why the present replica is of no use; set by the session that found out.
        self._resync_reason: ResyncRequired | None = None

    def run(self) -> None:
        try:
            while True:
                self._stop.check()
                session_s = time.monotonic()
                self._run_session()
                if time.monotonic() - session_s >= _STABLE_AFTER_S:
                    # The database was there all the time; a copy that broke off is begun again.
                    self._backoff_s = _FIRST_BACKOFF_S
                    self._started_s = time.monotonic()
                self._stop.wait(self._backoff_s)
                self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        except Stopped:
            return
        finally:
            self._leave_slot()

    def _run_session(self) -> None:
        """One session, and what follows from its end."""
        try:
            self._session()
        except ResyncRequired as reason:
            self._resync(reason)
        except Displaced:
            raise
        except StreamOutdated:
            log.info("replication_reconnects", reason="partitions have another root")
            self._backoff_s = _FIRST_BACKOFF_S
        except (apsw.CorruptError, apsw.NotADBError, ReplicaError) as error:
            self._resync(_corrupt(self._file, error))
        except StreamEnded as ended:
            if isinstance(ended.cause, _UNUSABLE):
                self._resync(_unusable(ended.cause))
            elif self._is_undecodable(ended.cause):
                self._resync(_undecodable(ended.cause))
            else:
                self._recover(ended)
        except (ConfigurationError, ReplicationError, psycopg.Error) as error:
            self._recover(error)
        except _NOT_WRITABLE as error:
            self._wait_for_space(error)

    def _is_undecodable(self, cause: psycopg.Error | None) -> bool:
        """Whether the server itself fails again and again to read its WAL."""
        failed = isinstance(cause, psycopg.errors.InternalError_)
        self._decoding_failures = self._decoding_failures + 1 if failed else 0
        return self._decoding_failures >= _DECODING_ATTEMPTS

    def _resync(self, reason: ResyncRequired) -> None:
        if not self._config.auto_reset:
            error = ConfigurationError(
                f"{reason}, but ZERO_AUTO_RESET is off: delete {self._file} and restart, or turn "
                "it on",
                code=reason.code,
            )
            if not self._was_ready:
                raise error from reason
            # Stale data is served on until the next start: the operator asked for that.
            log.error("replication_halted", reason=str(error))
            self._stop.wait(None)
        self._decoding_failures = 0
        self._resync_reason = reason

    def _recover(self, error: Exception) -> None:
        """Return if another attempt makes sense, else raise ``error``."""
        if isinstance(error, ConfigurationError) and not self._was_ready:
            waited_s = time.monotonic() - self._started_s
            if not is_transient(error) or waited_s > _STARTUP_PATIENCE_S:
                raise error
            self._callbacks.progress(f"waiting for the upstream database: {error}")
        self._metrics.count("replication.interruptions")
        log.warning("replication_interrupted", reason=str(error), retry_s=self._backoff_s)

    def _wait_for_space(self, error: Exception) -> None:
        """What is complete stays, the rest comes again; readers are served meanwhile."""
        reason = f"{type(error).__name__}: {error}"
        if not self._was_ready and isinstance(error, _WRONG_PATH):
            raise ConfigurationError(
                f"the replica {self._file} cannot be written ({reason}): point ZERO_REPLICA_FILE "
                "to a file in a directory in which the user that runs this may create files"
            ) from error
        self._callbacks.progress(f"the replica cannot be written ({reason}); free disk space")
        log.error(
            "replica_not_writable",
            file=str(self._file),
            reason=reason,
            advice="nothing was acknowledged upstream; free disk space, then it goes on",
            retry_s=self._backoff_s,
        )

    def _session(self) -> None:
        """Everything between two failures."""
        if not self._was_ready:
            check_replication_role(self._url, self._stop)
            self._change_log.check_publications()
        upstream = set_up_upstream(self._url, self._shard)
        self._hidden.announce(upstream.schema)
        if not self._was_ready:
            self._change_log.check()
        self._ensure_replica(upstream)
        writer = ReplicaWriter(self._file)
        try:
            self._stream(upstream, writer)
        finally:
            writer.close()

    def _ensure_replica(self, upstream: Upstream) -> None:
        try:
            if self._resync_reason is not None:
                raise self._resync_reason
            require_usable(self._file, self._shard, self._callbacks.progress)
            self._require_matching(upstream)
            return
        except ResyncRequired as reason:
            if self._file.exists():
                if not self._config.auto_reset:
                    raise
                log.warning("replica_reset", file=str(self._file), reason=str(reason))
        settings = SyncSettings(
            url=self._url,
            shard=self._shard,
            replica_file=self._file,
            workers=self._config.initial_sync.table_copy_workers,
            failover=self._config.upstream.pg_replication_slot_failover,
            report=self._callbacks.progress,
            # While it copies, nothing is acknowledged: that is when a slot is lost most easily.
            claimed=self._watch_slot,
        )
        self._leave_slot()
        result = "error"
        try:
            run_initial_sync(settings, self._stop)
            result = "success"
        except BaseException:
            self._leave_slot()
            raise
        finally:
            self._metrics.count("replication.initial_sync_runs", result=result)
        return_free_memory()
        self._resync_reason = None
        self._memory = SchemaMemory()

    def _require_matching(self, upstream: Upstream) -> None:
        """The replica fits the published schema, and there is a slot for it."""
        connection = open_replica(self._file)
        try:
            tables = load_tables(connection)
            state = read_state(connection)
        finally:
            connection.close()
        # With detection the stream will tell, at the right place between the rows; and so it does
        # of what was announced by hand.
        before = tables if upstream.announced is None else by_name(upstream.announced)
        if not upstream.ddl_detection and (
            differences := schema_differences(before, upstream.schema)
        ):
            raise drift_error(differences)
        with connect(self._url, "slot-management") as control:
            find_slot(control, self._shard, state.replica_version)

    def _stream(self, upstream: Upstream, writer: ReplicaWriter) -> None:
        with ExitStack() as stack:
            with connect(self._url, "slot-management") as control:
                slot = find_slot(control, self._shard, writer.state.replica_version)
                # The slot is watched even while the change database is away.
                self._watch_slot(slot.name)
                position = stack.enter_context(closing(SlotPosition(self._file)))
                self._require_same_past(writer, position, slot)
                # Before the other's walsender is ended: it must find out that it was succeeded.
                change_log = self._change_log.claim(stack)
                take_over(
                    control,
                    self._shard,
                    slot.name,
                    name=f"zero-{self._purpose}",
                    returning=self._was_ready,
                )
            connection = stack.enter_context(
                ReplicationConnection(self._url, self._purpose, self._stop)
            )
            backfiller = stack.enter_context(closing(Backfiller(self._url, self._shard, writer)))
            watch = self._watch_schema(upstream, stack)

            events = SchemaEvents(
                writer, self._shard, watch.changed, self._hidden.announce, self._memory
            )

            def new_applier() -> Applier:
                return Applier(writer, watch.confirm, events)

            plan = change_log.resume(writer, position, slot, new_applier, self._stop)
            limits = self._limits(connection)
            start_streaming(
                connection, slot.name, plan.after + 1, upstream.publications, self._stop
            )
            log.info("replication_started", slot=slot.name, version=writer.state.version)
            self._indexes.open(writer)

            def housekeeping() -> None:
                self._check_reports()
                self._watch_slot(slot.name).check()
                watch.check()
                self._improve_indexes(writer, limits)

            stream = ChangeStream(
                connection,
                writer,
                new_applier(),
                position,
                self._publish,
                housekeeping,
                limits,
                backfiller,
                change_log.start(writer, plan, slot, stack),
                self._reports,
            )
            self._run_stream(stream, writer)

    def _publish(self, version: Watermark) -> None:
        self._version = version
        self._callbacks.publish(version)

    def _watch_slot(self, slot: str) -> SlotGuard:
        """The guard of the slot, which outlives sessions."""
        if self._guard is None or self._guard.slot != slot:
            self._leave_slot()
            report_s = self._config.replication_lag.report_interval_ms / 1_000
            self._guard = SlotGuard(
                self._url, slot, self._metrics, self._reports, report_s=report_s
            )
            self._guard.start()
        return self._guard

    def _leave_slot(self) -> None:
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def figures(self) -> dict[str, Any]:
        """What ``/statz`` shows; from any thread."""
        health = None if self._guard is None else self._guard.health
        version = self._version
        metrics = self._metrics.snapshot()
        return {
            "stateVersion": version,
            "lsn": None if version is None else lsn_to_text(lsn_from_watermark(version)),
            "slot": None if health is None else {**asdict(health), "problem": health.problem},
            "metrics": metrics,
            "series": msgspec.to_builtins(self._metrics.series()),
            "changeLog": {"changeLogSize": metrics.get(LOG_BYTES)},
        }

    def _run_stream(self, stream: ChangeStream, writer: ReplicaWriter) -> None:
        self._publish(writer.state.version)
        if not self._was_ready:
            self._was_ready = True
            self._callbacks.ready()
        try:
            stream.run()
        except (Stopped, StreamEnded, StreamOutdated):
            self._finish(stream)
            raise

    def _require_same_past(
        self, writer: ReplicaWriter, position: SlotPosition, slot: UsableSlot
    ) -> None:
        """Before anything is written upstream: what this server writes there itself, the change
        log for one, would hide that the end of WAL is behind what the replica has seen."""
        with ReplicationConnection(self._url, self._purpose, self._stop) as connection:
            history = read_history(connection)
        seen = lsn_from_watermark(writer.state.version)
        require_same_past(history, position.origin(), max(seen, position.read(), slot.confirmed))
        position.record_origin(history.origin)

    def _watch_schema(self, upstream: Upstream, stack: ExitStack) -> _SchemaCalls:
        """Start who looks after the schema."""
        if upstream.ddl_detection:
            guard = stack.enter_context(SchemaGuard(self._url, self._shard))
            return _SchemaCalls(lambda: None, lambda _: None, guard.wake)
        watch = stack.enter_context(SchemaWatch(self._url, self._shard))
        return _SchemaCalls(watch.check, watch.confirm, lambda: None)

    def _check_reports(self) -> None:
        if damage.is_reported(self._file):
            raise ReplicationError(
                f"a reader reports that the replica {self._file} is damaged: the stream is begun "
                "again after the file was read in full"
            )

    def _improve_indexes(self, writer: ReplicaWriter, limits: StreamLimits) -> None:
        # The server hears nothing from this thread meanwhile.
        at_most_s = limits.wal_sender_timeout_s / 3 or math.inf
        if self._indexes.work(writer, lambda: self._stop.is_set, at_most_s):
            # Announced again, the version makes workers look at the file anew.
            version = writer.state.version
            self._publish(version)
            writer.maintain(lambda: self._publish(version))

    def _finish(self, stream: ChangeStream) -> None:
        try:
            stream.finish()
        except (StreamEnded, psycopg.Error) as error:
            # The commit is made; only its acknowledgement may be missing, and the next
            # connection begins after it anyway.
            log.info("last_acknowledgement_lost", reason=str(error))

    def _limits(self, connection: ReplicationConnection) -> StreamLimits:
        rows = connection.execute(
            b"SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'"
        )
        timeout_s = int(rows[0][0] or b"0") / 1_000
        override_ms = self._config.upstream.pg_stream_inbound_timeout_ms
        inbound_s = 2 * timeout_s if override_ms is None else override_ms / 1_000
        return StreamLimits(wal_sender_timeout_s=timeout_s, inbound_timeout_s=inbound_s)


def _unusable(error: psycopg.Error) -> ResyncRequired:
    return ResyncRequired(
        f"upstream cannot go on where the replica is ({error.diag.message_primary}): a publication "
        "was made anew meanwhile, or the slot was invalidated; a new initial sync is needed"
    )


def _undecodable(error: psycopg.Error | None) -> ResyncRequired:
    return ResyncRequired(
        f"the server cannot decode its own WAL after the replica's position ({error}), as often as "
        "it was tried: what comes after that can only be copied; a new initial sync is needed"
    )


def _corrupt(file: Path, error: Exception) -> ResyncRequired:
    return ResyncRequired(
        f"the replica {file} is damaged ({error}): nothing in it can be trusted; a new initial "
        "sync is needed"
    )
