"""The server of the model checker, and what befalls it.

Owns the node's processes and, if asked for, a second view-syncer that serves the same client
groups from the same replica, as a second machine would. Whatever happens here is allowed to cost
clients their connections, and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg

from tests.conftest import free_port
from tests.e2e.node import Node

_ALARMS = r"connection_crashed|worker_failed"
# These also report a database that went away.
_MORE_ALARMS = r"|client_group_failed|Traceback \(most recent call last\)"


class Broken(Exception):
    """The server did what it promised not to do."""


class Server:
    """One node, or one and a half. Not for several threads at once."""

    def __init__(
        self, folder: Path, database: str, app_id: str, store: str, *, two: bool, quick_rows: int
    ) -> None:
        settings = {"ZERO_QUERY_URL": "", "ZERO_MUTATE_URL": ""}
        settings |= {"ZEROCACHE_QUICK_HYDRATION_ROWS": str(quick_rows)}
        settings |= {"ZERO_CVR_MAX_CONNS": "6", "NODE_ENV": "production"}
        if store == "sqlite":
            settings["ZERO_CVR_DB"] = f"sqlite:{folder}/cvr.db"
        self.node = Node(folder, database, app_id, "", kind="zerocache", settings=settings)
        self._database = database
        self._second = _Second(folder, self.node) if two else None

    @property
    def urls(self) -> list[str]:
        """Where clients may connect to."""
        return [self.node.url] + ([self._second.url] if self._second else [])

    def start(self) -> None:
        self.node.start()
        if self._second:
            self._second.start()

    def end(self) -> None:
        """Whatever still runs, at once."""
        if self._second:
            self._second.kill()
        if self.node.process is not None:
            self.node.kill9()

    def disturb(self, name: str, number: int) -> None:
        """Returns when what was ended runs again, or will by itself."""
        match name:
            case "kill_node":
                self.end()
                self.start()
            case "restart":
                if self._second:
                    self._second.kill()
                if self.node.stop() != 0:
                    raise Broken("the node did not end with 0 after SIGTERM")
                self.start()
            case "cut_store" | "cut_all":
                self._cut(only_store=name == "cut_store")
            case "kill_worker" if self._second and number % 3 == 0:
                self._second.kill()
                self._second.start()
            case _:
                self._kill_part("view_syncer" if name == "kill_worker" else "replication_m", number)

    def _kill_part(self, part: str, number: int) -> None:
        victims = [p for p in self.node.processes()[1:] if _runs(p, part)]
        if victims:
            victims[number % len(victims)].kill()

    def _cut(self, *, only_store: bool) -> None:
        """As when the database server restarts, without the wait."""
        pattern = "zero-cvr%" if only_store else "zero%"
        with psycopg.connect(self._database, autocommit=True) as db:
            db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE %s",
                [pattern],
            )

    def check_log(self, *, cuts: bool) -> None:
        alarms = re.compile(_ALARMS if cuts else _ALARMS + _MORE_ALARMS)
        for path in (self.node.log, *([self._second.log] if self._second else [])):
            for line in path.read_text(errors="replace").splitlines():
                if alarms.search(line):
                    raise Broken(f"{path.name} has: {line[:2000]}")


class _Second:
    """The second view-syncer: ``tests/fuzz/model_second.py`` in a process of its own."""

    def __init__(self, folder: Path, node: Node) -> None:
        self._node = node
        self._port = free_port()
        self.log = folder / "second.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """After the node, whose settings it takes over."""
        environment = self._settings()
        ready, tell = os.pipe()
        command = [sys.executable, "-m", "tests.fuzz.model_second", str(self._port), str(tell)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(tell,),
            )
        os.close(tell)
        with os.fdopen(ready, "rb") as answer:
            if answer.read() != b"ready":
                tail = self.log.read_text(errors="replace")[-1500:]
                raise RuntimeError(f"the second view-syncer did not start: {tail}")

    def _settings(self) -> dict[str, str]:
        """The environment of the worker, or of its successor if it was killed a moment ago."""
        deadline = time.monotonic() + 30
        while True:
            for worker in self._node.sync_workers():
                with contextlib.suppress(psutil.NoSuchProcess):
                    environment = worker.environ()
                    if environment:  # else it is about to end
                        return dict(environment)
            if time.monotonic() > deadline:
                raise Broken("the node has had no sync worker for 30 s")
            time.sleep(0.02)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


def _runs(process: psutil.Process, part: str) -> bool:
    try:
        return any(part in word for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False
