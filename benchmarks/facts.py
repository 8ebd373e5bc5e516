"""What membership facts cost where they are written.

design.md §3 commits the facts of an advance before the pokes that depend on them; here they are
written behind the pokes (``view_syncer.fact_keeper``). The difference is one transaction in the
way of every poke that moves a row: this measures such a transaction, with the durability that
PostgreSQL has by default, and what the writing behind costs the event loop per flush.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

import psycopg

from benchmarks import report
from benchmarks.cluster import Cluster
from benchmarks.report import Metric, ServerResult
from view_syncer.cvr.facts import Move, pack
from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.store import Delta, UnitWrite
from zerocache.protocol.versions import Watermark, lexi_encode

_NAME = "facts"


async def measure(cluster: Cluster, rounds: int, units: int) -> list[Metric]:
    store = PostgresStore(cluster.url(), "bench_0/cvr", max_connections=2)
    await store.open()
    try:
        author = await store.new_author()
        waited_ms: list[float] = []
        packed_ms: list[float] = []
        for number in range(rounds):
            version = Watermark(lexi_encode(1_000 + number))
            start = time.perf_counter()
            writes = [_moved(unit, version) for unit in range(units)]
            packed = time.perf_counter()
            await store.write_facts(author, version, writes)
            waited_ms.append((time.perf_counter() - packed) * 1000)
            packed_ms.append((packed - start) * 1000)
    finally:
        await store.close()
    case = f"{units} unit{'' if units == 1 else 's'} moved"
    waited_ms.sort()
    details = {"rounds": rounds}
    return [
        Metric(
            _NAME, f"transaction p50, {case}", statistics.median(waited_ms), "ms", False, details
        ),
        Metric(
            _NAME, f"transaction p99, {case}", waited_ms[int(rounds * 0.99)], "ms", False, details
        ),
        Metric(_NAME, f"packing p50, {case}", statistics.median(packed_ms), "ms", False, details),
    ]


def _moved(unit: int, version: Watermark) -> UnitWrite:
    key = f'{{"op":"del","tableName":"issue","id":{{"id":"issue-{unit}-{version}"}}}}'
    return UnitWrite(f"unit-{unit}", delta=Delta(version, pack([Move(version, [key], [key])])))


def _durable(cluster: Cluster) -> str:
    with psycopg.connect(cluster.url(), autocommit=True) as db:
        db.execute("ALTER SYSTEM SET fsync = on")
        db.execute("SELECT pg_reload_conf()")
        row = db.execute("SHOW server_version").fetchone()
    assert row is not None
    return str(row[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1_000)
    options = parser.parse_args()
    with Cluster() as cluster:
        settings = {"PostgreSQL": _durable(cluster), "fsync": "on"}
        metrics: list[Metric] = []
        for units in (1, 100):
            metrics += asyncio.run(measure(cluster, options.rounds, units))
    results = [ServerResult("zerocache", "", tuple(metrics))]
    report.print_header(settings)
    report.print_table(results)
    print(report.write(_NAME, results, settings))


if __name__ == "__main__":
    main()
