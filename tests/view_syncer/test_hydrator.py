"""Hydrations beside the engine: one computation for all who ask, and slow ones in nobody's way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.view_syncer.ivm.cases import c, ex, q
from tests.view_syncer.ivm.group import to_hydrate
from tests.view_syncer.ivm.replica import Replica, Row, Table, client_tables
from tests.view_syncer.server import until
from view_syncer.engine_host import EngineHost
from view_syncer.hydrator import Hydrator
from view_syncer.ivm.engine import Engine
from view_syncer.ivm.hydration import Hydration, HydrationLimits, HydrationRequest
from view_syncer.lanes import LaneLimits
from zerocache.errors import QueryError
from zerocache.zql import ast

TABLES = {"task": Table({"id": "text", "rank": "int4", "title": "text"}, ("id",))}
CLIENT = client_tables(TABLES)
QUICK = q("task", where=c("id", "=", "t1"))


def endless(number: int) -> ast.Query:
    """Never done within the time of a test; with another value it is another query."""
    last = c("title", "=", f"no {number}")
    for _ in range(4):
        last = ex("task", last, "rank=rank")
    return q("task", where=last)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    rows: list[Row] = [{"id": f"t{i}", "rank": 1, "title": "x"} for i in range(2000)]
    one = Replica(tmp_path / "large.db", TABLES, {"task": rows})
    yield one
    one.close()


@pytest.fixture
def engine(replica: Replica) -> Iterator[Engine]:
    one = Engine(replica.path)
    yield one
    one.close()


def request(engine: Engine, query: ast.Query) -> HydrationRequest:
    return to_hydrate(engine, query, CLIENT)


async def _hydrator(replica: Replica, lanes: LaneLimits) -> AsyncIterator[Hydrator]:
    one = Hydrator(replica.path, HydrationLimits(), lanes)
    yield one
    async with asyncio.timeout(60):
        await one.close()


@pytest.fixture
async def hydrator(replica: Replica) -> AsyncIterator[Hydrator]:
    async for one in _hydrator(replica, LaneLimits(1, 1, 0.0)):
        yield one


async def cancelled(*tasks: asyncio.Task[Hydration | QueryError]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_quick_queries_get_through_beside_any_number_of_slow_ones(
    hydrator: Hydrator, engine: Engine
) -> None:
    slow = [
        asyncio.create_task(hydrator.hydrate("greedy", request(engine, endless(n))))
        for n in range(4)
    ]
    for n in range(3):
        asked = request(engine, q("task", where=c("id", "=", f"t{n}")))
        async with asyncio.timeout(60):
            hydration = await hydrator.hydrate("other", asked)
        assert isinstance(hydration, Hydration)
        assert hydration.pipeline.row_count() == 1
        hydrator.release([hydration])
    assert not any(task.done() for task in slow)
    await cancelled(*slow)


async def test_the_same_query_is_computed_once_for_all_who_ask(
    hydrator: Hydrator, engine: Engine, replica: Replica
) -> None:
    both = await asyncio.gather(*(hydrator.hydrate(g, request(engine, QUICK)) for g in "ab"))
    assert both[0] is both[1]
    assert isinstance(both[0], Hydration)
    hydrator.release([both[0]])
    assert both[0].reader.db.in_transaction
    hydrator.release([both[0]])
    assert not both[0].reader.db.in_transaction


async def test_one_of_two_who_gives_up_does_not_stop_the_other(
    hydrator: Hydrator, engine: Engine
) -> None:
    blocked = asyncio.create_task(hydrator.hydrate("x", request(engine, endless(0))))
    first, second = (asyncio.create_task(hydrator.hydrate(g, request(engine, QUICK))) for g in "ab")
    await asyncio.sleep(0)
    await cancelled(first)
    async with asyncio.timeout(60):
        hydration = await second
    assert isinstance(hydration, Hydration)
    hydrator.release([hydration])
    await cancelled(blocked)


async def test_whoever_gives_up_leaves_no_snapshot_behind(replica: Replica) -> None:
    """Neither that of the query which was computed nor that of the one which was not."""
    failures: list[BaseException] = []
    nothing_here = HydrationLimits(quick_rows=0)
    host = EngineHost(replica.path, lambda _: None, failures.append, limits=nothing_here)
    host.start()

    async def ask() -> None:
        async with host.prepared("g", CLIENT, {"quick": QUICK, "slow": endless(0)}):
            raise AssertionError("the slow query cannot be done")

    held = host._hydrator._holders
    asking = asyncio.create_task(ask())
    await until(lambda: bool(held))
    (hydration,) = held
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert held == {}
    assert not hydration.reader.db.in_transaction
    async with asyncio.timeout(60):
        await host.close()
    assert failures == []
