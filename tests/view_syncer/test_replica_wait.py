"""Clients that come from a server whose replica is newer, and keep all they have."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    copied,
    delete_task,
    edit_task,
    put_task,
    row_ops,
    server_config,
    serving,
)
from tests.view_syncer.test_client_group import refused
from tests.view_syncer.test_returning import written_down
from view_syncer import replica_wait
from zerocache.protocol.versions import lexi_decode, lexi_encode


@pytest.fixture
async def lagging(
    server: Server, tmp_path: Path, database: str, app_id: str
) -> AsyncIterator[Server]:
    """Another node of the same service, whose replica gets nothing by itself."""
    directory = tmp_path / "lagging"
    directory.mkdir()
    tasks = [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}, {"id": "c", "title": "C"}]
    replica = Replica(directory, app_id, tasks)
    await replica.notifier.start()
    async with serving(replica, server_config(database, app_id, replica.path)) as node:
        yield node
    await replica.notifier.close()
    replica.writer.close()


@pytest.fixture
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_wait, "REPLICA_WAIT_S", 0.05)


def moved(to: Server, client: TestClient) -> TestClient:
    client.close()
    return to.client(client_id=client.client_id, state=copied(client.state))


async def set_generation(database: str, node: Server, generation: str) -> None:
    """Of all groups, as if they had last been served from that copy of upstream."""
    table = sql.Identifier(node.config.cvr_schema, "view_groups")
    statement = sql.SQL('UPDATE {} SET "replicaVersion" = %s').format(table)
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute(statement, (generation,))


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("recorded", [False, True], ids=["data cookie", "recorded version"])
async def test_client_ahead_of_the_replica_is_asked_to_come_back_and_keeps_all_it_has(
    server: Server, lagging: Server, recorded: bool
) -> None:
    client = await server.connected(ALL_TASKS)
    changes = [put_task("d", title="D"), delete_task("b")]
    await client.wait_cookie(server.replica.write(*changes))
    if recorded:
        client.change_queries(put=[ALL_TAGS])
        await client.wait_got(ALL_TAGS)
    await written_down(server)
    for times in (1, 2):
        error = await refused(moved(lagging, client))
        assert error.kind == "ServerOverloaded"
        assert error.body["origin"] == "zeroCache"
        assert 0 < error.body["minBackoffMs"] <= error.body["maxBackoffMs"]
        assert lagging.worker.figures()["clientsAheadOfReplica"] == times
    lagging.replica.write(*changes)
    newest = lagging.replica.write(edit_task("a", title="A2"))
    back = moved(lagging, client)
    await back.connect()
    await back.wait_for(lambda: back.titles == {"a": "A2", "c": "C", "d": "D"})
    assert [op for poke in back.pokes for op in row_ops(poke)] == [("put", "a")]
    assert str(back.state.cookie).startswith(newest)


@pytest.mark.usefixtures("short_wait")
async def test_client_that_waits_for_the_replica_does_not_hold_up_its_group(
    server: Server, lagging: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await server.connected(ALL_TASKS, client_id="one")
    two = await server.connected(client_id="two", state=copied(one.state))
    await one.wait_cookie(str(two.state.cookie))
    here = moved(lagging, one)
    await here.connect()
    await here.wait_for(lambda: here.session.poke_count > 0)
    await two.wait_cookie(server.replica.write(put_task("d", title="D")))
    monkeypatch.setattr(replica_wait, "REPLICA_WAIT_S", 3600.0)
    waiting = moved(lagging, two)
    await waiting.connect()
    here.change_queries(put=[ALL_TAGS])
    await here.wait_got(ALL_TAGS)
    assert waiting.session.poke_count == 0
    lagging.replica.write(put_task("d", title="D"))
    await waiting.wait_for(lambda: waiting.session.poke_count > 0)
    await here.wait_for(lambda: "d" in here.titles)
    assert waiting.titles == here.titles
    assert lagging.worker.figures()["clientsAheadOfReplica"] == 0


@pytest.mark.usefixtures("short_wait")
@pytest.mark.parametrize("generation", ["00", "0z"], ids=["older", "newer"])
async def test_cookie_of_another_generation_that_the_replica_does_not_have_is_not_found(
    server: Server, lagging: Server, database: str, generation: str
) -> None:
    """sync-protocol.md §5.3, §10 #34"""
    client = await server.connected(ALL_TASKS)
    await client.wait_cookie(server.replica.write(put_task("d", title="D")))
    await set_generation(database, server, generation)
    assert (await refused(moved(lagging, client))).kind == "ClientNotFound"
    assert lagging.worker.figures()["clientsAheadOfReplica"] == 0


@pytest.mark.usefixtures("short_wait")
async def test_client_of_an_older_copy_goes_on_with_a_newer_one(
    server: Server, database: str
) -> None:
    """A node with a new copy took over from one that was served meanwhile."""
    client = await server.connected(ALL_TASKS)
    await client.wait_cookie(server.replica.write(edit_task("a", title="A2")))
    await written_down(server)
    client.close()
    await set_generation(database, server, "00")
    async with serving(server.replica, server.config) as restarted:
        back = moved(restarted, client)
        await back.connect()
        newest = server.replica.write(edit_task("b", title="B2"))
        await back.wait_for(lambda: back.titles == {"a": "A2", "b": "B2", "c": "C"})
        assert str(back.state.cookie).startswith(newest)


@pytest.mark.parametrize("first", ["early", "late"])
async def test_rows_that_upstream_lost_are_taken_from_every_tab(
    replica: Replica, server: Server, first: str
) -> None:
    """What they have is not told apart from what is there now by any version: the numbers were
    given out a second time."""
    early = await server.connected(ALL_TASKS, client_id="early")
    late = await server.connected(client_id="late", state=copied(early.state))
    await early.wait_cookie(str(late.state.cookie))
    states = {"early": copied(early.state)}
    await late.wait_cookie(replica.write(edit_task("c", title="kept")))
    replica.write(edit_task("a", title="lost"))
    await late.wait_cookie(replica.write(edit_task("b", title="lost")))
    states["late"] = copied(late.state)
    await written_down(server)
    await server.stop()
    replica.resync("03", [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}])
    for number in range(4):
        replica.write(edit_task("a", title=f"A{number}"))
    async with serving(replica, server.config) as restarted:
        for name in sorted(states, key=lambda name: name != first):
            again = restarted.client(client_id=name, state=copied(states[name]))
            await again.connect()
            await again.wait_for(lambda again=again: again.titles == {"a": "A3", "b": "B"})  # type: ignore[misc]
        await again.wait_cookie(replica.write(edit_task("b", title="B2")))
        assert again.titles == {"a": "A3", "b": "B2"}
        record = await restarted.worker._store.load("g")
        assert record.replica_version == "03"


@pytest.mark.usefixtures("short_wait")
async def test_cookie_ahead_of_a_group_that_is_served_elsewhere_is_not_believed_for_ever(
    server: Server,
) -> None:
    """A cookie that is recorded has config bits: no replica makes one of those."""
    client = await server.connected(ALL_TASKS)
    client.state.cookie = lexi_encode(lexi_decode(server.replica.version) + 7) + ":01"
    error = await refused(moved(server, client))
    assert error.kind == "InvalidConnectionRequestBaseCookie"
