"""Memory: of a server that does nothing, and of each client group it serves.

Idle is the whole process tree after the first query, as RSS (what an operator sees) and as PSS
(shared pages counted once). Per group is the growth of the PSS over groups with a tree of 80
issues, their comments and labels, divided by their number: once all groups ask the same, once each
its own, and once more after every group has been through a burst of changes and has gone quiet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from benchmarks import queries, workbench
from benchmarks.latency import write
from benchmarks.protocol_client import SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench
from benchmarks.writer import Plan

_NAME = "memory"
_GROUPS = 100
_QUICK_GROUPS = 50
_TREE_ISSUES = 80
_RATE = 200.0
_TIMEOUT_S = 180.0


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    idle = server.usage()
    outcome = Outcome(
        [
            Metric(_NAME, "idle, whole process tree, RSS", idle.rss_mb, "MB"),
            Metric(_NAME, "idle, whole process tree, PSS", idle.pss_mb, "MB"),
        ],
        [f"{_NAME}: {idle.processes} processes"],
    )
    outcome += await _groups(bench, server, "same query", lambda _: 0)
    outcome += await _groups(bench, server, "own queries", lambda n: n + 1)
    return outcome


async def _groups(
    bench: Workbench, server: Server, case: str, instance: Callable[[int], int]
) -> Outcome:
    count = _QUICK_GROUPS if bench.options.quick else _GROUPS
    # The first of its kind pays for the plan and for what the allocator keeps from then on.
    clients = [await _served(bench, server, instance(0))]
    before = server.usage().pss_mb
    clients += await asyncio.gather(
        *(_served(bench, server, instance(number)) for number in range(1, count + 1))
    )
    quiet = (server.usage().pss_mb - before) / count
    rows = sum(client.state.row_ops for client in clients[1:]) // count
    await _change(bench)
    await asyncio.gather(*(client.wait_for(lambda: True) for client in clients))
    busy = (server.usage().pss_mb - before) / count
    for client in clients:
        client.close()
    return Outcome(
        [
            Metric(_NAME, f"per group, {case}", quiet, "MB"),
            Metric(_NAME, f"per group, {case}, after changes", busy, "MB"),
        ],
        [f"{_NAME}, {case}: {rows} rows a group"],
    )


async def _served(bench: Workbench, server: Server, instance: int) -> SyncClient:
    query = queries.tree(_TREE_ISSUES, instance)
    client = SyncClient(server.url, bench.schema, [query], keep_rows=False)
    await client.connect(_TIMEOUT_S)
    await client.wait_got(query, timeout_s=_TIMEOUT_S)
    return client


async def _change(bench: Workbench) -> None:
    first = bench.highest_votes() + 1
    await write(Plan(bench.database_url, bench.issues_of([0, 1]), _RATE, 600, first))


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("memory", __doc__, _alone)
