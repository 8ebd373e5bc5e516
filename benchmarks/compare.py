"""zerocache and the reference server, one after the other, on the same PostgreSQL in one run.

Each server has the machine to itself (apart from PostgreSQL and the load). The table ends with
the ratios. ``--quick`` takes about two minutes, the whole about five.
"""

from __future__ import annotations

from benchmarks import hydration, initial_sync, latency, restart, workbench
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench


async def measure(bench: Workbench, server: Server) -> Outcome:
    outcome = await initial_sync.measure(bench, server)
    await bench.open_for_queries(server)
    for benchmark in (hydration.measure, latency.measure, restart.measure):
        outcome += await benchmark(bench, server)
    return outcome


if __name__ == "__main__":
    workbench.main("compare", __doc__, measure, server="both")
