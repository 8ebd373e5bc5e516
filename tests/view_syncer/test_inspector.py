"""The inspector as clients use it, against a running worker; and the wishes of its plans."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from benchmarks.protocol_client import DesiredQuery, ast_query
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    put_task,
    server_config,
    serving,
    task_where,
)
from view_syncer.ivm.advice import SCAN_ROWS
from zerocache.protocol.downstream import encode
from zerocache.replica.auto_index import IndexWish
from zerocache.replica.index_requests import SOCKET_NAME, IndexRequestServer

PASSWORD = "correct horse"
EMPTY = [1000]
_ids = itertools.count()


class Serve(Protocol):
    def __call__(self, tasks: int = 3, **config: Any) -> AbstractAsyncContextManager[Server]: ...


@pytest.fixture
def serve(database: str, app_id: str, tmp_path: Path) -> Serve:
    @asynccontextmanager
    async def serve(tasks: int = 3, **config: Any) -> AsyncIterator[Server]:
        rows = [{"id": f"k{i}", "title": f"t{i % 100}", "n": i} for i in range(tasks)]
        replica = Replica(tmp_path, app_id, rows)
        await replica.notifier.start()
        given = {"development": False, "admin_password": PASSWORD, **config}
        async with serving(
            replica, server_config(database, app_id, replica.path, **given)
        ) as server:
            yield server
        await replica.notifier.close()
        replica.writer.close()

    return serve


@pytest.fixture
async def server(serve: Serve) -> AsyncIterator[Server]:
    async with serve() as server:
        yield server


async def ask(client: TestClient, op: str, **extras: Any) -> tuple[str, Any]:
    """The reply's op and value; fails on any member beside the three."""
    nonce = f"n{next(_ids)}"
    client.send("inspect", {"id": nonce, "op": op, **extras})

    def reply() -> dict[str, Any] | None:
        for other in client.messages:
            if other.type == "inspect":
                body: dict[str, Any] = msgspec.json.decode(encode(other.body))
                if body["id"] == nonce:
                    return body
        return None

    await client.wait_for(lambda: reply() is not None)
    body = reply()
    assert body is not None
    assert set(body) == {"id", "op", "value"}
    return body["op"], body["value"]


async def authenticated(server: Server, *queries: DesiredQuery, **options: Any) -> TestClient:
    client = await server.connected(*queries, **options)
    assert await ask(client, "authenticate", value=PASSWORD) == ("authenticated", True)
    return client


@pytest.mark.parametrize("op", ["version", "metrics", "queries", "analyze-query"])
async def test_strangers_learn_nothing(server: Server, op: str) -> None:
    """sync-protocol.md §10 #66"""
    client = await server.connected(ALL_TASKS)
    assert await ask(client, op) == ("authenticated", False)


async def test_the_password_opens_and_a_wrong_one_closes_again(server: Server) -> None:
    """sync-protocol.md §10 #66"""
    client = await server.connected()
    assert await ask(client, "authenticate", value="wrong") == ("authenticated", False)
    assert await ask(client, "version") == ("authenticated", False)
    assert await ask(client, "authenticate", value=PASSWORD) == ("authenticated", True)
    assert (await ask(client, "version"))[0] == "version"
    assert await ask(client, "authenticate", value="") == ("authenticated", False)
    assert await ask(client, "version") == ("authenticated", False)


async def test_authentication_is_of_the_group(server: Server) -> None:
    client = await authenticated(server)
    same_group = await server.connected()
    assert (await ask(same_group, "version"))[0] == "version"
    other_group = await server.connected(group="other")
    assert await ask(other_group, "version") == ("authenticated", False)
    assert client.failure is None


async def test_in_development_everybody_may_ask(serve: Serve) -> None:
    async with serve(development=True, admin_password=None, server_version="9.9") as server:
        client = await server.connected()
        assert await ask(client, "version") == ("version", "9.9")
        assert await ask(client, "authenticate", value="") == ("authenticated", True)
        assert await ask(client, "authenticate", value="x") == ("authenticated", False)
        assert await ask(client, "version") == ("version", "9.9")


async def test_metrics_are_digests_of_all_queries(server: Server) -> None:
    client = await authenticated(server, ALL_TASKS, ALL_TAGS)
    op, before = await ask(client, "metrics")
    assert op == "metrics"
    assert set(before) == {"query-materialization-server", "query-update-server"}
    for number in range(3):
        await client.wait_cookie(server.replica.write(put_task(f"new{number}")))
    client.change_queries(put=[task_where(n=1)])
    await client.wait_got(task_where(n=1))
    _, after = await ask(client, "metrics")
    hydrated = "query-materialization-server"
    assert samples(after[hydrated]) == samples(before[hydrated]) + 1
    assert samples(after["query-update-server"]) >= samples(before["query-update-server"]) + 3


def samples(digest: list[float]) -> int:
    """How many measurements a digest holds; each of them a time."""
    compression, *numbers = digest
    assert compression == 1000
    assert all(mean >= 0 for mean in numbers[::2])
    return round(sum(numbers[1::2]))


async def test_queries_are_listed_by_client_and_query(server: Server) -> None:
    first = await authenticated(server, ALL_TASKS, ALL_TAGS, client_id="c1")
    await server.connected(ALL_TASKS, client_id="c2")
    op, rows = await ask(first, "queries")
    assert op == "queries"
    found = [(row["clientID"], row["queryID"]) for row in rows]
    both = sorted([ALL_TASKS.hash, ALL_TAGS.hash])
    assert found == [("c1", both[0]), ("c1", both[1]), ("c2", ALL_TASKS.hash)]
    row = next(row for row in rows if row["queryID"] == ALL_TASKS.hash)
    assert row["ast"]["table"] == "task"
    assert (row["name"], row["args"], row["inactivatedAt"]) == (None, None, None)
    assert (row["got"], row["deleted"], row["rowCount"]) == (True, False, 3)
    assert row["ttl"] == 300_000
    _, of_second = await ask(first, "queries", clientID="c2")
    assert [row["clientID"] for row in of_second] == ["c2"]


async def test_metrics_of_a_query_have_the_shape_of_the_clients_version(server: Server) -> None:
    """sync-protocol.md §10 #66"""
    new = await authenticated(server, ALL_TASKS, version=51)
    old = await authenticated(server, version=50)
    _, (row,) = await ask(new, "queries")
    assert set(row["metrics"]) == {"query-hydration-server-ms", "query-update-server"}
    assert row["metrics"]["query-hydration-server-ms"] > 0
    assert row["metrics"]["query-update-server"] == EMPTY
    await new.wait_cookie(server.replica.write(put_task("new")))
    _, (row,) = await ask(old, "queries")
    assert set(row["metrics"]) == {"query-materialization-server", "query-update-server"}
    assert samples(row["metrics"]["query-materialization-server"]) == 1
    assert samples(row["metrics"]["query-update-server"]) == 1


async def test_an_inactive_query_is_listed_until_it_expires(server: Server) -> None:
    """sync-protocol.md §10 #66"""
    brief = DesiredQuery("brief", ast=ALL_TASKS.ast, ttl_ms=100)
    lasting = DesiredQuery("lasting", ast=ALL_TAGS.ast, ttl_ms=600_000)
    client = await authenticated(server, brief, lasting)
    client.change_queries(delete=["brief", "lasting"])
    await client.wait_for(lambda: "brief" not in client.state.got)
    _, (row,) = await ask(client, "queries")
    assert (row["queryID"], row["deleted"], row["ttl"]) == ("lasting", True, 600_000)
    assert row["inactivatedAt"] > 0


@pytest.mark.parametrize("member", ["ast", "value"])
async def test_a_query_is_analyzed(server: Server, member: str) -> None:
    client = await authenticated(server)
    op, value = await ask(client, "analyze-query", **{member: {"table": "task"}})
    assert op == "analyze-query"
    assert value["syncedRowCount"] == 3
    assert {row["id"] for row in value["syncedRows"]["task"]} == {"k0", "k1", "k2"}
    # The columns of the client schema, not all of the replica's.
    assert set(value["syncedRows"]["task"][0]) == {"id", "title", "n", "done", "meta"}
    assert value["readRowCount"] == 3
    assert value["warnings"] == []
    assert "readRows" not in value
    options = {"syncedRows": False, "vendedRows": True}
    _, value = await ask(client, "analyze-query", ast={"table": "task"}, options=options)
    assert "syncedRows" not in value
    assert sum(len(rows) for rows in value["readRows"]["task"].values()) == 3


async def test_permissions_apply_to_what_is_analyzed(server: Server) -> None:
    client = await authenticated(server, ALL_TASKS)
    server.replica.deploy_permissions({"tables": {}}, "h1")
    await client.wait_for(lambda: not client.titles)
    _, value = await ask(client, "analyze-query", ast={"table": "task"})
    assert value["syncedRowCount"] == 0
    assert "task has no read permission" in value["warnings"][0]


@pytest.mark.parametrize(
    ("extras", "reason"),
    [
        ({}, "without an AST"),
        ({"ast": {"table": "nowhere"}}, "'nowhere'"),
        ({"name": "mine", "args": []}, "ZERO_QUERY_URL"),
    ],
)
async def test_what_cannot_be_analyzed_is_an_error_reply(
    server: Server, extras: dict[str, Any], reason: str
) -> None:
    client = await authenticated(server)
    op, value = await ask(client, "analyze-query", **extras)
    assert op == "error"
    assert reason in value
    assert (await ask(client, "version"))[0] == "version"


async def test_a_worker_asks_for_the_index_a_plan_misses(serve: Serve, tmp_path: Path) -> None:
    wishes: asyncio.Queue[IndexWish] = asyncio.Queue()
    listener = IndexRequestServer(tmp_path / SOCKET_NAME, wishes.put_nowait)
    await listener.start()
    page = ast_query({"table": "task", "orderBy": [["n", "desc"]], "limit": 5})
    async with serve(SCAN_ROWS) as server, asyncio.timeout(20):
        client = await authenticated(server, page)
        wish = await wishes.get()
        assert wish == IndexWish("task", (), (("n", False), ("id", True)))
        replica = server.replica
        replica.writer.create_auto_index(wish, lambda: False)
        replica.write(put_task("new", n=SCAN_ROWS))
        await client.wait_cookie(replica.version)
        # A new plan finds the index and says that it is of use.
        two = ast_query({"table": "task", "orderBy": [["n", "desc"]], "limit": 2})
        client.change_queries(put=[two])
        assert await wishes.get() == IndexWish("task", (), wish.columns)
        _, value = await ask(client, "analyze-query", ast=page.ast)
        assert value["warnings"] == []
        assert any(wish.name in line for lines in value["sqlitePlans"].values() for line in lines)
        # So does the old one when it is looked at again.
        server.worker._engine.examine_plans()
        assert await wishes.get() == IndexWish("task", (), wish.columns)
    await listener.close()


async def test_with_automatic_indexes_off_nobody_asks(serve: Serve) -> None:
    page = ast_query({"table": "task", "orderBy": [["n", "desc"]], "limit": 5})
    async with serve(SCAN_ROWS, auto_indexes=False) as server:
        await server.connected(page)
        server.worker._engine.examine_plans()
        await server.worker._engine.read(lambda engine: engine.version)  # behind every examination
        assert server.worker._index_requests._task is None
