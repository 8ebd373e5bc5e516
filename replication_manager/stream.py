"""The running change stream: receive, apply, commit, announce, acknowledge.

Owns the one thread that does all of it, and with it every decision about *when*: transactions that
have already arrived are committed together, but a commit never waits for the network; workers are
told of a version right after its commit; upstream is told only once the commit survives a power
loss. Invariant: ``confirmed_flush_lsn`` of the slot never passes a transaction that is not durable
in the replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from replication_manager.applier import Applier
from replication_manager.backfill import Backfiller
from replication_manager.position import SlotPosition
from replication_manager.walsender import (
    KEEPALIVE,
    XLOG_HEADER_SIZE,
    ReplicationConnection,
    StreamEnded,
)
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import Watermark, lsn_from_watermark
from zerocache.replica.writer import ReplicaWriter

_XLOG, _KEEPALIVE = b"wk"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``group_*``: when a group of transactions is committed although more are waiting.
    ``ack_interval_s``: how long a commit may wait for its fsync and acknowledgement.
    ``idle_ack_interval_s``: between acknowledgements of WAL that has nothing for us.
    ``backfill_poll_s``: how soon a chunk of a backfill is noticed on an idle stream.
    ``wal_sender_timeout_s``: the server's; 0 switches liveness checks off, as it does there."""

    group_changes: int = 2_000
    group_s: float = 0.02
    ack_interval_s: float = 0.2
    idle_ack_interval_s: float = 1.0
    wal_sender_timeout_s: float = 60.0
    inbound_timeout_s: float = 120.0
    check_interval_s: float = 1.0
    backfill_poll_s: float = 0.02


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
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._writer = writer
        self._position = position
        self._applier = applier
        self._backfiller = backfiller
        self._publish = publish
        self._check = check
        self._limits = limits
        self._now = monotonic
        # When the oldest transaction of the uncommitted group was complete; None without one.
        self._group_since: float | None = None
        # When the oldest commit was made that upstream does not know of; None without one.
        self._unacked_since: float | None = None
        # The newest position upstream was told on this connection; a status of 0 moves nothing.
        self._acked = 0
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
        """Commit complete transactions and acknowledge them; the open one is dropped."""
        if not self._applier.in_transaction:
            self._commit_group()
        self._acknowledge()

    def _handle(self, frame: memoryview) -> None:
        kind = frame[0]
        if kind == _XLOG:
            if self._applier.apply(bytes(frame[XLOG_HEADER_SIZE:])):
                self._transaction_ended()
        elif kind == _KEEPALIVE:
            end_lsn, _, reply = KEEPALIVE.unpack(frame)
            self._keepalive(end_lsn, bool(reply))

    def _transaction_ended(self) -> None:
        now = self._received_at = self._now()
        if self._group_since is None:
            self._group_since = now
        limits = self._limits
        if (
            self._applier.changes >= limits.group_changes
            or now - self._group_since >= limits.group_s
        ):
            self._commit_group()
            self._housekeeping(now)

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
        self._writer.maintain(lambda: self._publish(state.version))
        if self._unacked_since is None:
            self._unacked_since = self._now()

    def _acknowledge(self) -> None:
        """Make the committed state durable and tell upstream."""
        if self._unacked_since is None:
            return
        durable = self._writer.durable()
        self._unacked_since = None
        reach(Place.DURABLE)
        self._acked = max(self._acked, lsn_from_watermark(durable.version))
        self._send_status()
        reach(Place.ACKNOWLEDGED)

    def _send_status(self) -> None:
        self._connection.send_status(self._acked)
        self._sent_at = self._now()

    def _keepalive(self, end_lsn: int, reply: bool) -> None:
        """The server has sent us everything up to ``end_lsn``."""
        self._received_at = self._now()
        if reply:
            self._commit_group()
            self._acknowledge()
        outstanding = (
            self._applier.in_transaction
            or self._group_since is not None
            or self._unacked_since is not None
        )
        due = reply or self._now() - self._idle_acked_at >= self._limits.idle_ack_interval_s
        if not outstanding and end_lsn > self._acked and due:
            self._confirm_idle(end_lsn)
        elif reply:
            self._send_status()

    def _confirm_idle(self, end_lsn: int) -> None:
        """Nothing of ours is in what upstream wrote meanwhile: let it recycle that WAL."""
        self._position.record(end_lsn)
        self._writer.durable()
        reach(Place.IDLE_RECORDED)
        self._acked = end_lsn
        self._idle_acked_at = self._now()
        self._send_status()

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
        now = self._now()
        self._housekeeping(now)
        timeout_s = self._limits.check_interval_s
        if self._backfiller.active or self._backfiller.holds:
            timeout_s = self._limits.backfill_poll_s
        if self._unacked_since is not None:
            due = self._unacked_since + self._limits.ack_interval_s - now
            timeout_s = min(timeout_s, due)
        if self._connection.wait(timeout_s):
            self._received_at = self._now()
        else:
            self._check_liveness()

    def _housekeeping(self, now: float) -> None:
        """What has to happen now and then, whether or not the stream is quiet."""
        limits = self._limits
        while self._backfill() and not self._connection.wait(0):
            pass  # one chunk after the other, until the stream has something
        if self._unacked_since is not None and now - self._unacked_since >= limits.ack_interval_s:
            self._acknowledge()
        if (
            limits.wal_sender_timeout_s
            and now - self._sent_at >= 0.75 * limits.wal_sender_timeout_s
        ):
            self._send_status()
        if now - self._checked_at >= limits.check_interval_s:
            self._checked_at = now
            self._check()

    def _check_liveness(self) -> None:
        silent_s = self._now() - self._received_at
        if self._limits.inbound_timeout_s and silent_s >= self._limits.inbound_timeout_s:
            log.warning("replication_stream_silent", seconds=round(silent_s))
            raise StreamEnded(None)
