"""The handshake, the order of messages and liveness of one connection, over a real worker."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
from typing import Any
from urllib.parse import urlencode

import jwt
import msgspec
import pytest

from benchmarks import websocket as peer
from benchmarks.protocol_client import ConnectionLost, ServerError, encode_subprotocol
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    Replica,
    Server,
    TestClient,
    cookies,
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
from tests.view_syncer.test_client_group import Gate, failure, refused
from view_syncer import connection as module
from view_syncer.websocket import MAX_ANSWERS_BYTES

PARAMETERS = {"clientID": "c", "clientGroupID": "g", "ts": "123.456", "lmid": "0", "wsid": "w"}
SECRET = "a secret of sufficient length for HS256"


def token(user: str, secret: str = SECRET) -> str:
    return jwt.encode({"sub": user}, secret, algorithm="HS256")


class Raw:
    """A connection opened with any request whatever."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._frames = peer.FrameReader()
        self.text: list[Any] = []

    async def open(
        self,
        path: str = "/sync/v51/connect",
        parameters: dict[str, str] | None = None,
        subprotocol: str | None = "e30%3D",
    ) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        self.key = peer.new_key()
        headers = {} if subprotocol is None else {"Sec-WebSocket-Protocol": subprotocol}
        query = urlencode(PARAMETERS if parameters is None else parameters)
        self.writer.write(peer.upgrade_request("h", f"{path}?{query}", self.key, headers))
        head = b""
        while (parts := peer.split_response(head)) is None:
            data = await self.reader.read(65536)
            assert data, head
            head += data
        self.headers = peer.check_response(parts[0], self.key)
        self._messages = self._frames.feed(parts[1])

    async def until_close(self) -> tuple[int, str]:
        async with asyncio.timeout(10):
            while True:
                for message in self._messages:
                    if message.opcode == peer.CLOSE:
                        self.writer.close()
                        return peer.parse_close(message.payload)
                    self.text.append(msgspec.json.decode(message.payload))
                data = await self.reader.read(65536)
                assert data, "ended without a close frame"
                self._messages = self._frames.feed(data)


async def rejected(server: Server, **request: Any) -> tuple[int, str, list[Any]]:
    raw = Raw(server)
    await raw.open(**request)
    code, reason = await raw.until_close()
    return code, reason, raw.text


# -- handshake ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/sync/v51/connect", "/api/sync/v51/connect"])
async def test_path_with_at_most_one_leading_segment_is_served(server: Server, path: str) -> None:
    """sync-protocol.md §10 #1"""
    raw = Raw(server)
    await raw.open(path)
    assert raw.headers["sec-websocket-protocol"] == "e30%3D"
    raw.writer.write(peer.encode_frame(peer.TEXT, b"{"))
    await raw.until_close()
    assert raw.text[0][0] == "connected"
    assert raw.text[0][1]["wsid"] == "w"


@pytest.mark.parametrize(
    "path", ["/a/b/sync/v51/connect", "/sync/v51/connect/x", "/sync/vx/connect", "/sync/v51/"]
)
async def test_any_other_path_is_closed_with_1002(server: Server, path: str) -> None:
    """sync-protocol.md §10 #1"""
    code, reason, text = await rejected(server, path=path)
    assert code == 1002
    assert "sync URL" in reason
    assert text == []


@pytest.mark.parametrize("name", ["clientID", "clientGroupID", "ts", "lmid"])
@pytest.mark.parametrize("value", [None, ""])
async def test_missing_parameter_is_named(server: Server, name: str, value: str | None) -> None:
    """sync-protocol.md §10 #2 (every other test connects with a fractional ts)"""
    parameters = {k: v for k, v in PARAMETERS.items() if k != name}
    if value is not None:
        parameters[name] = value
    code, reason, text = await rejected(server, parameters=parameters)
    assert (code, text) == (1002, [])
    assert name in reason
    assert len(reason.encode()) <= 123


async def test_parameter_that_is_no_number_is_named(server: Server) -> None:
    """sync-protocol.md §10 #2"""
    parameters = {**PARAMETERS, "lmid": "é" * 200}
    code, reason, _ = await rejected(server, parameters=parameters)
    assert code == 1002
    assert "lmid" in reason
    assert len(reason.encode()) <= 123


@pytest.mark.parametrize("subprotocol", [None, "not-base64", "e30"])
async def test_subprotocol_that_cannot_be_read_is_closed_with_1002(
    server: Server, subprotocol: str | None
) -> None:
    """sync-protocol.md §10 #3"""
    code, reason, _ = await rejected(server, subprotocol=subprotocol)
    assert code == 1002
    assert "Sec-WebSocket-Protocol" in reason


async def test_subprotocol_with_any_script_is_echoed(server: Server) -> None:
    """sync-protocol.md §10 #4"""
    init = ["initConnection", {"desiredQueriesPatch": [], "pad": "😀漢字" * 800}]
    subprotocol = encode_subprotocol(init, None)
    assert len(subprotocol) > 8192
    raw = Raw(server)
    await raw.open(subprotocol=subprotocol)
    assert raw.headers["sec-websocket-protocol"] == subprotocol
    await raw.until_close()
    assert [t[0] for t in raw.text] == ["connected", "error"]
    assert raw.text[1][1]["kind"] == "InvalidConnectionRequest"  # there is no client schema


@pytest.mark.parametrize("version", [29, 53])
async def test_unsupported_version_is_an_error_without_connected(
    server: Server, version: int
) -> None:
    """sync-protocol.md §10 #5"""
    code, _, text = await rejected(server, path=f"/sync/v{version}/connect")
    assert [t[0] for t in text] == ["error"]
    assert text[0][1]["kind"] == "VersionNotSupported"
    assert text[0][1]["origin"] == "zeroCache"
    assert code == 1000


@pytest.mark.parametrize("version", [30, 44, 45, 49, 50, 51, 52])
async def test_every_supported_version_is_served(server: Server, version: int) -> None:
    """sync-protocol.md §10 #6, #25"""
    client = await server.connected(ALL_TASKS, version=version)
    assert client.messages[0].type == "connected"
    assert set(client.titles) == {"a", "b", "c"}
    cookie = server.replica.write(edit_task("a", title="A2"))
    await client.wait_cookie(cookie)
    assert client.titles["a"] == "A2"


# -- credentials --------------------------------------------------------------------------------


async def test_token_without_a_user_is_unauthorized(server: Server) -> None:
    """sync-protocol.md §10 #7"""
    subprotocol = encode_subprotocol(None, "token")
    code, reason, text = await rejected(server, subprotocol=subprotocol)
    assert code == 3000
    assert 0 < len(reason.encode()) <= 123
    assert text[0][1]["kind"] == "Unauthorized"


async def test_token_nobody_can_judge_is_answered(server: Server) -> None:
    code, _, text = await rejected(
        server,
        subprotocol=encode_subprotocol(None, "token"),
        parameters={**PARAMETERS, "userID": "u"},
    )
    assert code == 3000
    assert text[0][1]["kind"] == "Internal"


async def test_only_good_credentials_replace_a_connection(
    database: str, app_id: str, replica: Replica
) -> None:
    """sync-protocol.md §10 #8, #9"""
    config = server_config(database, app_id, replica.path, auth={"secret": SECRET})
    async with serving(replica, config) as server:
        options: dict[str, Any] = {"client_id": "c", "user_id": "u"}
        old = await server.connected(ALL_TASKS, auth_token=token("u"), **options)
        bad = server.client(auth_token=token("u", "another secret of sufficient length"), **options)
        assert (await refused(bad)).kind == "AuthInvalidated"
        cookie = replica.write(edit_task("a", title="A2"))
        await old.wait_cookie(cookie)
        new = server.client(auth_token=token("u"), state=old.state, **options)
        await new.connect()
        await new.wait_for(lambda: new.session.poke_count == 1)
        ended = await old.wait_closed()
        assert isinstance(ended, ConnectionLost)
        assert ended.code == 1000
        assert not any(m.type == "error" for m in old.messages)


async def test_changed_token_is_taken_over_and_an_empty_one_refused(
    database: str, app_id: str, replica: Replica
) -> None:
    """sync-protocol.md §10 #57"""
    config = server_config(database, app_id, replica.path, auth={"secret": SECRET})
    async with serving(replica, config) as server:
        client = await server.connected(ALL_TASKS, user_id="u", auth_token=token("u"))
        client.send("updateAuth", {"auth": token("u")})
        client.send("updateAuth", {"auth": ""})
        assert (await failure(client)).kind == "Unauthorized"


# -- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [b"{", b'["nonsense",{}]', b'["changeDesiredQueries",{}]', b'["ping"]', b"\xff\xfe", b"[]" * 9],
)
async def test_unreadable_message_is_an_error_and_the_end(server: Server, frame: bytes) -> None:
    """sync-protocol.md §10 #11"""
    client = await server.connected(ALL_TASKS)
    client.send_raw(frame)
    error = await failure(client)
    assert error.kind == "InvalidMessage"
    assert error.body["origin"] == "zeroCache"


async def test_second_first_message_is_an_error(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    client.send("initConnection", {"desiredQueriesPatch": []})
    assert (await failure(client)).kind == "InvalidMessage"


async def test_pings_are_answered_in_order_with_other_messages(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    client.change_queries(put=[ALL_TAGS])
    client.send("ping", {})
    await client.wait_message("pong")
    assert ALL_TAGS.hash in client.state.got


async def test_push_for_a_foreign_group_is_refused(server: Server) -> None:
    """sync-protocol.md §10 #58"""
    client = await server.connected(ALL_TASKS)
    client.send(
        "push",
        {
            "clientGroupID": "another",
            "mutations": [],
            "pushVersion": 1,
            "requestID": "r",
            "timestamp": 1,
        },
    )
    assert (await failure(client)).kind == "InvalidPush"


async def test_obsolete_messages_are_ignored(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    client.send("pull", {"clientGroupID": "g", "cookie": None, "requestID": "r"})
    client.send("closeConnection", [])
    client.send("ping", {})
    await client.wait_message("pong")
    assert [m.type for m in client.messages] == ["connected", "pong"]


async def test_unexpected_failure_is_told_with_a_back_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await server.connected(ALL_TASKS)

    async def inspect(*_: Any) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.worker, "inspect", inspect)
    client.send("inspect", {"op": "version", "id": "1"})
    error = await failure(client)
    assert error.kind == "ServerOverloaded"
    assert "bug" not in str(error)


async def test_message_above_the_limit_closes_with_1009(server: Server) -> None:
    """sync-protocol.md §10 #65"""
    client = await server.connected(ALL_TASKS)
    client.send_raw(b'["ping","' + b"x" * (10 * 1024 * 1024) + b'"]')
    ended = await client.wait_closed()
    assert isinstance(ended, ConnectionLost)
    assert ended.code == 1009


# -- liveness -----------------------------------------------------------------------------------


async def test_pongs_come_while_a_message_is_worked_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #63"""
    monkeypatch.setattr(module, "PONG_CHECK_S", 0.01)
    monkeypatch.setattr(module, "PONG_AFTER_SILENCE_S", 0.02)
    client = await server.connected(ALL_TASKS)
    gate = Gate(monkeypatch, server.worker._store, "save")
    client.change_queries(put=[ALL_TAGS])
    await gate.reached.wait()
    seen = sum(m.type == "pong" for m in client.messages)
    await client.wait_for(lambda: sum(m.type == "pong" for m in client.messages) >= seen + 3)
    gate.open()
    await client.wait_got(ALL_TAGS)


async def test_no_pong_while_something_else_is_sent(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    connection: Any = server.group().clients[client.client_id]
    sent = connection._socket.last_sent_s
    connection.keep_alive(sent + module.PONG_AFTER_SILENCE_S)
    client.send("inspect", {"op": "version", "id": "1"})
    await client.wait_message("inspect")
    assert not any(m.type == "pong" for m in client.messages)
    connection.keep_alive(connection._socket.last_sent_s + module.PONG_AFTER_SILENCE_S + 0.1)
    await client.wait_message("pong")


async def test_client_that_reads_nothing_is_cut_off_and_the_others_go_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """sync-protocol.md §10 #64"""
    slow = await server.connected(ALL_TASKS)
    other = await server.connected(ALL_TASKS)
    connection: Any = server.group().clients[slow.client_id]
    assert slow._transport is not None
    slow._transport.pause_reading()
    cookie = ""
    for number in range(12):
        cookie = server.replica.write(edit_task("a", title=str(number) * (1 << 20)))
        await other.wait_cookie(cookie)
    assert connection._socket.buffered > 0
    loop = asyncio.get_running_loop()
    now = loop.time()
    connection.keep_alive(now)
    connection._socket._taken_at_s -= module.SEND_TIMEOUT_S + 1
    connection.keep_alive(now)
    async with asyncio.timeout(5):
        await connection._socket.closed
    cookie = server.replica.write(edit_task("a", title="end"))
    await other.wait_cookie(cookie)
    assert slow.client_id not in server.group().clients


async def stalled(server: Server, group: str = "g") -> tuple[TestClient, Any]:
    """A client that stopped reading, and its connection, for which too much waits already."""
    slow = await server.connected(ALL_TASKS, group=group)
    connection: Any = server.group(group).clients[slow.client_id]
    assert slow._transport is not None
    slow._transport.pause_reading()
    watcher = await server.connected(ALL_TASKS, group=f"{group}-watcher")
    number = 0
    while not connection.clogged:
        number += 1
        version = server.replica.write(edit_task("a", title=str(number) * (1 << 20)))
        await watcher.wait_cookie(version)
    watcher.close()
    return slow, connection


async def test_queries_added_while_the_first_rows_are_on_their_way_cost_only_their_own(
    server: Server,
) -> None:
    """What a group began with is not kept if it is large; what came after it is."""
    server.replica.write(*[put_task(f"k{n}", title="x" * 10_000) for n in range(1000)])
    server.replica.write(*[put_tag(f"t{n}", "y" * 300) for n in range(100)])
    client = server.client(ALL_TASKS)
    await client.connect()
    assert client._transport is not None
    client._transport.pause_reading()
    connection: Any = server.group().clients[client.client_id]
    await until(lambda: connection.clogged and connection.greeted)
    client.change_queries(put=[ALL_TAGS])
    queries = server.group()._record.queries
    await until(lambda: ALL_TAGS.hash in queries and queries[ALL_TAGS.hash].got)
    client._transport.resume_reading()
    await client.wait_got(ALL_TASKS, ALL_TAGS)
    puts = [[op for op, _ in row_ops(poke)].count("put") for poke in client.pokes]
    assert [count for count in puts if count] == [1003, 100]
    assert {op for poke in client.pokes for op, _ in row_ops(poke)} == {"put"}


@pytest.mark.parametrize("size", [10, 300_000], ids=["in recent pokes", "beyond recent pokes"])
async def test_client_that_does_not_keep_up_gets_one_poke_for_all_it_missed(
    server: Server, size: int
) -> None:
    slow, connection = await stalled(server)
    other = await server.connected(ALL_TASKS)
    base, waiting = connection.base, connection._socket.buffered
    for number in range(20):
        steps = [edit_task("a", title=f"{number} " + "x" * size)]
        if number == 10:
            steps += [delete_task("b"), put_task("d", title="D")]
        version = server.replica.write(*steps)
        await other.wait_cookie(version)
        assert connection._socket.buffered <= waiting
        assert connection.base == base
    assert slow._transport is not None
    slow._transport.resume_reading()
    await slow.wait_cookie(version)
    assert cookies(slow)[-1] == (base.cookie(), connection.base.cookie())
    assert slow.titles == other.titles
    version = server.replica.write(edit_task("a", title="end"))
    await slow.wait_cookie(version)
    assert row_ops(slow.pokes[-1]) == [("put", "a")]


async def test_query_change_of_a_tab_is_not_queued_for_one_that_does_not_read(
    server: Server,
) -> None:
    slow, connection = await stalled(server)
    base, waiting = connection.base, connection._socket.buffered
    other = await server.connected(ALL_TASKS, ALL_TAGS)
    assert (connection.base, connection._socket.buffered <= waiting) == (base, True)
    assert slow._transport is not None
    slow._transport.resume_reading()
    await slow.wait_got(ALL_TAGS)
    assert slow.state.rows == other.state.rows


async def test_pings_of_a_client_that_reads_nothing_are_not_answered_without_bound(
    server: Server,
) -> None:
    slow, connection = await stalled(server)
    sock = connection._socket
    waiting = sock.buffered
    ping = peer.encode_frame(peer.TEXT, b'["ping",{}]')
    assert slow._transport is not None
    flood = ping * 200_000
    slow._transport.write(flood)
    await until(lambda: sock._reading_paused)
    assert sock.buffered < waiting + 3 * MAX_ANSWERS_BYTES
    slow._transport.resume_reading()
    client = server.client(ALL_TASKS, group="other")
    await client.connect()
    await slow.wait_for(lambda: sum(m.type == "pong" for m in slow.messages) == 200_000)


async def test_reset_connection_leaves_the_group(server: Server) -> None:
    client = await server.connected(ALL_TASKS)
    group = server.group()
    assert client._transport is not None
    sock: socket.socket = client._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client._transport.abort()
    await until(lambda: not group.clients)


async def test_storm_of_reconnects_of_one_client_ends_with_a_working_one(server: Server) -> None:
    query = task_where(title="A")
    clients: list[TestClient] = []

    async def connect() -> None:
        client = server.client(query, client_id="same")
        clients.append(client)
        # Replaced before it was greeted:
        with contextlib.suppress(ConnectionLost, ServerError, TimeoutError):
            await client.connect()

    await asyncio.gather(*(connect() for _ in range(20)))
    await until(lambda: sum(c.failure is None for c in clients) == 1)
    (last,) = [c for c in clients if c.failure is None]
    await last.wait_got(query)
    assert not any(
        isinstance(c.failure, ServerError) or re.search("violation", str(c.failure), re.I)
        for c in clients
    )
