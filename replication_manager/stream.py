"""The running change stream: receive, apply, commit, announce, hand over to the log, acknowledge.

Owns the one thread that does all of it, and with it every decision about *when*: transactions that
have already arrived are committed together, but a commit never waits for the network; workers are
told of a version right after its commit; the change log gets it right after that (change_store.py
says why not before); upstream is told once the log has it. Only a log that cannot keep up makes
the stream wait. Invariant: ``confirmed_flush_lsn`` of the slot never passes a transaction that is
not durable in the change log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from replication_manager.applier import Applier
from replication_manager.backfill import Backfiller
from replication_manager.change_store import ChangeStore
from replication_manager.lag_reports import LagReports
from replication_manager.partition_roots import StreamOutdated
from replication_manager.position import SlotPosition
from replication_manager.segments import SegmentBuilder
from replication_manager.walsender import (
    KEEPALIVE,
    XLOG_HEADER_SIZE,
    ReplicationConnection,
    StreamEnded,
)
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import Lsn, Watermark
from zerocache.replica.writer import ReplicaWriter

_XLOG, _KEEPALIVE = b"wk"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``group_*``: when a group of transactions is committed although more are waiting.
    ``store_interval_s``: how long a commit may wait to be handed over to the change log.
    ``ack_interval_s``: how long it may wait for its acknowledgement.
    ``idle_ack_interval_s``: between acknowledgements of WAL that has nothing for us.
    ``backfill_poll_s``: how soon a chunk of a backfill is noticed on an idle stream.
    ``full_poll_s``: how soon a request to stop is noticed while the change log is waited for.
    ``finish_s``: how long the end waits for the change log.
    ``wal_sender_timeout_s``: the server's; 0 switches liveness checks off, as it does there."""

    group_changes: int = 2_000
    group_s: float = 0.02
    store_interval_s: float = 0.02
    ack_interval_s: float = 0.2
    idle_ack_interval_s: float = 1.0
    wal_sender_timeout_s: float = 60.0
    inbound_timeout_s: float = 120.0
    check_interval_s: float = 1.0
    backfill_poll_s: float = 0.02
    full_poll_s: float = 0.2
    finish_s: float = 5.0


@dataclass(frozen=True, slots=True)
class LogWriter:
    """Where the stream puts what it receives, and what stores that."""

    builder: SegmentBuilder
    store: ChangeStore


class ChangeStream:
    """Runs on a connection that streams already.

    * ``publish`` is told each committed version, ``check`` is called about once a second and may
      raise to end the stream.
    * :meth:`run` ends only by an exception; :meth:`finish` then saves what is complete.
    """

    def __init__(
        self,
        connection: ReplicationConnection,
        writer: ReplicaWriter,
        applier: Applier,
        position: SlotPosition,
        publish: Callable[[Watermark], None],
        check: Callable[[], None],
        limits: StreamLimits,
        backfiller: Backfiller,
        change_log: LogWriter,
        reports: LagReports,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._position = position
        self._applier = applier
        self._backfiller = backfiller
        self._segments = change_log.builder
        self._store = change_log.store
        self._reports = reports
        self._publish = publish
        self._check = check
        self._limits = limits
        self._now = monotonic
        # When the oldest transaction of the uncommitted group was complete; None without one.
        self._group_since: float | None = None
        # When upstream may next be told of something; None if it knows everything.
        self._unacked_since: float | None = None
        # The newest position that is to be acknowledged once the log has it.
        self._to_ack = Lsn(0)
        # No earlier than this is the log given more.
        self._hand_over_at = monotonic()
        # The newest position upstream was told.
        self._acked = change_log.store.stored
        self._idle_acked_at = monotonic()
        self._sent_at = self._received_at = monotonic()
        self._checked_at = monotonic()

    def run(self) -> None:
        connection = self._connection
        while True:
            frame = connection.next_frame()
            if frame is None:
                connection.read_socket()
                frame = connection.next_frame()
                if frame is not None:
                    reach(Place.RECEIVED)
                    # A huge transaction may keep us from ever waiting.
                    self._received_at = now = self._now()
                    self._housekeeping(now)
            if frame is None:
                self._commit_group()
                self._wait()
            else:
                self._handle(frame)

    def finish(self) -> None:
        """Commit complete transactions, store and acknowledge them; the open one is dropped."""
        if not self._applier.in_transaction:
            self._commit_group()
        self._store.put(self._segments.cut())
        self._store.drain(self._limits.finish_s)
        self._acknowledge()

    def _handle(self, frame: memoryview) -> None:
        kind = frame[0]
        if kind == _XLOG:
            payload = bytes(frame[XLOG_HEADER_SIZE:])
            if self._reports.concerns(payload):
                self._reports.received(payload)
            self._segments.add(payload)
            if self._applier.apply(payload):
                self._transaction_ended()
        elif kind == _KEEPALIVE:
            end_lsn, _, reply = KEEPALIVE.unpack(frame)
            self._keepalive(end_lsn, bool(reply))

    def _transaction_ended(self) -> None:
        now = self._received_at = self._now()
        self._to_ack = Lsn(max(self._to_ack, self._applier.lsn))
        if self._group_since is None:
            self._group_since = now
        limits = self._limits
        if (
            self._applier.changes >= limits.group_changes
            or now - self._group_since >= limits.group_s
        ):
            self._commit_group()
            self._housekeeping(now)
        if self._applier.is_outdated:
            self._end_walsender()

    def _end_walsender(self) -> None:
        """Once all before is stored: it would be sent again, and mistaken again."""
        self._commit_group()
        self._store.put(self._segments.cut())
        while not self._store.drain(self._limits.full_poll_s):
            self._store.check()
            self._connection.check_stop()
            self._show_life(self._now())
        raise StreamOutdated

    def _commit_group(self) -> None:
        if self._group_since is None or self._applier.in_transaction or self._backfiller.holds:
            return
        reach(Place.BEFORE_COMMIT)
        state = self._writer.commit()
        reach(Place.COMMITTED)
        self._group_since = None
        self._applier.changes = 0
        self._publish(state.version)
        reach(Place.PUBLISHED)
        now = self._now()
        if self._unacked_since is None:
            self._unacked_since = now
        self._hand_over(now)
        self._reports.applied()
        self._writer.maintain(lambda: self._publish(state.version))

    def _hand_over(self, now: float) -> None:
        """Give the log what is complete, in batches that are worth a write."""
        if now >= self._hand_over_at and self._segments.has_complete:
            self._store.put(self._segments.cut())
            self._hand_over_at = now + self._limits.store_interval_s
        elif parts := self._segments.take_ready():
            self._store.put(parts)

    def _acknowledge(self, *, always: bool = False) -> None:
        """Tell upstream what the log has by now, if that is news."""
        stored = self._store.stored
        if stored > self._acked or always:
            reach(Place.DURABLE)
            self._acked = stored
            self._send_status()
            reach(Place.ACKNOWLEDGED)
        self._unacked_since = None if stored >= self._to_ack else self._now()

    def _send_status(self) -> None:
        self._connection.send_status(self._acked)
        self._sent_at = self._now()

    def _keepalive(self, end_lsn: int, reply: bool) -> None:
        """The server has sent us everything up to ``end_lsn``."""
        self._received_at = self._now()
        if reply:
            self._commit_group()
        outstanding = (
            self._applier.in_transaction
            or self._group_since is not None
            or self._store.stored < self._to_ack
        )
        due = reply or self._now() - self._idle_acked_at >= self._limits.idle_ack_interval_s
        if not outstanding and end_lsn > self._acked and due:
            self._confirm_idle(Lsn(end_lsn))
        if reply:
            self._acknowledge(always=True)

    def _confirm_idle(self, end_lsn: Lsn) -> None:
        """Nothing of ours is in what upstream wrote meanwhile: let it recycle that WAL."""
        self._position.record(end_lsn)
        self._store.mark_reached(end_lsn)
        self._to_ack = end_lsn
        self._idle_acked_at = self._now()
        self._unacked_since = self._idle_acked_at

    def _backfill(self) -> bool:
        """A chunk of a backfill, if there is one; True if something was written."""
        if self._applier.in_transaction or not self._backfiller.active_or_due:
            return False
        self._commit_group()  # chunks are groups of their own
        if not self._backfiller.step():
            return False
        if self._group_since is None:
            self._group_since = self._now()
        self._commit_group()
        return True

    def _wait(self) -> None:
        if self._group_since is None and not self._applier.in_transaction:
            self._reports.applied()
        now = self._now()
        self._housekeeping(now, idle=True)
        timeout_s = self._limits.check_interval_s
        if self._backfiller.active or self._backfiller.holds:
            timeout_s = self._limits.backfill_poll_s
        if self._unacked_since is not None:
            due = self._unacked_since + self._limits.ack_interval_s - now
            timeout_s = min(timeout_s, due)
        if self._segments.has_complete:
            timeout_s = min(timeout_s, self._hand_over_at - now)
        if self._connection.wait(timeout_s):
            self._received_at = self._now()
        else:
            self._check_liveness()

    def _housekeeping(self, now: float, *, idle: bool = False) -> None:
        """What has to happen now and then; ``idle`` if no frame is at hand."""
        limits = self._limits
        while self._backfill() and idle and not self._connection.wait(0):
            pass  # one chunk after the other, until the stream has something
        self._store.check()
        self._hand_over(now)
        if self._store.is_full:
            self._wait_for_store()
        if self._unacked_since is not None and now - self._unacked_since >= limits.ack_interval_s:
            self._acknowledge()
        self._show_life(now)
        if now - self._checked_at >= limits.check_interval_s:
            self._checked_at = now
            self._check()

    def _wait_for_store(self) -> None:
        """Let upstream wait until the change database has caught up: memory is bounded."""
        log.warning("replication_waits_for_change_db", stored=self._store.stored)
        while self._store.is_full:
            self._store.wait_for_space(self._limits.full_poll_s)
            self._store.check()
            self._connection.check_stop()
            # What the server sends meanwhile is not read, so its silence means nothing.
            self._received_at = now = self._now()
            self._show_life(now)

    def _show_life(self, now: float) -> None:
        timeout_s = self._limits.wal_sender_timeout_s
        if timeout_s and now - self._sent_at >= 0.75 * timeout_s:
            self._send_status()

    def _check_liveness(self) -> None:
        silent_s = self._now() - self._received_at
        if self._limits.inbound_timeout_s and silent_s >= self._limits.inbound_timeout_s:
            log.warning("replication_stream_silent", seconds=round(silent_s))
            raise StreamEnded(None)
