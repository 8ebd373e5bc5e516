"""Stores the change log beside the stream, so that storing never holds it up.

Owns one thread and its order of work: take all parts that are waiting, write them in one
PostgreSQL transaction, commit, say how far upstream may be acknowledged; purge now and then. While
it writes, the stream goes on and the next batch grows, so batches are as large as they have to be
and no larger. A transaction that is still arriving is written into a PostgreSQL transaction that
stays open; it becomes part of the log as a whole, or not at all.

**Why the replica may be ahead of the log.** The stream applies a transaction, commits it to the
replica and announces it without waiting for this thread: the single node gains no latency. Nothing
that a client saw can be lost by that. Upstream is acknowledged only up to :attr:`stored`, so
whatever the log lacks is still in upstream's WAL and will be sent again, by commit LSN: the same
transaction with the same version and the same content. A process that is killed in between finds
its replica ahead of the log, resumes the stream at the end of the *log*, and the replica passes
over what it has. A successor on another machine gets the same transactions from upstream as well.
The other way round, a replica that lost its last commits (they are not synced one by one) finds
them in the log, which is purged only behind what the replica has synced to disk. What only the
replica has, backfilled rows, is under versions between those of two transactions and does not
depend on the log: what is not complete is backfilled again.

Invariants: ``stored`` never passes what a commit of the change database has confirmed; memory is
bounded (``is_full``: the stream must wait); after any failure the thread ends and
:meth:`ChangeStore.check` raises it, and nothing more is stored until the stream was begun anew.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
import structlog

from replication_manager.change_db import ChangeDb, ChangeDbError, change_db_error
from replication_manager.reservations import Reservations
from replication_manager.segments import Part
from zerocache.errors import ReplicationError
from zerocache.failpoints import Place, reach
from zerocache.metrics import Metrics
from zerocache.protocol.versions import Lsn

REPLICA = "replica"
"""Name of the local replica's reservation."""
LOG_BYTES = "replication.change_log_bytes"
"""Gauge: what the change log takes in the change database."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """``queue_bytes``: waiting for the change database before the stream has to wait, too.
    ``statement_s``: a write that takes longer has failed; 0 is no limit.
    ``batch_rows``: parts in one write.
    ``purge_interval_s``: between purges, each behind what the one before found free."""

    queue_bytes: int = 64 * 1024 * 1024
    statement_s: float = 20.0
    batch_rows: int = 2_000
    purge_interval_s: float = 30.0


class ChangeStore:
    """Owns ``db``, claimed, from :meth:`start` to :meth:`close`.

    * ``put``, ``mark_reached``, ``check`` and the waiting belong to the stream's thread.
    * ``durable`` makes the replica durable and returns its position; it is called by the store's
      thread.
    """

    def __init__(
        self,
        db: ChangeDb,
        stored: Lsn,
        durable: Callable[[], Lsn],
        reservations: Reservations,
        metrics: Metrics,
        limits: StoreLimits,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._durable = durable
        self._reservations = reservations
        self._metrics = metrics
        self._limits = limits
        self._now = monotonic
        self._changed = threading.Condition()
        self._queue: deque[Part] = deque()
        self._queued_bytes = 0
        # How far upstream may be acknowledged.
        self._stored = stored
        # Positions without a transaction of ours: what was asked for, and what was recorded.
        self._wanted_reached = stored
        self._reached = stored
        # Since when the thread waits for the change database; None while it waits for work.
        self._busy_since: float | None = None
        # True while parts are in a PostgreSQL transaction that waits for their end.
        self._open = False
        self._stopping = False
        self._failure: ReplicationError | None = None
        # Free since the purge before the next one.
        self._free: Lsn | None = None
        self._purged_at = monotonic()
        self._thread = threading.Thread(target=self._run, name="change-store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def stored(self) -> Lsn:
        """Upstream may be told this position: all before it is in the log, or nothing of ours."""
        return self._stored

    @property
    def is_full(self) -> bool:
        return self._queued_bytes >= self._limits.queue_bytes

    @property
    def is_idle(self) -> bool:
        """Whether everything that was put is stored."""
        return not self._queue and self._busy_since is None

    def put(self, parts: Sequence[Part]) -> None:
        with self._changed:
            self._queue.extend(parts)
            self._queued_bytes += sum(len(part.data) for part in parts)
            self._changed.notify_all()

    def mark_reached(self, position: Lsn) -> None:
        """Upstream has nothing for us between what was put and ``position``."""
        with self._changed:
            self._wanted_reached = max(self._wanted_reached, position)
            self._changed.notify_all()

    def wait_for_space(self, timeout_s: float) -> None:
        """Until the queue is no longer full, or something failed, or the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self.is_full, timeout_s)

    def wait_for_change(self, timeout_s: float) -> None:
        """Until the thread has done something, or the time is over."""
        with self._changed:
            self._changed.wait(timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Wait until all is stored; False if it is not."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or self.is_idle, timeout_s)
            return self.is_idle and self._failure is None

    def check(self) -> None:
        """Raise what ended the thread, or that the change database does not answer."""
        if self._failure is not None:
            raise self._failure
        since, limit_s = self._busy_since, self._limits.statement_s
        if limit_s and since is not None and self._now() - since > 2 * limit_s:
            raise ChangeDbError(
                f"the change database has not answered for {2 * limit_s:.0f} s: what is not stored "
                "there must not be acknowledged upstream, so the stream is begun again; check its "
                "server and the network (ZERO_CHANGE_STATEMENT_TIMEOUT_MS sets the limit)"
            )

    def close(self) -> None:
        """End the thread, whatever it waits for; what is not committed is dropped."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._busy_since is not None:
            self._db.abort()
        self._thread.join(self._limits.statement_s or None)
        self._db.close()

    def _run(self) -> None:
        try:
            self._metrics.gauge(LOG_BYTES, self._db.size_bytes())
            while not self._stopping:
                self._work()
        except psycopg.Error as error:
            self._fail(change_db_error(error))
        except ReplicationError as error:
            self._fail(error)
        except Exception as error:
            log.exception("change_store_failed")
            self._fail(ChangeDbError(f"storing changes failed ({error}): report this as a bug"))

    def _fail(self, error: ReplicationError) -> None:
        with self._changed:
            self._failure = error
            self._busy_since = None
            self._changed.notify_all()

    def _work(self) -> None:
        parts, reached = self._take()
        if parts:
            self._store(parts)
        elif reached > self._reached:
            self._db.record_reached(reached)
            reach(Place.IDLE_RECORDED)
            self._reached = reached
            self._done(reached, 0)
        if self._purge_due_s() <= 0 and not self._open:
            self._purge()
        with self._changed:
            self._busy_since = None
            self._changed.notify_all()

    def _take(self) -> tuple[list[Part], Lsn]:
        """Wait for something to do."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._queue or self._wanted_reached > self._reached,
                None if self._open else max(self._purge_due_s(), 0),
            )
            parts = [] if self._stopping else list(self._queue)
            self._queue.clear()
            self._busy_since = self._now()
            return parts, self._wanted_reached if not self._open else self._reached

    def _store(self, parts: list[Part]) -> None:
        """Write all, and commit what is complete."""
        reach(Place.BEFORE_STORE)
        ends = [number for number, part in enumerate(parts, 1) if part.is_last]
        complete = ends[-1] if ends else 0
        if complete:
            self._write(parts[:complete])
            last = parts[complete - 1].watermark
            self._db.commit(last)
            self._open = False
            self._metrics.count("replication.stored_batches")
            reach(Place.STORED)
            self._done(last, sum(len(part.data) for part in parts[:complete]))
        if rest := parts[complete:]:
            self._write(rest)
            self._done(self._stored, sum(len(part.data) for part in rest))

    def _write(self, parts: list[Part]) -> None:
        if not self._open:
            self._db.begin()
            self._open = True
        step = self._limits.batch_rows
        for start in range(0, len(parts), step):
            self._db.write(parts[start : start + step])
            with self._changed:
                # It answers: each write has the time of one.
                self._busy_since = self._now()

    def _done(self, position: Lsn, size: int) -> None:
        self._metrics.count("replication.stored_bytes", size)
        with self._changed:
            self._stored = max(self._stored, position)
            self._queued_bytes -= size
            self._changed.notify_all()

    def _purge_due_s(self) -> float:
        return self._purged_at + self._limits.purge_interval_s - self._now()

    def _purge(self) -> None:
        """Delete what has been free since the last time: who comes back late still finds it."""
        self._purged_at = self._now()
        self._reservations.hold(REPLICA, self._durable())
        if self._free is not None and (count := self._db.purge(self._free)):
            log.debug("change_log_purged", parts=count)
        lowest = self._reservations.lowest()
        # Never past the end of the log: what is not there cannot be missing either.
        self._free = None if lowest is None else min(lowest, self._stored)
        self._metrics.gauge(LOG_BYTES, self._db.size_bytes())
