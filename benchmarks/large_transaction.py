"""One transaction that updates every row of a large table, while clients watch some of them.

Prints how long it takes until the replica and every client have it, and the peak of the memory of
each process meanwhile: none of them may grow with the size of the transaction. Before that comes
the initial sync of the same rows (``--copy-only``: nothing else), after it ``zerocache verify``.
``--rows`` is a million by default.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import uvloop

from benchmarks import report
from benchmarks.cluster import Cluster
from benchmarks.protocol_client import DesiredQuery, SyncClient, ast_query
from benchmarks.queries import simple
from benchmarks.report import Metric, ServerResult
from benchmarks.servers import ZEROCACHE, Server
from benchmarks.sync_messages import ClientSchema, TableSchema

_NAME = "large transaction"
_OWNERS = 1_000
_CLIENTS = 4
_TIMEOUT_S = 1_800.0
_SAMPLE_S = 0.05
_PROGRAMS = ("replication_manager", "view_syncer", "verify")
_SCHEMA = ClientSchema(
    {
        "big": TableSchema(
            {
                "id": {"type": "number"},
                "owner": {"type": "number"},
                "n": {"type": "number"},
                "body": {"type": "string"},
            },
            ["id"],
        )
    }
)


@dataclass
class MemoryWatch:
    """The highest private memory of each program of a process tree, sampled in a thread.

    Resident size without what is shared: pages of the mapped replica are no one's memory."""

    root: int
    peaks_mb: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        self._stop.set()
        self._thread.join()
        return self.peaks_mb

    def _run(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            try:
                root = psutil.Process(self.root)
                processes = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in processes:
                self._look(process)

    def _look(self, process: psutil.Process) -> None:
        try:
            command, memory = " ".join(process.cmdline()), process.memory_info()
        except psutil.NoSuchProcess:
            return
        name = next((name for name in _PROGRAMS if name in command), "supervisor")
        self.peaks_mb[name] = max((memory.rss - memory.shared) / 1e6, self.peaks_mb.get(name, 0.0))


def _load(url: str, rows: int) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE big (id int PRIMARY KEY, owner int NOT NULL, n int NOT NULL, "
            "body text NOT NULL)"
        )
        connection.execute(
            "INSERT INTO big SELECT i, i %% %s, 0, repeat('x', 100) FROM generate_series(1, %s) i",
            [_OWNERS, rows],
        )
        connection.execute("CREATE INDEX ON big (owner)")


def _queries(number: int) -> list[DesiredQuery]:
    where: dict[str, Any] = simple("owner", "=", number)
    window = {"table": "big", "orderBy": [["id", "asc"]], "limit": 1_000 + number}
    return [ast_query({"table": "big", "where": where}), ast_query(window)]


async def _connect(server: Server) -> list[SyncClient]:
    server.allow_everything(_SCHEMA)
    clients = []
    for number in range(_CLIENTS):
        client = SyncClient(server.url, _SCHEMA, _queries(number))
        await client.connect(_TIMEOUT_S)
        await client.wait_for(lambda client=client: len(client.state.rows) > 1_000, _TIMEOUT_S)  # type: ignore[misc]
        clients.append(client)
    return clients


def _update(url: str) -> float:
    """Seconds that the transaction took; it has committed."""
    began = time.monotonic()
    with psycopg.connect(url) as connection:
        connection.execute("UPDATE big SET n = n + 1")
    return time.monotonic() - began


async def _copy(server: Server, rows: int) -> list[Metric]:
    """The first start, on an empty directory; the server is left running."""
    # The server's processes, and this one.
    watch = MemoryWatch(os.getpid())
    seconds = await server.start()
    peak = watch.stop()["replication_manager"]
    return [
        Metric("initial sync", "until ready", seconds, "s"),
        Metric("initial sync", "rows per second", rows / seconds, "rows/s", True),
        Metric("initial sync", "replication_manager: peak", peak, "MB"),
        Metric("initial sync", "replica", server.replica_mb(), "MB"),
    ]


async def _measure(server: Server, url: str, rows: int) -> list[Metric]:
    clients = await _connect(server)
    idle = MemoryWatch(server.pid)
    await asyncio.sleep(1)
    before = idle.stop()
    watch = MemoryWatch(server.pid)
    written_s = await asyncio.to_thread(_update, url)
    committed = time.monotonic()
    for client in clients:
        await client.wait_for(
            lambda client=client: all(row["n"] == 1 for row in client.state.rows.values()),  # type: ignore[misc]
            _TIMEOUT_S,
        )
    seconds = time.monotonic() - committed
    peaks = watch.stop()
    metrics = [
        Metric(_NAME, "written upstream in", written_s, "s"),
        Metric(_NAME, "from commit until all clients have it", seconds, "s"),
        Metric(_NAME, "rows per second", rows / seconds, "rows/s", higher_is_better=True),
    ]
    for name, peak in sorted(peaks.items()):
        metrics.append(Metric(_NAME, f"{name}: peak", peak, "MB"))
        metrics.append(Metric(_NAME, f"{name}: growth", peak - before.get(name, 0.0), "MB"))
    for client in clients:
        client.close()
    return metrics


async def _verify(server: Server) -> list[Metric]:
    began = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "zerocache.cli", "verify", env=server.environment()
    )
    watch = MemoryWatch(process.pid)
    status = await process.wait()
    peak = max(watch.stop().values())
    if status != 0:
        raise RuntimeError(f"zerocache verify ended with {status}")
    return [
        Metric(_NAME, "verify", time.monotonic() - began, "s"),
        Metric(_NAME, "verify: peak", peak, "MB"),
    ]


async def _run(rows: int, *, copy_only: bool) -> None:
    work_dir = Path(tempfile.mkdtemp(prefix="zerocache-bench-"))
    try:
        with Cluster() as cluster:
            url = cluster.create_database("bench")
            await asyncio.to_thread(_load, url, rows)
            server = Server(ZEROCACHE, url, work_dir, workers=1)
            try:
                metrics = await _copy(server, rows)
                if not copy_only:
                    metrics += await _measure(server, url, rows)
                    metrics += await _verify(server)
            finally:
                await server.stop()
            settings = {"postgres": cluster.version(), "rows": rows, "clients": _CLIENTS}
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    results = [ServerResult(ZEROCACHE.name, ZEROCACHE.version(), tuple(metrics))]
    report.print_table(results)
    print(f"written: {report.write('large_transaction', results, settings)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--copy-only", action="store_true")
    options = parser.parse_args()
    uvloop.run(_run(options.rows, copy_only=options.copy_only))
