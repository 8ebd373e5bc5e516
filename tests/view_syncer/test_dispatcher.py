"""The client port: real connections, a hand-over that keeps the socket in this process."""

from __future__ import annotations

import asyncio
import base64
import json
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import xxhash

from view_syncer.dispatcher import Dispatcher, worker_of
from zerocache.config import Config
from zerocache.control import HandOff
from zerocache.errors import ConfigurationError
from zerocache.metrics import Metrics

UPGRADE = "Host: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"


def config(**given: Any) -> Config:
    return Config.model_validate(
        {
            "upstream": {"db": "postgres://h/d"},
            "development": True,
            "port": 0,
            "num_sync_workers": 4,
            "task_id": "task",
            **given,
        }
    )


class Workers:
    """Stands in for all workers: keeps a duplicate of each socket it is given."""

    def __init__(self) -> None:
        self.taken: asyncio.Queue[tuple[int, socket.socket, HandOff]] = asyncio.Queue()
        self.available = True

    async def hand_over(self, worker: int, sock: socket.socket, hand_off: HandOff) -> bool:
        if self.available:
            self.taken.put_nowait((worker, sock.dup(), hand_off))
        return self.available

    async def next(self) -> tuple[int, bytes]:
        """The worker that got the next socket, and everything it can read from it."""
        worker, sock, _peer = await self.taken.get()
        with sock:
            sock.setblocking(False)
            return worker, sock.recv(200_000)


@asynccontextmanager
async def serving(workers: Workers, **given: Any) -> AsyncIterator[Dispatcher]:
    names = ("head_timeout_s", "on_keepalive", "replication_figures", "worker_figures")
    options = {name: given.pop(name) for name in names if name in given}
    dispatcher = Dispatcher(config(**given), hand_over=workers.hand_over, **options)
    dispatcher.bind()
    dispatcher.listen()
    try:
        yield dispatcher
    finally:
        await dispatcher.close()


async def http(port: int, request: str, host: str = "127.0.0.1") -> tuple[str, str]:
    """Status line and body of the answer to a raw request."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request.encode())
    answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return head.partition("\r\n")[0], body


async def is_dropped(port: int, request: str, *, end_of_stream: bool = False) -> bool:
    """Whether the connection ends without an answer; unread bytes make that a reset."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    await writer.drain()
    if end_of_stream:
        writer.write_eof()
    try:
        return await reader.read() == b""
    except ConnectionResetError:
        return True
    finally:
        writer.close()


# --- routing ---


def test_worker_follows_from_task_and_group() -> None:
    expected = xxhash.xxh32_intdigest(b"task/group") % 7
    assert worker_of("task", "group", 7) == expected
    assert worker_of("task", "group", 1) == 0
    assert {worker_of(f"task{n}", "group", 7) for n in range(100)} == set(range(7))


@pytest.mark.parametrize("path", ["/sync/v51/connect", "/api/sync/v51/connect"])
async def test_upgrade_reaches_the_worker_of_its_group_unread(path: str) -> None:
    workers = Workers()
    request = f"GET {path}?clientGroupID=g%201&x=2 HTTP/1.1\r\n{UPGRADE}"
    async with serving(workers) as dispatcher:
        _, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        writer.write(request.encode())
        assert await workers.next() == (worker_of("task", "g 1", 4), request.encode())
        writer.close()


@pytest.mark.parametrize(
    "target",
    [
        "/a/b/sync/v51/connect?clientGroupID=g",
        "/sync/v51/connect",
        "/sync/v51/connect?clientGroupID=",
    ],
)
async def test_upgrade_that_will_be_rejected_goes_to_worker_0(target: str) -> None:
    workers = Workers()
    async with serving(workers) as dispatcher:
        _, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        writer.write(f"GET {target} HTTP/1.1\r\n{UPGRADE}".encode())
        assert (await workers.next())[0] == 0
        writer.close()


async def test_head_in_pieces_waits_without_spinning() -> None:
    workers = Workers()
    request = f"GET /sync/v51/connect?clientGroupID=g HTTP/1.1\r\nX: {'y' * 20_000}\r\n{UPGRADE}"
    async with serving(workers) as dispatcher:
        _, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        for start in range(0, len(request), 4000):
            writer.write(request[start : start + 4000].encode())
            await writer.drain()
            await asyncio.sleep(0.1)
        spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        assert (await workers.next())[1] == request.encode()
        assert spent < 0.25  # of more than half a second with an incomplete head
        writer.close()


async def test_socket_is_handed_over_with_its_wakeup_threshold_restored() -> None:
    workers = Workers()
    async with serving(workers) as dispatcher:
        _, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        writer.write(b"GET /sync/v51/connect HTTP/1.1\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
        writer.write(UPGRADE.encode())
        _, sock, hand_off = await workers.taken.get()
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert hand_off.peer.startswith("127.0.0.1:")
            assert hand_off.address == "127.0.0.1"
        writer.close()


async def test_connection_is_closed_when_no_worker_takes_it() -> None:
    workers = Workers()
    workers.available = False
    async with serving(workers) as dispatcher:
        request = f"GET /sync/v51/connect?clientGroupID=g HTTP/1.1\r\n{UPGRADE}"
        assert await is_dropped(dispatcher.port, request)


# --- answers of its own ---


@pytest.mark.parametrize("path", ["/", "/keepalive", "/keepalive?x=1"])
async def test_health_checks_are_answered_ok(path: str) -> None:
    async with serving(Workers()) as dispatcher:
        status, body = await http(dispatcher.port, f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (status, body) == ("HTTP/1.1 200 OK", "OK")
        assert await http(dispatcher.port, f"HEAD {path} HTTP/1.0\r\n\r\n") == (status, "")


async def test_both_address_families_are_served() -> None:
    async with serving(Workers()) as dispatcher:
        with socket.socket(socket.AF_INET6) as probe:
            hosts = ["127.0.0.1", "::1"] if probe.connect_ex(("::1", dispatcher.port)) == 0 else []
        for host in hosts or ["127.0.0.1"]:
            assert (await http(dispatcher.port, "GET / HTTP/1.1\r\n\r\n", host))[1] == "OK"


async def test_only_keepalive_calls_count_as_such() -> None:
    calls: list[None] = []
    async with serving(Workers(), on_keepalive=lambda: calls.append(None)) as dispatcher:
        await http(dispatcher.port, "GET / HTTP/1.1\r\n\r\n")
        assert calls == []
        await http(dispatcher.port, "GET /keepalive HTTP/1.1\r\n\r\n")
        assert calls == [None]


@pytest.mark.parametrize("line", ["GET /nope", "POST /", "GET /sync/v51/connect"])
async def test_anything_else_is_404_as_json(line: str) -> None:
    async with serving(Workers()) as dispatcher:
        status, body = await http(
            dispatcher.port, f"{line} HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
        )
        assert status == "HTTP/1.1 404 Not Found"
        parsed = json.loads(body)
        assert (parsed["error"], parsed["statusCode"]) == ("Not Found", 404)
        assert "not found" in parsed["message"]


async def test_upgrade_without_sync_workers_is_404() -> None:
    async with serving(Workers(), num_sync_workers=0) as dispatcher:
        request = f"GET /sync/v51/connect?clientGroupID=g HTTP/1.1\r\n{UPGRADE}"
        assert (await http(dispatcher.port, request))[0] == "HTTP/1.1 404 Not Found"


async def test_statz_answers_in_development() -> None:
    async with serving(Workers()) as dispatcher:
        status, body = await http(dispatcher.port, "GET /statz?group=os HTTP/1.1\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert body.startswith("=== os ===\n")


async def test_statz_wants_the_password_in_production() -> None:
    given = {"development": False, "admin_password": "p"}
    async with serving(Workers(), **given) as dispatcher:
        status, body = await http(dispatcher.port, "GET /statz HTTP/1.1\r\n\r\n")
        assert (status, body) == ("HTTP/1.1 401 Unauthorized", "Unauthorized")


async def test_statz_shows_what_the_replication_process_says_of_itself() -> None:
    async def figures() -> dict[str, Any]:
        return {"lsn": "0/10", "slot": {"status": "ok"}, "changeLog": {"changeLogSize": 5}}

    async with serving(Workers(), replication_figures=figures) as dispatcher:
        query = "group=replication,changeLog&format=json"
        _, body = await http(dispatcher.port, f"GET /statz?{query} HTTP/1.1\r\n\r\n")
        assert json.loads(body) == {
            "replication": {"lsn": "0/10", "slot": {"status": "ok"}},
            "changeLog": {"changeLogSize": 5},
        }


async def _replication() -> dict[str, Any]:
    metrics = Metrics()
    metrics.gauge("replication.slot_lag_bytes", 512)
    metrics.count("replication.initial_sync_runs", result="success")
    return {"lsn": "0/10", "series": msgspec.to_builtins(metrics.series())}


async def _workers() -> dict[str, Any]:
    counted = {"messagesRefused": 2, "clientsAheadOfReplica": 4}
    return {
        "total": {"connections": 3},
        "sync-worker-0": {"pid": 1, "connections": 3, "version": "1a", **counted},
        "sync-worker-1": {"pid": 2, "state": "no answer"},
    }


async def test_metrics_of_all_processes_are_shown_to_prometheus() -> None:
    options = {"replication_figures": _replication, "worker_figures": _workers}
    async with serving(Workers(), **options) as dispatcher:
        status, body = await http(dispatcher.port, "GET /metrics HTTP/1.1\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert body.splitlines() == [
            "# TYPE zero_replication_initial_sync_runs counter",
            'zero_replication_initial_sync_runs{result="success"} 1',
            "# TYPE zero_replication_slot_lag_bytes gauge",
            "zero_replication_slot_lag_bytes 512",
            "# TYPE zero_server_up gauge",
            'zero_server_up{worker="replication"} 1',
            'zero_server_up{worker="sync-worker-0"} 1',
            'zero_server_up{worker="sync-worker-1"} 0',
            "# TYPE zero_sync_clients_ahead_of_replica counter",
            'zero_sync_clients_ahead_of_replica{worker="sync-worker-0"} 4',
            "# TYPE zero_sync_messages_refused counter",
            'zero_sync_messages_refused{worker="sync-worker-0"} 2',
            "# TYPE zero_sync_websocket_open_connections gauge",
            'zero_sync_websocket_open_connections{worker="sync-worker-0"} 3',
        ]
        _, body = await http(dispatcher.port, "GET /metrics?format=json HTTP/1.1\r\n\r\n")
        assert json.loads(body)["zero_server_up{worker=sync-worker-1}"] == 0


async def test_metrics_want_the_password_in_production() -> None:
    given = {"development": False, "admin_password": "p", "worker_figures": _workers}
    async with serving(Workers(), **given) as dispatcher:
        status, body = await http(dispatcher.port, "GET /metrics HTTP/1.1\r\n\r\n")
        assert (status, body) == ("HTTP/1.1 401 Unauthorized", "Unauthorized")
        password = "Authorization: Basic " + base64.b64encode(b"any:p").decode()
        status, body = await http(dispatcher.port, f"GET /metrics HTTP/1.1\r\n{password}\r\n\r\n")
        assert status == "HTTP/1.1 200 OK"
        assert "zero_server_up" in body


# --- bounds ---


async def test_head_that_never_ends_is_refused() -> None:
    async with serving(Workers()) as dispatcher:
        status, _ = await http(dispatcher.port, "GET / HTTP/1.1\r\nX: " + "y" * 70_000)
        assert status == "HTTP/1.1 431 Request Header Fields Too Large"


async def test_head_just_below_the_limit_is_served() -> None:
    workers = Workers()
    start = "GET /sync/v51/connect?clientGroupID=g HTTP/1.1\r\nX: "
    request = start + "y" * (65_536 - len(start) - len(UPGRADE) - 2) + "\r\n" + UPGRADE
    async with serving(workers) as dispatcher:
        _, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        writer.write(request.encode())
        assert (await workers.next())[1] == request.encode()
        writer.close()


async def test_other_protocols_are_refused() -> None:
    async with serving(Workers()) as dispatcher:
        status, _ = await http(dispatcher.port, "EHLO mail\r\n\r\n")
        assert status == "HTTP/1.1 400 Bad Request"


async def test_silent_connection_is_closed_in_time() -> None:
    async with serving(Workers(), head_timeout_s=0.05) as dispatcher:
        assert await is_dropped(dispatcher.port, "GET / HT")


async def test_half_a_request_and_end_of_stream_is_closed() -> None:
    async with serving(Workers()) as dispatcher:
        assert await is_dropped(dispatcher.port, "GET / HT", end_of_stream=True)


async def test_slow_connection_delays_nobody() -> None:
    async with serving(Workers()) as dispatcher:
        _, slow = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        slow.write(b"GET /")
        assert (await http(dispatcher.port, "GET / HTTP/1.1\r\n\r\n"))[1] == "OK"
        slow.close()


# --- the port ---


async def test_bound_port_refuses_until_listen() -> None:
    dispatcher = Dispatcher(config(), hand_over=Workers().hand_over)
    dispatcher.bind()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", dispatcher.port)
    dispatcher.listen()
    assert (await http(dispatcher.port, "GET / HTTP/1.1\r\n\r\n"))[1] == "OK"
    await dispatcher.close()


async def test_port_in_use_is_a_configuration_error() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        dispatcher = Dispatcher(config(port=taken.getsockname()[1]), hand_over=Workers().hand_over)
        with pytest.raises(ConfigurationError, match="ZERO_PORT"):
            dispatcher.bind()


async def test_close_drops_connections_that_said_nothing() -> None:
    async with serving(Workers()) as dispatcher:
        reader, writer = await asyncio.open_connection("127.0.0.1", dispatcher.port)
        await http(dispatcher.port, "GET / HTTP/1.1\r\n\r\n")  # so the first one was accepted
    assert await reader.read() == b""
    writer.close()
