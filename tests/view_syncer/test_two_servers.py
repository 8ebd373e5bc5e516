"""Two view-syncers serve one client group at once, each with its own picture of the record.

A client may move between them at any time, often with nothing new to say. Whatever the server it
comes to believed before, it must end with exactly the rows of the group's queries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from benchmarks.protocol_client import DesiredQuery, ServerError
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    copied,
    delete_task,
    edit_task,
    put_tag,
    put_task,
    serving,
    task_where,
)
from tests.view_syncer.test_returning import written_down
from view_syncer.cvr.record import MAX_TAKEOVERS
from zerocache.protocol.versions import ViewVersion

_RETRIED = {"Rehome", "ServerOverloaded"}


@pytest.fixture
async def other(server: Server, replica: Replica) -> AsyncIterator[Server]:
    async with serving(replica, server.config) as other:
        yield other


async def moved(to: Server, client: TestClient, *queries: DesiredQuery) -> TestClient:
    """The same client on another server, saying only what its store does not show yet; as often
    as it is asked to come again."""
    client.close()
    async with asyncio.timeout(20):
        while True:
            known = client.state.desired.get(client.client_id, set())
            new = [query for query in queries if query.hash not in known]
            again = to.client(*new, client_id=client.client_id, state=client.state)
            with contextlib.suppress(Again):
                await arrived(again, *queries)
                return again


class Again(Exception):
    """The server wants the client to come again."""


async def arrived(client: TestClient, *queries: DesiredQuery) -> None:
    try:
        await client.connect()
        await client.wait_for(lambda: client.session.poke_count > 0)
        await client.wait_got(*queries)
    except ServerError as error:
        if error.kind not in _RETRIED:
            raise
        raise Again from error


async def test_client_with_nothing_new_to_say_comes_to_a_server_that_knows_less(
    server: Server, other: Server
) -> None:
    """sync-protocol.md §10 #36: nobody owns a group, so nobody is sent away for good."""
    client = await server.connected(ALL_TASKS)
    there = await moved(other, client, ALL_TASKS, ALL_TAGS)
    server.replica.write(put_tag("t"), put_task("d", title="D"))
    await there.wait_for(lambda: "d" in there.titles)
    back = await moved(server, there, ALL_TASKS, ALL_TAGS)
    server.replica.write(put_tag("u"), delete_task("a"))
    await back.wait_for(lambda: "a" not in back.titles)
    assert set(back.state.table("tag")) == {("t",), ("u",)}
    assert back.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}


async def test_query_that_was_dropped_elsewhere_leaves_nothing(
    server: Server, other: Server
) -> None:
    brief = DesiredQuery("brief", ast=ALL_TAGS.ast, ttl_ms=0)
    server.replica.write(put_tag("t"))
    client = await server.connected(ALL_TASKS, brief)
    there = await moved(other, client, ALL_TASKS, brief)
    there.change_queries(delete=[brief])
    await there.wait_for(lambda: "brief" not in there.state.got)
    back = await moved(server, there, ALL_TASKS)
    server.replica.write(put_tag("u"), edit_task("a", title="A2"))
    await back.wait_for(lambda: back.titles["a"] == "A2")
    assert back.state.got == {ALL_TASKS.hash}
    assert back.state.table("tag") == {}


async def test_tabs_on_both_servers_end_with_the_same(server: Server, other: Server) -> None:
    one = await server.connected(ALL_TASKS)
    two = await moved(
        other, await server.connected(client_id="two", state=copied(one.state)), ALL_TASKS
    )
    queries = [ALL_TASKS]
    for number in range(6):
        query = task_where(n=number)
        queries.append(query)
        if number % 2:
            one = await moved(server, one, *queries)
        else:
            two = await moved(other, two, *queries)
        server.replica.write(put_task(f"x{number}", n=number), edit_task("a", n=number))
    one, two = await moved(server, one, *queries), await moved(other, two, *queries)
    final = server.replica.write(put_task("end"))
    for client in (one, two):
        await client.wait_cookie(final)
        await client.wait_for(lambda client=client: "end" in client.titles)  # type: ignore[misc]
    assert one.state.rows == two.state.rows
    assert one.state.got == two.state.got == {query.hash for query in queries}


async def test_cookie_of_a_server_that_did_not_know_of_a_new_query_is_no_proof_of_its_rows(
    server: Server, other: Server
) -> None:
    """The server has the facts of that query, because another group asks for it."""
    server.replica.write(put_tag("t"))
    await server.connected(ALL_TAGS, group="another")
    one = await server.connected(ALL_TASKS)
    await written_down(server)
    two = await moved(other, await server.connected(client_id="two", state=copied(one.state)))
    two.change_queries(put=[ALL_TAGS])
    await two.wait_got(ALL_TAGS)
    server.replica.write(edit_task("a", title="A2"))
    await one.wait_for(lambda: one.titles["a"] == "A2")
    await written_down(server)
    one = await moved(other, one, ALL_TASKS)
    assert one.state.got == two.state.got
    assert one.state.rows == two.state.rows


async def test_cookie_of_a_server_that_did_not_know_that_a_query_went_leaves_no_row(
    server: Server, other: Server
) -> None:
    brief = DesiredQuery("brief", ast=ALL_TAGS.ast, ttl_ms=0)
    server.replica.write(put_tag("t"))
    one = await server.connected(ALL_TASKS, client_id="one")
    first = await server.connected(brief, client_id="two", state=copied(one.state))
    await one.wait_got("brief")
    two = await moved(other, first, ALL_TASKS)
    two.change_queries(delete=[brief])
    await two.wait_for(lambda: "brief" not in two.state.got)
    server.replica.write(edit_task("a", title="A2"))
    await one.wait_for(lambda: one.titles["a"] == "A2")
    await written_down(server)
    one = await moved(other, one, ALL_TASKS)
    assert one.state.got == two.state.got == {ALL_TASKS.hash}
    assert one.state.rows == two.state.rows


async def test_tab_hears_of_queries_that_another_server_was_asked_for_when_it_comes_back(
    server: Server, other: Server
) -> None:
    """Until then all it was told is true of its cookie: the queries it got are complete and the
    rows are theirs, no more and no less. What other tabs want changes nothing for it; to tell it
    at once the servers would have to take the group from each other, again and again."""
    replica = server.replica
    replica.write(put_tag("t"))
    one = await server.connected(ALL_TASKS)
    two = await moved(other, await server.connected(client_id="two", state=copied(one.state)))
    two.change_queries(put=[ALL_TAGS])
    await two.wait_got(ALL_TAGS)
    await one.wait_cookie(replica.write(put_tag("u"), edit_task("a", title="A2")))
    assert one.state.got == {ALL_TASKS.hash}
    assert set(one.state.rows) == {("task", (key,)) for key in "abc"}
    one = await moved(server, one, ALL_TASKS, task_where(n=7))
    assert one.state.got == {ALL_TASKS.hash, ALL_TAGS.hash, task_where(n=7).hash}
    assert set(one.state.table("tag")) == {("t",), ("u",)}
    assert one.state.desired["two"] == {ALL_TAGS.hash}


async def test_server_that_was_overtaken_gives_its_group_up_quietly(
    server: Server, other: Server
) -> None:
    """It still has something to write down when the group ends: that must not end the worker."""
    client = await server.connected(ALL_TASKS)
    group = server.group()
    there = await moved(other, client, ALL_TASKS, ALL_TAGS)
    await group.touch()
    await group.stop()
    assert server.fatal == []
    server.replica.write(put_tag("t"))
    await there.wait_for(lambda: ("t",) in there.state.table("tag"))


async def test_cookies_of_before_more_takeovers_than_are_remembered(
    server: Server, other: Server
) -> None:
    """Of every cookie on the way, also of one that was issued before the first that is known."""
    queries = [ALL_TASKS]
    client = await server.connected(*queries)
    states = []
    for number in range(MAX_TAKEOVERS + 4):
        node = (other, server)[number % 2]
        if number % 6 == 0:
            version = server.replica.write(
                edit_task("a", title=str(number)), put_task(f"x{number}")
            )
            await client.wait_cookie(version)
            states.append(copied(client.state))
            await written_down((server, other)[number % 2])
        # What one of them writes makes it the author.
        queries = [ALL_TASKS, task_where(n=number)]
        client = await moved(node, client, *queries)
    final = server.replica.write(delete_task("b"), delete_task("x0"))
    await client.wait_for(lambda: "x0" not in client.titles)
    record = await server.worker._store.load("g")
    assert len(record.takeovers) == MAX_TAKEOVERS
    assert record.takeovers[0][0] > ViewVersion.from_cookie(str(states[0].cookie))
    for state in states:
        for node in (server, other):
            again = node.client(state=copied(state))
            back = await moved(node, again)
            await back.wait_for(lambda back=back: back.state.rows == client.state.rows)  # type: ignore[misc]
            assert back.state.got == client.state.got
            assert str(back.state.cookie) >= final
