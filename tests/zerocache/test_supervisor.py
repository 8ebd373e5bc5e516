"""The life of a node: real processes, a real port, fake work."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.zerocache.nodes import ask, commands, events_in, free_port, node_config
from view_syncer.dispatcher import worker_of
from zerocache.role import RestartPolicy
from zerocache.supervisor import NodeCommands, NodePolicy, run_node

QUICK = NodePolicy(
    restarts=RestartPolicy(first_backoff_s=0.01, longest_backoff_s=0.05, start_attempts=3),
    starting_report_s=0.05,
    hand_off_wait_s=120,
    figures_wait_s=120,
    drain_grace_s=0.1,
)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    file = tmp_path / "events"
    file.touch()
    return file


@pytest.fixture
def port() -> int:
    return free_port()


class Lines(list[Any]):
    """The lines logged so far, and a way to wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self.grown = asyncio.Event()

    def add(self, _logger: object, method: str, event: Any) -> Any:
        self.append({**event, "level": method})
        self.grown.set()
        raise structlog.DropEvent

    async def until(self, matches: Callable[[Any], bool]) -> None:
        async with asyncio.timeout(120):
            while not any(matches(line) for line in self):
                self.grown.clear()
                await self.grown.wait()


@pytest.fixture
def lines() -> Iterator[Lines]:
    captured = Lines()
    structlog.configure(processors=[captured.add])
    yield captured
    structlog.reset_defaults()


@asynccontextmanager
async def running(
    port: int, node_commands: NodeCommands, **given: Any
) -> AsyncIterator[asyncio.Task[int]]:
    """A node with its port open; the task gives its exit status."""
    ready = asyncio.Event()
    node = asyncio.create_task(
        run_node(
            node_config(port, **given), on_ready=ready.set, commands=node_commands, policy=QUICK
        )
    )
    opened = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait([node, opened], return_when=asyncio.FIRST_COMPLETED)
        assert ready.is_set(), "the node ended before it was ready"
        yield node
    finally:
        opened.cancel()
        node.cancel()
        await asyncio.wait([node])


def group_of(worker: int) -> str:
    """A client group that the task "task" gives to this worker of two."""
    return next(group for group in "abcdefgh" if worker_of("task", group, 2) == worker)


def is_open(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


# --- hand-off ---


async def test_client_talks_to_the_worker_of_its_group(events: Path, port: int) -> None:
    async with running(port, commands(events)):
        answers = {group: await ask(port, group) for group in "abcdefgh"}
        workers = {group: answer[0] for group, answer in answers.items()}
        assert set(workers.values()) == {"worker-0", "worker-1"}
        assert answers["a"][2] == "GET /sync/v51/connect?clientGroupID=a HTTP/1.1"
        assert answers["a"][3].startswith("127.0.0.1:")
        assert {group: (await ask(port, group))[0] for group in "abcdefgh"} == workers


async def test_killed_worker_is_replaced_alone_and_clients_wait_for_it(
    events: Path, port: int
) -> None:
    async with running(port, commands(events)) as node:
        group, other = group_of(1), group_of(0)
        before, other_before = int((await ask(port, group))[1]), (await ask(port, other))[1]
        os.kill(before, signal.SIGKILL)
        answer = await ask(port, group)
        if answer == [""]:
            # Handed over in the instant before the death was noticed; clients try again.
            answer = await ask(port, group)
        assert answer[0] == "worker-1"
        assert int(answer[1]) != before
        assert (await ask(port, other))[1] == other_before
        assert not node.done()


async def test_replication_process_is_replaced_too(events: Path, port: int, lines: Lines) -> None:
    async with running(port, commands(events)) as node:
        (pid,) = [pid for _, name, pid in events_in(events) if name == "replication"]
        os.kill(pid, signal.SIGKILL)
        await lines.until(
            lambda line: (
                line["event"] == "process_ready"
                and line["child"] == "replication"
                and line["childPid"] != pid
            ),
        )
        assert any(line["event"] == "process_ended" for line in lines)
        assert not node.done()


# --- start ---


async def test_port_is_closed_until_every_worker_is_ready(
    events: Path, port: int, tmp_path: Path, lines: Lines
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    node_commands = commands(events, worker=("--gate", str(gate)))
    opened = asyncio.Event()
    node = asyncio.create_task(
        run_node(
            node_config(port, workers=1), on_ready=opened.set, commands=node_commands, policy=QUICK
        )
    )
    try:
        await lines.until(
            lambda line: (
                line["event"] == "node_starting" and line["waitingFor"] == ["sync-worker-0"]
            ),
        )
        assert not is_open(port)
        await asyncio.to_thread(gate.write_bytes, b"go")
        await opened.wait()
        assert is_open(port)
        assert any(
            line["event"] == "process_progress" and line["progress"] == "almost there"
            for line in lines
        )
    finally:
        node.cancel()
        await asyncio.wait([node])


async def test_workers_load_at_once_and_open_the_replica_when_it_is_there(
    events: Path, port: int, tmp_path: Path, lines: Lines
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    node_commands = commands(events, replication=("--gate", str(gate)))
    node = asyncio.create_task(run_node(node_config(port), commands=node_commands, policy=QUICK))
    try:
        await lines.until(lambda line: line.get("progress") == "loaded")
        assert not any(line.get("progress") == "opened" for line in lines)
        await asyncio.to_thread(gate.write_bytes, b"go")
        await lines.until(lambda line: line["event"] == "node_ready")
        said = [line for line in lines if "progress" in line or line["event"] == "process_ready"]
        replication_ready = next(
            at
            for at, line in enumerate(said)
            if line["event"] == "process_ready" and line["child"] == "replication"
        )
        opened = next(at for at, line in enumerate(said) if line.get("progress") == "opened")
        assert replication_ready < opened
    finally:
        node.cancel()
        await asyncio.wait([node])


async def test_fatal_message_ends_the_node_with_its_status(
    events: Path, port: int, lines: Lines
) -> None:
    node_commands = commands(events, replication=("--behaviour", "fatal"))
    status = await run_node(node_config(port), commands=node_commands, policy=QUICK)
    assert status == 78
    assert [line["event"] for line in lines if line["level"] == "error"] == [
        "ZERO_UPSTREAM_DB: no such database"
    ]
    assert not is_open(port)


async def test_configuration_status_without_a_message_ends_the_node_too(
    events: Path, port: int
) -> None:
    node_commands = commands(events, worker=("--behaviour", "configuration"))
    assert await run_node(node_config(port), commands=node_commands, policy=QUICK) == 78


async def test_process_that_never_gets_ready_ends_the_node(
    events: Path, port: int, lines: Lines
) -> None:
    node_commands = commands(events, replication=("--behaviour", "crash"))
    assert await run_node(node_config(port), commands=node_commands, policy=QUICK) == 255
    assert [name for _, name, _ in events_in(events)].count("replication") == 3
    assert "exited with status 3 before it was ready, 3 times" in lines[-1]["event"]


async def test_port_in_use_is_found_before_anything_starts(events: Path, lines: Lines) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert await run_node(node_config(port), commands=commands(events), policy=QUICK) == 78
    assert "ZERO_PORT" in lines[-1]["event"]
    assert events_in(events) == []


async def test_bad_url_pattern_is_found_before_anything_starts(
    events: Path, port: int, lines: Lines
) -> None:
    config = node_config(port, mutate={"url": ("http://h/(", "http://h")})
    assert await run_node(config, commands=commands(events), policy=QUICK) == 78
    assert "ZERO_MUTATE_URL" in lines[-1]["event"]
    assert events_in(events) == []


async def test_node_without_sync_workers_answers_health_checks(events: Path, port: int) -> None:
    async with running(port, commands(events), workers=0):
        assert is_open(port)
        assert [name for _, name, _ in events_in(events)] == ["replication"]
        assert "404" in (await ask(port, "a"))[0]


# --- limits, figures, readiness ---


async def http(port: int, path: str) -> tuple[str, str]:
    """Status line and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head.partition("\r\n")[0], body


async def workers_figures(port: int) -> dict[str, Any]:
    _, body = await http(port, "/statz?group=workers&format=json")
    figures: dict[str, Any] = json.loads(body)["workers"]
    return figures


class Kept:
    """A connection that stays."""

    def __init__(self, port: int, group: str) -> None:
        self._port, self._group = port, group

    async def open(self) -> list[str]:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        path = f"/sync/v51/connect?clientGroupID={self._group}&keep=1"
        head = f"GET {path} HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
        self._writer.write(head.encode())
        return (await self._reader.read(1000)).decode().split("|")

    def close(self) -> None:
        self._writer.close()


async def test_connections_are_limited_over_all_workers_and_freed_when_they_end(
    events: Path, port: int
) -> None:
    async with running(port, commands(events), max_connections=2):
        kept = [Kept(port, group_of(worker)) for worker in (0, 1)]
        answers = [await one.open() for one in kept]
        assert [answer[4] for answer in answers] == ["", ""]
        assert (await http(port, "/readyz"))[0] == "HTTP/1.1 503 Service Unavailable"
        assert "serves its 2 connections" in (await ask(port, "c"))[4]
        figures = await workers_figures(port)
        assert figures["total"]["connectionsCounted"] == 2
        assert figures["total"]["connectionsRefused"] == 1
        kept[0].close()
        while (await ask(port, "c"))[4]:
            pass
        # A worker that is killed takes its connections along.
        os.kill(int(answers[1][1]), signal.SIGKILL)
        while (await workers_figures(port))["total"]["connectionsCounted"]:
            pass


async def test_connections_of_one_address_are_limited_behind_a_trusted_proxy_too(
    events: Path, port: int
) -> None:
    async with running(port, commands(events), max_connections_per_ip=1, trusted_proxies="::1/128"):
        kept = Kept(port, "a")
        assert (await kept.open())[4] == ""
        assert "from your address" in (await ask(port, "b"))[4]
        kept.close()


async def test_statz_shows_each_worker_and_their_sums(events: Path, port: int) -> None:
    async with running(port, commands(events)):
        for group in "abcdefgh":
            await ask(port, group)
        figures = await workers_figures(port)
        assert figures["total"]["taken"] == 8
        each = [figures[f"sync-worker-{index}"] for index in (0, 1)]
        assert sum(one["taken"] for one in each) == 8
        assert all(one["taken"] > 0 and one["role"] == "fake" for one in each)
        assert {one["pid"] for one in each} == {
            pid for _, name, pid in events_in(events) if name.startswith("worker")
        }


async def test_draining_node_is_alive_but_not_ready(events: Path, port: int, lines: Lines) -> None:
    node_commands = commands(events, worker=("--behaviour", "stubborn"))
    async with running(port, node_commands, workers=1) as node:
        assert (await http(port, "/readyz"))[0] == "HTTP/1.1 200 OK"
        os.kill(os.getpid(), signal.SIGTERM)
        await lines.until(lambda line: line["event"] == "node_draining")
        assert await http(port, "/readyz") == ("HTTP/1.1 503 Service Unavailable", "draining")
        for path in ("/livez", "/keepalive"):
            assert (await http(port, path))[0] == "HTTP/1.1 200 OK"
        # Whoever comes all the same reaches a worker, which sends it elsewhere.
        assert (await ask(port, "a"))[0] == "worker-0"
        os.kill(os.getpid(), signal.SIGQUIT)
        assert await node == 14


# --- end ---


async def test_sigterm_stops_workers_before_replication_and_exits_0(
    events: Path, port: int
) -> None:
    async with running(port, commands(events)) as node:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await node == 0
    assert not is_open(port)
    stopped = [name for event, name, _ in events_in(events) if event == "stopped"]
    assert sorted(stopped[:2]) == ["worker-0", "worker-1"]
    assert stopped[2:] == ["replication"]


async def test_sigterm_during_the_start_ends_what_was_started(
    events: Path, port: int, tmp_path: Path, lines: Lines
) -> None:
    os.mkfifo(tmp_path / "gate")
    node_commands = commands(events, worker=("--gate", str(tmp_path / "gate")))
    node = asyncio.create_task(
        run_node(node_config(port, drain_timeout_seconds=0.2), commands=node_commands, policy=QUICK)
    )
    await lines.until(lambda line: line.get("waitingFor") == ["sync-worker-0", "sync-worker-1"])
    os.kill(os.getpid(), signal.SIGTERM)
    assert await node == 0
    assert [name for event, name, _ in events_in(events) if event == "stopped"] == ["replication"]


async def test_drain_is_bounded_by_its_timeout(events: Path, port: int) -> None:
    node_commands = commands(events, worker=("--behaviour", "stubborn"))
    async with running(port, node_commands, workers=1, drain_timeout_seconds=2) as node:
        os.kill(os.getpid(), signal.SIGTERM)
        assert await node == 0
    assert [event for event, name, _ in events_in(events) if name == "worker-0"][-1] == "ignored"


async def test_sigquit_ends_at_once_with_14(events: Path, port: int) -> None:
    async with running(port, commands(events)) as node:
        os.kill(os.getpid(), signal.SIGQUIT)
        assert await node == 14
    assert not [event for event, _, _ in events_in(events) if event == "stopped"]


async def test_second_interrupt_cuts_the_drain_short(events: Path, port: int, lines: Lines) -> None:
    node_commands = commands(events, worker=("--behaviour", "stubborn"))
    async with running(port, node_commands, workers=1) as node:
        os.kill(os.getpid(), signal.SIGINT)
        await lines.until(lambda line: line["event"] == "node_draining")
        os.kill(os.getpid(), signal.SIGINT)
        assert await node == 14


async def test_lost_keepalive_drains(events: Path, port: int) -> None:
    async with running(port, commands(events), keepalive_timeout_ms=100) as node:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /keepalive HTTP/1.1\r\n\r\n")
        assert (await reader.read()).endswith(b"OK")
        writer.close()
        assert await node == 0


def test_children_end_when_the_supervisor_is_killed(events: Path, port: int) -> None:
    node = subprocess.Popen(
        [sys.executable, "-m", "tests.zerocache.fake_node", str(port), str(events)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert node.stdout is not None
    with node, node.stdout:
        while node.stdout.readline() != "ready\n":
            assert node.poll() is None
        handles = [os.pidfd_open(pid) for _, _, pid in events_in(events)]
        assert len(handles) == 3
        node.kill()
        for handle in handles:
            # A process descriptor becomes readable when its process ends.
            assert select.select([handle], [], [], 60)[0]
            os.close(handle)
