"""The benchmarks' client over a real socket, against a scripted server."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from benchmarks.protocol_client import (
    ConnectionLost,
    DesiredQuery,
    ServerError,
    SyncClient,
    ast_query,
    named_query,
)
from benchmarks.sync_messages import ClientSchema, Poke, TableSchema
from benchmarks.sync_state import ProtocolViolation

SCHEMA = ClientSchema({"task": TableSchema({"id": {"type": "string"}}, ["id"])})
TASKS = ast_query({"table": "task"})

Script = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The server's end of one connection."""

    def __init__(self, connection: ServerConnection) -> None:
        self.connection = connection
        assert connection.request is not None
        parts = urlsplit(connection.request.path)
        self.path = parts.path
        self.query = {k: v[0] for k, v in parse_qs(parts.query).items()}
        header = connection.request.headers["Sec-WebSocket-Protocol"]
        self.handshake = json.loads(base64.b64decode(unquote(header)))

    async def say(self, kind: str, body: Any) -> None:
        await self.connection.send(json.dumps([kind, body], separators=(",", ":")))

    async def connected(self) -> None:
        await self.say("connected", {"wsid": self.query["wsid"], "timestamp": 1})

    async def poke(self, base: str | None, cookie: str, **part: Any) -> None:
        await self.say("pokeStart", {"pokeID": cookie, "baseCookie": base})
        await self.say("pokePart", {"pokeID": cookie, **part})
        await self.say("pokeEnd", {"pokeID": cookie, "cookie": cookie})

    async def hear(self) -> Any:
        return json.loads(await self.connection.recv())


@asynccontextmanager
async def server(script: Script, *, echo: bool = True) -> AsyncIterator[str]:
    failures: list[BaseException] = []

    async def handle(connection: ServerConnection) -> None:
        try:
            await script(Peer(connection))
        except AssertionError as error:  # seen by the test, not only by the library's log
            failures.append(error)

    def first(_: ServerConnection, offered: Any) -> Subprotocol | None:
        return offered[0] if echo else None

    async with serve(handle, "127.0.0.1", 0, select_subprotocol=first) as listener:
        port = next(iter(listener.sockets)).getsockname()[1]
        yield f"http://127.0.0.1:{port}/base"
    if failures:
        raise failures[0]


def put(*keys: str) -> list[dict[str, Any]]:
    return [{"op": "put", "tableName": "task", "value": {"id": key}} for key in keys]


def got(*queries: DesiredQuery) -> list[dict[str, str]]:
    return [{"op": "put", "hash": query.hash} for query in queries]


async def test_the_handshake_names_the_client_and_carries_its_queries() -> None:
    async def script(peer: Peer) -> None:
        assert peer.path == "/base/sync/v51/connect"
        assert peer.query["clientID"] == "c1"
        assert peer.query["clientGroupID"] == "g1"
        assert "baseCookie" not in peer.query
        assert peer.handshake["authToken"] == "secret"
        kind, body = peer.handshake["initConnectionMessage"]
        assert kind == "initConnection"
        assert body["desiredQueriesPatch"] == [
            {"op": "put", "hash": TASKS.hash, "ast": {"table": "task"}}
        ]
        assert body["clientSchema"]["tables"]["task"]["primaryKey"] == ["id"]
        await peer.connected()
        await peer.poke(None, "01", rowsPatch=put("t1"), gotQueriesPatch=got(TASKS))
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(
            url, SCHEMA, [TASKS], client_id="c1", client_group_id="g1", auth_token="secret"
        )
        await client.connect()
        await client.wait_got(TASKS)
        assert list(client.state.table("task")) == [("t1",)]
        client.close()


async def test_a_long_first_message_travels_as_a_frame() -> None:
    queries = [named_query("q", "x" * 100, number, ttl_ms=5) for number in range(100)]

    async def script(peer: Peer) -> None:
        assert peer.handshake == {}
        await peer.connected()
        kind, body = await peer.hear()
        assert kind == "initConnection"
        patch = body["desiredQueriesPatch"]
        assert (len(patch), patch[3]["name"], patch[3]["args"]) == (100, "q", ["x" * 100, 3])
        assert patch[3]["ttl"] == 5
        await peer.poke(None, "01", gotQueriesPatch=got(*queries))
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA, queries)
        await client.connect()
        await client.wait_got(*queries)
        client.close()


async def test_queries_can_be_changed_and_pokes_are_observed_in_order() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()
        kind, body = await peer.hear()
        assert kind == "changeDesiredQueries"
        assert [op["op"] for op in body["desiredQueriesPatch"]] == ["put", "del"]
        await peer.poke(None, "01", rowsPatch=put("t1"))
        await peer.poke("01", "02", rowsPatch=put("t2"))
        await peer.connection.wait_closed()

    seen: list[Poke] = []
    async with server(script) as url:
        client = SyncClient(url, SCHEMA, record=True, on_poke=seen.append)
        await client.connect()
        client.change_queries(put=[TASKS], delete=["old"])
        await client.wait_cookie("02")
        assert [poke.cookie for poke in client.pokes] == ["01", "02"]
        assert seen == client.pokes
        assert seen[0].received_ns <= seen[1].received_ns
        client.close()


async def test_a_reconnect_continues_from_the_cookie_without_a_schema() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()
        base = peer.query.get("baseCookie")
        _, body = peer.handshake["initConnectionMessage"]
        assert ("clientSchema" in body) == (base is None)
        key = "t1" if base is None else "t2"
        await peer.poke(base, "01" if base is None else "02", rowsPatch=put(key))
        await peer.connection.wait_closed()

    async with server(script) as url:
        first = SyncClient(url, SCHEMA)
        await first.connect()
        await first.wait_cookie("01")
        first.close()
        second = SyncClient(
            url, SCHEMA, client_group_id=first.client_group_id, state=first.state
        )  # fmt: skip
        await second.connect()
        await second.wait_cookie("02")
        assert sorted(second.state.table("task")) == [("t1",), ("t2",)]
        second.close()


async def test_a_violation_ends_every_wait_and_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()
        await peer.hear()
        await peer.poke("07", "08", rowsPatch=put("t1"))
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        await client.connect()
        client.send("ping", {})
        with pytest.raises(ProtocolViolation, match="'07'"):
            await client.wait_cookie("08")
        assert isinstance(await client.wait_closed(), ProtocolViolation)
        with pytest.raises(ProtocolViolation):
            client.send("ping", {})


async def test_a_fatal_error_is_raised_with_its_body() -> None:
    async def script(peer: Peer) -> None:
        body = {"kind": "Unauthorized", "message": "no", "origin": "zeroCache"}
        await peer.say("error", body)
        await peer.connection.close(3000, "no")

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        with pytest.raises(ServerError, match="Unauthorized: no") as caught:
            await client.connect()
        assert caught.value.body["origin"] == "zeroCache"


async def test_a_close_is_raised_with_its_code() -> None:
    async def script(peer: Peer) -> None:
        await peer.connection.close(1002, "missing clientID")

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        with pytest.raises(ConnectionLost, match="missing clientID") as caught:
            await client.connect()
        assert caught.value.code == 1002


async def test_a_subprotocol_that_is_not_echoed_is_a_violation() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()

    async with server(script, echo=False) as url:
        client = SyncClient(url, SCHEMA)
        with pytest.raises(ProtocolViolation, match="subprotocol"):
            await client.connect()


async def test_a_foreign_wsid_is_a_violation() -> None:
    async def script(peer: Peer) -> None:
        await peer.say("connected", {"wsid": "somebody else"})
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        with pytest.raises(ProtocolViolation, match="wsid"):
            await client.connect()


async def test_messages_outside_pokes_are_kept_and_pings_answered() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()
        await (await peer.connection.ping())
        assert await peer.hear() == ["ping", {}]
        await peer.say("pong", {})
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        await client.connect()
        client.send("ping", {})
        assert (await client.wait_message("pong")).body == {}
        client.close()


async def test_a_wait_gives_up_after_its_timeout_and_leaves_others_alone() -> None:
    release = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.connected()
        await release.wait()
        await peer.poke(None, "01")
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        await client.connect()
        patient = asyncio.create_task(client.wait_cookie("01"))
        with pytest.raises(TimeoutError):
            await client.wait_cookie("01", timeout_s=0.01)
        release.set()
        await patient
        client.close()


async def test_an_error_in_a_predicate_reaches_the_one_who_waits() -> None:
    async def script(peer: Peer) -> None:
        await peer.connected()
        await peer.hear()
        await peer.poke(None, "01")
        await peer.connection.wait_closed()

    async with server(script) as url:
        client = SyncClient(url, SCHEMA)
        await client.connect()
        client.send("ping", {})
        with pytest.raises(ZeroDivisionError):
            await client.wait_for(lambda: client.state.cookie is not None and 1 // 0 > 0)
        assert client.failure is None
        client.close()
