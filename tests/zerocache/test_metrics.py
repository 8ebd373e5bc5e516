"""Counters add up, gauges are replaced, attributes tell series apart."""

from __future__ import annotations

from zerocache.metrics import Metrics, Series, prometheus_text


def test_counters_add_up_per_series() -> None:
    metrics = Metrics()
    metrics.count("a.b")
    metrics.count("a.b", 2)
    metrics.count("a.b", kind="x")
    assert metrics.snapshot() == {"a.b": 3, "a.b{kind=x}": 1}


def test_gauges_are_replaced() -> None:
    metrics = Metrics()
    metrics.gauge("g", 5, slot="s", status="ok")
    metrics.gauge("g", 7, status="ok", slot="s")
    assert metrics.snapshot() == {"g{slot=s,status=ok}": 7}


def test_series_say_what_they_are() -> None:
    metrics = Metrics()
    metrics.gauge("b", 1.5, status="ok")
    metrics.count("a", 2)
    assert metrics.series() == [
        Series("a", "counter", (), 2),
        Series("b", "gauge", (("status", "ok"),), 1.5),
    ]


def test_the_text_for_prometheus_has_one_type_per_name_and_escapes_labels() -> None:
    metrics = Metrics()
    metrics.gauge("replication.slot_health", 1, status="ok")
    metrics.gauge("replication.slot_health", 0, status='a "quoted" \\ \n line')
    metrics.count("sync.active-clients", 12345678901234567)
    assert prometheus_text(metrics.series()) == (
        "# TYPE zero_replication_slot_health gauge\n"
        'zero_replication_slot_health{status="a \\"quoted\\" \\\\ \\n line"} 0\n'
        'zero_replication_slot_health{status="ok"} 1\n'
        "# TYPE zero_sync_active_clients counter\n"
        "zero_sync_active_clients 12345678901234567\n"
    )
