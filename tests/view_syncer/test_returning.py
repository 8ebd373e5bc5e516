"""Clients that come back: after a while, to another server, after a crash.

The oracle is a client of another group that has just asked for the same: whoever returns must hold
the same rows after its first poke, whatever it held before. And where it can be told what it held,
only what it lacks is sent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from benchmarks.protocol_client import DesiredQuery, ServerError, ast_query
from benchmarks.sync_state import SyncState
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
    row_ops,
    server_config,
    serving,
    task_where,
    until,
)
from view_syncer import membership, worker
from view_syncer.cvr.store import StoreUnavailable
from view_syncer.fact_keeper import FactKeeper
from zerocache.protocol.versions import ViewVersion
from zerocache.replica.writer import ReplicaWriter

FIRST_TASKS = ast_query({"table": "task", "orderBy": [["n", "asc"], ["id", "asc"]], "limit": 2})
TAGGED_TASKS = ast_query(
    {
        "table": "task",
        "related": [
            {
                "correlation": {"parentField": ["title"], "childField": ["label"]},
                "subquery": {"table": "tag", "alias": "tags"},
            }
        ],
    }
)


def ops(client: TestClient) -> list[tuple[str, str]]:
    return sorted(op for poke in client.pokes for op in row_ops(poke))


async def returned(server: Server, state: SyncState, client_id: str | None = None) -> TestClient:
    """``client_id`` of a client the group knows: one poke then says it all."""
    known = {} if client_id is None else {"client_id": client_id}
    client = server.client(state=state, **known)
    await client.connect()
    await client.wait_for(lambda: client.session.poke_count > 0)
    return client


async def ended(client: TestClient) -> Exception:
    """What ends a connection, whenever that is."""
    try:
        await client.connect()
    except ServerError as error:
        return error
    return await client.wait_closed()


async def written_down(server: Server) -> None:
    """Until all that runs now can be looked up by whoever comes back."""
    facts: FactKeeper = server.worker._facts
    while server.worker._engine.has_unwritten():
        await facts.flush(final=True)
    await facts.flush()


def crash(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the server writes no facts, not even when it ends."""

    async def nothing(*_: Any, **__: Any) -> None: ...

    monkeypatch.setattr(server.worker._facts, "flush", nothing)
    monkeypatch.setattr(server.worker._facts, "close", nothing)


# -- what is sent ---------------------------------------------------------------------------------


async def test_after_a_restart_only_what_changed_is_sent(replica: Replica, server: Server) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    await server.stop()
    replica.write(edit_task("a", title="A2"), delete_task("b"), put_task("d", title="D"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ops(again) == [("del", "b"), ("put", "a"), ("put", "d")]
        assert again.titles == {"a": "A2", "c": "C", "d": "D"}


async def test_after_a_restart_without_changes_no_row_is_sent(
    replica: Replica, server: Server
) -> None:
    client = await server.connected(ALL_TASKS)
    await server.stop()
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ops(again) == []
        assert set(again.titles) == {"a", "b", "c"}


async def test_a_row_that_cannot_be_sent_after_a_restart_is_the_failure_of_its_query_alone(
    replica: Replica, server: Server
) -> None:
    """sync-protocol.md §10 #28"""
    await server.connected(ALL_TASKS)
    other = await server.connected(task_where(title="A"))
    await server.stop()
    replica.write(put_task("big", title="big", n=2**53), edit_task("a", done=1))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, other.state, other.client_id)
        await again.wait_for(lambda: again.state.table("task")["a",]["done"] is True)
        assert set(again.titles) == {"a"}
        assert again.state.got == {task_where(title="A").hash}
        error = await ended(restarted.client(ALL_TASKS))
        assert isinstance(error, ServerError)
        assert error.kind == "Internal"
        version = replica.write(edit_task("a", title="A", done=0))
        await again.wait_cookie(version)
        assert again.state.table("task")["a",]["done"] is False


async def test_every_earlier_cookie_can_be_returned_to_another_server(
    replica: Replica, server: Server
) -> None:
    client = await server.connected(FIRST_TASKS)
    await written_down(server)
    states = [copied(client.state)]
    for n, key in enumerate("xyz"):
        version = replica.write(put_task(key, title=key, n=-1 - n))
        await client.wait_cookie(version)
        states.append(copied(client.state))
    await server.stop()
    version = replica.write(delete_task("z"))
    async with serving(replica, server.config) as restarted:
        for state in states:
            missing = {"x", "y"} - {key[0] for key in state.table("task")}
            extra = {key[0] for key in state.table("task")} - {"x", "y"}
            again = await returned(restarted, state, client.client_id)
            assert ops(again) == sorted([("del", k) for k in extra] + [("put", k) for k in missing])
            assert set(again.titles) == {"x", "y"}


async def test_page_that_is_loaded_again_after_a_restart_is_sent_what_changed(
    replica: Replica, server: Server
) -> None:
    """A new client of the group, with the rows of another."""
    client = await server.connected(ALL_TASKS)
    await server.stop()
    replica.write(delete_task("b"))
    async with serving(replica, server.config) as restarted:
        again = restarted.client(ALL_TASKS, state=copied(client.state))
        await again.connect()
        await again.wait_for(lambda: "b" not in again.titles)
        assert ops(again) == [("del", "b")]
        assert again.client_id in again.state.desired


async def test_a_group_that_was_gone_for_long_is_sent_what_changed(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    client.close()
    await until(lambda: server.group() is None)
    replica.write(edit_task("a", title="A2"), delete_task("b"))
    again = await returned(server, client.state, client.client_id)
    assert ops(again) == [("del", "b"), ("put", "a")]


async def test_query_that_nobody_asked_for_meanwhile_is_not_told_across_the_gap(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written of it before leads nowhere: its rows changed while nobody looked."""
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    monkeypatch.setattr(membership, "CHECKPOINT_AGE_S", 3600.0)
    first = await server.connected(ALL_TASKS)
    await written_down(server)
    first.close()
    await until(lambda: server.group() is None)
    replica.write(delete_task("a"), put_task("d", title="D"))
    second = await server.connected(ALL_TASKS, group="h")
    second.close()
    await until(lambda: server.group("h") is None)
    await server.worker._facts.flush()
    replica.write(delete_task("d"))
    again = server.client(client_id=second.client_id, state=second.state, group="h")
    await again.connect()
    await again.wait_for(lambda: again.session.poke_count > 0)
    assert set(again.titles) == {"b", "c"}


async def test_members_that_could_not_be_written_are_written_later(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    original = server.worker._store.write_facts

    async def failing(*_: Any) -> None:
        raise StoreUnavailable("gone for a test")

    monkeypatch.setattr(server.worker._store, "write_facts", failing)
    await server.worker._facts.flush(final=True)
    monkeypatch.setattr(server.worker._store, "write_facts", original)
    await server.stop()
    replica.write(delete_task("b"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ops(again) == [("del", "b")]


async def test_tab_that_was_away_for_a_moment_is_sent_what_the_others_were(
    replica: Replica, server: Server
) -> None:
    """Recent pokes tell it, before anything about the new query is written down. Only the rows a
    group began with are not kept for others; a tab that has nothing is sent all there is."""
    replica.write(*[put_task(f"k{n}", title="x" * 100) for n in range(1000)])
    replica.write(*[put_tag(f"t{n}", "y" * 300) for n in range(100)])
    away = await server.connected(ALL_TASKS)
    before = copied(away.state)
    other = await server.connected(ALL_TAGS)
    assert len(other.state.rows) == len(before.rows) + 100
    again = await server.connected(client_id=away.client_id, state=before)
    assert len(ops(again)) == 100
    assert again.state.rows == other.state.rows


async def test_query_that_came_while_a_client_was_away_is_sent_whole(
    replica: Replica, server: Server
) -> None:
    client = await server.connected(ALL_TASKS)
    away = copied(client.state)
    client.change_queries(put=[ALL_TAGS])
    await client.wait_got(ALL_TAGS)
    await written_down(server)
    await client.wait_cookie(replica.write(put_tag("t", "T")))
    await server.stop()
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, away, client.client_id)
        assert ops(again) == [("put", "t")]
        assert again.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}


async def test_query_that_went_while_a_client_was_away_leaves_nothing(
    replica: Replica, server: Server
) -> None:
    brief = DesiredQuery(ALL_TASKS.hash, ast=ALL_TASKS.ast, ttl_ms=0)
    client = await server.connected(ALL_TAGS, brief)
    await written_down(server)
    away = copied(client.state)
    client.change_queries(delete=[brief])
    await client.wait_for(lambda: brief.hash not in client.state.got)
    await server.stop()
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, away, client.client_id)
        assert again.state.rows == {}
        assert again.state.got == {ALL_TAGS.hash}


async def test_row_that_took_the_key_of_another_is_sent(replica: Replica, server: Server) -> None:
    client = await server.connected(task_where(title="A"))
    await server.stop()
    replica.write(delete_task("a"))
    replica.write(put_task("a", title="A", n=7))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ops(again) == [("put", "a")]
        assert [row["n"] for row in again.state.rows.values()] == [7]


# -- what cannot be told --------------------------------------------------------------------------


async def test_cookie_of_the_moment_before_a_crash_gets_the_whole_view(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #38: what was not written down in time is not waited for."""
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    crash(server, monkeypatch)
    await client.wait_cookie(replica.write(put_task("d", title="D")))
    await server.stop()
    replica.write(delete_task("d"), delete_task("a"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ("clear", "None") in ops(again)
        assert set(again.titles) == {"b", "c"}


async def test_cookie_of_before_a_crash_that_is_written_down_gets_what_changed(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    crash(server, monkeypatch)
    await server.stop()
    replica.write(delete_task("a"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, client.state, client.client_id)
        assert ops(again) == [("del", "a")]


async def test_facts_that_cannot_be_written_cost_no_client_its_pokes(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    original = server.worker._store.write_facts
    tried = asyncio.Event()

    async def failing(*_: Any) -> None:
        tried.set()
        raise StoreUnavailable("gone for a test")

    monkeypatch.setattr(server.worker._store, "write_facts", failing)
    await client.wait_cookie(replica.write(delete_task("a")))
    async with asyncio.timeout(10):
        await tried.wait()
    await client.wait_cookie(replica.write(put_task("d", title="D")))
    monkeypatch.setattr(server.worker._store, "write_facts", original)
    state = copied(client.state)
    await server.stop()
    replica.write(delete_task("b"))
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, state, client.client_id)
        assert ops(again) == [("del", "b")]


# -- several servers ------------------------------------------------------------------------------


async def test_group_that_two_servers_serve_at_once(replica: Replica, server: Server) -> None:
    """A client's cookie is looked up in the facts of the server that issued it, however the two
    took turns."""
    one = await server.connected(FIRST_TASKS)
    await written_down(server)
    async with serving(replica, server.config) as other:
        two = await returned(other, copied(one.state), one.client_id)
        await written_down(other)
        version = replica.write(put_task("x", title="X", n=-1))
        await one.wait_cookie(version)
        await two.wait_for(lambda: two.titles == one.titles)
        before = copied(two.state)
        two.close()
        await written_down(other)
        replica.write(delete_task("x"))
        await one.wait_for(lambda: "x" not in one.titles)
        with pytest.raises(ServerError, match="Rehome"):
            # This server did not know that the other one had changed the record.
            await returned(server, copied(before))
        back = await returned(server, copied(before))
        await back.wait_for(lambda: "x" not in back.titles)
        assert ("clear", "None") not in ops(back)
        assert ViewVersion.from_cookie(str(before.cookie)).issuer == other.worker._facts.author


# -- anything -------------------------------------------------------------------------------------

Step = Callable[[ReplicaWriter], None]
ALL_QUERIES = [ALL_TASKS, ALL_TAGS, FIRST_TASKS, TAGGED_TASKS, task_where(n=1), task_where(n=2)]


def random_writes(rng: random.Random, tasks: set[str], tags: set[str]) -> list[Step]:
    steps: list[Step] = []
    for _ in range(rng.randint(1, 4)):
        key = rng.choice("abcdefgh")
        if key not in tasks:
            tasks.add(key)
            steps.append(put_task(key, title=rng.choice("TU"), n=rng.randint(0, 3)))
        elif rng.random() < 0.4:
            tasks.discard(key)
            steps.append(delete_task(key))
        else:
            steps.append(edit_task(key, title=rng.choice("TU"), n=rng.randint(0, 3)))
        tag = rng.choice("pqr")
        if tag not in tags:
            tags.add(tag)
            steps.append(put_tag(tag, rng.choice("TU")))
    return steps


@asynccontextmanager
async def maybe_restarted(
    rng: random.Random, server: Server, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    how = rng.choice(["stop", "crash", "stays"])
    if how == "crash":
        crash(server, monkeypatch)
    if how != "stays":
        await server.stop()
    async with serving(server.replica, server.config) as following:
        yield following
    if how == "stays":
        await server.stop()


@pytest.mark.parametrize("seed", range(8))
async def test_whoever_returns_has_what_a_new_client_has(
    seed: int, replica: Replica, database: str, app_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(membership, "CHECKPOINT_AGE_S", 0.0)
    monkeypatch.setattr(worker, "LINGER_S", rng.choice([0.0, 30.0]))
    tasks, tags = {"a", "b", "c"}, set[str]()
    states: list[SyncState] = []
    config = server_config(database, app_id, replica.path)
    server = Server(replica, config)
    await server.start()
    for life in range(3):
        queries = rng.sample(ALL_QUERIES, 3)
        brief = [DesiredQuery(q.hash, ast=q.ast, ttl_ms=0) for q in queries]
        state = copied(rng.choice(states)) if states else None
        client = await server.connected(*brief, **({"state": state} if state else {}))
        for _ in range(6):
            version = replica.write(*random_writes(rng, tasks, tags))
            if rng.random() < 0.3:
                client.change_queries(put=[rng.choice(ALL_QUERIES)])
            if rng.random() < 0.3:
                client.change_queries(delete=[rng.choice(brief)])
            if rng.random() < 0.5:
                await written_down(server)
            await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
            states.append(copied(client.state))
        await same_as_a_new_client(server, rng, states, f"{seed}-{life}")
        async with maybe_restarted(rng, server, monkeypatch) as following:
            replica.write(*random_writes(rng, tasks, tags))
            await same_as_a_new_client(following, rng, states, f"{seed}-{life}-after")
        server = Server(replica, config)
        await server.start()
    await server.stop()


async def same_as_a_new_client(
    server: Server, rng: random.Random, states: list[SyncState], name: str
) -> None:
    for number in range(3):
        state = copied(rng.choice(states))
        back = await returned(server, state)
        await same_rows(server, back, f"fresh-{name}-{number}")
        back.close()


def _settled(back: TestClient, fresh: TestClient, got: set[str]) -> bool:
    return back.state.got != got or back.state.rows == fresh.state.rows


async def same_rows(server: Server, back: TestClient, group: str) -> None:
    """Queries may still run out meanwhile: then the comparison starts over."""
    while True:
        got = set(back.state.got)
        fresh = await server.connected(*(q for q in ALL_QUERIES if q.hash in got), group=group)
        await back.wait_for(partial(_settled, back, fresh, got))
        fresh.close()
        if back.state.got == got:
            return
        group += "+"
