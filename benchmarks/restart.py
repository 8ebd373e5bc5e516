"""Restart: from the start of the program on an existing replica to a hydrated page of 100 rows."""

from __future__ import annotations

from benchmarks import queries, workbench
from benchmarks.hydration import hydrate
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench

_NAME = "restart"


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Stop and start a running server; it is left running."""
    await server.stop()
    ready_s = await server.start()
    page = await hydrate(bench, server, queries.page(100, 0))
    page.client.close()
    return Outcome(
        [
            Metric(_NAME, "time until ready", ready_s, "s"),
            Metric(_NAME, "then 100 rows", page.seconds * 1000, "ms"),
        ],
        [],
    )


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("restart", __doc__, _alone)
