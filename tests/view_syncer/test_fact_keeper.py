"""What is written down must be true at every moment, whatever interrupts the writing.

All of it with a real server. Where the order of things matters the keeper writes only when a test
says so.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from benchmarks.sync_messages import ClientSchema, TableSchema
from tests.view_syncer.server import (
    ALL_COUNTERS,
    ALL_TAGS,
    ALL_TASKS,
    SCHEMA,
    Replica,
    Server,
    copied,
    delete_task,
    put_counter,
    put_tag,
    put_task,
    serving,
    until,
)
from tests.view_syncer.test_client_group import Gate, failure
from tests.view_syncer.test_returning import crash, ops, returned, written_down
from view_syncer import fact_keeper, membership, worker
from view_syncer.cvr.store import StoreUnavailable
from view_syncer.fact_keeper import FactKeeper
from zerocache.protocol.versions import ViewVersion


@pytest.fixture(autouse=True)
def only_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fact_keeper, "FLUSH_DELAY_S", 3600.0)


async def test_members_of_a_later_version_are_not_written_without_what_leads_there(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    before = copied(client.state)
    engine = server.worker._engine
    original = engine.members

    async def late(unit: str) -> Any:
        if "a" in client.titles:
            await client.wait_cookie(replica.write(delete_task("a")))
        return await original(unit)

    monkeypatch.setattr(engine, "members", late)
    await server.worker._facts.flush(final=True)
    crash(server, monkeypatch)
    await server.stop()
    async with serving(replica, server.config) as restarted:
        again = await returned(restarted, before, client.client_id)
        assert set(again.titles) == {"b", "c"}


async def test_query_that_begins_again_keeps_what_was_written_of_it(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    await client.wait_cookie(replica.write(put_task("d", title="D")))
    before = copied(client.state)
    await client.wait_cookie(replica.write(put_task("e", title="E")))
    await server.worker._facts.flush()
    client.close()
    await until(lambda: server.group() is None)
    await server.connected(ALL_TASKS, group="h")
    await server.worker._facts.flush()
    replica.write(delete_task("d"))
    again = await returned(server, before, client.client_id)
    assert ops(again) == [("del", "d"), ("put", "e")]
    assert set(again.titles) == {"a", "b", "c", "e"}


async def test_who_asks_and_goes_away_takes_no_moves_along(
    replica: Replica, server: Server
) -> None:
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    await client.wait_cookie(replica.write(delete_task("a")))
    facts: FactKeeper = server.worker._facts
    base = ViewVersion.from_cookie(str(client.state.cookie))
    unit = server.group().inspected().record.queries[ALL_TASKS.hash].unit
    gate = threading.Event()
    blocked = asyncio.ensure_future(server.worker._engine.read(lambda _: gate.wait(10)))
    asking = asyncio.ensure_future(facts.held(base, [unit], "g"))
    await until(facts._lock.locked)
    asking.cancel()
    await asyncio.wait([asking])
    gate.set()
    await blocked
    await facts.flush()
    held = await facts.held(base, [unit], "g")
    assert held is not None
    assert len(held.rows) == 2


async def test_silent_keeper_does_not_hoard(replica: Replica, server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    facts: FactKeeper = server.worker._facts
    facts.give_up("for a test")
    await client.wait_cookie(replica.write(delete_task("a")))
    await facts.flush()
    assert (await server.worker._engine.take_moves()).moves == {}


async def test_moves_of_units_that_are_too_large_are_not_kept(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("view_syncer.engine_host.MAX_CHECKPOINT_ROWS", 2)
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    await client.wait_cookie(replica.write(delete_task("a")))
    membership = server.worker._engine._membership
    assert all(unit.pending == [] for unit in membership._by_id.values())
    assert (await server.worker._engine.take_moves()).moves == {}


async def test_unit_that_was_given_up_and_begins_again_is_written_down_again(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grew too large, and the store was away when that was to be written: what is forgotten is
    what was written before, not what is to be written now."""
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    monkeypatch.setattr(membership, "MIN_MOVED", 0)
    client = await server.connected(ALL_TASKS)
    await written_down(server)
    facts: FactKeeper = server.worker._facts
    store = server.worker._store
    unit = server.group().inspected().record.queries[ALL_TASKS.hash].unit
    assert (await store.read_facts(facts.author + 1, [unit])).units[unit].checkpoint

    async def failing(*_: Any) -> None:
        raise StoreUnavailable("gone for a test")

    with monkeypatch.context() as away:
        for name in ("drop_facts", "write_facts"):
            away.setattr(store, name, failing)
        with monkeypatch.context() as large:
            for module in ("view_syncer.membership", "view_syncer.engine_host"):
                large.setattr(f"{module}.MAX_CHECKPOINT_ROWS", 2)
            await client.wait_cookie(replica.write(put_task("d")))
            await facts.flush()
        assert unit in facts._forgotten
        client.close()
        await until(lambda: server.group() is None)
        again = await server.connected(ALL_TASKS, group="h")
        await facts.flush(final=True)
    base = ViewVersion.from_cookie(str(again.state.cookie))
    await again.wait_cookie(replica.write(delete_task("d")))
    await written_down(server)
    assert facts._forgotten == set()
    held = await facts.held(base, [unit], "h")
    assert held is not None
    assert len(held.rows) == 4


COUNTERS = ClientSchema(
    {
        "task": SCHEMA.tables["task"],
        "counter": TableSchema({"n": {"type": "number"}, "label": {"type": "string"}}, ["n"]),
    }
)


async def test_rows_that_cannot_be_named_cost_nobody_else_anything(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number without a JSON form came while the client was away; it has the protocol's error as
    soon as it is to be sent such a row, and the worker goes on writing about other queries."""
    replica.write(put_counter(1))
    client = await server.connected(ALL_COUNTERS, ALL_TASKS, schema=COUNTERS)
    await written_down(server)
    await server.stop()
    replica.write(put_counter(2**53))
    async with serving(replica, server.config) as restarted:
        other = await restarted.connected(ALL_TASKS, group="h")
        engine = restarted.worker._engine
        gate = Gate(monkeypatch, engine, "difference")
        again = restarted.client(state=client.state, client_id=client.client_id, schema=COUNTERS)
        await again.connect()
        async with asyncio.timeout(10):
            await gate.reached.wait()
        await written_down(restarted)
        gate.open()
        error = await failure(again)
        assert error.kind == "Internal"
        assert "'n'" in str(error)
        before = copied(other.state)
        await other.wait_cookie(replica.write(delete_task("a")))
        await written_down(restarted)
        base = ViewVersion.from_cookie(str(before.cookie))
        unit = restarted.group("h").inspected().record.queries[ALL_TASKS.hash].unit
        assert await restarted.worker._facts.held(base, [unit], "h") is not None


async def test_key_that_is_not_declared_as_a_column_is_sent_all_the_same(
    replica: Replica, server: Server
) -> None:
    """Rows are deleted by it, so they must show it."""
    label = ClientSchema({"counter": TableSchema({"label": {"type": "string"}}, ["n"])})
    replica.write(put_counter(1, "one"))
    client = server.client(ALL_COUNTERS, schema=label)
    await client.connect()
    await client.wait_got(ALL_COUNTERS)
    (put,) = [op for p in client.pokes for part in p.parts for op in part.rows or ()]
    assert put.value == {"n": 1, "label": "one"}


async def test_cookie_of_while_another_server_wrote_the_record_is_not_believed(
    replica: Replica, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issued without knowing of the other's queries, by a server that has read the record since:
    it had other queries in mind."""
    monkeypatch.setattr(worker, "LINGER_S", 0.0)
    replica.write(put_tag("t"))
    await server.connected(ALL_TAGS, group="h")
    one = await server.connected(ALL_TASKS)
    async with serving(replica, server.config) as other:
        two = await other.connected(ALL_TAGS, state=copied(one.state))
        await one.wait_cookie(replica.write(put_task("d")))
        two.close()
    await written_down(server)
    one.close()
    await until(lambda: server.group() is None)
    third = await server.connected(ALL_TASKS, ALL_TAGS)
    again = await returned(server, one.state, one.client_id)
    assert again.state.got == {ALL_TASKS.hash, ALL_TAGS.hash}
    assert again.state.rows == third.state.rows
