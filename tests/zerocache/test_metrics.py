"""Counters add up, gauges are replaced, attributes tell series apart."""

from __future__ import annotations

from zerocache.metrics import Metrics


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
