"""Latency: from the return of COMMIT until the poke with the row has been read by a client.

A writer process updates the rows of a page of 100 at a steady rate; one client watches the page.
Both read the same monotonic clock. Pokes may coalesce: a write counts as arrived when its row
arrives with its value or a later one.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec import UNSET

from benchmarks import queries, workbench
from benchmarks.protocol_client import SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.sync_messages import Poke
from benchmarks.workbench import Outcome, Workbench
from benchmarks.writer import Plan, Written

_NAME = "latency"
_RATES = (10, 100, 500)
_SECONDS = 12.0
_QUICK_SECONDS = 3.0


@dataclass
class Watch:
    """Arrival time of every write, from the pokes that a client applies."""

    # Row id -> (value, time) in order of arrival; values of one row only grow.
    arrivals: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    pokes: int = 0
    highest: int = -1

    def on_poke(self, poke: Poke) -> None:
        self.pokes += 1
        for part in poke.parts:
            for op in () if part.rows is UNSET else part.rows:
                if op.value is not UNSET:
                    value = op.value["votes"]
                    self.arrivals.setdefault(op.value["id"], []).append((value, poke.received_ns))
                    self.highest = max(self.highest, value)

    def delays_ms(self, plan: Plan, written: Written) -> list[float]:
        delays = []
        for number, committed_ns in enumerate(written.commits_ns):
            value = plan.first_sequence + number
            arrivals = self.arrivals[plan.ids[number % len(plan.ids)]]
            arrived_ns = next(at for seen, at in arrivals if seen >= value)
            delays.append((arrived_ns - committed_ns) / 1e6)
        return delays


async def write(plan: Plan) -> Written:
    """Run the writer process to its end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.writer",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    output, _ = await process.communicate(msgspec.json.encode(plan))
    if process.returncode != 0:
        raise RuntimeError(f"the writer ended with {process.returncode}")
    return msgspec.json.decode(output, type=Written)


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    watch = Watch()
    query = queries.project_page(1)
    client = SyncClient(server.url, bench.schema, [query], on_poke=watch.on_poke)
    await client.connect()
    await client.wait_got(query)
    ids = [str(row["id"]) for row in client.state.table("issues").values()]
    votes = max(row["votes"] for row in client.state.rows.values())
    seconds = _QUICK_SECONDS if bench.options.quick else _SECONDS
    outcome = Outcome([], [])
    sequence = votes + 1
    for rate in (0, *_RATES):
        # The first, unreported pass warms the server's code up: rate 0 stands for it.
        count = round((rate or 100) * (seconds if rate else 1.0))
        plan = Plan(bench.database_url, ids, rate or 100, count, sequence)
        measured = await _measure_rate(server, client, watch, plan)
        sequence += count
        if rate:
            outcome += measured
    client.close()
    return outcome


async def _measure_rate(server: Server, client: SyncClient, watch: Watch, plan: Plan) -> Outcome:
    watch.arrivals.clear()
    watch.pokes = 0
    server_cpu, cpu, began = server.usage().cpu_s, time.process_time(), time.monotonic()
    written = await write(plan)
    last = plan.first_sequence + plan.count - 1
    await client.wait_for(lambda: watch.highest >= last)
    elapsed = time.monotonic() - began
    load = (time.process_time() - cpu) / elapsed
    server_load = (server.usage().cpu_s - server_cpu) / elapsed
    delays = sorted(watch.delays_ms(plan, written))
    rate = f"{plan.rate_per_s:.0f} tx/s"
    details = {
        "transactions": plan.count,
        "achieved_per_s": round(plan.count / written.elapsed_s, 1),
        "pokes": watch.pokes,
        "max_ms": round(delays[-1], 2),
        "server_cpus": round(server_load, 3),
        "client_cpus": round(load, 3),
        "writer_cpus": round(written.cpu_s / written.elapsed_s, 3),
    }
    p99 = delays[min(len(delays) - 1, int(len(delays) * 0.99))]
    note = (
        f"latency at {rate}: {details['achieved_per_s']}/s committed, {watch.pokes} pokes; CPUs: "
        f"server {server_load:.2f}, client {load:.2f}, writer {details['writer_cpus']}"
    )
    return Outcome(
        [
            Metric(_NAME, f"{rate}, p50", statistics.median(delays), "ms", details=details),
            Metric(_NAME, f"{rate}, p99", p99, "ms"),
        ],
        [note],
    )


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("latency", __doc__, _alone)
