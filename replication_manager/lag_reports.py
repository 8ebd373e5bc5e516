"""Probes through upstream that say how far behind the replica is (replication.md §1.10).

Owns the life of one probe at a time: a message written into upstream's WAL, outside of any
transaction, which comes back on the change stream; the times in between are the lag. The message
also moves an idle WAL, so that the slot does. It does no I/O: slot_guard.py sends, stream.py hands
over what arrives. Invariant: a probe that is lost is counted and replaced, never waited for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import msgspec

from replication_manager.pgoutput import LogicalMessage, decode
from zerocache.metrics import Metrics
from zerocache.postgres.shard import ShardNames

_LOGICAL = ord("M")


class LagReport(msgspec.Struct, frozen=True):
    """Times are milliseconds since 1970: ours when it was sent, upstream's when it was written."""

    id: str
    send_time_ms: int = msgspec.field(name="sendTimeMs")
    commit_time_ms: int = msgspec.field(name="commitTimeMs")


_decoder = msgspec.json.Decoder(LagReport)


class LagReports:
    """Used by two threads: one sends, the stream's receives."""

    def __init__(
        self,
        shard: ShardNames,
        metrics: Metrics,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.prefix = f"{shard.app_id}/{shard.number}/lag-report/v1"
        self._metrics = metrics
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._count = 0
        # The probe on its way: id and when it was sent. Those before it no longer count.
        self._sent: tuple[str, int] | None = None
        # The probe that has arrived, behind transactions that the replica does not have yet.
        self._arrived: tuple[LagReport, int] | None = None

    def next_probe(self) -> tuple[str, int]:
        """Id and send time of a new probe; one that is still missing counts as lost."""
        with self._lock:
            if self._sent is not None:
                self._metrics.count("replication.lag_report_retries")
            self._count += 1
            self._sent = (f"{self._now_ms()}-{self._count}", self._now_ms())
            return self._sent

    def observe(self) -> int:
        """How long the probe on its way has been missing, in ms; keeps the gauge honest."""
        with self._lock:
            missing_ms = self._now_ms() - self._sent[1] if self._sent else 0
            if self._sent:
                self._metrics.gauge("replication.total_lag", missing_ms)
            return missing_ms

    def concerns(self, payload: bytes) -> bool:
        return payload[0] == _LOGICAL and payload.startswith(self.prefix.encode(), 10)

    def received(self, payload: bytes) -> None:
        """The stream has brought a message that :meth:`concerns` us."""
        message = decode(payload)
        assert isinstance(message, LogicalMessage)
        try:
            report = _decoder.decode(message.content)
        except msgspec.MsgspecError:
            return  # written by somebody else under our prefix; it decides nothing
        with self._lock:
            if self._sent is not None and self._sent[0] == report.id:
                self._sent = None
                self._arrived = (report, self._now_ms())

    def applied(self) -> None:
        """Everything the stream has brought is in the replica."""
        with self._lock:
            if self._arrived is None:
                return
            (report, received_ms), self._arrived = self._arrived, None
            now_ms = self._now_ms()
            gauge = self._metrics.gauge
            gauge("replication.upstream_lag", received_ms - report.send_time_ms)
            gauge("replication.upstream_clock_skew", report.commit_time_ms - report.send_time_ms)
            gauge("replication.replica_lag", now_ms - received_ms)
            gauge("replication.total_lag", now_ms - report.send_time_ms)
            gauge("replication.last_total_lag", now_ms - report.send_time_ms)
