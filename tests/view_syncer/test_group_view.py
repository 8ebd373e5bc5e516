"""A group's view when some of its rows have no form on the wire: whose queries have them is told
so, as often as it happens, and nobody else notices."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.protocol_client import DesiredQuery
from benchmarks.sync_messages import ClientSchema, TableSchema
from tests.view_syncer.server import (
    ALL_COUNTERS,
    ALL_TASKS,
    SCHEMA,
    Replica,
    Server,
    TestClient,
    copied,
    edit_task,
    put_counter,
    put_task,
    serving,
    task_where,
)
from tests.view_syncer.test_client_group import Gate, failure, refused
from tests.view_syncer.test_returning import written_down

UNSAFE = 2**53
COUNTERS = ClientSchema(
    {
        **SCHEMA.tables,
        "counter": TableSchema({"n": {"type": "number"}, "label": {"type": "string"}}, ["n"]),
    }
)


def numbers(client: TestClient) -> dict[Any, Any]:
    return {key[0]: row["n"] for key, row in client.state.table("task").items()}


async def test_rows_that_cannot_be_sent_end_who_wants_them_however_often(server: Server) -> None:
    """sync-protocol.md §10 #28, again and again in one group."""
    calm = await server.connected(task_where(title="A"))
    for number in range(4):
        title = f"V{number}"
        victim = await server.connected(task_where(title=title))
        version = server.replica.write(
            put_task(title, title=title, n=UNSAFE), edit_task("a", n=number)
        )
        assert (await failure(victim)).kind == "Internal"
        await calm.wait_cookie(version)
        assert calm.state.table("task")["a",]["n"] == number
        # The same by hydration.
        assert (await refused(server.client(task_where(title=title)))).kind == "Internal"
    assert calm.failure is None
    assert calm.state.got == {task_where(title="A").hash}
    assert set(calm.titles) == {"a"}


@pytest.mark.parametrize("view", ["full_view", "difference"])
async def test_row_that_cannot_be_sent_and_comes_while_a_tab_is_caught_up_spares_the_tab(
    server: Server, replica: Replica, monkeypatch: pytest.MonkeyPatch, view: str
) -> None:
    """Once queries are begun carefully, between their beginning and the view of them."""
    calm = await server.connected(task_where(title="A"))
    first = await server.connected(task_where(title="V1"))
    replica.write(put_task("v1", title="V1", n=UNSAFE))
    assert (await failure(first)).kind == "Internal"
    second = await server.connected(task_where(title="V2"))
    state = None
    if view == "difference":
        state = copied(calm.state)
        await calm.wait_cookie(replica.write(edit_task("a", n=6)))
        await written_down(server)
        # So that recent pokes do not lead from there to the present.
        server.group()._audience.restart(server.group()._audience.version)
    assert server.group()._view._careful
    gate = Gate(monkeypatch, server.worker._engine, view)
    tab = server.client(state=state)
    await tab.connect()
    await gate.reached.wait()
    version = replica.write(put_task("v2", title="V2", n=UNSAFE), edit_task("a", n=7))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    gate.open()
    assert (await failure(second)).kind == "Internal"
    await calm.wait_for(lambda: numbers(calm) == {"a": 7})
    await tab.wait_for(lambda: numbers(tab) == {"a": 7})
    assert (calm.failure, tab.failure) == (None, None)


async def test_row_that_cannot_be_named_and_whose_query_goes_before_anybody_is_sent_it(
    server: Server, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of a group that was found again reconnects while its queries begin, and wants the
    one that cannot be served no more."""
    brief = DesiredQuery("brief", ast=ALL_COUNTERS.ast, ttl_ms=0)
    client = await server.connected(ALL_TASKS, brief, schema=COUNTERS, client_id="c")
    await server.stop()
    replica.write(put_counter(UNSAFE))
    async with serving(replica, server.config) as restarted:
        gate = Gate(monkeypatch, restarted.worker._engine, "_begin")
        first = restarted.client(client_id="c", state=copied(client.state), schema=COUNTERS)
        await first.connect()
        await gate.reached.wait()
        deletion = {"desiredQueriesPatch": [{"op": "del", "hash": "brief"}]}
        again = restarted.client(
            client_id="c", state=copied(client.state), schema=COUNTERS, init=deletion
        )
        await again.connect()
        gate.open()
        replica.write(edit_task("a", title="A2"))
        await again.wait_for(lambda: again.titles.get("a") == "A2")
        await again.wait_for(lambda: again.state.got == {ALL_TASKS.hash})
        assert again.state.table("counter") == {}
