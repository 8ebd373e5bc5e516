"""Storms: many client groups at once, new or returning, and the memory that each one costs.

*Same*: all groups ask one query (a page of 100 rows). *Own*: each asks for its own project. The
clock runs from the first connection attempt until the last group is complete; the clients of the
wave before have just left, as they have when a network fails for a moment. Memory is the growth of
the server's PSS over groups with the two-level tree, divided by their number.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass

import psycopg

from benchmarks import dataset, queries, workbench
from benchmarks.protocol_client import DesiredQuery, SyncClient
from benchmarks.report import Metric
from benchmarks.servers import Server
from benchmarks.workbench import Outcome, Workbench

_NAME = "storms"
_GROUPS = 200
_QUICK_GROUPS = 50
_MEMORY_GROUPS = 50
_TREE_ISSUES = 80
_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class _Wave:
    clients: list[SyncClient]
    seconds: float
    client_cpus: float

    @property
    def per_s(self) -> float:
        return len(self.clients) / self.seconds

    def close(self) -> None:
        for client in self.clients:
            client.close()


async def measure(bench: Workbench, server: Server) -> Outcome:
    """Measure a running server that is open for queries; it is left running."""
    count = _QUICK_GROUPS if bench.options.quick else _GROUPS
    outcome = Outcome([], [])
    same = await _new_groups(bench, server, count, lambda _: queries.project_page(0))
    outcome += _result(f"{count} new groups, same query", same)
    same.close()
    own = await _new_groups(bench, server, count, lambda n: queries.project_page(n + 2))
    outcome += _result(f"{count} new groups, own queries", own)
    own.close()
    _touch(bench, project=2)
    back = await _reconnect(bench, server, own.clients)
    outcome += _result(f"{count} reconnects, a row changed", back)
    back.close()
    await server.stop()
    await server.start()
    back = await _reconnect(bench, server, back.clients)
    outcome += _result(f"{count} reconnects after a restart", back)
    back.close()
    outcome += await _memory(bench, server, "same query", lambda _: 0)
    outcome += await _memory(bench, server, "own queries", lambda n: n + 1)
    return outcome


async def _new_groups(
    bench: Workbench, server: Server, count: int, query: Callable[[int], DesiredQuery]
) -> _Wave:
    wanted = [query(number) for number in range(count)]
    clients = [SyncClient(server.url, bench.schema, [one], keep_rows=False) for one in wanted]

    async def one(client: SyncClient, desired: DesiredQuery) -> None:
        await client.connect(_TIMEOUT_S)
        await client.wait_got(desired, timeout_s=_TIMEOUT_S)

    return await _wave(clients, [one(*pair) for pair in zip(clients, wanted, strict=True)])


async def _reconnect(bench: Workbench, server: Server, before: Sequence[SyncClient]) -> _Wave:
    """The clients come back with what they had, and wait for the first poke."""
    clients = [
        SyncClient(
            server.url,
            bench.schema,
            client_id=old.client_id,
            client_group_id=old.client_group_id,
            state=old.state,
        )
        for old in before
    ]

    async def one(client: SyncClient) -> None:
        await client.connect(_TIMEOUT_S)
        await client.wait_for(lambda: client.session.poke_count > 0, _TIMEOUT_S)

    return await _wave(clients, [one(client) for client in clients])


async def _wave(clients: list[SyncClient], tasks: list[Coroutine[None, None, None]]) -> _Wave:
    for client in clients:
        client.prepare()
    cpu, began = time.process_time(), time.monotonic()
    await asyncio.gather(*tasks)
    seconds = time.monotonic() - began
    return _Wave(clients, seconds, (time.process_time() - cpu) / seconds)


def _result(name: str, wave: _Wave) -> Outcome:
    details = {"seconds": round(wave.seconds, 3), "client_cpus": round(wave.client_cpus, 3)}
    note = f"{_NAME}, {name}: {wave.seconds:.2f} s, client CPUs {wave.client_cpus:.2f}"
    return Outcome([Metric(_NAME, name, wave.per_s, "groups/s", True, details)], [note])


def _touch(bench: Workbench, project: int) -> None:
    with psycopg.connect(bench.database_url) as connection:
        connection.execute(
            "UPDATE issues SET votes = votes + 1 WHERE id = %s", [dataset.issue_id(project)]
        )


async def _memory(
    bench: Workbench, server: Server, case: str, instance: Callable[[int], int]
) -> Outcome:
    before = server.usage().pss_mb
    wave = await _new_groups(
        bench, server, _MEMORY_GROUPS, lambda n: queries.tree(_TREE_ISSUES, instance(n))
    )
    growth = server.usage().pss_mb - before
    wave.close()
    name = f"memory per group of a tree, {case}"
    return Outcome([Metric(_NAME, name, growth / _MEMORY_GROUPS, "MB")], [])


async def _alone(bench: Workbench, server: Server) -> Outcome:
    await server.start()
    await bench.open_for_queries(server)
    # What was just loaded is still being written back, at the cost of a seventh of the first wave.
    await asyncio.to_thread(os.sync)
    return await measure(bench, server)


if __name__ == "__main__":
    workbench.main("storms", __doc__, _alone)
