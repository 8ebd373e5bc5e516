"""What the tests of the supervisor share: configurations, fake commands, a raw client.

Owns no state. Must never import the real halves. Invariant: everything it starts belongs to the
test that asked for it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zerocache.config import Config
from zerocache.supervisor import NodeCommands

FAKE_CHILD = (sys.executable, "-m", "tests.zerocache.fake_child")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def node_config(port: int, workers: int = 2, **given: Any) -> Config:
    return Config.model_validate(
        {
            "upstream": {"db": "postgres://nowhere/db"},
            "port": port,
            "num_sync_workers": workers,
            "development": True,
            "task_id": "task",
            **given,
        }
    )


def commands(
    events: str | Path, *, replication: Sequence[str] = (), worker: Sequence[str] = ()
) -> NodeCommands:
    return NodeCommands(
        replication=(*FAKE_CHILD, "replication", "--events", str(events), *replication),
        sync_worker=(*FAKE_CHILD, "worker", "--events", str(events), "--waits", *worker),
    )


async def ask(port: int, client_group: str, path: str = "/sync/v51/connect") -> list[str]:
    """Connect as a client of the group; the fake worker's answer: name, pid, request, peer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = (
        f"GET {path}?clientGroupID={client_group} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n"
    )
    writer.write(f"{request}Connection: Upgrade\r\n\r\n".encode())
    try:
        answer = await reader.read()
    except ConnectionError:
        answer = b""  # the worker was killed with the request unread
    finally:
        writer.close()
    return answer.decode().split("|")


def events_in(file: str | Path) -> list[tuple[str, str, int]]:
    """Event, name and pid of everything the fake children noted."""
    lines = Path(file).read_text().splitlines()
    return [(event, name, int(pid)) for event, name, pid in map(str.split, lines)]
