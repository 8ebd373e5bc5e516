"""A zerocache node as a process that a test can stop, kill and start again.

Owns the process tree and its files. ``reference`` runs the reference server instead, on the same
settings: the harness is proven against it, and a disagreement between the two is then ours.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import free_port

START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 20.0
_REFERENCE = "/opt/js/node_modules/.bin/zero-cache"


def server_kind() -> str:
    """``zerocache``, or ``reference`` to check the tests themselves."""
    kind = os.environ.get("ZEROCACHE_E2E_SERVER", "zerocache")
    if kind not in ("zerocache", "reference"):
        raise ValueError(f"ZEROCACHE_E2E_SERVER={kind}: use 'zerocache' or 'reference'")
    return kind


def _command(kind: str) -> list[str]:
    if kind == "reference":
        return [os.environ.get("ZEROCACHE_REFERENCE_BIN", _REFERENCE)]
    return [sys.executable, "-c", "import sys; from zerocache.cli import main; sys.exit(main())"]


@dataclass
class Node:
    """One node on a fixed port; ``start`` may be called again after ``stop`` or ``kill9``."""

    directory: Path
    upstream: str
    app_id: str
    api: str
    kind: str = field(default_factory=server_kind)
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    # Between them these let two nodes run side by side without guessing each other's ports.
    change_streamer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        return self.directory / "node.log"

    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("ZERO_")}
        if self.kind == "reference":
            # It needs the Node 22 that is installed beside it.
            beside = Path(_command(self.kind)[0]).parent
            inherited["PATH"] = f"{beside}{os.pathsep}{inherited['PATH']}"
        return {
            **inherited,
            "ZERO_UPSTREAM_DB": self.upstream,
            "ZERO_APP_ID": self.app_id,
            "ZERO_PORT": str(self.port),
            "ZERO_CHANGE_STREAMER_PORT": str(self.change_streamer_port),
            "ZERO_REPLICA_FILE": str(self.directory / "replica.db"),
            "ZERO_NUM_SYNC_WORKERS": "2",
            "ZERO_CVR_MAX_CONNS": "4",
            "ZERO_UPSTREAM_MAX_CONNS": "4",
            "ZERO_QUERY_URL": f"{self.api}/query",
            "ZERO_MUTATE_URL": f"{self.api}/mutate",
            "ZERO_ADMIN_PASSWORD": "e2e",
            "ZERO_LOG_LEVEL": os.environ.get("ZEROCACHE_E2E_LOG_LEVEL", "info"),
            "ZERO_ENABLE_TELEMETRY": "false",
            **self.settings,
        }

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                _command(self.kind),
                cwd=self.directory,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"the node ended by itself ({self.process.returncode}): {self.tail()}"
                )
            if self._answers():
                return
            time.sleep(0.05)
        raise RuntimeError(f"the node was not ready after {START_DEADLINE_S:.0f} s: {self.tail()}")

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            # Not listening yet, or not ready (503).
            return False

    def tail(self) -> str:
        return f"\n--- {self.log}\n{self.log.read_text(errors='replace')[-1500:]}"

    def processes(self) -> list[psutil.Process]:
        """The supervisor and all its descendants."""
        if self.process is None or not psutil.pid_exists(self.process.pid):
            return []
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def sync_workers(self) -> list[psutil.Process]:
        """The processes that serve clients."""
        name = "view_syncer" if self.kind == "zerocache" else "syncer"
        return [p for p in self.processes()[1:] if any(name in part for part in _command_line(p))]

    def stop(self) -> int:
        """End it as an orchestrator would, with SIGTERM; its exit code."""
        if self.process is None:
            return 0
        everyone = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            self._kill(everyone)
            raise RuntimeError(
                f"the node did not stop in {STOP_DEADLINE_S:.0f} s: {self.tail()}"
            ) from None
        finally:
            self.process = None
        self._kill(everyone)
        return code

    def kill9(self) -> None:
        """End every process at once, as a power cut would: no clean-up, nothing flushed."""
        assert self.process is not None
        self._kill(self.processes())
        self.process.wait(10)
        self.process = None

    def kill9_supervisor(self) -> list[psutil.Process]:
        """Kill only the first process; the children that still run 10 s later."""
        assert self.process is not None
        children = self.processes()[1:]
        self.process.kill()
        self.process.wait(10)
        self.process = None
        deadline = time.monotonic() + 10
        # Nobody may be there to reap orphans, so one that has ended can stay as a zombie.
        while (alive := [one for one in children if _runs(one)]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return alive

    @staticmethod
    def _kill(processes: list[psutil.Process]) -> None:
        for one in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                # Ended between the listing and now, which is what is wanted.
                one.kill()
        psutil.wait_procs(processes, timeout=10)


def _command_line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.NoSuchProcess:
        return []


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
