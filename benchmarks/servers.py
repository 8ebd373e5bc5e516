"""Start, stop and watch a server under test: zerocache, or the reference server under Node.

Owns the processes it starts. Must never give one server a setting that the other does not get.
Invariant: after ``stop()`` no process of the server is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil
import psycopg
from msgspec import to_builtins

from benchmarks import reference
from benchmarks.child import die_with_parent
from benchmarks.cluster import free_port
from benchmarks.sync_messages import ClientSchema

READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 20.0
# How often the readiness endpoint is asked; bounds the error of every start-up time.
_POLL_S = 0.01


@dataclass(frozen=True)
class ServerKind:
    """A program that can be measured; asking for its version makes sure that it is there."""

    name: str
    command: Callable[[], list[str]]
    version: Callable[[], str]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process tree holds and has used up."""

    processes: int
    rss_mb: float
    # Proportional set size: pages shared between processes are counted once.
    pss_mb: float
    cpu_s: float


def _zerocache_version() -> str:
    try:
        return version("zerocache")
    except PackageNotFoundError:
        return "source tree"


ZEROCACHE = ServerKind(
    "zerocache", lambda: [sys.executable, "-m", "zerocache.cli"], _zerocache_version
)
REFERENCE = ServerKind("reference", reference.command, reference.version)
KINDS = {kind.name: kind for kind in (ZEROCACHE, REFERENCE)}


class Server:
    """One deployment (app id, replica file, port) of a program; can be started again and again.

    * ``start()`` returns the seconds until /keepalive answered.
    * ``stop()`` is graceful first, then not.
    """

    def __init__(self, kind: ServerKind, upstream: str, work_dir: Path, workers: int) -> None:
        self.kind = kind
        self.app_id = f"bench_{kind.name}"
        self._upstream = upstream
        self._dir = work_dir / kind.name
        self._dir.mkdir(parents=True, exist_ok=True)
        self._workers = workers
        self._port = free_port()
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log_path(self) -> Path:
        return self._dir / "log"

    async def start(self, log_level: str = "warn") -> float:
        command = self.kind.command()
        began = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, env=self.environment() | {"ZERO_LOG_LEVEL": log_level}, cwd=self._dir,
                stdout=log, stderr=log, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        await self._wait_ready(self._process)
        return time.monotonic() - began

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        tree = self._tree(process.pid)
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        # Children of a killed parent, known by their ids.
        for child in psutil.wait_procs(tree, timeout=1)[1]:
            child.kill()

    def usage(self, parts: Sequence[str] = ("",), *, shared: bool = True) -> Usage:
        """What the server's processes hold; only those whose command line has one of ``parts``.

        ``shared=False`` leaves the proportional size out: the kernel takes its time over it.
        """
        assert self._process is not None, "the server does not run"
        rss = pss = cpu = 0.0
        count = 0
        for process in self._tree(self._process.pid):
            try:
                if not any(part in word for part in parts for word in process.cmdline()):
                    continue
                times = process.cpu_times()
                rss += process.memory_info().rss
                pss += process.memory_full_info().pss if shared else 0
            except psutil.NoSuchProcess:
                continue  # ended between listing and looking
            count += 1
            cpu += times.user + times.system
        return Usage(count, rss / 1e6, pss / 1e6, cpu)

    def replica_mb(self) -> float:
        return sum(file.stat().st_size for file in self._dir.glob("replica.db*")) / 1e6

    def allow_everything(self, schema: ClientSchema) -> None:
        """Deploy permissions under which ad-hoc queries see every row (zql.md §5)."""
        anyone = {"row": {"select": [["allow", {"type": "and", "conditions": []}]]}}
        permissions = {"tables": dict.fromkeys(to_builtins(schema.tables), anyone)}
        statement = psycopg.sql.SQL("UPDATE {}.permissions SET permissions = %s").format(
            psycopg.sql.Identifier(self.app_id)
        )
        with psycopg.connect(self._upstream) as connection:
            if connection.execute(statement, [json.dumps(permissions)]).rowcount != 1:
                raise RuntimeError(f"{self.app_id}.permissions does not hold exactly one row")

    def drop_slots(self) -> None:
        """Free the replication slots of a stopped server, which would hold back WAL for ever."""
        with psycopg.connect(self._upstream, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                " WHERE starts_with(slot_name, %s) AND NOT active",
                [self.app_id],
            )

    def environment(self) -> dict[str, str]:
        # Nothing inherited may configure a server: ZERO_* of the caller's shell is dropped.
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("ZERO_")
        }
        return inherited | {
            "ZERO_UPSTREAM_DB": self._upstream,
            "ZERO_APP_ID": self.app_id,
            "ZERO_REPLICA_FILE": str(self._dir / "replica.db"),
            "ZERO_PORT": str(self._port),
            "ZERO_CHANGE_STREAMER_PORT": str(free_port()),
            "ZERO_NUM_SYNC_WORKERS": str(self._workers),
            "ZERO_ADMIN_PASSWORD": "benchmark",
            "ZERO_ENABLE_TELEMETRY": "false",
            "DO_NOT_TRACK": "1",
            "NODE_ENV": "production",
            "PYTHONPATH": str(Path(__file__).parent.parent),
        }

    async def _wait_ready(self, process: asyncio.subprocess.Process) -> None:
        async with asyncio.timeout(READY_TIMEOUT_S):
            while not await self._answers():
                if process.returncode is not None:
                    tail = self.log_path.read_text(errors="replace")[-3000:]
                    raise RuntimeError(f"{self.kind.name} ended at start:\n{tail}")
                await asyncio.sleep(_POLL_S)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except ConnectionError:
            return False
        try:
            writer.write(b"GET /keepalive HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
            return (await reader.readline()).split(b" ")[1:2] == [b"200"]
        except ConnectionError:
            return False
        finally:
            writer.close()

    @staticmethod
    def _tree(pid: int) -> list[psutil.Process]:
        try:
            root = psutil.Process(pid)
            return [root, *root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
