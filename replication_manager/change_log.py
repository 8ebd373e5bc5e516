"""A manager's use of the change log, from its claim to the running store.

Owns the order in which a session deals with it: connect, claim, decide where to go on, replay or
begin anew, store. What it remembers between sessions is the term of its own claim, by which a
process that returns to the log notices that it was succeeded meanwhile. Invariant: the log is
written only under a claim that was made in this session.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import structlog

from replication_manager.applier import Applier
from replication_manager.change_db import ChangeDb, LogState
from replication_manager.change_store import ChangeStore, StoreLimits
from replication_manager.position import SlotPosition
from replication_manager.replay import replay
from replication_manager.reservations import Reservations
from replication_manager.resume import ReplicaPosition, Resumption, plan_resumption
from replication_manager.segments import SegmentBuilder
from replication_manager.signals import StopSignal
from replication_manager.slot import UsableSlot
from replication_manager.stream import LogWriter
from zerocache.config import Config
from zerocache.errors import ConfigurationError
from zerocache.metrics import Metrics
from zerocache.postgres.connection import connect
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn, lsn_from_watermark
from zerocache.replica.writer import ReplicaWriter

_LEAST_QUEUE_BYTES = 4 * 1024 * 1024
QUEUE_BYTES_AT_MOST = 64 * 1024 * 1024
"""However much memory there is: the slot keeps what waits, and does that better. A single message
may be larger, and is held in full."""

log = structlog.get_logger(__name__)


class ChangeLogKeeper:
    """Lives as long as the service."""

    def __init__(self, config: Config, shard: ShardNames, metrics: Metrics) -> None:
        self._url = config.change.db
        self._shard = shard
        self._owner = config.task_id
        self._timeout_ms = int(config.change.statement_timeout_ms)
        self._metrics = metrics
        share = config.change_streamer.back_pressure_limit_heap_proportion
        self._limits = StoreLimits(
            queue_bytes=queue_bytes(share, memory_limit_bytes()),
            statement_s=self._timeout_ms / 1_000,
            batch_rows=config.change.log_batch_size,
        )
        # What must not be purged; others than the local replica may hold something here.
        self.reservations = Reservations()
        # Of our last claim; None before the first.
        self._term: int | None = None

    def check_publications(self) -> None:
        """Refuse, before anything is created, to publish the change log itself."""
        if not self._shard.publications:
            return
        with connect(self._url, "change-log-check") as connection:
            found = connection.execute(
                "SELECT pubname FROM pg_publication WHERE puballtables AND pubname = ANY (%s)",
                [list(self._shard.publications)],
            ).fetchone()
        if found is not None:
            raise ConfigurationError(
                f"the publication {found[0]} is FOR ALL TABLES in the database of the change log: "
                "what is stored there would be a change to store, without end; publish tables or "
                "schemas by name (FOR TABLES IN SCHEMA public), or let ZERO_CHANGE_DB and "
                "ZERO_CVR_DB name another database",
                code="ZC244",
            )

    def check(self) -> None:
        """Fail early if the change database cannot be used at all."""
        db = self._open()
        db.close()

    def claim(self, stack: ExitStack) -> ClaimedLog:
        """Become the owner; :class:`Displaced` if another process did since our last claim."""
        db = self._open()
        stack.callback(db.close)
        state = db.claim(self._term)
        self._term = db.term
        return ClaimedLog(db, state, self._shard, self.reservations, self._metrics, self._limits)

    def _open(self) -> ChangeDb:
        db = ChangeDb(self._url, self._shard, self._owner, self._timeout_ms)
        try:
            db.migrate()
        except BaseException:
            db.close()
            raise
        return db


class ClaimedLog:
    """The log under our claim, within one session."""

    def __init__(
        self,
        db: ChangeDb,
        state: LogState | None,
        shard: ShardNames,
        reservations: Reservations,
        metrics: Metrics,
        limits: StoreLimits,
    ) -> None:
        self._db = db
        self._state = state
        self._shard = shard
        self._reservations = reservations
        self._metrics = metrics
        self._limits = limits

    def resume(
        self,
        writer: ReplicaWriter,
        position: SlotPosition,
        slot: UsableSlot,
        new_applier: Callable[[], Applier],
        stop: StopSignal,
    ) -> Resumption:
        """Bring replica and log together; upstream streams after the result's position."""
        state = self._state
        replica = ReplicaPosition(
            writer.state.replica_version,
            self._shard.all_publications,
            lsn_from_watermark(writer.state.version),
            Lsn(position.read()),
        )
        plan = plan_resumption(replica, slot, state)
        if plan.reset is not None:
            log.info("change_log_begun", reason=plan.reset, after=writer.state.version)
            self._db.reset(replica.generation, replica.publications, plan.after)
        elif plan.replay:
            assert state is not None
            replay(self._db.parts_after(replica.version, state.last), new_applier(), writer, stop)
        return plan

    def start(
        self, writer: ReplicaWriter, plan: Resumption, slot: UsableSlot, stack: ExitStack
    ) -> LogWriter:
        """Start the thread that stores; it ends with ``stack``."""
        last = plan.after if plan.reset is not None or self._state is None else self._state.last
        store = ChangeStore(
            self._db,
            Lsn(max(plan.after, slot.confirmed)),
            lambda: lsn_from_watermark(writer.durable().version),
            self._reservations,
            self._metrics,
            self._limits,
        )
        store.start()
        stack.callback(store.close)
        return LogWriter(SegmentBuilder(self._shard.ddl_prefix, last), store)


def queue_bytes(share: float, memory_bytes: int) -> int:
    """How much may wait for the change database."""
    return min(max(_LEAST_QUEUE_BYTES, int(share * memory_bytes)), QUEUE_BYTES_AT_MOST)


def memory_limit_bytes() -> int:
    """What this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdigit() else machine
