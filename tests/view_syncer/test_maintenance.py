"""What is done from time to time, with the time in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from benchmarks.protocol_client import named_query
from tests.view_syncer.application import Application
from tests.view_syncer.server import ALL_TASKS, Replica, Server, server_config, serving, until
from tests.view_syncer.test_client_group import Gate, failure
from view_syncer import maintenance as module
from view_syncer.client_group import ClientGroup
from view_syncer.maintenance import Intervals, Maintenance

INTERVALS = Intervals(revalidate_s=300, retransform_s=500, touch_s=60)
TASKS = named_query("tasks")
ANSWER = {
    "kind": "QueryResponse",
    "queries": [{"id": TASKS.hash, "name": "tasks", "ast": {"table": "task"}}],
}


class Clock:
    def __init__(self) -> None:
        self.offset_s = 0.0

    def __call__(self) -> float:
        return asyncio.get_running_loop().time() + self.offset_s


@pytest.fixture
async def asking(
    application: Application, database: str, app_id: str, replica: Replica
) -> AsyncIterator[Server]:
    """A worker whose named queries are answered by ``application``."""
    application.default = (200, ANSWER)
    config = server_config(database, app_id, replica.path, query={"url": [application.url()]})
    async with serving(replica, config) as server:
        yield server


def maintenance(server: Server, clock: Clock, intervals: Intervals = INTERVALS) -> Maintenance:
    return Maintenance(server.worker._all_groups, intervals, clock)


def asked(application: Application) -> list[int]:
    """How many queries each request was about; a validation is about none."""
    return [len(request.body[1]) for request in application.requests]


async def test_connection_is_validated_again_after_its_interval(
    asking: Server, application: Application
) -> None:
    await asking.connected(TASKS)
    clock = Clock()
    work = maintenance(asking, clock)
    application.requests.clear()
    clock.offset_s = 290
    await work.check()
    assert asked(application) == []
    clock.offset_s = 301
    await work.check()
    assert asked(application) == [0]


async def test_refused_credentials_end_only_their_connection(
    asking: Server, application: Application
) -> None:
    first, second = await asking.connected(TASKS), await asking.connected(TASKS)
    clock = Clock()
    work = maintenance(asking, clock)
    application.answers.append((401, "no"))
    clock.offset_s = 301
    await work.check()
    error = await failure(first)
    assert (error.kind, error.body["status"]) == ("TransformFailed", 401)
    assert second.failure is None


async def test_any_other_failure_defers_and_ends_nothing(
    asking: Server, application: Application
) -> None:
    client = await asking.connected(TASKS)
    clock = Clock()
    work = maintenance(asking, clock)
    application.default = (500, "down")
    clock.offset_s = 301
    await work.check()
    application.default = (200, ANSWER)
    application.requests.clear()
    clock.offset_s = 590
    await work.check()
    assert asked(application) == []
    clock.offset_s = 605
    await work.check()
    assert asked(application)[0] == 0
    assert client.failure is None


async def test_queries_are_transformed_again_and_their_rows_follow(
    asking: Server, application: Application
) -> None:
    """sync-protocol.md §10 #53"""
    client = await asking.connected(TASKS)
    clock = Clock()
    work = maintenance(asking, clock, Intervals(revalidate_s=0, retransform_s=500))
    await work.check()
    where = {
        "type": "simple",
        "op": "=",
        "left": {"type": "column", "name": "id"},
        "right": {"type": "literal", "value": "a"},
    }
    answer = {"id": TASKS.hash, "name": "tasks", "ast": {"table": "task", "where": where}}
    application.default = (200, {"kind": "QueryResponse", "queries": [answer]})
    asking.worker._queries._transformer._cache.clear()
    clock.offset_s = 501
    await work.check()
    await client.wait_for(lambda: set(client.titles) == {"a"})
    assert client.state.got == {TASKS.hash}


async def test_refused_retransformation_goes_on_with_the_next_connection(
    asking: Server, application: Application
) -> None:
    old, new = await asking.connected(TASKS), await asking.connected(TASKS)
    clock = Clock()
    work = maintenance(asking, clock, Intervals(revalidate_s=0, retransform_s=500))
    await work.check()
    asking.worker._queries._transformer._cache.clear()
    application.requests.clear()
    application.answers.append((403, "no"))
    clock.offset_s = 501
    await work.check()
    assert asked(application) == [1, 1]
    assert (await failure(new)).kind == "TransformFailed"
    assert old.failure is None


async def test_ttl_clock_is_written_down_while_connected(server: Server) -> None:
    await server.connected(ALL_TASKS)
    clock = Clock()
    work = maintenance(server, clock, Intervals(0, 0, touch_s=60))
    await work.check()
    before = (await server.worker._store.load("g")).ttl_clock_ms
    clock.offset_s = 59
    await work.check()
    assert (await server.worker._store.load("g")).ttl_clock_ms == before
    clock.offset_s = 61
    await work.check()
    assert (await server.worker._store.load("g")).ttl_clock_ms > before


async def test_ttl_clocks_of_groups_that_were_left_are_written_down(server: Server) -> None:
    """By the worker's own maintenance, also of those that came and went between two checks."""
    clients = [await server.connected(ALL_TASKS, group=f"g{n}") for n in range(5)]
    store = server.worker._store
    before = {n: (await store.load(f"g{n}")).ttl_clock_ms for n in range(5)}
    for client in clients[1:]:
        client.close()
    await until(lambda: len(server.worker._live) == 1)
    reached = {n: server.group(f"g{n}").ttl_now_ms() for n in range(1, 5)}
    assert all(reached[n] > before[n] for n in reached)

    async with asyncio.timeout(10):
        for number, clock_ms in reached.items():
            # Nobody tells when it is written.
            while (await store.load(f"g{number}")).ttl_clock_ms != clock_ms:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    assert (await store.load("g0")).ttl_clock_ms == before[0]


async def test_ttl_clocks_are_written_down_while_the_application_hangs(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PARALLEL", 1)
    monkeypatch.setattr(module, "CHECK_S", 0.01)
    for group in ("one", "two"):
        await server.connected(ALL_TASKS, group=group)
    touched: set[str] = set()

    async def touch(group: ClientGroup) -> None:
        touched.add(group.group_id)

    monkeypatch.setattr(ClientGroup, "touch", touch)
    gate = Gate(monkeypatch, ClientGroup, "revalidate")
    clock = Clock()
    work = maintenance(server, clock)
    await work.check()
    running = asyncio.create_task(work.run())
    clock.offset_s = 301
    await gate.reached.wait()
    for offset_s in (400, 500):
        touched.clear()
        clock.offset_s = offset_s
        await until(lambda: touched == {"one", "two"})
    running.cancel()
    await asyncio.wait([running])


async def test_groups_that_are_gone_are_forgotten(server: Server) -> None:
    await server.connected(ALL_TASKS)
    groups: list[Any] = [server.group()]
    work = Maintenance(lambda: groups, INTERVALS)
    await work.check()
    assert len(work._deadlines) == 1
    groups.clear()
    await work.check()
    assert work._deadlines == {}
