"""Looks at our replication slot from outside, and sends the probes of lag.

Owns a connection that asks upstream a small question every few seconds. What it finds goes to the
metrics, and to the log when there is something to say: at once, and again every few minutes while
it lasts. It never changes the slot. Invariant: a slot that is invalidated or gone is found by
:meth:`SlotGuard.check`, even if the server keeps the stream open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import psycopg
import structlog

from replication_manager.background import BackgroundConnection
from replication_manager.lag_reports import LagReports
from replication_manager.slot_health import STATUSES, WAL_STATUSES, SlotHealth, SlotHistory
from zerocache.errors import ResyncRequired
from zerocache.metrics import Metrics

_INTERVAL_S = 5.0
_REPEAT_S = 300.0
# A probe that takes longer than this many intervals is worth a line.
_MISSED_REPORTS = 2
_FLUSHABLE_FROM = 170_000

log = structlog.get_logger(__name__)


class SlotGuard:
    """Runs from :meth:`start` to :meth:`end`; ``check`` may be called from any thread.

    * One per slot and life of it: a name that was dropped and made again is another slot.

    ``report_s``: between probes of lag; 0 or less sends none.
    """

    def __init__(
        self,
        url: str,
        slot: str,
        metrics: Metrics,
        reports: LagReports,
        *,
        report_s: float = 0.0,
        interval_s: float = _INTERVAL_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slot = slot
        self._metrics = metrics
        self._reports = reports
        self._report_s = report_s
        self._interval_s = interval_s
        self._now = monotonic
        self._history = SlotHistory(slot)
        # The newest look; None before the first.
        self.health: SlotHealth | None = None
        # The status that was logged last, and when.
        self._told: tuple[str | None, float] = (None, 0.0)
        self._next_report = monotonic()
        self._missing_told_at = -math.inf
        self._thread = BackgroundConnection(url, "slot-guard", self._work)

    def start(self) -> None:
        self._thread.__enter__()

    def end(self) -> None:
        self._thread.end()

    def check(self) -> None:
        """``ResyncRequired`` if the slot cannot be used any more."""
        health = self.health
        if health is not None and health.status in ("lost", "missing"):
            raise ResyncRequired(f"the replication slot {self.slot}: {health.problem}")

    def _work(self, connection: psycopg.Connection[Any], thread: BackgroundConnection) -> None:
        while not thread.is_ending:
            self._look(connection)
            if self._report_s > 0 and self._now() >= self._next_report:
                self._next_report = self._now() + self._report_s
                self._probe(connection)
            self._observe_reports()
            pause_s = self._interval_s
            thread.wait(min(pause_s, self._report_s) if self._report_s > 0 else pause_s)

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        # As JSON, because what is known of a slot differs between versions.
        row = connection.execute(
            "SELECT pg_current_wal_lsn()::text, (SELECT to_jsonb(s) FROM pg_replication_slots s "
            "WHERE s.slot_name = %s)",
            [self.slot],
        ).fetchone()
        assert row is not None
        health = self._history.judge(row[1], row[0], self._now())
        self.health = health
        self._measure(health)
        self._tell(health)

    def _measure(self, health: SlotHealth) -> None:
        gauge = self._metrics.gauge
        for status in STATUSES:
            gauge("replication.slot_health", status == health.status, status=status)
        for status in WAL_STATUSES:
            gauge("replication.slot_wal_status", status == health.wal_status, status=status)
        gauge("replication.slot_active", health.active)
        gauge("replication.slot_inactive_seconds", health.inactive_s(time.time()))
        gauge("replication.slot_retained_wal_bytes", health.retained_bytes)
        gauge("replication.slot_lag_bytes", health.lag_bytes)
        gauge("replication.slot_lag_seconds", round(health.lag_s, 3))
        if health.safe_bytes is not None:
            gauge("replication.slot_safe_wal_bytes", health.safe_bytes)

    def _tell(self, health: SlotHealth) -> None:
        problem = health.problem
        kind = None if problem is None else health.status
        before, told_at = self._told
        if kind == before and (kind is None or self._now() - told_at < _REPEAT_S):
            return
        self._told = (kind, self._now())
        if problem is None:
            log.info("slot_healthy", slot=self.slot, lag_bytes=health.lag_bytes)
            return
        log.warning(
            "slot_in_danger",
            slot=self.slot,
            wal_status=health.wal_status,
            retained_bytes=health.retained_bytes,
            safe_bytes=health.safe_bytes,
            lag_bytes=health.lag_bytes,
            lag_s=round(health.lag_s),
            problem=problem,
        )

    def _observe_reports(self) -> None:
        missing_s = self._reports.observe() / 1_000
        if self._report_s <= 0 or missing_s <= _MISSED_REPORTS * self._report_s:
            return
        if self._now() - self._missing_told_at >= _REPEAT_S:
            self._missing_told_at = self._now()
            log.warning("lag_report_missing", seconds=round(missing_s), slot=self.slot)

    def _probe(self, connection: psycopg.Connection[Any]) -> None:
        number, sent_ms = self._reports.next_probe()
        flush = ", true" if connection.info.server_version >= _FLUSHABLE_FROM else ""
        content = (
            "json_build_object('id', %s::text, 'sendTimeMs', %s::int8, 'commitTimeMs', "
            "(extract(epoch FROM clock_timestamp()) * 1000)::int8)::text"
        )
        query = f"SELECT pg_logical_emit_message(false, %s, {content}{flush})"
        try:
            connection.execute(query.encode(), [self._reports.prefix, number, sent_ms])
        except psycopg.errors.InsufficientPrivilege as error:
            self._report_s = 0.0
            log.warning(
                "lag_reports_off",
                reason=error.diag.message_primary,
                advice="GRANT EXECUTE ON FUNCTION pg_logical_emit_message to the role",
            )
