"""Replication: the initial copy, a stream of small transactions, large ones, restart, memory.

*Initial sync*: the first start on an empty directory. The copy alone is what each server says of
it: from its begin until all rows are in the replica, without the indexes. *Stream*: a writer
commits single-row transactions as fast as it can while no client is connected; then a client asks
for the row written last. *Large transaction*: one UPDATE of many rows, from the return of COMMIT
until a client that watches some of them has them. *Memory*: resident size of the processes that
replicate. On a busy machine trust the CPU seconds: times are then those of whoever else is running.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psycopg

from benchmarks import dataset, queries, restart, workbench
from benchmarks.latency import Watch, write
from benchmarks.protocol_client import SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server, Usage
from benchmarks.workbench import Outcome, Workbench
from benchmarks.writer import Plan, Written

# Parts of the command lines of processes that replicate, of both servers.
REPLICATING = ("replication_manager", "change-streamer.js", "replicator.js")
_TRANSACTIONS = 100_000
_QUICK_TRANSACTIONS = 10_000
# Rows the stream writes in turn.
_ROWS = 1_000
_LARGE = (10_000, 100_000)
_SAMPLE_S = 0.25
_IDLE_S = 5.0
_CATCH_UP_S = 600.0


_NUMBER = r"([\d.]+)"
_COPIED = {
    "zerocache": re.compile(rf"initial sync: copied [\d,]+ rows .* in {_NUMBER} s"),
    "reference": re.compile(rf"Synced [\d,]+ rows .*index: {_NUMBER}, total: {_NUMBER} ms"),
}


def _copy_seconds(server: Server) -> float:
    """From the first COPY until the last row is in the replica, as the server itself says: from
    outside nobody sees how much of what it has received it has written."""
    found = _COPIED[server.kind.name].search(server.log_path.read_text(errors="replace"))
    if found is None:
        raise RuntimeError(f"{server.kind.name} did not say how long its initial copy took")
    if server.kind.name == "zerocache":
        return float(found[1])
    return (float(found[2]) - float(found[1])) / 1000


@dataclass
class _Peaks:
    """Largest sizes seen while a burst was running."""

    bench: Workbench
    server: Server
    resident_mb: float = 0.0
    slot_backlog_mb: float = 0.0
    samples: list[tuple[float, float]] = field(default_factory=list)

    async def run(self) -> None:
        query = (
            "SELECT max(pg_current_wal_lsn() - confirmed_flush_lsn)::float8 / 1e6"
            " FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
        )
        url = self.bench.database_url
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            while True:
                row = await (await connection.execute(query, [self.server.app_id])).fetchone()
                assert row is not None
                backlog_mb = row[0] or 0.0
                resident_mb = self.server.usage(REPLICATING, shared=False).rss_mb
                self.slot_backlog_mb = max(self.slot_backlog_mb, backlog_mb)
                self.resident_mb = max(self.resident_mb, resident_mb)
                self.samples.append((round(backlog_mb, 1), round(resident_mb, 1)))
                await asyncio.sleep(_SAMPLE_S)


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Everything, from the first start; the server is left running."""
    outcome = await _initial_sync(bench, server)
    await bench.open_for_queries(server)
    outcome += await _memory(server, "idle after the initial sync")
    outcome += await _stream(bench, server)
    for rows in _LARGE:
        if rows <= bench.sizes.issues:
            outcome += await _large_transaction(bench, server, rows)
    outcome += await _memory(server, "idle after the writes")
    outcome += await restart.measure(bench, server)
    return outcome


async def _initial_sync(bench: Workbench, server: Server) -> Outcome:
    seconds = await server.start(log_level="info")
    copy_s = _copy_seconds(server)
    rows = bench.sizes.total
    details = {"rows": rows, "replica_mb": server.replica_mb(), "cpu_s": server.usage().cpu_s}
    return Outcome(
        [
            Metric("initial sync", "copy alone", rows / copy_s, "rows/s", True, details),
            Metric("initial sync", "copy alone, time", copy_s, "s"),
            Metric("initial sync", "time until ready", seconds, "s"),
            Metric("initial sync", "CPU of the server", server.usage().cpu_s, "s"),
        ],
        [],
    )


async def _memory(server: Server, when: str) -> Outcome:
    await asyncio.sleep(_IDLE_S)
    usage = server.usage(REPLICATING)
    details = {"processes": usage.processes, "pss_mb": usage.pss_mb}
    metric = Metric("memory of replication", when, usage.rss_mb, "MB", details=details)
    return Outcome([metric], [_memory_note(when, usage)])


def _memory_note(when: str, usage: Usage) -> str:
    return (
        f"memory {when}: {usage.processes} replicating process(es), RSS {usage.rss_mb:.0f} MB, "
        f"PSS {usage.pss_mb:.0f} MB"
    )


async def _stream(bench: Workbench, server: Server) -> Outcome:
    count = _QUICK_TRANSACTIONS if bench.options.quick else _TRANSACTIONS
    ids = [dataset.issue_id(number) for number in range(_ROWS)]
    plan = Plan(bench.database_url, ids, 0, count, bench.highest_votes() + 1)
    peaks = _Peaks(bench, server)
    began, cpu_s = time.monotonic(), server.usage(REPLICATING).cpu_s
    async with _meanwhile(peaks.run()):
        written = await write(plan)
        ended = time.monotonic()
        await _client_sees(bench, server, (count - 1) % len(ids), plan.first_sequence + count - 1)
        behind_s = time.monotonic() - ended
    used_s = server.usage(REPLICATING).cpu_s - cpu_s
    return _stream_outcome(written, count, behind_s, began, ended, used_s, peaks)


def _stream_outcome(
    written: Written,
    count: int,
    behind_s: float,
    began: float,
    ended: float,
    used_s: float,
    peaks: _Peaks,
) -> Outcome:
    rate = count / (written.elapsed_s + behind_s)
    offered = count / written.elapsed_s
    details = {"offered_per_s": offered, "transactions": count, "cpu_s": used_s}
    return Outcome(
        [
            Metric("stream", "transactions replicated", rate, "tx/s", True, details),
            Metric("stream", "time until caught up", behind_s, "s"),
            Metric("stream", "CPU of replication per 10k", used_s / count * 10_000, "s"),
            Metric("stream", "largest backlog in the slot", peaks.slot_backlog_mb, "MB"),
            Metric(
                "stream",
                "largest memory of replication",
                peaks.resident_mb,
                "MB",
                details={"slot_mb_and_resident_mb": peaks.samples},
            ),
        ],
        [
            f"stream: {count} transactions committed at {offered:.0f}/s in {ended - began:.1f} s; "
            f"replication used {used_s:.1f} s of CPU"
        ],
    )


async def _client_sees(bench: Workbench, server: Server, issue: int, votes: int) -> None:
    """Connect, and wait until the replica has that value of that issue."""
    watch = Watch()
    query = queries.one_issue(issue)
    client = SyncClient(server.url, bench.schema, [query], on_poke=watch.on_poke)
    await client.connect()
    await client.wait_for(lambda: watch.highest >= votes, _CATCH_UP_S)
    client.close()


async def _large_transaction(bench: Workbench, server: Server, rows: int) -> Outcome:
    watch = Watch()
    query = queries.project_page(1)
    client = SyncClient(server.url, bench.schema, [query], on_poke=watch.on_poke)
    await client.connect()
    await client.wait_got(query)
    votes = bench.highest_votes() + 1
    cpu_s = server.usage(REPLICATING).cpu_s
    committed = await asyncio.to_thread(_update_many, bench.database_url, rows, votes)
    await client.wait_for(lambda: watch.highest >= votes, _CATCH_UP_S)
    seconds = time.monotonic() - committed
    client.close()
    used_s = server.usage(REPLICATING).cpu_s - cpu_s
    details = {"rows_per_s": rows / seconds}
    name = f"{rows // 1000}k rows"
    return Outcome(
        [
            Metric("large transaction", f"{name} until seen", seconds, "s", details=details),
            Metric("large transaction", f"{name}, CPU of replication", used_s, "s"),
        ],
        [],
    )


def _update_many(url: str, rows: int, votes: int) -> float:
    """Update in one transaction; the time when COMMIT returned."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE issues SET votes = %s WHERE short_id < %s", [votes, rows])
        return time.monotonic()


@asynccontextmanager
async def _meanwhile(sampler: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Run ``sampler`` as long as the block; what it failed with is raised."""
    task = asyncio.create_task(sampler)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


if __name__ == "__main__":
    workbench.main("replication", __doc__, measure, server="both")
