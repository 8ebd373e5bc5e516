"""Probes of lag: what their times mean, and what becomes of those that are lost."""

from __future__ import annotations

import struct

import msgspec
import pytest

from replication_manager.lag_reports import LagReports
from zerocache.metrics import Metrics
from zerocache.postgres.shard import ShardNames


class Clock:
    now_ms = 1_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def reports(clock: Clock, metrics: Metrics) -> LagReports:
    return LagReports(ShardNames("app"), metrics, lambda: clock.now_ms)


def message(content: object, prefix: str = "app/0/lag-report/v1") -> bytes:
    text = msgspec.json.encode(content)
    head = struct.pack(">cbQ", b"M", 0, 7)
    return head + prefix.encode() + b"\0" + struct.pack(">I", len(text)) + text


def probe(reports: LagReports, written_ms: int) -> bytes:
    number, sent_ms = reports.next_probe()
    return message({"id": number, "sendTimeMs": sent_ms, "commitTimeMs": written_ms})


def test_lag_is_split_where_the_probe_was_received(
    reports: LagReports, clock: Clock, metrics: Metrics
) -> None:
    payload = probe(reports, 1_000_005)
    assert reports.concerns(payload)
    clock.now_ms += 40
    reports.received(payload)
    clock.now_ms += 3
    reports.applied()
    assert metrics.snapshot() == {
        "replication.upstream_lag": 40,
        "replication.upstream_clock_skew": 5,
        "replication.replica_lag": 3,
        "replication.total_lag": 43,
        "replication.last_total_lag": 43,
    }


def test_a_missing_probe_counts_as_lag_and_is_replaced(
    reports: LagReports, clock: Clock, metrics: Metrics
) -> None:
    lost = probe(reports, 0)
    clock.now_ms += 30_000
    assert reports.observe() == 30_000
    assert metrics.snapshot()["replication.total_lag"] == 30_000
    probe(reports, 0)
    assert metrics.snapshot()["replication.lag_report_retries"] == 1
    # Late, it says nothing any more.
    reports.received(lost)
    reports.applied()
    assert "replication.last_total_lag" not in metrics.snapshot()


def test_probes_of_others_are_none_of_ours(reports: LagReports, metrics: Metrics) -> None:
    probe(reports, 0)
    assert not reports.concerns(message({}, "other/0/lag-report/v1"))
    assert not reports.concerns(b"I" + bytes(40))
    reports.received(message({"id": "foreign", "sendTimeMs": 1, "commitTimeMs": 1}))
    reports.received(message(["garbage"]))
    reports.applied()
    assert metrics.snapshot() == {}
