"""What is written down must be true at every moment, whatever interrupts the writing.

All of it with a real server. Where the order of things matters the keeper writes only when a test
says so.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    copied,
    delete_task,
    put_tag,
    put_task,
    serving,
    until,
)
from tests.view_syncer.test_returning import crash, ops, returned, written_down
from view_syncer import fact_keeper, worker
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
    facts._fall_silent("for a test")
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
