"""Mutation results of clients that come back: what was deleted while nobody looked must go.

Which results a client has is told from the facts of the server that issued its cookie, like rows;
where that cannot be told the client starts over, and never keeps one for good.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.view_syncer.server import (
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    copied,
    edit_task,
    serving,
    until,
)
from tests.view_syncer.test_returning import crash, ops, returned, written_down
from view_syncer import worker
from zerocache.replica.writer import ReplicaWriter


class Results:
    """The upstream table of mutation results."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._table = f"{replica.app_id}_0.mutations"

    def _key(self, client: str, number: int, group: str) -> dict[str, Any]:
        return {"clientGroupID": group, "clientID": client, "mutationID": number}

    def put(self, client: str, *numbers: int, group: str = "g") -> str:
        def step(writer: ReplicaWriter) -> None:
            for number in numbers:
                row = {**self._key(client, number, group), "result": '{"error":"app"}'}
                writer.insert(self._table, row)

        return self._replica.write(step)

    def delete(self, client: str, *numbers: int, group: str = "g") -> str:
        def step(writer: ReplicaWriter) -> None:
            for number in numbers:
                writer.delete(self._table, self._key(client, number, group))

        return self._replica.write(step)


@pytest.fixture
def results(replica: Replica) -> Results:
    return Results(replica)


async def with_results(server: Server, results: Results, *numbers: int) -> TestClient:
    client = await server.connected(ALL_TASKS, client_id="c")
    await written_down(server)
    results.put("c", *numbers)
    await client.wait_for(lambda: len(client.state.mutation_results) == len(numbers))
    return client


def held(client: TestClient) -> set[tuple[str, int]]:
    return set(client.state.mutation_results)


async def test_result_that_is_deleted_between_two_servers_is_deleted_on_the_client(
    replica: Replica, server: Server, results: Results
) -> None:
    client = await with_results(server, results, 1, 2, 3)
    await server.stop()
    results.delete("c", 1, 2)
    replica.write(edit_task("a", title="A2"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, "c")
        assert held(again) == {("c", 3)}
        assert ops(again) == [("put", "a")]


async def test_result_that_is_deleted_after_a_crash_is_deleted_on_the_client(
    replica: Replica, server: Server, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await with_results(server, results, 1)
    await written_down(server)
    crash(server, monkeypatch)
    await server.stop()
    results.delete("c", 1)
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, "c")
        assert held(again) == set()
        assert ops(again) == []


async def test_result_of_the_moment_before_a_crash_does_not_stay(
    replica: Replica, server: Server, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS, client_id="c")
    await written_down(server)
    crash(server, monkeypatch)
    results.put("c", 1)
    await client.wait_for(lambda: held(client) == {("c", 1)})
    await server.stop()
    results.delete("c", 1)
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, "c")
        assert held(again) == set()
        assert ("clear", "None") in ops(again)


async def test_result_that_is_deleted_while_its_group_is_not_served_is_deleted_on_the_client(
    server: Server, results: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    client = await with_results(server, results, 1, 2)
    client.close()
    await until(lambda: server.group() is None)
    results.delete("c", 1)
    again = await returned(server, client.state, "c")
    assert held(again) == {("c", 2)}
    assert ops(again) == []


async def test_result_that_a_client_never_had_is_not_deleted_there(
    replica: Replica, server: Server, results: Results
) -> None:
    """Of another group whose client has the same name, and of later than its cookie."""
    client = await server.connected(ALL_TASKS, client_id="c")
    results.put("c", 7, group="other")
    await written_down(server)
    before = copied(client.state)
    results.put("c", 1)
    await client.wait_for(lambda: held(client) == {("c", 1)})
    await server.stop()
    results.delete("c", 7, group="other")
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, before, "c")
        assert held(again) == {("c", 1)}
        deleted = [op for p in again.pokes for part in p.parts for op in part.mutations or ()]
        assert [op.op for op in deleted] == ["put"]


async def test_result_that_came_and_went_while_a_client_was_away_leaves_nothing(
    replica: Replica, server: Server, results: Results
) -> None:
    client = await with_results(server, results, 1)
    await server.stop()
    results.put("c", 2)
    results.delete("c", 1, 2)
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, "c")
        assert held(again) == set()
