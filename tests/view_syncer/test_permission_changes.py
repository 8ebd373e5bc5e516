"""Permissions that change upstream apply to the rows of the very transaction that changes them.

Whatever a group is doing at that moment, no row that the new permissions hide may leave the server
any more: the tests look at everything that was sent, not at what clients hold in the end.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.sync_messages import ClientSchema, TableSchema
from tests.view_syncer.server import (
    ALL_COUNTERS,
    ALL_TAGS,
    ALL_TASKS,
    ALLOW,
    PERMISSIONS,
    SCHEMA,
    Replica,
    Server,
    TestClient,
    cookies,
    copied,
    delete_task,
    edit_task,
    got_ops,
    put_counter,
    put_tag,
    put_task,
    row_ops,
    serving,
    until,
)
from tests.view_syncer.test_client_group import Gate, failure
from tests.view_syncer.test_returning import written_down
from tests.view_syncer.test_schema_gate import drop_column
from view_syncer import advances, worker
from view_syncer.engine_host import Preparation
from view_syncer.fan_out import Prepared
from zerocache.protocol.versions import Watermark
from zerocache.replica.types import SQLiteValue
from zerocache.replica.writer import ReplicaWriter

RAW = 6
"""The position of a column that no client reads."""
ONLY_TAGS = {"tables": {"tag": ALLOW}}
WITH_COUNTERS = ClientSchema(
    {
        **SCHEMA.tables,
        "counter": TableSchema({"n": {"type": "number"}, "label": {"type": "string"}}, ["n"]),
    }
)


def deployed(app_id: str, permissions: Any) -> Callable[[ReplicaWriter], None]:
    text = permissions if isinstance(permissions, str) else json.dumps(permissions)
    values: dict[str, SQLiteValue] = {"lock": 1, "permissions": text, "hash": str(hash(text))}
    return lambda w: w.update(f"{app_id}.permissions", None, values)


async def seen(server: Server, *steps: Callable[[ReplicaWriter], None]) -> Watermark:
    """The version of a transaction, once the worker has heard of it by itself."""
    version = Watermark(server.replica.write(*steps))
    assert await server.worker._queries.wait_for_version(version, 10)
    return version


def sent(*clients: TestClient) -> set[str]:
    """The keys of all rows that were ever sent."""
    return {key for c in clients for poke in c.pokes for op, key in row_ops(poke) if op == "put"}


async def test_row_that_comes_with_the_permissions_that_hide_it_is_never_sent(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    before = client.state.cookie
    version = replica.write(
        put_task("secret"),
        edit_task("a", title="secret"),
        deployed(app_id, ONLY_TAGS),
        put_tag("t"),
    )
    await client.wait_cookie(version)
    assert set(client.state.rows) == {("tag", ("t",))}
    assert sent(client) == {"a", "b", "c", "t"}
    assert cookies(client)[-1] == (before, version)
    assert got_ops(client.pokes[-1]) == []
    await client.wait_cookie(replica.write(put_tag("u")))


async def test_row_that_comes_with_the_permissions_that_show_it_is_sent(
    server: Server, replica: Replica, app_id: str
) -> None:
    replica.write(deployed(app_id, ONLY_TAGS))
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    assert client.state.rows == {}
    version = replica.write(put_task("d"), deployed(app_id, PERMISSIONS), delete_task("a"))
    await client.wait_cookie(version)
    assert set(client.titles) == {"b", "c", "d"}


async def test_permissions_that_change_nothing_for_a_group_cost_it_no_poke(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TAGS)
    count = client.session.poke_count
    replica.write(deployed(app_id, ONLY_TAGS))
    version = replica.write(deployed(app_id, PERMISSIONS), put_tag("t"))
    await client.wait_cookie(version)
    assert client.session.poke_count == count + 1


async def test_further_transactions_wait_for_the_ones_before(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new permissions take a while to be applied; and they change once more meanwhile."""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    gate = Gate(monkeypatch, server.worker._engine, "reconcile")
    replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS))
    async with asyncio.timeout(10):
        await gate.reached.wait()
    replica.write(put_task("secret2"), put_tag("t"))
    replica.write(deployed(app_id, {"tables": {"task": ALLOW}}), put_tag("hidden"))
    last = replica.write(delete_task("secret"), delete_task("secret2"), put_task("d"))
    await server.worker._queries.wait_for_version(last, 10)  # type: ignore[arg-type]
    gate.open()
    await client.wait_for(lambda: set(client.state.rows) == {("task", (k,)) for k in "abcd"})
    assert "hidden" not in sent(client)


async def test_permissions_that_change_back_before_they_were_applied_hid_what_was_between(
    server: Server, replica: Replica, app_id: str
) -> None:
    """Whoever was shown a version at which a row was hidden must not have it there."""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    before = client.state.cookie
    async with server.group()._lock:
        await seen(server, deployed(app_id, ONLY_TAGS), edit_task("a", title="secret"))
        await seen(server, edit_task("a", title="public"), put_task("d"), delete_task("b"))
        back = await seen(server, deployed(app_id, PERMISSIONS))
    last = replica.write(put_task("e"))
    await client.wait_cookie(last)
    assert cookies(client)[-2:] == [(before, back), (back, last)]
    assert set(client.titles) == {"a", "c", "d", "e"}
    ops = [op for poke in client.pokes for part in poke.parts for op in part.rows or ()]
    titles = [op.value["title"] for op in ops if op.op == "put" and isinstance(op.value, dict)]
    assert "public" in titles
    assert "secret" not in titles


async def test_row_that_was_never_to_be_seen_is_not_even_named(
    server: Server, replica: Replica, app_id: str
) -> None:
    """A key may say as much as a row: an address, a name."""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS), put_tag("t"))
    await client.wait_for(lambda: set(client.state.rows) == {("tag", ("t",))})
    named = {key for poke in client.pokes for _, key in row_ops(poke)}
    assert named == {"a", "b", "c", "t"}


async def test_row_that_came_and_went_while_permissions_hid_it_is_not_even_named(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    async with server.group()._lock:
        await seen(server, deployed(app_id, ONLY_TAGS), put_task("secret"))
        await seen(server, delete_task("secret"))
        await seen(server, deployed(app_id, PERMISSIONS))
    await client.wait_cookie(replica.write(put_task("e")))
    assert set(client.titles) == {"a", "b", "c", "e"}
    named = {key for poke in client.pokes for _, key in row_ops(poke)}
    assert named == {"a", "b", "c", "e"}


async def test_permissions_that_change_back_leave_what_follows_them_as_it_is(
    server: Server, replica: Replica, app_id: str
) -> None:
    """The last of the changes concerns no row of the group's, and something comes after it."""
    client = await server.connected(ALL_TASKS)
    before = client.state.cookie
    async with server.group()._lock:
        await seen(server, deployed(app_id, ONLY_TAGS), put_task("d"))
        back = await seen(server, deployed(app_id, PERMISSIONS), put_tag("not asked for"))
        last = await seen(server, delete_task("d"), put_task("e"))
    await client.wait_cookie(last)
    assert cookies(client)[-2:] == [(before, back), (back, last)]
    assert set(client.titles) == {"a", "b", "c", "e"}


async def test_query_that_is_being_added_meanwhile_shows_nothing_hidden(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TAGS)
    engine = server.worker._engine
    original = engine.reconcile
    answered, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*args: Any, **options: Any) -> Any:
        await server.worker._queries.wait_for_version(replica.version, 10)  # type: ignore[arg-type]
        result = await original(*args, **options)
        answered.set()
        await go_on.wait()
        return result

    async def changing(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(engine, "reconcile", original)
        replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS))
        return await slow(*args, **options)

    monkeypatch.setattr(engine, "reconcile", changing)
    client.change_queries(put=[ALL_TASKS])
    async with asyncio.timeout(10):
        await answered.wait()
    go_on.set()
    await client.wait_got(ALL_TASKS)
    await client.wait_cookie(replica.write(put_tag("t")))
    assert set(client.state.rows) == {("tag", ("t",))}
    assert "secret" not in sent(client)


@pytest.mark.parametrize("after", [True, False], ids=["after the answer", "before it"])
async def test_group_that_begins_meanwhile_is_shown_nothing_hidden(
    server: Server,
    replica: Replica,
    app_id: str,
    monkeypatch: pytest.MonkeyPatch,
    after: bool,
) -> None:
    engine = server.worker._engine
    original = engine._begin

    async def changing(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(engine, "_begin", original)
        answer = await original(*args, **options) if after else None
        await seen(server, put_task("secret"), deployed(app_id, ONLY_TAGS), put_tag("t"))
        return answer if after else await original(*args, **options)

    monkeypatch.setattr(engine, "_begin", changing)
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    await client.wait_cookie(replica.write(put_tag("u")))
    assert set(client.state.rows) == {("tag", ("t",)), ("tag", ("u",))}
    assert sent(client) == {"t", "u"}


@pytest.mark.parametrize("step", ["full_view", "difference"])
async def test_client_that_is_being_caught_up_meanwhile_is_sent_nothing_hidden(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.0 if step == "difference" else 30.0)
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    state = copied(client.state) if step == "difference" else None
    if step == "difference":
        await written_down(server)
        client.close()
        await until(lambda: server.group() is None)
        replica.write(edit_task("b", title="B2"))
    else:
        audience = server.group()._audience
        audience.restart(audience.version)  # no recent pokes to be caught up by
    engine = server.worker._engine
    original = getattr(engine, step)

    async def changing(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(engine, step, original)
        version = replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS))
        await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
        return await original(*args, **options)

    monkeypatch.setattr(engine, step, changing)
    late = server.client(ALL_TASKS, ALL_TAGS, state=state)
    await late.connect()
    await late.wait_for(lambda: late.session.poke_count > 0)
    version = replica.write(put_tag("t"))
    await late.wait_cookie(version)
    await late.wait_for(lambda: set(late.state.rows) == {("tag", ("t",))})
    assert "secret" not in sent(client, late)


async def test_permissions_that_change_together_with_the_schema(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine starts over; whoever comes before the permissions are known again waits."""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    queries = server.worker._queries
    gate = Gate(monkeypatch, queries, "watch")
    replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS), drop_column(RAW))
    async with asyncio.timeout(10):
        await gate.reached.wait()
    late = server.client(ALL_TASKS, ALL_TAGS)
    await late.connect()
    gate.open()
    for each in (client, late):
        await each.wait_for(lambda each=each: each.state.rows == {})  # type: ignore[misc]
        await each.wait_got(ALL_TASKS, ALL_TAGS)
    assert "secret" not in sent(client, late)


async def test_unreadable_permissions_allow_nothing_and_the_server_lives(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS)
    replica.write(put_task("secret"), deployed(app_id, "{not json"))
    await client.wait_for(lambda: client.state.rows == {})
    replica.write(deployed(app_id, PERMISSIONS))
    await client.wait_for(lambda: set(client.titles) == {"a", "b", "c", "secret"})


async def test_deleted_permissions_allow_nothing(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS)
    replica.write(lambda w: w.delete(f"{app_id}.permissions", {"lock": 1}), put_task("secret"))
    await client.wait_for(lambda: client.state.rows == {})
    assert "secret" not in sent(client)


async def test_group_without_clients_is_not_shown_the_old_view_when_one_returns(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    state = copied(client.state)
    client.close()
    await until(lambda: not server.group().clients)
    version = replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS), put_tag("t"))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    again = server.client(state=state, client_id=client.client_id)
    await again.connect()
    await again.wait_for(lambda: set(again.state.rows) == {("tag", ("t",))})
    assert "secret" not in sent(client, again)


async def test_nothing_piles_up_for_a_group_whose_only_connection_says_nothing(
    server: Server, replica: Replica, app_id: str
) -> None:
    """Nobody is there for whom the changed permissions could be applied."""
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    state = copied(client.state)
    silent = server.client()
    silent._init_body = lambda: {"desiredQueriesPatch": [], "pad": "x" * 9000}  # type: ignore[method-assign]
    silent.send = lambda *_: None  # type: ignore[method-assign]  # keeps its first message back
    await silent.connect()
    client.close()
    await until(lambda: list(server.group().clients) == [silent.client_id])
    replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS))
    version = ""
    for i in range(20):
        version = replica.write(put_tag(f"t{i}"))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    assert not server.group()._view._advances._waiting
    again = server.client(state=state, client_id=client.client_id)
    await again.connect()
    await again.wait_for(lambda: set(again.state.rows) == {("tag", (f"t{i}",)) for i in range(20)})
    assert "secret" not in sent(client, again)


async def test_what_piles_up_while_permissions_are_applied_is_bounded(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may lead to queries that take long: then the group starts over instead."""
    monkeypatch.setattr(advances, "MAX_WAITING_OPERATIONS", 10)
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    gate = Gate(monkeypatch, server.worker._queries, "resolve")
    replica.write(put_task("secret"), deployed(app_id, ONLY_TAGS))
    async with asyncio.timeout(10):
        await gate.reached.wait()
    version = ""
    for i in range(20):
        version = replica.write(put_tag(f"t{i}"))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    assert not server.group()._view._advances._waiting
    gate.open()
    await client.wait_for(
        lambda: set(client.state.rows) == {("tag", (f"t{i}",)) for i in range(20)}
    )
    await client.wait_cookie(replica.write(put_tag("t20")))
    assert "secret" not in sent(client)


async def test_changed_permissions_leave_named_queries_alone(server: Server) -> None:
    """They are the application's; see :mod:`tests.view_syncer.test_queries`."""
    client = await server.connected(ALL_TASKS)
    group = server.group()
    for query in group.inspected().record.queries.values():
        query.ast_json, query.name = None, "named"
    group.permissions_changed(server.replica.version)
    await client.wait_cookie(server.replica.write(put_task("d")))
    assert "d" in client.titles


# -- rows without a JSON form ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "step", [put_task("big", n=2**53), edit_task("a", n=2**53)], ids=["new", "known"]
)
async def test_row_that_cannot_be_sent_and_that_nobody_may_see_is_nobodys_failure(
    server: Server, replica: Replica, app_id: str, step: Callable[[ReplicaWriter], None]
) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    version = replica.write(step, deployed(app_id, ONLY_TAGS), put_tag("t"))
    await client.wait_cookie(version)
    assert set(client.state.rows) == {("tag", ("t",))}
    assert client.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}
    await client.wait_cookie(replica.write(put_tag("u")))
    assert client.failure is None


async def test_row_that_cannot_even_be_named_and_that_nobody_may_see_is_nobodys_failure(
    server: Server, replica: Replica, app_id: str
) -> None:
    replica.write(put_counter(1))
    client = await server.connected(ALL_COUNTERS, ALL_TASKS, schema=WITH_COUNTERS)
    replica.write(put_counter(2**53), deployed(app_id, {"tables": {"task": ALLOW}}))
    await client.wait_for(lambda: set(client.state.rows) == {("task", (k,)) for k in "abc"})
    await client.wait_cookie(replica.write(put_task("d")))
    assert client.failure is None


async def test_row_that_cannot_be_sent_fails_who_may_still_see_it_and_nobody_else(
    server: Server, replica: Replica, app_id: str
) -> None:
    victim = await server.connected(ALL_TASKS, schema=WITH_COUNTERS)
    other = await server.connected(ALL_TAGS, ALL_COUNTERS, schema=WITH_COUNTERS)
    permissions = {"tables": {"task": ALLOW, "counter": ALLOW}}
    replica.write(put_task("big", n=2**53), deployed(app_id, permissions), put_tag("t"))
    assert (await failure(victim)).kind == "Internal"
    await other.wait_cookie(replica.write(put_counter(7)))
    assert set(other.state.rows) == {("counter", (7,))}
    assert other.failure is None


async def test_row_that_cannot_be_sent_is_nobodys_failure_behind_a_change_of_queries(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits when the transaction comes that hides it."""
    client = await server.connected(ALL_TASKS)
    gate = Gate(monkeypatch, server.worker._engine, "reconcile")
    client.change_queries(put=[ALL_TAGS])
    async with asyncio.timeout(10):
        await gate.reached.wait()
    version = replica.write(put_task("big", n=2**53))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    version = replica.write(deployed(app_id, ONLY_TAGS), put_tag("t"))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    gate.open()
    await client.wait_for(lambda: set(client.state.rows) == {("tag", ("t",))})
    await client.wait_cookie(replica.write(put_tag("u")))
    assert client.failure is None


async def test_row_that_cannot_be_sent_is_nobodys_failure_while_a_client_is_caught_up(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    server.group()._view._careful = True  # there were such rows before
    audience = server.group()._audience
    audience.restart(audience.version)  # no recent pokes to be caught up by
    engine = server.worker._engine
    original = engine.full_view

    async def changing(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(engine, "full_view", original)
        version = replica.write(put_task("big", n=2**53), deployed(app_id, ONLY_TAGS))
        await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
        return await original(*args, **options)

    monkeypatch.setattr(engine, "full_view", changing)
    late = server.client(ALL_TASKS, ALL_TAGS)
    await late.connect()
    await late.wait_for(lambda: late.session.poke_count > 0)
    version = replica.write(put_tag("t"))
    for each in (client, late):
        await each.wait_cookie(version)
        assert set(each.state.rows) == {("tag", ("t",))}
        assert each.failure is None


async def test_row_that_cannot_be_sent_is_nobodys_failure_if_only_a_hydration_has_met_it(
    server: Server, replica: Replica, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine does not know yet that the permissions changed with it."""
    client = await server.connected(ALL_TAGS)
    engine = server.worker._engine
    notify, begin, end = engine.notify, Preparation.begin, Preparation.end

    async def ahead(preparing: Preparation) -> Prepared:
        monkeypatch.setattr(Preparation, "begin", begin)
        monkeypatch.setattr(engine, "notify", lambda: None)
        replica.write(put_task("big", n=2**53), deployed(app_id, ONLY_TAGS))
        return await begin(preparing)

    def told(preparing: Preparation) -> None:
        end(preparing)
        monkeypatch.setattr(Preparation, "end", end)
        monkeypatch.setattr(engine, "notify", notify)
        notify()

    monkeypatch.setattr(Preparation, "begin", ahead)
    monkeypatch.setattr(Preparation, "end", told)
    client.change_queries(put=[ALL_TASKS])
    await client.wait_got(ALL_TASKS)
    version = replica.write(put_tag("t"))
    await client.wait_cookie(version)
    assert set(client.state.rows) == {("tag", ("t",))}
    assert client.failure is None


async def test_restarted_server_applies_the_permissions_it_finds(
    server: Server, replica: Replica, app_id: str
) -> None:
    client = await server.connected(ALL_TASKS)
    await server.stop()
    replica.write(deployed(app_id, ONLY_TAGS), put_task("secret"))
    async with serving(replica, server.config) as restarted:
        again = restarted.client(state=client.state, client_id=client.client_id)
        await again.connect()
        await again.wait_for(lambda: again.state.rows == {})
        assert "secret" not in sent(client, again)
