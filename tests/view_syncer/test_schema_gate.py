"""Clients while the schema of the database changes under them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    copied,
    edit_task,
    put_tag,
)
from tests.view_syncer.test_client_group import Gate, failure, refused
from zerocache.replica.pending import Pending, forget_pending, save_pending
from zerocache.replica.schema_apply import announce, shapes
from zerocache.replica.schema_change import AlterTable
from zerocache.replica.writer import ReplicaWriter

TASK_OID, TITLE, META = 1, 2, 5


def hide(*, whole: bool, columns: tuple[int, ...] = ()) -> Callable[[ReplicaWriter], None]:
    def step(writer: ReplicaWriter) -> None:
        before = shapes(writer._connection)
        pending = Pending(oid=TASK_OID, whole=whole, columns=columns)
        save_pending(writer._connection, pending)
        announce(writer._connection, writer._log, before)

    return step


def show(writer: ReplicaWriter) -> None:
    before = shapes(writer._connection)
    forget_pending(writer._connection, TASK_OID)
    announce(writer._connection, writer._log, before)


def drop_column(position: int) -> Callable[[ReplicaWriter], None]:
    def step(writer: ReplicaWriter) -> None:
        old = writer.facts("task")
        columns = tuple(c for c in old.table.columns if c.position != position)
        new = msgspec.structs.replace(
            old, table=msgspec.structs.replace(old.table, columns=columns)
        )
        (dropped,) = (c.name for c in old.table.columns if c.position == position)
        writer.change_schema([AlterTable(old, new, dropped=(dropped,))])

    return step


def minor(replica: Replica, *steps: Callable[[ReplicaWriter], None]) -> None:
    """What no upstream transaction did."""
    replica.writer.begin_transaction(replica.writer.next_minor())
    for step in steps:
        step(replica.writer)
    replica.writer.end_transaction()
    replica.writer.commit()
    replica.notifier.publish(replica.version)


async def test_column_that_is_being_copied_sends_clients_away_for_a_moment(
    server: Server,
) -> None:
    client = await server.connected(ALL_TASKS)
    other = await server.connected(ALL_TAGS, group="other")
    server.replica.write(hide(whole=False, columns=(TITLE,)))
    for each in (client, other):
        error = await failure(each)
        assert error.kind == "ServerOverloaded"
        assert '"task"' in error.body["message"]
        assert 0 < error.body["minBackoffMs"] <= error.body["maxBackoffMs"] <= 10_000
    again = server.client(client_id=client.client_id, state=copied(client.state))
    assert (await refused(again)).kind == "ServerOverloaded"
    assert client.state.cookie is not None
    server.replica.write(show, edit_task("a", title="A2"))
    back = await server.connected(ALL_TASKS, client_id=client.client_id, state=client.state)
    await back.wait_cookie(server.replica.version)
    assert back.titles == {"a": "A2", "b": "B", "c": "C"}


async def test_table_that_is_being_copied_sends_clients_away_for_a_moment(
    server: Server,
) -> None:
    client = await server.connected(ALL_TASKS)
    server.replica.write(hide(whole=True))
    assert (await failure(client)).kind == "ServerOverloaded"


async def test_column_that_is_gone_ends_all_clients_of_the_group(server: Server) -> None:
    """sync-protocol.md §10 #61"""
    clients = [await server.connected(ALL_TASKS), await server.connected(ALL_TAGS)]
    server.replica.write(drop_column(META))
    for client in clients:
        error = await failure(client)
        assert error.kind == "SchemaVersionNotSupported"
        assert '"task"."meta"' in error.body["message"]
    assert (await refused(server.client(ALL_TAGS))).kind == "SchemaVersionNotSupported"


async def test_column_nobody_declared_may_go(server: Server) -> None:
    client = await server.connected(ALL_TASKS, ALL_TAGS)
    server.replica.write(drop_column(6), put_tag("t"), edit_task("a", title="A2"))
    await client.wait_cookie(server.replica.version)
    assert client.titles == {"a": "A2", "b": "B", "c": "C"}
    assert set(client.state.table("tag")) == {("t",)}
    assert client.failure is None


async def test_minor_version_follows_the_changes_of_queries_before_it(server: Server) -> None:
    """Cookies rise as strings (the client checks it), whatever order their parts come in."""
    client = await server.connected(ALL_TASKS)
    server.replica.write(edit_task("a", title="A2"))
    await client.wait_cookie(server.replica.version)
    client.change_queries(put=[ALL_TAGS])
    await client.wait_got(ALL_TAGS)
    minor(server.replica, put_tag("t"))
    await client.wait_for(lambda: ("t",) in client.state.table("tag"))
    client.change_queries(delete=[ALL_TAGS])
    await client.wait_for(lambda: ALL_TAGS.hash not in client.state.desired[client.client_id])
    minor(server.replica, edit_task("b", title="B2"))
    await client.wait_for(lambda: client.titles["b"] == "B2")
    server.replica.write(edit_task("c", title="C2"))
    await client.wait_for(lambda: client.titles["c"] == "C2")
    again = await server.connected(ALL_TASKS, state=copied(client.state))
    assert again.titles == {"a": "A2", "b": "B2", "c": "C2"}


async def test_column_that_goes_before_the_engine_answers_is_what_the_client_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's answer, whatever it is, belongs to what it knew before: it is no failure."""
    first = await server.connected(ALL_TAGS)
    gate = Gate(monkeypatch, server.worker._engine, "reconcile")
    first.change_queries(put=[ALL_TASKS])
    async with asyncio.timeout(10):
        await gate.reached.wait()
    monkeypatch.undo()  # others are answered at once
    version = server.replica.write(drop_column(TITLE))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    gate.open()
    assert (await failure(first)).kind == "SchemaVersionNotSupported"
    # Until the group is gone the engine runs a query that has no rows for its clients.
    await server.worker._facts.flush(final=True)
    replica = server.replica
    version = replica.write(lambda w: w.update("task", {"id": "a"}, {"id": "a", "done": 1}))
    await server.worker._queries.wait_for_version(version, 10)  # type: ignore[arg-type]
    assert server.fatal == []
