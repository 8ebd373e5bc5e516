"""The clock on which undesired queries run out."""

from __future__ import annotations

from view_syncer.ttl_clock import TtlClock


class Time:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_clock_runs_only_while_somebody_is_connected() -> None:
    """Inactive for 5 of 10 minutes, away for an hour: five minutes are left
    (sync-protocol.md §10 #47)."""
    time = Time()
    clock = TtlClock(time)
    clock.start()
    time.now_s += 300
    clock.start()  # a second connection changes nothing
    assert clock.now_ms() == 300_000
    clock.stop()
    time.now_s += 3600
    assert clock.now_ms() == 300_000
    clock.start()
    time.now_s += 1
    assert clock.now_ms() == 301_000


def test_clock_goes_on_from_what_is_stored() -> None:
    time = Time()
    clock = TtlClock(time)
    clock.start()
    time.now_s += 2  # until the record was loaded
    clock.load(5000)
    assert clock.saved_ms == 5000
    assert clock.now_ms() == 7000
