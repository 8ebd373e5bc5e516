"""A worker's groups: made, kept, shared, dissolved; its end; what one failure may touch."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from benchmarks.protocol_client import ServerError
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    copied,
    edit_task,
    put_task,
    server_config,
    serving,
    until,
)
from tests.view_syncer.test_client_group import Gate, failure, refused
from tests.view_syncer.test_returning import written_down
from view_syncer import replica_wait
from view_syncer import worker as module
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from zerocache.config import Config


async def test_groups_with_the_same_query_share_one_pipeline(server: Server) -> None:
    await server.connected(ALL_TASKS, group="one")
    before = await server.worker._engine.read(lambda e: e.pipeline_count)
    await server.connected(ALL_TASKS, group="two")
    after = await server.worker._engine.read(lambda e: e.pipeline_count)
    assert after - before == 2  # only the two internal queries, which name the group


async def test_group_is_dissolved_after_its_last_client_left(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.connected(ALL_TASKS, group="other")
    base = await server.worker._engine.read(lambda e: e.pipeline_count)
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    client = await server.connected(ALL_TAGS)
    group = server.group()
    client.close()
    await until(lambda: server.group() is None)
    await until(lambda: group.closed)
    assert await server.worker._engine.read(lambda e: e.pipeline_count) == base
    assert server.worker._lingering == {}


async def test_refused_connections_leave_no_group_behind(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    for number in range(3):
        await refused(server.client(group=f"g{number}", init={"clientSchema": None}))
    await until(lambda: not server.worker._groups)
    assert server.worker._pushes == {}


async def test_client_that_comes_back_in_time_finds_its_group(server: Server) -> None:
    first = await server.connected(ALL_TASKS)
    group = server.group()
    first.close()
    await until(lambda: not group.clients)
    server.replica.write(edit_task("a", title="A2"))
    again = server.client(client_id=first.client_id, state=first.state)
    await again.connect()
    await again.wait_for(lambda: again.titles.get("a") == "A2")
    assert server.group() is group
    assert server.worker._lingering == {}
    assert len(again.pokes[-1].parts[0].rows or ()) == 1  # from the recent pokes, not everything


async def test_client_that_comes_while_its_group_is_dissolved_is_served(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #68"""
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    first = await server.connected(ALL_TASKS)
    old = server.group()
    gate = Gate(monkeypatch, server.worker._engine, "drop")
    first.close()
    await gate.reached.wait()
    again = server.client(client_id=first.client_id, state=first.state)
    await again.connect()
    await again.wait_for(lambda: again.session.poke_count > 0)
    gate.open()
    assert server.group() is not old
    version = server.replica.write(edit_task("a", title="A2"))
    await again.wait_cookie(version)
    assert again.titles["a"] == "A2"
    await until(lambda: old.closed)


async def test_stale_group_is_dissolved_although_another_took_its_place(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)
    old = server.group()

    async def save(*_: Any) -> None:
        raise ConcurrentModification("elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(server.worker._store, "save", save)
        client.change_queries(put=[ALL_TAGS])
        assert (await failure(client)).kind == "Rehome"
    again = await server.connected(client_id=client.client_id, state=client.state)
    assert server.group() is not old
    await until(lambda: old.closed)
    version = server.replica.write(edit_task("a", title="A2"))
    await again.wait_cookie(version)


async def test_failing_store_does_not_end_the_worker(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    client = await server.connected(ALL_TASKS)

    async def touch(*_: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(server.worker._store, "touch", touch)
        client.close()
        await until(lambda: server.group() is None)
    assert server.fatal == []


async def test_group_that_fails_in_an_advance_takes_no_other_along(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = await server.connected(ALL_TASKS, group="one")
    other = await server.connected(ALL_TASKS, group="two")

    def on_advance(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.group("one"), "on_advance", on_advance)
    version = server.replica.write(put_task("d", title="D"))
    assert (await failure(victim)).kind == "ServerOverloaded"
    await other.wait_cookie(version)
    again = await server.connected(group="one", client_id=victim.client_id, state=victim.state)
    assert again.titles == other.titles


async def test_replica_that_changes_its_schema_is_followed(server: Server) -> None:
    clients = [await server.connected(ALL_TASKS, group=g) for g in ("one", "two")]
    change = 'UPDATE "_zero.replicationConfig" SET replicaVersion = ?'
    server.replica.writer._connection.execute(change, ("02",))
    newest = server.replica.write(edit_task("a", title="A2"))
    for client in clients:
        await client.wait_cookie(newest)
        assert client.titles == {"a": "A2", "b": "B", "c": "C"}


@asynccontextmanager
async def doomed(
    replica: Replica, config: Config, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Server]:
    """A server whose worker will fail, with clients that wait for it in vain."""
    monkeypatch.setattr(module, "CLOSE_WAIT_S", 0.1)
    server = Server(replica, config)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def test_version_that_goes_back_ends_the_worker_and_its_clients_start_over(
    database: str, app_id: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Upstream was restored to the past. To go on would be to poke cookies that go back, and to
    keep records and facts that are ahead of the replica."""
    monkeypatch.setattr(replica_wait, "REPLICA_WAIT_S", 0.05)
    config = server_config(database, app_id, replica.path)
    async with doomed(replica, config, monkeypatch) as server:
        client = await server.connected(ALL_TASKS)
        replica.write(edit_task("b", title="lost"))
        for number in range(4):
            await client.wait_cookie(replica.write(edit_task("a", title=f"A{number}")))
        pokes = client.session.poke_count
        state = copied(client.state)
        replica.resync("03", [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}])
        await until(lambda: bool(server.fatal))
        assert "from 06, it is at 03" in str(server.fatal[0])
        # What still runs until the process is gone serves nobody.
        late = server.client(ALL_TASKS, group="late")
        await late.connect()
        replica.write(edit_task("a", title="A9"))
        await until(lambda: server.worker._engine.state.version == "04")
        assert (client.session.poke_count, late.session.poke_count) == (pokes, 0)
    async with serving(replica, config) as restarted:
        error = await refused(restarted.client(client_id=client.client_id, state=state))
        assert error.kind == "ClientNotFound"
        fresh = await restarted.connected(ALL_TASKS, group="fresh")
        assert fresh.titles == {"a": "A9", "b": "B"}


@pytest.mark.parametrize("generation", ["03", "06"])
async def test_copy_of_a_restored_upstream_that_has_come_just_as_far_proves_nothing(
    database: str, app_id: str, replica: Replica, monkeypatch: pytest.MonkeyPatch, generation: str
) -> None:
    """The version is the same, what it stands for is not; perhaps the copy was even made there."""
    config = server_config(database, app_id, replica.path)
    async with doomed(replica, config, monkeypatch) as server:
        client = await server.connected(ALL_TASKS)
        for number in range(5):
            await client.wait_cookie(replica.write(edit_task("a", title=f"A{number}")))
        await written_down(server)
        assert replica.version == "06"
        state = copied(client.state)
        replica.resync(generation, [{"id": "a", "title": "restored"}, {"id": "b", "title": "B"}])
        while replica.version < "06":
            replica.write(put_task(f"x{replica.version}"))
        await until(lambda: bool(server.fatal))
    async with serving(replica, config) as restarted:
        replica.write(edit_task("b", title="B2"))
        again = restarted.client(client_id=client.client_id, state=state)
        await again.connect()
        await again.wait_for(lambda: again.titles.get("b") == "B2")
        assert again.titles["a"] == "restored"
        assert set(again.titles) - {"x03", "x04", "x05"} == {"a", "b"}


async def test_older_backup_of_the_same_copy_ends_the_worker_and_is_waited_for(
    database: str, app_id: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_wait, "REPLICA_WAIT_S", 0.05)
    lost = [edit_task("b", title="B2"), put_task("d", title="D")]
    backup = [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}, {"id": "c", "title": "C"}]
    config = server_config(database, app_id, replica.path)
    async with doomed(replica, config, monkeypatch) as server:
        client = await server.connected(ALL_TASKS)
        await client.wait_cookie(replica.write(*lost))
        state = copied(client.state)
        replica.resync("01", backup)
        await until(lambda: bool(server.fatal))
    async with serving(replica, config) as restarted:
        error = await refused(restarted.client(client_id=client.client_id, state=copied(state)))
        assert error.kind == "ServerOverloaded"
        replica.write(*lost)
        version = replica.write(edit_task("a", title="A2"))
        again = restarted.client(client_id=client.client_id, state=copied(state))
        await again.connect()
        await again.wait_for(lambda: again.titles["a"] == "A2")
        assert again.titles == {"a": "A2", "b": "B2", "c": "C", "d": "D"}
        assert str(again.state.cookie).startswith(version)


async def test_stopping_sends_every_client_elsewhere(
    database: str, app_id: str, replica: Replica
) -> None:
    """sync-protocol.md §10 #67"""
    server = Server(replica, server_config(database, app_id, replica.path))
    await server.start()
    clients = [await server.connected(ALL_TASKS, group=g) for g in ("one", "two")]
    await server.worker.stop()
    for client in clients:
        ended = await client.wait_closed()
        assert isinstance(ended, ServerError)
        assert (ended.kind, ended.body["maxBackoffMs"]) == ("Rehome", 0)
    server._accepting.cancel()
    server._socket.close()
    assert server.fatal == []


async def test_groups_leave_one_after_another_within_the_time_a_drain_may_take(
    database: str, app_id: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DRAIN_PAUSE_S", 3600)
    config = server_config(database, app_id, replica.path, drain_timeout_seconds=1)
    server = Server(replica, config)
    await server.start()
    clients = [await server.connected(ALL_TASKS, group=str(n)) for n in range(3)]
    stopping = asyncio.create_task(server.worker.stop())
    await clients[0].wait_closed()
    assert [client.failure is None for client in clients] == [False, True, True]
    await clients[1].wait_closed()
    assert clients[2].failure is None
    await stopping
    assert isinstance(clients[2].failure, ServerError)
    server._accepting.cancel()
    server._socket.close()


async def test_application_that_hangs_does_not_keep_a_worker_from_ending(
    database: str, app_id: str, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PUSH_DRAIN_S", 0.05)
    asked = asyncio.Event()

    async def post(*_: Any, **__: Any) -> bytes:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    config = server_config(
        database, app_id, replica.path, mutate={"url": "http://127.0.0.1:9/mutate"}
    )
    server = Server(replica, config)
    await server.start()
    monkeypatch.setattr(server.worker._api, "post", post)
    client = await server.connected(ALL_TASKS)
    mutation = {"type": "custom", "id": 1, "clientID": client.client_id, "name": "m", "args": [],
                "timestamp": 1}  # fmt: skip
    body = {"clientGroupID": "g", "mutations": [mutation], "pushVersion": 1, "timestamp": 1,
            "requestID": "r"}  # fmt: skip
    client.send("push", body)
    await asked.wait()
    async with asyncio.timeout(20):
        await server.worker.stop()
    server._accepting.cancel()
    server._socket.close()
    assert server.fatal == []


async def test_new_connection_of_a_stopping_worker_is_sent_elsewhere(server: Server) -> None:
    """sync-protocol.md §10 #68"""
    server.worker._draining = True
    error = await refused(server.client(ALL_TASKS))
    assert error.kind == "Rehome"
    server.worker._draining = False


async def test_connections_that_vanish_at_any_point_leave_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGER_S", 0.0)
    linger = struct.pack("ii", 1, 0)
    request = b"GET /sync/v51/connect?clientID=c&clientGroupID=g&ts=1&lmid=0 HTTP/1.1\r\n"
    for data in (b"", b"GET", request, request + b"Host: h\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            sock.sendall(data)
    for _ in range(5):
        client = server.client(ALL_TASKS)
        await client.connect()
        assert client._transport is not None
        client._transport.abort()
    await until(lambda: not server.worker._connections and not server.worker._groups)
    assert server.worker._live == set()
    assert server.fatal == []
