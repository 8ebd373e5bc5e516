"""Limits on what one client may ask for, alone and over a real worker."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.protocol_client import ConnectionLost, named_query
from tests.view_syncer.server import (
    ALL_TAGS,
    ALL_TASKS,
    SCHEMA,
    Replica,
    Server,
    TestClient,
    server_config,
    serving,
    task_where,
    until,
)
from tests.view_syncer.test_client_group import failure, refused
from view_syncer import connection as connections
from view_syncer import limits as module
from view_syncer.limits import Bucket, Buckets
from zerocache.control import HandOff


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(pauses=st.lists(st.floats(0, 30), max_size=200), rate=st.integers(1, 60))
def test_bucket_lets_through_a_burst_and_then_its_rate(pauses: list[float], rate: int) -> None:
    bucket = Bucket(rate, float(rate), 0.0)
    now, taken = 0.0, 0
    for pause in pauses:
        now += pause
        wait_s = bucket.take(now)
        taken += wait_s == 0
        assert taken <= rate + now * rate / 60 + 1e-6
        if wait_s:
            assert bucket.take(now + wait_s + 1e-6) == 0
            now, taken = now + wait_s + 1e-6, taken + 1


def test_keys_do_not_share_and_full_buckets_are_forgotten() -> None:
    clock = Clock()
    buckets = Buckets(2, clock)
    assert [buckets.take("a") for _ in range(2)] == [0, 0]
    assert buckets.take("a") == pytest.approx(30)
    assert buckets.take("b") == 0
    for number in range(5000):
        clock.now_s += 1
        buckets.take(number)
    assert len(buckets) <= module._SWEEP_ABOVE


def test_no_limit_remembers_nothing() -> None:
    buckets = Buckets(0, Clock())
    assert [buckets.take("a") for _ in range(1000)] == [0] * 1000
    assert len(buckets) == 0


def limited(
    replica: Replica, database: str, app_id: str, **options: Any
) -> AbstractAsyncContextManager[Server]:
    return serving(replica, server_config(database, app_id, replica.path, **options))


async def test_too_many_messages_are_told_when_to_come_back(
    replica: Replica, database: str, app_id: str
) -> None:
    async with limited(replica, database, app_id, max_messages_per_minute=3) as server:
        client = await server.connected(ALL_TASKS)
        for _ in range(50):
            client.send("ping", {})
        for number in range(4):
            client.change_queries(put=[task_where(n=number)])
        error = await failure(client)
        assert error.kind == "ServerOverloaded"
        assert 15_000 < error.body["minBackoffMs"] <= 20_000
        assert client.state.got >= {ALL_TASKS.hash}
        other = await server.connected(ALL_TASKS, group="other")
        other.change_queries(put=[ALL_TAGS])
        await other.wait_got(ALL_TAGS)


async def test_tabs_of_one_user_share_what_the_user_may_send(
    replica: Replica, database: str, app_id: str
) -> None:
    async with limited(replica, database, app_id, max_messages_per_minute=3) as server:
        first = await server.connected(ALL_TASKS, user_id="u")
        second = await server.connected(ALL_TASKS, user_id="u")
        for number in range(3):
            first.change_queries(put=[task_where(n=number)])
        await first.wait_got(task_where(n=2))
        second.change_queries(put=[ALL_TAGS])
        assert (await failure(second)).kind == "ServerOverloaded"
        assert first.failure is None


async def test_push_that_comes_too_early_is_held_back_before_it_is_refused(
    replica: Replica, database: str, app_id: str
) -> None:
    held: list[float] = []

    async def hold(seconds: float) -> None:
        held.append(seconds)

    async with limited(replica, database, app_id, max_messages_per_minute=2) as server:
        client = await server.connected(ALL_TASKS)
        server.worker.limits.hold = hold
        push = {
            "clientGroupID": "g",
            "mutations": [],
            "pushVersion": 1,
            "timestamp": 1,
            "requestID": "r",
        }
        for _ in range(3):
            client.send("push", push)
        error = await failure(client)
        assert error.kind == "ServerOverloaded"
        assert held == [module.MAX_PUSH_DELAY_S]


async def test_group_takes_only_so_many_clients_and_queries(
    replica: Replica, database: str, app_id: str
) -> None:
    options = {"max_clients_per_group": 2, "max_queries_per_group": 2, "max_args_bytes": 300}
    async with limited(replica, database, app_id, **options) as server:
        first = await server.connected(ALL_TASKS)
        second = await server.connected(ALL_TASKS)
        third = await refused(server.client(ALL_TASKS))
        assert (third.kind, third.body["minBackoffMs"]) == ("ServerOverloaded", 10_000)
        # A reconnect of one that is there takes its own place.
        again = server.client(client_id=second.client_id, state=second.state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count > 0)
        first.change_queries(put=[ALL_TAGS])
        await first.wait_got(ALL_TAGS)
        first.change_queries(put=[task_where(n=1)])
        error = await failure(first)
        assert (error.kind, "allows 2" in str(error)) == ("InvalidMessage", True)
        again.change_queries(put=[named_query("q", "x" * 300)])
        error = await failure(again)
        assert (error.kind, "allows 300" in str(error)) == ("InvalidMessage", True)


async def test_address_may_start_only_so_many_groups_a_minute(
    replica: Replica, database: str, app_id: str
) -> None:
    async with limited(replica, database, app_id, new_groups_per_minute=2) as server:
        first = await server.connected(ALL_TASKS, group="one")
        await server.connected(ALL_TASKS, group="two")
        error = await refused(server.client(ALL_TASKS, group="three"))
        assert error.kind == "ServerOverloaded"
        again = server.client(client_id=first.client_id, group="one", state=first.state)
        await again.connect()
        await again.wait_for(lambda: again.session.poke_count > 0)


async def test_connection_beyond_the_nodes_limit_gets_its_handshake_and_a_back_off(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = server.worker.adopt
    monkeypatch.setattr(
        server.worker, "adopt", lambda sock, _: adopt(sock, HandOff("p", "", "Too many."))
    )
    error = await refused(server.client(ALL_TASKS))
    assert (error.kind, error.body["minBackoffMs"]) == ("ServerOverloaded", 5000)
    assert server.worker._groups == {}


async def test_client_that_says_nothing_anymore_is_closed_and_one_that_answers_pings_is_not(
    server: Server,
) -> None:
    client = await server.connected(ALL_TASKS)
    connection: Any = server.group().clients[client.client_id]
    sock = connection._socket
    heard_s = sock.last_received_s
    connection.keep_alive(heard_s + 40)  # more than half of the 60 s: a ping goes out
    await until(lambda: sock.last_received_s > heard_s)
    connection.keep_alive(heard_s + 59)
    assert sock.is_open
    # After a long silence of this process itself, what the client sent is to be read first.
    for _ in range(connections.PINGS_UNANSWERED - 1):
        connection.keep_alive(sock.last_received_s + 1000)
        assert sock.is_open
    connection.keep_alive(sock.last_received_s + 1000)
    ended = await client.wait_closed()
    assert isinstance(ended, ConnectionLost)
    assert (ended.code, ended.reason) == (1000, "idle")


class Silent(TestClient):
    """Opens a socket and never says what it wants."""

    def _init_body(self) -> dict[str, Any]:
        return {"desiredQueriesPatch": [], "userQueryURL": "x" * 9000}

    def send(self, kind: str, body: Any) -> None:
        assert kind == "initConnection"


async def test_client_that_never_says_what_it_wants_is_closed_with_1008(server: Server) -> None:
    client = Silent(server.url, SCHEMA, client_group_id="g")
    await client.connect()
    (connection,) = server.worker._live
    now = asyncio.get_running_loop().time()
    connection.keep_alive(now + 29)
    assert connection._socket.is_open
    connection.keep_alive(now + 31)
    ended = await client.wait_closed()
    assert isinstance(ended, ConnectionLost)
    assert ended.code == 1008
