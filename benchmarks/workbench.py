"""What every benchmark needs around it: options, one PostgreSQL with the data set, servers.

Owns the order of a run: load, then one server after the other, each alone on the machine. Must
never measure anything itself. Invariant: all servers of a run see the same database.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import uvloop

from benchmarks import dataset, report
from benchmarks.background import CpuMeter
from benchmarks.cluster import Cluster
from benchmarks.protocol_client import SyncClient, ast_query
from benchmarks.servers import KINDS, Server, ServerKind
from benchmarks.sync_messages import ClientSchema

QUICK_SCALE = 0.1


@dataclass(frozen=True)
class Options:
    """What the command line says. ``quick`` also shortens the benchmarks themselves."""

    kinds: tuple[ServerKind, ...]
    quick: bool
    # Also run what takes minutes (compare.py only).
    long: bool
    scale: float
    workers: int
    keep_logs: bool


@dataclass(frozen=True)
class Workbench:
    """A loaded database, ready for servers."""

    options: Options
    postgres_pid: int
    database_url: str
    sizes: dataset.Sizes
    data_mb: float
    schema: ClientSchema
    work_dir: Path

    def server(self, kind: ServerKind) -> Server:
        return Server(kind, self.database_url, self.work_dir, self.options.workers)

    async def open_for_queries(self, server: Server) -> None:
        """Deploy the permissions and wait until a query returns rows under them."""
        server.allow_everything(self.schema)
        # Its own limit: the probe must not warm any query that is measured.
        probe = SyncClient(server.url, self.schema, [ast_query({"table": "labels", "limit": 7})])
        await probe.connect()
        await probe.wait_for(lambda: bool(probe.state.rows))
        probe.close()

    def issues_of(self, projects: Sequence[int]) -> list[str]:
        """The ids of the issues of some projects, alternating between the projects."""
        per_project = range(dataset.ISSUES_PER_PROJECT)
        return [
            dataset.issue_id(row * self.sizes.projects + project)
            for row in per_project
            for project in projects
        ]

    def highest_votes(self) -> int:
        """The highest sequence number that any writer has left in the database."""
        with psycopg.connect(self.database_url) as connection:
            row = connection.execute("SELECT max(votes) FROM issues").fetchone()
        assert row is not None
        return int(row[0])


@dataclass
class Outcome:
    """What a benchmark hands back: numbers, and sentences that qualify them."""

    metrics: list[report.Metric]
    notes: list[str]

    def __iadd__(self, other: Outcome) -> Outcome:
        self.metrics += other.metrics
        self.notes += other.notes
        return self


Benchmark = Callable[[Workbench, Server], Awaitable[Outcome]]


def parse_options(description: str, server: str) -> Options:
    parser = argparse.ArgumentParser(description=description)
    names = [*KINDS, "both"]
    parser.add_argument("--server", choices=names, default=server, help="what to measure")
    parser.add_argument("--quick", action="store_true", help=f"scale {QUICK_SCALE}, short runs")
    parser.add_argument("--long", action="store_true", help="compare: sustained writes, storms")
    parser.add_argument("--scale", type=float, help="share of the data set of 607k rows")
    parser.add_argument("--workers", type=int, default=1, help="sync workers per server")
    parser.add_argument("--keep-logs", action="store_true", help="keep the servers' directory")
    arguments = parser.parse_args()
    kinds = tuple(KINDS.values()) if arguments.server == "both" else (KINDS[arguments.server],)
    scale = arguments.scale or (QUICK_SCALE if arguments.quick else 1.0)
    return Options(
        kinds, arguments.quick, arguments.long, scale, arguments.workers, arguments.keep_logs
    )


def main(
    name: str, description: str | None, benchmark: Benchmark, *, server: str = "zerocache"
) -> None:
    """The entry point of a benchmark script; ``server`` is what it measures unless told."""
    options = parse_options(description or name, server)
    uvloop.run(_run(name, options, benchmark))


async def _run(name: str, options: Options, benchmark: Benchmark) -> None:
    # First of all: a server that is not installed should fail (or be installed) at once.
    versions = {kind.name: await asyncio.to_thread(kind.version) for kind in options.kinds}
    task = asyncio.current_task()
    assert task is not None
    # `timeout`, CI and service managers end a program so: servers and PostgreSQL must go too.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    work_dir = Path(tempfile.mkdtemp(prefix="zerocache-bench-"))
    try:
        with Cluster() as cluster:
            bench = await asyncio.to_thread(_load, cluster, options, work_dir)
            settings = _settings(cluster, bench)
            report.print_header(settings)
            results = []
            for kind in options.kinds:
                results.append(await _measure(bench, kind, versions[kind.name], benchmark))
                if len(options.kinds) > 1:
                    # The next one may take so long that somebody ends the run.
                    report.print_table(results[-1:])
    finally:
        if options.keep_logs:
            print(f"logs: {work_dir}")
        else:
            shutil.rmtree(work_dir, ignore_errors=True)
    report.print_table(results)
    print(f"written: {report.write(name, results, settings)}")


def _load(cluster: Cluster, options: Options, work_dir: Path) -> Workbench:
    url = cluster.create_database("bench")
    sizes = dataset.load(url, options.scale)
    mb, schema = dataset.size_mb(url), dataset.client_schema()
    return Workbench(options, cluster.pid, url, sizes, mb, schema, work_dir)


def _settings(cluster: Cluster, bench: Workbench) -> dict[str, Any]:
    return {
        "postgres": cluster.version(),
        "rows": bench.sizes.total,
        "data_mb": round(bench.data_mb, 1),
        "sync_workers": bench.options.workers,
        "quick": bench.options.quick,
    }


async def _measure(
    bench: Workbench, kind: ServerKind, version: str, benchmark: Benchmark
) -> report.ServerResult:
    server = bench.server(kind)
    before = CpuMeter.read(bench.postgres_pid)
    try:
        outcome = await benchmark(bench, server)
    finally:
        await server.stop()
        await asyncio.to_thread(server.drop_slots)
    after = CpuMeter.read(bench.postgres_pid)
    others = after.others_since(before)
    print(f"{kind.name}: measured in {after.at_s - before.at_s:.0f} s")
    outcome.notes.append(f"other programs kept {others:.2f} CPUs busy during the measurement")
    return report.ServerResult(kind.name, version, tuple(outcome.metrics), tuple(outcome.notes))
