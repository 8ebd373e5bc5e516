"""Hydration: from the start of a connection until a new query is complete on the client.

The first group's query is new to the server; the second group asks the same query while the first
is connected. Medians over rounds; every round uses another instance of the query.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import queries, workbench
from benchmarks.protocol_client import DesiredQuery, SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench

_NAME = "hydration"
_ROUNDS = 5
_TREE_ISSUES = 80


@dataclass(frozen=True)
class Hydrated:
    client: SyncClient
    seconds: float
    row_ops: int


@dataclass(frozen=True)
class _Case:
    name: str
    query: Callable[[int], DesiredQuery]
    rounds: int


async def hydrate(bench: Workbench, server: Server, query: DesiredQuery) -> Hydrated:
    """Connect a new group with ``query`` and wait until it is got; rows are only counted."""
    client = SyncClient(server.url, bench.schema, [query], keep_rows=False)
    began = time.monotonic()
    await client.connect()
    await client.wait_got(query)
    return Hydrated(client, time.monotonic() - began, client.state.row_ops)


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    outcome = Outcome([], [])
    cpu, began = time.process_time(), time.monotonic()
    for case in _cases(bench):
        outcome.metrics += await _measure_case(bench, server, case)
    load = (time.process_time() - cpu) / (time.monotonic() - began)
    outcome.notes.append(f"hydration: the client used {load:.0%} of one CPU")
    return outcome


def _cases(bench: Workbench) -> list[_Case]:
    sizes = (100, 1_000, 5_000) if bench.options.quick else (100, 10_000, 50_000)
    rounds = 3 if bench.options.quick else _ROUNDS
    pages = [_page_case(size, rounds) for size in sizes if size < bench.sizes.issues]
    return [*pages, _Case("tree", lambda n: queries.tree(_TREE_ISSUES, n), rounds)]


def _page_case(size: int, rounds: int) -> _Case:
    return _Case(f"{size:,} rows", lambda n: queries.page(size, n), rounds)


async def _measure_case(bench: Workbench, server: Server, case: _Case) -> list[Metric]:
    first_s: list[float] = []
    second_s: list[float] = []
    rows = 0
    for instance in range(case.rounds):
        query = case.query(instance)
        first = await hydrate(bench, server, query)
        second = await hydrate(bench, server, query)
        if first.row_ops != second.row_ops:
            raise RuntimeError(f"two groups got {first.row_ops} and {second.row_ops} rows")
        first_s.append(first.seconds)
        second_s.append(second.seconds)
        rows = first.row_ops
        first.client.close()
        second.client.close()
    name = f"{case.name} ({rows})" if case.name == "tree" else case.name
    return [
        _metric(name, "first group", first_s, rows),
        _metric(name, "second group", second_s, rows),
    ]


def _metric(case: str, group: str, samples_s: list[float], rows: int) -> Metric:
    details = {"rows": rows, "samples_ms": [round(sample * 1000, 2) for sample in samples_s]}
    value = statistics.median(samples_s) * 1000
    return Metric(_NAME, f"{case}, {group}", value, "ms", details=details)


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("hydration", __doc__, _alone)
