"""zerocache and the reference server, one after the other, on the same PostgreSQL in one run.

Each server has the machine to itself (apart from PostgreSQL and the load). The last column is the
ratio. ``--quick`` takes about a minute, the whole about three; ``--long`` adds the storms and the
sustained writes and takes about twenty.
"""

from __future__ import annotations

from benchmarks import (
    hydration,
    initial_sync,
    latency,
    restart,
    stalled,
    storms,
    sustained_writes,
    workbench,
)
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench


async def measure(bench: Workbench, server: Server) -> Outcome:
    outcome = await initial_sync.measure(bench, server)
    await bench.open_for_queries(server)
    # Latency first: what hydration leaves behind (queries live on for their TTL) would count in.
    benchmarks = [latency.measure, hydration.measure, restart.measure]
    if bench.options.long:
        benchmarks += [storms.measure, sustained_writes.measure, stalled.measure]
    for benchmark in benchmarks:
        outcome += await benchmark(bench, server)
    return outcome


if __name__ == "__main__":
    workbench.main("compare", __doc__, measure, server="both")
