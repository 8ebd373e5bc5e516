"""What the figures of a slot mean, and when an operator hears of it."""

from __future__ import annotations

from typing import Any

import pytest

from replication_manager.slot_health import SlotHealth, SlotHistory

GIB = 1024**3


def look(
    history: SlotHistory | None = None, at: float = 0.0, current: str = "0/3000", **row: Any
) -> SlotHealth:
    values = {
        "restart_lsn": "0/1000",
        "confirmed_flush_lsn": "0/3000",
        "wal_status": "reserved",
        "safe_wal_size": None,
        "active": True,
    }
    return (history or SlotHistory("s")).judge({**values, **row}, current, at)


def test_a_slot_that_follows_has_no_problem() -> None:
    health = look()
    assert (health.status, health.problem) == ("ok", None)
    assert (health.retained_bytes, health.lag_bytes, health.lag_s) == (0x2000, 0, 0)


def test_lag_counts_from_when_the_oldest_unacknowledged_wal_was_seen() -> None:
    history = SlotHistory("s")
    look(history, 100.0, "0/4000")
    look(history, 110.0, "0/5000")
    health = look(history, 130.0, "0/6000")
    assert (health.lag_bytes, health.lag_s) == (0x3000, 30.0)
    assert look(history, 140.0, "0/6000", confirmed_flush_lsn="0/4500").lag_s == 30.0
    assert look(history, 150.0, "0/6000", confirmed_flush_lsn="0/6000").lag_s == 0


@pytest.mark.parametrize(
    ("row", "status", "said"),
    [
        ({"wal_status": "lost", "restart_lsn": None}, "lost", "max_slot_wal_keep_size"),
        ({"invalidation_reason": "idle_timeout"}, "lost", "idle_timeout"),
        ({"wal_status": "unreserved"}, "unreserved", "next checkpoint"),
        ({"safe_wal_size": 0x100}, "ok", "only 256 bytes of WAL are left"),
    ],
)
def test_danger_is_told(row: dict[str, Any], status: str, said: str) -> None:
    health = look(**row)
    assert health.status == status
    assert health.problem is not None
    assert said in health.problem


@pytest.mark.parametrize("safe", [None, GIB])
def test_enough_room_is_no_danger(safe: int | None) -> None:
    assert look(safe_wal_size=safe).problem is None


def test_a_slot_that_is_gone_is_told() -> None:
    health = SlotHistory("s").judge(None, "0/1", 0.0)
    assert health.status == "missing"
    assert health.problem is not None


def test_inactivity_counts_from_when_the_server_says() -> None:
    since = "2026-01-01T00:00:00.5+00:00"
    assert look(active=False, inactive_since=since).inactive_s(1_767_225_630.5) == 30
    assert look(active=True, inactive_since=since).inactive_s(1_767_225_630.5) == 0
    assert look(active=False).inactive_s(1_767_225_630.5) == 0
