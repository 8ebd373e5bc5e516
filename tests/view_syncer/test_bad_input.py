"""Whatever a client sends: it gets the protocol's error or a close, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import websocket as peer
from benchmarks.protocol_client import ConnectionLost, DesiredQuery, ServerError, ast_query
from tests.view_syncer.server import (
    ALL_TASKS,
    Server,
    TestClient,
    edit_task,
    put_tag,
    put_task,
    until,
)
from tests.view_syncer.test_connection import Raw

INIT = ["initConnection", {"desiredQueriesPatch": [], "clientSchema": {"tables": {}}}]
KINDS = {
    "InvalidMessage",
    "InvalidConnectionRequest",
    "InvalidPush",
    "SchemaVersionNotSupported",
    "ServerOverloaded",
    "Rehome",
    "ClientNotFound",
    "TransformFailed",
    "Unauthorized",
    "AuthInvalidated",
    "Internal",
}

json_values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
types = st.sampled_from(
    [
        "initConnection", "changeDesiredQueries", "deleteClients", "updateAuth", "push", "ping",
        "ackMutationResponses", "inspect", "pull", "closeConnection", "connected", "x",
    ]
)  # fmt: skip
members = st.sampled_from(
    [
        "desiredQueriesPatch", "clientSchema", "deleted", "op", "hash", "ttl", "ast", "name",
        "args", "clientIDs", "mutations", "clientGroupID", "pushVersion", "id", "table", "auth",
    ]
)  # fmt: skip
bodies = st.dictionaries(
    members,
    json_values
    | st.lists(st.dictionaries(members, json_values | st.just("put"), max_size=5), max_size=3),
    max_size=5,
)
messages = st.one_of(
    st.tuples(types, json_values | bodies).map(msgspec.json.encode),
    st.just(msgspec.json.encode(INIT)),
    json_values.map(msgspec.json.encode),
    st.binary(max_size=40),
    st.sampled_from(
        [
            b'["ping",{}]', b'["ping",{}] ', b'["ping",NaN]', b'["ping"', b"[" * 5000, b"\xff\xfe",
            b'["\xf0\x28\x8c\x28",{}]', b'["ping",{"a":1e999}]', b'["ping",{},1]', b"", b"null",
        ]
    ),
)  # fmt: skip


def frame(opcode: int, payload: bytes, final: bool, reserved: int, masked: bool, cut: int) -> bytes:
    """One frame, right or wrong; ``cut`` bytes of it are missing."""
    head = bytes([(0x80 if final else 0) | reserved << 4 | opcode])
    mask = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head += bytes([mask | size])
    else:
        head += bytes([mask | 126]) + struct.pack("!H", size)
    data = head + (b"\0\0\0\0" if masked else b"") + payload
    return data[: max(0, len(data) - cut)]


frames = st.builds(
    frame,
    st.sampled_from([1, 1, 1, 1, 0, 2, 8, 9, 10, 3, 15]),
    messages.filter(lambda payload: len(payload) < 65_536),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 1, 4]),
    st.sampled_from([True, True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 1, 7]),
)
garbage = st.one_of(
    st.binary(max_size=200),
    # Frames that announce more than anybody may send.
    st.just(b"\x81\xff" + struct.pack("!Q", 1 << 40)),
    st.just(b"\x81\xff" + struct.pack("!Q", 1 << 63)),
)
streams = st.lists(frames | frames | frames | garbage, min_size=1, max_size=6).map(b"".join)


async def play(server: Server, neighbour: TestClient, stream: bytes) -> None:
    """Send it all, hear the server out, and see that the neighbour is served."""
    raw = Raw(server)
    await raw.open()
    raw.writer.write(stream)
    with contextlib.suppress(ConnectionError):
        raw.writer.write_eof()
    messages = list(raw._messages)
    with contextlib.suppress(ConnectionError):
        while data := await raw.reader.read(65_536):
            messages += raw._frames.feed(data)
    raw.writer.close()
    check(messages)
    assert server.fatal == []
    assert neighbour.failure is None
    pongs = sum(other.type == "pong" for other in neighbour.messages)
    neighbour.send("ping", {})
    await neighbour.wait_for(
        lambda: sum(other.type == "pong" for other in neighbour.messages) > pongs, 20
    )


def check(messages: list[peer.Message]) -> None:
    ended = False
    for message in messages:
        if message.opcode == peer.CLOSE:
            code, reason = peer.parse_close(message.payload)
            assert code in (1000, 1002, 1003, 1005, 1007, 1009, 3000), (code, reason)
            ended = True
            continue
        if message.opcode == peer.PONG:
            continue
        assert not ended, "something was sent after the end"
        assert message.opcode == peer.TEXT
        kind, body = msgspec.json.decode(message.payload)
        if kind == "error":
            assert body["kind"] in KINDS
            assert body["origin"] in ("zeroCache", "server")


async def in_thread(test: Callable[[Callable[[bytes], None]], None], run: Any) -> None:
    """Run a property in a thread of its own, with the server on this loop."""
    loop = asyncio.get_running_loop()

    def on_loop(stream: bytes) -> None:
        coroutine: Coroutine[Any, Any, None] = run(stream)
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    await asyncio.to_thread(test, on_loop)


async def test_no_stream_of_frames_breaks_a_worker_or_disturbs_a_neighbour(server: Server) -> None:
    neighbour = await server.connected(ALL_TASKS, group="neighbour")

    def test(run: Callable[[bytes], None]) -> None:
        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(stream=streams)
        def prop(stream: bytes) -> None:
            run(stream)

        prop()

    await in_thread(test, lambda stream: play(server, neighbour, stream))
    version = server.replica.write(edit_task("a", title="still here"))
    await neighbour.wait_cookie(version)
    assert neighbour.titles["a"] == "still here"
    await until(lambda: len(server.worker._connections) == 1)


async def test_no_first_bytes_break_a_worker(server: Server) -> None:
    neighbour = await server.connected(ALL_TASKS, group="neighbour")

    async def open_with(data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            writer.write_eof()
            while await reader.read(65_536):
                pass
        writer.close()
        assert server.fatal == []

    lines = st.lists(
        st.sampled_from(
            [
                b"GET /sync/v51/connect?clientID=c&clientGroupID=g&ts=1&lmid=0 HTTP/1.1\r\n",
                b"Host: h\r\n", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n",
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"Sec-WebSocket-Key: x\r\n",
                b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Version: 7\r\n",
                b"Sec-WebSocket-Protocol: e30%3D\r\n", b"Sec-WebSocket-Protocol: %%%\r\n",
                b"Content-Length: 99999999999\r\n", b"\r\n", b": \r\n", b"\xff\xfe: \xff\r\n",
            ]
        )
        | st.binary(max_size=60),
        max_size=12,
    ).map(b"".join)  # fmt: skip

    def test(run: Callable[[bytes], None]) -> None:
        @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
        @given(data=lines)
        def prop(data: bytes) -> None:
            run(data)

        prop()

    await in_thread(test, open_with)
    version = server.replica.write(edit_task("a", title="still here"))
    await neighbour.wait_cookie(version)
    await until(lambda: len(server.worker._connections) == 1)


@pytest.mark.parametrize("size", [1, 100, 4096])
async def test_message_in_fragments_is_one_message_however_they_arrive(
    server: Server, size: int
) -> None:
    text = msgspec.json.encode(["inspect", {"op": "version", "id": "é" * 300}])
    client = await server.connected(ALL_TASKS)
    assert client._transport is not None
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    for number, piece in enumerate(pieces):
        opcode = peer.TEXT if number == 0 else 0
        data = bytearray(peer.encode_frame(opcode, piece))
        if number < len(pieces) - 1:
            data[0] &= 0x7F
        client._transport.write(bytes(data))
        client._transport.write(peer.encode_frame(peer.PING, b"between"))
    answer = await client.wait_message("inspect")
    assert answer.body["id"] == "é" * 300


async def test_fragments_beyond_the_limit_close_with_1009(server: Server) -> None:
    raw = Raw(server)
    await raw.open()
    chunk = b"x" * (1 << 20)
    for number in range(11):
        data = bytearray(peer.encode_frame(peer.TEXT if number == 0 else 0, chunk))
        data[0] &= 0x7F
        raw.writer.write(bytes(data))
        with contextlib.suppress(ConnectionError):
            await raw.writer.drain()
    code, _ = await raw.until_close()
    assert code == 1009


def _many(count: int, kind: str = "or") -> dict[str, Any]:
    conditions = [
        {
            "type": "simple",
            "op": "=",
            "left": {"type": "column", "name": "title"},
            "right": {"type": "literal", "value": f"t{number}"},
        }
        for number in range(count)
    ]
    return {"table": "task", "where": {"type": kind, "conditions": conditions}}


def _like(left: dict[str, Any], pattern: str) -> dict[str, Any]:
    right = {"type": "literal", "value": pattern}
    return {
        "table": "task",
        "where": {"type": "simple", "op": "LIKE", "left": left, "right": right},
    }


def _nested(levels: int) -> dict[str, Any]:
    query: dict[str, Any] = {"table": "task", "alias": "a"}
    correlation = {"parentField": ["id"], "childField": ["id"]}
    for _ in range(levels):
        related = {"correlation": correlation, "subquery": query}
        where = {"type": "correlatedSubquery", "op": "EXISTS", "related": related}
        query = {"table": "task", "alias": "a", "where": where}
    return query


@pytest.mark.parametrize(
    "query",
    [
        # One statement of it is within SQLite's bounds and another is not.
        *(_many(count) for count in (995, 996, 997, 998, 999)),
        _many(3000),
        _many(3000, "and"),
        # Refused by SQLite once there is a row to compare with.
        _like({"type": "column", "name": "title"}, "a" * 60_000),
        _like({"type": "literal", "value": "a" * 3000}, "%a" * 40 + "b"),
        _nested(29),
        _nested(45),
        {"table": "task", "limit": 2**63 - 1},
        {"table": "task", "limit": 2**53 - 1},
    ],
    ids=lambda query: str(query)[:60],
)
async def test_no_query_ends_a_worker_or_disturbs_a_neighbour(server: Server, query: Any) -> None:
    neighbour = await server.connected(ALL_TASKS, group="neighbour")
    client = await server.connected(ast_query({"table": "tag"}), group="hostile")
    hostile = ast_query(query)
    client.change_queries(put=[hostile], delete=[ast_query({"table": "tag"})])
    await client.wait_for(
        lambda: (
            hostile.hash in client.state.got
            or client.failure is not None
            or any(message.type == "transformError" for message in client.messages)
        )
    )
    for number in range(3):
        version = server.replica.write(put_task(f"new{number}", title=f"t{number}"))
        await neighbour.wait_cookie(version)
    assert server.fatal == []
    assert neighbour.failure is None
    assert client.failure is None
    if hostile.hash in client.state.got and "conditions" in query.get("where", {}):
        expected = 3 if query["where"]["type"] == "or" else 0
        await client.wait_for(lambda: len(client.state.table("task")) == expected)


async def test_pattern_that_sqlite_refuses_is_refused_before_there_is_a_row(
    server: Server,
) -> None:
    neighbour = await server.connected(ALL_TASKS, group="neighbour")
    pattern = _like({"type": "column", "name": "label"}, "a" * 60_000)
    client = server.client(ast_query({**pattern, "table": "tag"}), group="hostile")
    await client.connect()
    await client.wait_message("transformError")
    version = server.replica.write(put_tag("x", label="x"), put_task("new"))
    await neighbour.wait_cookie(version)
    assert server.fatal == []
    assert client.failure is None


@pytest.mark.parametrize("name", ["a\0b", "".join(map(chr, range(0x4E00, 0x4E00 + 3000)))])
async def test_names_that_the_store_refuses_are_refused_for_good(server: Server, name: str) -> None:
    """Whoever is told that the server is overloaded comes back with the same."""
    neighbour = await server.connected(ALL_TASKS, client_id="c")
    client = await server.connected(ALL_TASKS, client_id="d")
    client.change_queries(put=[DesiredQuery(name, ast=ALL_TASKS.ast)])
    error = await client.wait_closed()
    assert isinstance(error, ServerError)
    assert error.kind == "InvalidMessage"
    for ids in ({"client_id": name}, {"group": name}):
        with pytest.raises(ConnectionLost, match="1002"):
            await server.client(ALL_TASKS, **ids).connect()
    version = server.replica.write(put_task("new"))
    await neighbour.wait_cookie(version)
    assert server.fatal == []
