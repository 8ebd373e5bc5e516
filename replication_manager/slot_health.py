"""What ``pg_replication_slots`` says about our slot, judged without any I/O.

Owns the statuses, the thresholds and the words. A slot pins WAL for as long as it is not
acknowledged; upstream's ``max_slot_wal_keep_size`` and idle timeout end that by invalidating the
slot, which costs a new initial sync. Invariant: that danger is told before it happens, as soon as
the figures show it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from zerocache.protocol.versions import lsn_from_text

STATUSES = ("ok", "unreserved", "lost", "missing", "unknown")
"""Values of the metric ``replication.slot_health``."""
WAL_STATUSES = ("reserved", "extended", "unreserved", "lost")
"""Values of the metric ``replication.slot_wal_status``."""
WARN_SHARE = 0.25
"""Warn when less than this share of the WAL that may be kept is left."""


@dataclass(frozen=True, slots=True)
class SlotHealth:
    """One look. ``safe_bytes``: WAL upstream may still write before the slot is in danger; None
    without a limit. ``lag_s``: for how long the oldest unacknowledged WAL has been waiting."""

    slot: str
    status: str
    wal_status: str | None
    active: bool
    retained_bytes: int
    lag_bytes: int
    lag_s: float
    safe_bytes: int | None
    inactive_since: str | None
    invalidation_reason: str | None

    def inactive_s(self, now_s: float) -> float:
        """For how long nobody has used the slot; 0 if the server does not say."""
        if self.active or self.inactive_since is None:
            return 0.0
        return max(0.0, now_s - datetime.fromisoformat(self.inactive_since).timestamp())

    @property
    def problem(self) -> str | None:
        """What an operator should know, and do; None if all is well."""
        if self.status == "missing":
            return "the slot is gone: only a new initial sync helps, which begins now"
        if self.status == "lost":
            reason = self.invalidation_reason or "max_slot_wal_keep_size was exceeded"
            return f"the slot was invalidated ({reason}): a new initial sync begins now"
        if self.status == "unreserved":
            return (
                "the slot keeps more WAL than max_slot_wal_keep_size and will be invalidated at "
                "the next checkpoint: raise max_slot_wal_keep_size now, or a new initial sync "
                "will be needed"
            )
        if self._is_running_out:
            return (
                f"only {self.safe_bytes} bytes of WAL are left before upstream may invalidate the "
                "slot: find out why acknowledgements are late (change database, disk, network), "
                "or raise max_slot_wal_keep_size"
            )
        return None

    @property
    def _is_running_out(self) -> bool:
        if self.safe_bytes is None:
            return False
        return self.safe_bytes < WARN_SHARE * (self.retained_bytes + self.safe_bytes)


class SlotHistory:
    """Turns looks into health: how long WAL has been waiting needs the looks before."""

    def __init__(self, slot: str, *, keep: int = 1_000) -> None:
        self._slot = slot
        # (end of WAL, when it was seen), oldest first; those acknowledged since are dropped.
        self._ends: deque[tuple[int, float]] = deque(maxlen=keep)

    def judge(self, row: dict[str, Any] | None, current: str, now_s: float) -> SlotHealth:
        """``row``: of ``pg_replication_slots`` as JSON, None if there is none."""
        if row is None:
            return SlotHealth(self._slot, "missing", None, False, 0, 0, 0.0, None, None, None)
        end = lsn_from_text(current)
        restart = lsn_from_text(row["restart_lsn"] or current)
        confirmed = lsn_from_text(row["confirmed_flush_lsn"] or current)
        return SlotHealth(
            self._slot,
            _status(row),
            row.get("wal_status"),
            bool(row["active"]),
            max(0, end - restart),
            max(0, end - confirmed),
            self._waiting_s(confirmed, end, now_s),
            row.get("safe_wal_size"),
            row.get("inactive_since"),
            row.get("invalidation_reason"),
        )

    def _waiting_s(self, confirmed: int, end: int, now_s: float) -> float:
        while self._ends and self._ends[0][0] <= confirmed:
            self._ends.popleft()
        if end > confirmed and (not self._ends or self._ends[-1][0] < end):
            self._ends.append((end, now_s))
        return now_s - self._ends[0][1] if self._ends else 0.0


def _status(row: dict[str, Any]) -> str:
    if row.get("wal_status") == "lost" or row.get("invalidation_reason"):
        return "lost"
    if row.get("restart_lsn") is None or row.get("wal_status") is None:
        return "unknown"
    return "unreserved" if row["wal_status"] == "unreserved" else "ok"
