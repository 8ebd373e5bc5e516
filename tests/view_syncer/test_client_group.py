"""A client group as its clients see it: chains of pokes, and what they hold in the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol_client import DesiredQuery, ServerError
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    ALLOW,
    Replica,
    Row,
    Server,
    TestClient,
    cookies,
    copied,
    delete_task,
    desired_ops,
    edit_task,
    got_ops,
    put_tag,
    put_task,
    row_ops,
    server_config,
    serving,
    task_where,
    until,
)
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from view_syncer.engine_host import Preparation
from view_syncer.fan_out import Prepared
from zerocache.protocol.versions import lexi_encode

Task = Coroutine[Any, Any, Any]


class Gate:
    """Makes calls of one method wait after they arrived, until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        original: Callable[..., Task] = getattr(owner, name)

        async def gated(*args: Any, **options: Any) -> Any:
            self.reached.set()
            await self._open.wait()
            return await original(*args, **options)

        monkeypatch.setattr(owner, name, gated)

    def open(self) -> None:
        self._open.set()


class Calls:
    """Counts the calls of one method."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.count = 0
        original: Callable[..., Task] = getattr(owner, name)

        async def counted(*args: Any, **options: Any) -> Any:
            self.count += 1
            return await original(*args, **options)

        monkeypatch.setattr(owner, name, counted)


def shows(client: TestClient, titles: dict[str, str]) -> bool:
    return client.titles == titles


async def failure(client: TestClient) -> ServerError:
    error = await client.wait_closed(20)
    assert isinstance(error, ServerError), error
    return error


async def refused(client: TestClient) -> ServerError:
    try:
        await client.connect()
    except ServerError as error:  # it came together with `connected`
        return error
    return await failure(client)


# -- first connection ---------------------------------------------------------------------------


async def test_new_group_is_poked_its_desires_and_then_its_rows(server: Server) -> None:
    """sync-protocol.md §10 #13"""
    client = await server.connected(ALL_TASKS)
    assert cookies(client) == [(None, "00:01"), ("00:01", server.replica.version)]
    first, second = client.pokes
    assert desired_ops(first, client.client_id) == [("put", ALL_TASKS.hash)]
    assert got_ops(first) == []
    assert row_ops(first) == []
    assert got_ops(second) == [("put", ALL_TASKS.hash)]
    assert sorted(row_ops(second)) == [("put", "a"), ("put", "b"), ("put", "c")]


async def test_new_group_is_stored_once(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """One write serves both pokes, and a client that got only the first of them is brought on."""
    saves = Calls(monkeypatch, server.worker._store, "save")
    client = await server.connected(ALL_TASKS)
    assert len(client.pokes) == 2
    assert saves.count == 1
    client.close()
    async with serving(server.replica, server.config) as restarted:
        empty = copied(client.state)
        empty.rows.clear()
        empty.got.clear()
        empty.cookie = "00:01"
        again = restarted.client(client_id=client.client_id, state=empty)
        await again.connect()
        await again.wait_got(ALL_TASKS)
        assert set(again.titles) == {"a", "b", "c"}


async def test_new_group_with_a_slow_query_hears_of_its_desires_first(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.worker._engine, "_quick_rows", 0)
    gate = Gate(monkeypatch, server.worker._engine._hydrator, "hydrate")
    client = server.client(ALL_TASKS)
    await client.connect()
    await gate.reached.wait()
    await client.wait_cookie("00:01")
    assert got_ops(client.pokes[0]) == []
    gate.open()
    await client.wait_got(ALL_TASKS)
    assert cookies(client) == [(None, "00:01"), ("00:01", server.replica.version)]


async def test_desires_of_a_first_connection_that_was_reset_are_not_lost(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch, server.worker._engine, "_begin")
    client = server.client(ALL_TASKS)
    await client.connect()
    await gate.reached.wait()
    group = server.group()
    group.invalidate()  # as the worker does when the engine was reset
    group.schedule(group.rebuild())
    gate.open()
    await client.wait_got(ALL_TASKS)
    assert desired_ops(client.pokes[0], client.client_id) == [("put", ALL_TASKS.hash)]
    assert set(client.titles) == {"a", "b", "c"}
    client.close()
    async with serving(server.replica, server.config) as restarted:
        again = restarted.client(client_id=client.client_id, state=client.state)
        await again.connect()
        version = restarted.replica.write(edit_task("a", title="A2"))
        await again.wait_cookie(version)
        assert again.titles["a"] == "A2"  # it is still known what it wants


async def test_new_group_without_queries_is_poked_and_then_hears_of_its_mutations(
    server: Server,
) -> None:
    """sync-protocol.md §10 #14, #15"""
    client = await server.connected()
    assert cookies(client) == [(None, "00:01")]
    version = server.replica.set_last_mutation_id("g", client.client_id, 1)
    await client.wait_last_mutation_id(1)
    assert cookies(client)[1:] == [("00:01", version)]
    (part,) = client.pokes[1].parts
    assert part.last_mutation_ids == {client.client_id: 1}


async def test_new_group_without_schema_is_refused(server: Server) -> None:
    """sync-protocol.md §10 #12"""
    error = await refused(server.client(init={"clientSchema": None}))
    assert error.kind == "InvalidConnectionRequest"


async def test_unknown_group_with_a_cookie_is_not_found(server: Server) -> None:
    """sync-protocol.md §10 #34"""
    client = server.client()
    client.state.cookie = "00:02"
    assert (await refused(client)).kind == "ClientNotFound"


@pytest.mark.parametrize("cookie", ["foo-bar", "1:2:3", "01:a2gosa7pa2gw"])
async def test_unreadable_cookie_is_refused_and_the_server_survives(
    server: Server, cookie: str
) -> None:
    """sync-protocol.md §10 #35"""
    client = server.client()
    client.state.cookie = cookie
    assert (await refused(client)).kind == "InvalidConnectionRequestBaseCookie"
    await server.connected(ALL_TASKS)


@pytest.mark.parametrize("cookie", ["zz", "01:0z"])
async def test_cookie_ahead_of_a_running_group_is_refused(server: Server, cookie: str) -> None:
    """sync-protocol.md §10 #35"""
    current = await server.connected(ALL_TASKS)
    if cookie == "zz":
        cookie = lexi_encode(10_000)
    late = server.client()
    late.state.cookie = cookie
    assert (await refused(late)).kind == "InvalidConnectionRequestBaseCookie"
    assert current.failure is None


async def test_another_schema_for_the_same_group_is_refused(server: Server) -> None:
    """sync-protocol.md §10 #62"""
    await server.connected(ALL_TASKS)
    other = {"tables": {"task": {"columns": {"id": {"type": "string"}}, "primaryKey": ["id"]}}}
    error = await refused(server.client(init={"clientSchema": other}))
    assert error.kind == "InvalidConnectionRequest"


async def test_refused_first_message_leaves_no_trace(server: Server) -> None:
    broken = server.client(DesiredQuery("q", name="n"))
    broken._initial_queries = ()
    patch = [ALL_TASKS.to_patch(), {"op": "put", "hash": "undefined"}]
    broken._more = {"desiredQueriesPatch": patch}
    assert (await refused(broken)).kind == "InvalidMessage"
    later = server.client(init={"clientSchema": None})
    assert (await refused(later)).kind == "InvalidConnectionRequest"


async def test_refused_query_change_is_applied_not_even_in_part(server: Server) -> None:
    watcher = await server.connected()
    sender = await server.connected()
    patch = [ALL_TASKS.to_patch(), {"op": "put", "hash": "undefined"}]
    sender.send("changeDesiredQueries", {"desiredQueriesPatch": patch})
    assert (await failure(sender)).kind == "InvalidMessage"
    watcher.change_queries(put=[ALL_TAGS])
    await watcher.wait_got(ALL_TAGS)
    assert watcher.state.got == {ALL_TAGS.hash}
    assert watcher.state.rows == {}


# -- advances -----------------------------------------------------------------------------------


async def test_update_and_delete_in_one_transaction_are_one_poke(server: Server) -> None:
    """sync-protocol.md §10 #17"""
    client = await server.connected(ALL_TASKS)
    version = server.replica.write(edit_task("a", title="A2"), delete_task("b"))
    await client.wait_cookie(version)
    poke = client.pokes[-1]
    assert sorted(row_ops(poke)) == [("del", "b"), ("put", "a")]
    assert poke.cookie == version
    assert client.titles == {"a": "A2", "c": "C"}


async def test_transaction_nobody_sees_is_skipped(server: Server) -> None:
    """sync-protocol.md §10 #16"""
    client = await server.connected(ALL_TASKS)
    before = client.state.cookie
    server.replica.write(put_tag("t"))
    version = server.replica.write(put_task("d", title="D"))
    await client.wait_cookie(version)
    assert cookies(client)[-1] == (before, version)


async def test_truncated_table_is_one_poke_of_deletions(server: Server) -> None:
    """sync-protocol.md §10 #18"""
    client = await server.connected(ALL_TASKS)
    version = server.replica.write(lambda w: w.truncate(["task"]))
    await client.wait_cookie(version)
    assert sorted(row_ops(client.pokes[-1])) == [("del", "a"), ("del", "b"), ("del", "c")]


async def test_row_that_leaves_and_returns_in_one_transaction_stays(server: Server) -> None:
    """sync-protocol.md §10 #52"""
    client = await server.connected(ALL_TASKS)
    server.replica.write(delete_task("a"), put_task("a", title="new"), put_task("x"))
    version = server.replica.write(put_task("y"), delete_task("y"), put_task("z"))
    await client.wait_cookie(version)
    assert set(client.titles) == {"a", "b", "c", "x", "z"}
    assert client.titles["a"] == "new"


async def test_mutation_results_are_put_and_deleted(server: Server, app_id: str) -> None:
    """sync-protocol.md §10 #29"""
    client = await server.connected()
    name = f"{app_id}_0.mutations"
    key: dict[str, Any] = {"clientGroupID": "g", "clientID": client.client_id, "mutationID": 1}
    failed = '{"error":"app","message":"no"}'
    server.replica.write(
        lambda w: w.insert(name, {**key, "result": "{}"}),
        lambda w: w.insert(name, {**key, "mutationID": 2, "result": failed}),
    )
    results = client.state.mutation_results
    await client.wait_for(lambda: len(results) == 2)
    assert results[client.client_id, 1] == {}
    assert results[client.client_id, 2] == {"error": "app", "message": "no"}
    server.replica.write(lambda w: w.delete(name, key))
    await client.wait_for(lambda: len(results) == 1)


async def test_row_that_several_queries_hold_is_put_once(server: Server) -> None:
    client = await server.connected(ALL_TASKS, task_where(title="A"), task_where(id="a"))
    before = len(client.pokes)
    await client.wait_cookie(server.replica.write(edit_task("a", n=7), put_task("z", title="A")))
    assert sorted(op for poke in client.pokes[before:] for op in row_ops(poke)) == [
        ("put", "a"),
        ("put", "z"),
    ]
    assert client.state.table("task")["a",]["n"] == 7


async def test_rows_shared_by_two_queries_stay_while_one_wants_them(server: Server) -> None:
    """sync-protocol.md §10 #51"""
    one = task_where(title="A")
    client = await server.connected(ALL_TASKS, one)
    client.send(
        "changeDesiredQueries",
        {"desiredQueriesPatch": [{"op": "clear"}, one.to_patch()]},
    )
    await client.wait_for(lambda: client.state.got == {one.hash})
    assert client.titles == {"a": "A"}


# -- numbers without a JSON form ----------------------------------------------------------------


async def test_largest_exact_numbers_are_sent_as_numbers(server: Server) -> None:
    """sync-protocol.md §10 #28"""
    server.replica.write(put_task("p", n=2**53 - 1), put_task("q", n=1 - 2**53))
    client = await server.connected(ALL_TASKS)
    rows = client.state.table("task")
    assert rows["p",]["n"] == 2**53 - 1
    assert rows["q",]["n"] == 1 - 2**53


async def test_unsafe_number_at_hydration_ends_who_wants_it_once(server: Server) -> None:
    """sync-protocol.md §10 #28"""
    server.replica.write(put_task("big", title="big", n=2**53))
    other = await server.connected(task_where(title="A"))
    error = await refused(server.client(ALL_TASKS))
    assert error.kind == "Internal"
    assert "'n'" in str(error)
    # Were the query tried again and again, the group's version would run away.
    before = other.session.poke_count
    other.change_queries(put=[ALL_TAGS])
    await other.wait_got(ALL_TAGS)
    assert other.session.poke_count - before <= 3
    assert other.titles == {"a": "A"}


async def test_unsafe_number_in_an_advance_ends_who_wants_it_and_spares_the_rest(
    server: Server,
) -> None:
    """sync-protocol.md §10 #28"""
    victim = await server.connected(ALL_TASKS)
    other = await server.connected(task_where(title="A"))
    version = server.replica.write(put_task("big", n=2**53), edit_task("a", done=1))
    assert (await failure(victim)).kind == "Internal"
    await other.wait_cookie(version)
    assert other.state.table("task")["a",]["done"] is True
    assert set(other.titles) == {"a"}
    assert other.state.got == {task_where(title="A").hash}


async def test_unsafe_last_mutation_id_ends_the_group(server: Server) -> None:
    """sync-protocol.md §10 #28"""
    client = await server.connected(ALL_TASKS)
    server.replica.set_last_mutation_id("g", client.client_id, 2**53)
    error = await failure(client)
    assert error.kind == "Internal"
    assert "lastMutationID" in str(error)


async def test_unsafe_last_mutation_id_at_hydration_names_the_column(server: Server) -> None:
    """sync-protocol.md §10 #28"""
    server.replica.set_last_mutation_id("g", "c1", 2**53)
    error = await refused(server.client(ALL_TASKS))
    assert error.kind == "Internal"
    assert "lastMutationID" in str(error)


async def test_mutation_result_that_cannot_be_encoded_ends_the_group(server: Server) -> None:
    """No client of it can be served without, and none is told anything incomplete."""
    client = await server.connected(ALL_TASKS)
    deep = "[" * 1001 + "]" * 1001
    row: Row = {"clientGroupID": "g", "clientID": "c", "mutationID": 1, "result": deep}
    name = f"{server.replica.app_id}_0.mutations"
    before = client.state.cookie
    server.replica.write(lambda w: w.insert(name, row))
    error = await failure(client)
    assert error.kind == "Internal"
    assert "nested" in str(error)
    assert client.state.cookie == before


# -- reconnecting -------------------------------------------------------------------------------


async def test_reconnect_without_changes_is_one_empty_poke(server: Server) -> None:
    """sync-protocol.md §10 #19"""
    first = await server.connected(ALL_TASKS)
    first.close()
    again = server.client(client_id=first.client_id, state=first.state)
    await again.connect()
    await again.wait_for(lambda: again.session.poke_count == 1)
    cookie = server.replica.version
    assert cookies(again) == [(cookie, cookie)]
    assert again.pokes[0].parts == ()


async def test_second_client_at_an_older_cookie_is_caught_up_by_one_poke(server: Server) -> None:
    """sync-protocol.md §10 #20, #30"""
    first = await server.connected(ALL_TASKS)
    old = copied(first.state)
    base = old.cookie
    server.replica.write(edit_task("a", title="A2"))
    version = server.replica.write(delete_task("b"))
    await first.wait_cookie(version)
    second = server.client(ALL_TASKS, state=old)
    await second.connect()
    await second.wait_for(lambda: second.session.poke_count > 0)
    assert cookies(second) == [(base, f"{version}:01")]
    assert sorted(row_ops(second.pokes[0])) == [("del", "b"), ("put", "a")]
    assert got_ops(second.pokes[0]) == []
    assert desired_ops(second.pokes[0], second.client_id) == [("put", ALL_TASKS.hash)]
    await first.wait_cookie(f"{version}:01")
    assert cookies(first)[-1] == (version, f"{version}:01")
    assert row_ops(first.pokes[-1]) == []


async def test_second_client_with_nothing_gets_everything(server: Server) -> None:
    """sync-protocol.md §10 #31"""
    first = await server.connected(ALL_TASKS)
    server.replica.set_last_mutation_id("g", first.client_id, 1)
    await first.wait_last_mutation_id(1)
    second = await server.connected(ALL_TAGS)
    assert second.titles == first.titles
    assert second.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}
    assert second.state.last_mutation_ids == {first.client_id: 1}
    assert second.state.desired == {
        first.client_id: {ALL_TASKS.hash},
        second.client_id: {ALL_TAGS.hash},
    }


async def test_group_found_again_after_a_restart_gives_a_full_view(
    server: Server, database: str, app_id: str
) -> None:
    first = await server.connected(ALL_TASKS, ALL_TAGS)
    state = first.state
    first.close()
    server.replica.write(delete_task("b"), put_task("d", title="D"))
    async with serving(server.replica, server.config) as second_server:
        again = second_server.client(client_id=first.client_id, state=state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count == 1)
        assert again.titles == {"a": "A", "c": "C", "d": "D"}
        assert again.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}
        assert len(again.pokes) == 1


async def test_cookie_of_before_a_restart_does_not_stand_for_what_came_after(
    server: Server,
) -> None:
    """A cookie of a data advance is not written down. A restarted server must not give it to a
    view that meanwhile got more queries: whoever still holds it would miss their rows."""
    first = await server.connected(ALL_TASKS)
    old = copied(first.state)
    version = server.replica.write(edit_task("a", title="A2"))
    await first.wait_cookie(version)
    newest = copied(first.state)
    assert newest.cookie == version
    first.close()
    server.replica.write(put_tag("t", "T"))
    server.replica.write(delete_task("never"))
    async with serving(server.replica, server.config) as restarted:
        early = await restarted.connected(ALL_TAGS, state=old)
        late = restarted.client(client_id=first.client_id, state=newest)
        await late.connect()
        await late.wait_got(ALL_TAGS)
        assert late.state.rows == early.state.rows


async def test_data_cookie_is_not_reused_at_the_same_replica_version(server: Server) -> None:
    first = await server.connected(ALL_TASKS)
    old = copied(first.state)
    server.replica.write(put_tag("t", "T"))
    version = server.replica.write(edit_task("a", title="A2"))
    await first.wait_cookie(version)
    newest = copied(first.state)
    first.close()
    async with serving(server.replica, server.config) as restarted:
        early = await restarted.connected(ALL_TAGS, state=old)
        assert early.state.cookie not in (None, version)
        late = restarted.client(client_id=first.client_id, state=newest)
        await late.connect()
        await late.wait_got(ALL_TAGS)
        assert late.state.rows == early.state.rows


async def test_client_that_missed_an_expiry_and_a_restart_loses_the_rows(
    server: Server,
) -> None:
    soon = task_where(title="A")
    brief = DesiredQuery(soon.hash, ast=soon.ast, ttl_ms=0)
    first = await server.connected(ALL_TAGS, brief)
    gate_state = copied(first.state)
    first.change_queries(delete=[brief])
    await first.wait_for(lambda: brief.hash not in first.state.got)
    first.close()
    async with serving(server.replica, server.config) as restarted:
        again = restarted.client(client_id=first.client_id, state=gate_state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count == 1)
        assert again.state.rows == {}
        assert again.state.got == {ALL_TAGS.hash}


async def test_lost_poke_after_a_commit_is_made_up_for(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the commit and pokeEnd: the client is behind the record.
    sync-protocol.md §10 #70."""
    first = await server.connected(ALL_TASKS)
    before = copied(first.state)
    first.change_queries(put=[ALL_TAGS])
    await first.wait_got(ALL_TAGS)
    first.close()
    async with serving(server.replica, server.config) as restarted:
        again = restarted.client(client_id=first.client_id, state=before)
        await again.connect()
        await again.wait_got(ALL_TAGS, ALL_TASKS)
        assert set(again.titles) == {"a", "b", "c"}


# -- who may hear of what -----------------------------------------------------------------------


async def test_connection_that_has_not_introduced_itself_hears_nothing(server: Server) -> None:
    silent = server.client()
    silent._init_body = lambda: {"desiredQueriesPatch": [], "pad": "x" * 9000}  # type: ignore[method-assign]
    silent.send = lambda *_: None  # type: ignore[method-assign]  # keeps its first message back
    await silent.connect()
    client = await server.connected(ALL_TASKS)
    version = server.replica.write(edit_task("a", title="A2"))
    await client.wait_cookie(version)
    client.change_queries(put=[ALL_TAGS])
    await client.wait_got(ALL_TAGS)
    del silent.send
    silent.send("ping", {})
    await silent.wait_message("pong")
    assert silent.session.poke_count == 0
    assert [m.type for m in silent.messages] == ["connected", "pong"]


async def test_messages_before_the_first_are_ignored(server: Server) -> None:
    """sync-protocol.md §10 #40"""
    early = server.client()
    held: list[tuple[str, Any]] = []
    early._init_body = lambda: {"desiredQueriesPatch": [], "pad": "x" * 9000}  # type: ignore[method-assign]
    early.send = lambda kind, body: held.append((kind, body))  # type: ignore[method-assign]
    await early.connect()
    del early.send
    early.change_queries(put=[ALL_TASKS])
    early.send("deleteClients", {"clientIDs": ["x"]})
    early.send("updateAuth", {"auth": ""})
    kind, body = held[0]
    from tests.view_syncer.server import SCHEMA

    early.send(kind, {**body, "clientSchema": SCHEMA})
    early.send("ping", {})
    await early.wait_message("pong")
    await early.wait_for(lambda: early.session.poke_count == 1)
    assert early.state.desired.get(early.client_id, set()) == set()


async def test_other_user_cannot_join_a_pinned_group(server: Server) -> None:
    """sync-protocol.md §10 #10"""
    owner = await server.connected(ALL_TASKS, user_id="alice")
    stranger = server.client(client_id=owner.client_id, user_id="mallory")
    assert (await refused(stranger)).kind == "Unauthorized"
    version = server.replica.write(edit_task("a", title="A2"))
    await owner.wait_cookie(version)


async def test_changed_permissions_take_rows_away(server: Server) -> None:
    """sync-protocol.md §10 #53"""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    server.replica.deploy_permissions({"tables": {"tag": ALLOW}}, "h1")
    await client.wait_for(lambda: client.state.rows == {})
    assert client.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}
    assert got_ops(client.pokes[-1]) == []


# -- desired queries ----------------------------------------------------------------------------


async def test_put_and_del_in_one_message_are_one_version(server: Server) -> None:
    """sync-protocol.md §10 #39"""
    client = await server.connected(ALL_TASKS)
    before = client.session.poke_count
    client.change_queries(put=[ALL_TAGS], delete=[ALL_TAGS])
    await client.wait_for(lambda: client.session.poke_count > before)
    assert desired_ops(client.pokes[before], client.client_id) == [
        ("put", ALL_TAGS.hash),
        ("del", ALL_TAGS.hash),
    ]


async def test_query_lives_on_for_its_ttl_and_then_goes_with_its_rows(server: Server) -> None:
    """sync-protocol.md §10 #41"""
    brief = DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=100)
    client = await server.connected(brief)
    client.change_queries(delete=[brief])
    await client.wait_for(lambda: brief.hash not in client.state.desired[client.client_id])
    assert len(client.titles) == 3
    assert client.state.got == {"brief"}
    await client.wait_for(lambda: client.state.got == set())
    assert client.titles == {}
    assert got_ops(client.pokes[-1]) == [("del", "brief")]
    assert len(row_ops(client.pokes[-1])) == 3


async def test_queries_that_expire_together_go_in_one_poke(server: Server) -> None:
    """sync-protocol.md §10 #45"""
    one = DesiredQuery("one", ast=ALL_TASKS.ast, ttl_ms=100)
    two = DesiredQuery("two", ast=ALL_TAGS.ast, ttl_ms=120)
    client = await server.connected(one, two)
    client.change_queries(delete=[one, two])
    await client.wait_for(lambda: client.state.got == set())
    assert sorted(got_ops(client.pokes[-1])) == [("del", "one"), ("del", "two")]


async def test_query_wanted_again_before_it_expires_is_not_sent_again(server: Server) -> None:
    """sync-protocol.md §10 #42"""
    brief = DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=100)
    client = await server.connected(brief)
    client.change_queries(delete=[brief])
    client.change_queries(put=[brief])
    await client.wait_for(lambda: client.session.poke_count == 4)
    ttl_end = asyncio.get_running_loop().time() + 0.3
    await client.wait_for(lambda: desired_ops(client.pokes[-1], client.client_id) != [])
    other = await server.connected(ALL_TAGS)
    while asyncio.get_running_loop().time() < ttl_end:
        other.send("ping", {})
        await asyncio.sleep(0.05)
    assert client.state.got >= {"brief"}
    assert [got_ops(p) for p in client.pokes[2:4]] == [[], []]
    assert [row_ops(p) for p in client.pokes[2:4]] == [[], []]


async def test_query_wanted_by_another_client_does_not_expire(server: Server) -> None:
    """sync-protocol.md §10 #46"""
    brief = DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=0)
    first = await server.connected(brief)
    second = await server.connected(brief)
    first.change_queries(delete=[brief])
    await second.wait_for(lambda: "brief" not in second.state.desired[first.client_id])
    assert second.state.got == {"brief"}
    second.change_queries(delete=[brief])
    await second.wait_for(lambda: second.state.got == set())


async def test_desires_survive_a_disconnect(server: Server) -> None:
    """sync-protocol.md §10 #48"""
    first = await server.connected(DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=0))
    first.close()
    again = server.client(client_id=first.client_id, state=first.state)
    await again.connect()
    await again.wait_for(lambda: again.session.poke_count == 1)
    assert again.state.got == {"brief"}
    assert len(again.titles) == 3


async def test_query_change_of_a_replaced_connection_is_ignored(server: Server) -> None:
    """sync-protocol.md §10 #40"""
    old = await server.connected(ALL_TASKS)
    new = server.client(client_id=old.client_id, state=old.state)
    old._fail = lambda error: None  # type: ignore[method-assign]  # it goes on sending
    await new.connect()
    await new.wait_for(lambda: new.session.poke_count == 1)
    old.change_queries(put=[ALL_TAGS])
    new.change_queries(put=[task_where(title="A")])
    await new.wait_got(task_where(title="A"))
    assert ALL_TAGS.hash not in new.state.desired[new.client_id]


# -- deleted clients ----------------------------------------------------------------------------


async def test_deleted_clients_are_acknowledged_to_all(server: Server) -> None:
    """sync-protocol.md §10 #49"""
    gone = await server.connected(DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=0))
    gone.close()
    first = await server.connected(ALL_TAGS)
    second = await server.connected(ALL_TAGS)
    await first.wait_for(lambda: "brief" in first.state.got)
    first.send("deleteClients", {"clientIDs": [gone.client_id, "unknown"]})
    for client in (first, second):
        acknowledged = await client.wait_message("deleteClients")
        assert acknowledged.body["clientIDs"] == [gone.client_id, "unknown"]
        assert client.state.desired[gone.client_id] == set()
        await client.wait_for(lambda client=client: "brief" not in client.state.got)  # type: ignore[misc]
        assert client.titles == {}


async def test_clients_not_listed_as_active_are_deleted_without_an_answer(server: Server) -> None:
    """sync-protocol.md §10 #50"""
    gone = await server.connected(DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=0))
    gone.close()
    await gone.wait_closed()
    group = server.group()
    await until(lambda: not group.clients)
    client = server.client(client_id="me", init={"activeClients": ["me"]})
    await client.connect()
    await client.wait_for(lambda: client.session.poke_count > 0 and client.state.got == set())
    assert [m.type for m in client.messages] == ["connected"]


async def test_client_that_deletes_itself_is_refused(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    client.send("deleteClients", {"clientIDs": [client.client_id]})
    assert (await failure(client)).kind == "InvalidMessage"


# -- races --------------------------------------------------------------------------------------


async def test_advances_that_arrive_during_a_commit_follow_it_in_order(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    gate = Gate(monkeypatch, server.worker._store, "save")
    client.change_queries(put=[ALL_TAGS])
    await gate.reached.wait()
    version = server.replica.write(edit_task("a", title="A2"), put_tag("t", "T"))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    gate.open()
    await client.wait_got(ALL_TAGS)
    await client.wait_cookie(version)
    assert client.titles["a"] == "A2"
    assert set(client.state.table("tag")) == {("t",)}


async def test_reset_while_a_client_connects_leaves_everybody_with_everything(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await server.connected(ALL_TASKS)
    gate = Gate(monkeypatch, server.worker._store, "save")
    second = server.client(ALL_TAGS)
    await second.connect()
    await gate.reached.wait()
    group = server.group()
    group.invalidate()  # as the worker does when the engine was reset
    await server.worker._engine.drop(group)
    group.schedule(group.rebuild())
    gate.open()
    server.replica.write(edit_task("a", title="A2"))
    for client in (first, second):
        await client.wait_got(ALL_TASKS, ALL_TAGS)
        await client.wait_for(lambda client=client: client.titles.get("a") == "A2")  # type: ignore[misc]
        assert set(client.titles) == {"a", "b", "c"}


async def test_clients_of_two_versions_that_are_brought_here_in_turns_all_stay_current(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica moves on between the first and the second: whoever is sent what the first was
    sent must not stay there."""
    first = await server.connected(ALL_TASKS)
    older = copied(first.state)
    await first.wait_cookie(server.replica.write(edit_task("b", title="B2")))
    gate = Gate(monkeypatch, server.worker._queries, "resolve")
    second = server.client(ALL_TASKS, state=older)
    await second.connect()
    await gate.reached.wait()
    await first.wait_for(lambda: second.client_id in first.state.desired)
    third = server.client(ALL_TASKS, state=copied(first.state))
    await third.connect()
    group, engine = server.group(), server.worker._engine
    await until(lambda: len(group.clients) == 3)
    asked: list[str] = []

    def moving_on(name: str) -> None:
        original = getattr(engine, name)

        async def answer(*args: Any) -> Any:
            asked.append(name)
            if len(asked) == 2:
                version = server.replica.write(edit_task("a", title="A2"))
                await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
            return await original(*args)

        monkeypatch.setattr(engine, name, answer)

    moving_on("full_view")
    moving_on("difference")
    group.invalidate()
    await engine.drop(group)
    gate.open()
    for client in (first, second, third):
        await client.wait_for(partial(shows, client, {"a": "A2", "b": "B2", "c": "C"}))
    assert len(asked) >= 2


async def test_answer_of_an_engine_that_was_reset_meanwhile_is_not_used(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #22"""
    first = await server.connected(ALL_TASKS)
    gate = Gate(monkeypatch, server.worker._engine, "reconcile")
    first.change_queries(put=[ALL_TAGS])
    await gate.reached.wait()
    group = server.group()
    group.invalidate()
    await server.worker._engine.drop(group)
    gate.open()
    group.schedule(group.rebuild())
    await first.wait_got(ALL_TAGS)
    version = server.replica.write(edit_task("a", title="A2"), put_tag("t"))
    await first.wait_cookie(version)
    assert first.titles == {"a": "A2", "b": "B", "c": "C"}
    assert set(first.state.table("tag")) == {("t",)}


async def test_reset_while_a_query_hydrates_beside_the_engine(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #22: no poke begins before all of it is known,
    so none is ever cancelled."""
    first = await server.connected(ALL_TASKS)
    group, engine = server.group(), server.worker._engine
    begin = Preparation.begin

    async def then_lost(preparing: Preparation) -> Prepared:
        ready = await begin(preparing)
        monkeypatch.undo()
        group.invalidate()
        await engine.drop(group)
        return ready

    monkeypatch.setattr(Preparation, "begin", then_lost)
    first.change_queries(put=[ALL_TAGS])
    await first.wait_for(lambda: ALL_TAGS.hash in first.state.desired[first.client_id])
    await until(lambda: Preparation.begin is begin)
    group.schedule(group.rebuild())
    await first.wait_got(ALL_TAGS)
    assert first.failure is None
    assert first.state.got == {ALL_TAGS.hash, ALL_TASKS.hash}
    # Nobody was told that the older query had gone in between.
    assert not any(op == "del" for poke in first.pokes for op, _ in got_ops(poke))


async def test_advance_that_fails_behind_a_change_of_queries_spares_the_rest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = await server.connected(ALL_TASKS)
    one, two = task_where(title="A"), task_where(title="B")
    other = await server.connected(one, DesiredQuery(two.hash, ast=two.ast, ttl_ms=0))
    gate = Gate(monkeypatch, server.worker._engine, "reconcile")
    other.change_queries(put=[ALL_TAGS], delete=[two])
    await gate.reached.wait()
    version = server.replica.write(put_task("big", n=2**53))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    gate.open()
    assert (await failure(victim)).kind == "Internal"
    await other.wait_got(ALL_TAGS)
    newest = server.replica.write(edit_task("a", done=1), put_tag("t"))
    await other.wait_for(lambda: ("t",) in other.state.table("tag"))
    assert other.failure is None
    assert other.state.cookie is not None
    assert other.state.cookie.startswith(newest)
    assert other.state.table("task")["a",]["done"] is True
    assert other.state.got == {one.hash, ALL_TAGS.hash}


async def test_reset_behind_a_commit_never_shows_a_view_without_its_rows(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await server.connected(ALL_TASKS)
    first.close()
    async with serving(server.replica, server.config) as restarted:
        gate = Gate(monkeypatch, restarted.worker._store, "save")
        again = restarted.client(client_id=first.client_id, state=first.state)
        await again.connect()
        await gate.reached.wait()
        group = restarted.group()
        group.invalidate()
        await restarted.worker._engine.drop(group)
        gate.open()
        group.schedule(group.rebuild())
        await again.wait_for(lambda: again.session.poke_count > 0)
        assert {len(row_ops(poke)) for poke in again.pokes if got_ops(poke)} == {4}
        assert set(again.titles) == {"a", "b", "c"}


async def test_stopping_gives_up_what_the_group_does_on_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.connected(ALL_TASKS)
    group = server.group()
    gate = Gate(monkeypatch, server.worker._queries, "resolve")
    group.schedule(group.settle())
    await gate.reached.wait()
    async with asyncio.timeout(5):
        await group.stop()
    assert group.closed


async def test_client_replaced_while_its_first_message_is_worked_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await server.connected(ALL_TAGS)
    gate = Gate(monkeypatch, server.worker._queries, "validate")
    old = server.client(ALL_TASKS, client_id="me")
    await old.connect()
    await gate.reached.wait()
    new = server.client(ALL_TASKS, client_id="me")
    await new.connect()
    gate.open()
    await new.wait_got(ALL_TASKS)
    assert old.session.poke_count == 0
    version = server.replica.write(edit_task("a", title="A2"))
    for client in (other, new):
        await client.wait_cookie(version)


async def test_schema_that_no_longer_fits_ends_all_clients(server: Server) -> None:
    """sync-protocol.md §10 #61"""
    clients = [await server.connected(ALL_TASKS), await server.connected(ALL_TAGS)]
    group = server.group()
    engine = server.worker._engine
    engine._state = replace(engine.state, schema={"other": engine.state.schema["tag"]})
    group.invalidate()
    group.schedule(group.rebuild())
    for client in clients:
        assert (await failure(client)).kind == "SchemaVersionNotSupported"


# -- failures of the store ----------------------------------------------------------------------


async def test_record_changed_by_another_server_sends_clients_elsewhere(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #37"""
    first, second = await server.connected(ALL_TASKS), await server.connected(ALL_TASKS)

    async def save(*_: Any) -> None:
        raise ConcurrentModification("it moved on")

    with monkeypatch.context() as patch:
        patch.setattr(server.worker._store, "save", save)
        first.change_queries(put=[ALL_TAGS])
        for client in (first, second):
            assert (await failure(client)).kind == "Rehome"
    again = await server.connected(client_id=first.client_id, state=first.state)
    assert again.state.desired[first.client_id] == {ALL_TASKS.hash}


async def test_failed_store_loses_no_query_for_good(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the store did not take must not be believed: the client will send it again."""
    client = await server.connected(ALL_TASKS)

    async def save(*_: Any) -> None:
        raise StoreUnavailable("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(server.worker._store, "save", save)
        client.change_queries(put=[ALL_TAGS])
        error = await failure(client)
    assert error.kind == "ServerOverloaded"
    assert error.body["minBackoffMs"] > 0
    again = server.client(ALL_TASKS, ALL_TAGS, client_id=client.client_id, state=client.state)
    await again.connect()
    await again.wait_got(ALL_TAGS)
    assert again.state.desired[client.client_id] == {ALL_TASKS.hash, ALL_TAGS.hash}
    record = await server.worker._store.load("g")
    assert {q for _, q in record.desires} == {ALL_TASKS.hash, ALL_TAGS.hash}


async def test_ttl_clock_is_written_down_when_the_last_client_leaves(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    group = server.group()
    saved = (await server.worker._store.load("g")).ttl_clock_ms
    await asyncio.sleep(0.02)
    client.close()
    await until(lambda: not group.clients)
    # With those of all groups that were left within a second.
    await server.worker._maintenance.check()
    first = (await server.worker._store.load("g")).ttl_clock_ms
    assert first > saved
    assert group.ttl_now_ms() == first


async def test_replica_of_an_older_generation_does_not_know_the_group(
    server: Server, replica: Replica, database: str, app_id: str
) -> None:
    """sync-protocol.md §10 #34"""
    client = await server.connected(ALL_TASKS)
    record = await server.worker._store.load("g")
    assert record.replica_version == "01"
    client.close()
    schema = server_config(database, app_id, replica.path).cvr_schema
    import psycopg
    from psycopg import sql

    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute(
            sql.SQL('UPDATE {}.view_groups SET "replicaVersion" = %s').format(
                sql.Identifier(schema)
            ),
            ("0z",),
        )
    async with serving(replica, server.config) as restarted:
        again = restarted.client(client_id=client.client_id, state=client.state)
        assert (await refused(again)).kind == "ClientNotFound"


@pytest.mark.parametrize("keeps_cookie", [True, False])
async def test_purged_group_is_not_known_any_more(
    server: Server, replica: Replica, keeps_cookie: bool
) -> None:
    """sync-protocol.md §10 #69; nor is its id free, as long as there is a tombstone."""
    client = await server.connected(ALL_TASKS)
    client.close()
    async with serving(replica, server.config) as restarted:
        await restarted.worker._store.purge_groups(inactive_since_s=time.time() + 1, limit=10)
        state = client.state if keeps_cookie else None
        again = restarted.client(client_id=client.client_id, state=state)
        assert (await refused(again)).kind == "ClientNotFound"


@pytest.mark.parametrize("forgotten", [False, True], ids=["tombstone", "nothing"])
async def test_group_that_is_purged_between_its_loading_and_its_first_save_is_not_known(
    server: Server, replica: Replica, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    """sync-protocol.md §10 #69: nobody is served from what was read before."""
    client = await server.connected(ALL_TASKS)
    await server.stop()
    replica.write(edit_task("a", title="A2"))
    async with serving(replica, server.config) as restarted:
        store = restarted.worker._store
        with monkeypatch.context() as patch:
            gate = Gate(patch, store, "save")
            late = restarted.client(client_id=client.client_id, state=copied(client.state))
            await late.connect()
            await gate.reached.wait()
            assert await store.purge_groups(inactive_since_s=time.time() + 1, limit=10) == 1
            if forgotten:
                await store.forget_tombstones(time.time() + 1)
            gate.open()
            assert (await failure(late)).kind == "Rehome"
        assert late.pokes == []
        again = restarted.client(client_id=client.client_id, state=copied(client.state))
        assert (await refused(again)).kind == "ClientNotFound"
        assert not (await store.load("g")).clients


async def test_group_goes_on_from_records_in_a_file(
    database: str, app_id: str, replica: Replica, tmp_path: Path
) -> None:
    config = server_config(database, app_id, replica.path, cvr={"db": f"sqlite:{tmp_path}/cvr.db"})
    async with serving(replica, config) as server:
        client = await server.connected(ALL_TASKS)
        client.close()
    async with serving(replica, config) as restarted:
        replica.write(put_task("d"))
        again = await restarted.connected(client_id=client.client_id, state=client.state)
        await again.wait_for(lambda: len(again.state.rows) == 4)
        assert again.state.got == {ALL_TASKS.hash}
