"""Runs the replication process as the supervisor does, and compares its replica with upstream."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import msgspec
import psycopg
from psycopg import sql

from zerocache.config import Config
from zerocache.control import CONTROL_FD_VARIABLE, RUNTIME_DIR_VARIABLE
from zerocache.errors import ZerocacheError
from zerocache.protocol.versions import lsn_from_text, lsn_from_watermark
from zerocache.replica.auto_index import indexes_of
from zerocache.replica.layout import load_tables
from zerocache.replica.pending import load_pending
from zerocache.replica.published import PublishedTable
from zerocache.replica.reader import load_schema, open_replica, read_state
from zerocache.replica.types import column_decoder

# Far beyond what anything takes: only what never happens costs so much.
TIMEOUT_S = 120.0


def make_config(url: str, app_id: str, directory: Path, **options: Any) -> Config:
    values: dict[str, Any] = {
        "upstream": {"db": url},
        "app": {"id": app_id},
        "replica": {"file": str(directory / "replica.db")},
        "development": True,
    }
    return Config.model_validate({**values, **options})


@dataclass
class Replicator:
    """One replication process at a time, over one replica file."""

    config: Config
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None
    log_file: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log_file = self.directory / "log"

    @property
    def file(self) -> Path:
        return Path(self.config.replica.file)

    def start(
        self,
        *,
        wait: bool = True,
        module: str = "replication_manager",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment``: variables of this one process."""
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = {
            **os.environ,
            **self.config.to_environment(),
            **(environment or {}),
            CONTROL_FD_VARIABLE: str(theirs.fileno()),
            RUNTIME_DIR_VARIABLE: str(self.directory),
        }
        with theirs, self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module],
                env=environ,
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        if wait:
            assert self.next_message("ready")["type"] == "ready"

    def next_message(self, *kinds: str) -> dict[str, Any]:
        """The next control message of one of ``kinds``; fails when the process ends instead."""
        assert self.control is not None
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            ready, _, _ = select.select([self.control], [], [], deadline - time.monotonic())
            packet = self.control.recv(65536) if ready else b""
            if not packet:
                raise AssertionError(f"no {kinds}; the log:\n{self.log()}")
            message: dict[str, Any] = msgspec.json.decode(packet)
            if message["type"] in kinds:
                return message

    def log(self) -> str:
        return self.log_file.read_text()

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """End gracefully; the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> int:
        assert self.process is not None
        assert self.control is not None
        self.process.send_signal(how)
        status = self.process.wait(TIMEOUT_S)
        self.control.close()
        self.process = self.control = None
        return status

    def connection(self) -> apsw.Connection:
        return open_replica(self.file)

    def rows(self, query: str, *params: Any) -> list[tuple[Any, ...]]:
        connection = self.connection()
        try:
            return connection.execute(query, params).fetchall()
        finally:
            connection.close()

    def state_version(self) -> str:
        connection = self.connection()
        try:
            return read_state(connection).version
        finally:
            connection.close()

    def wait_for_lsn(self, lsn: int) -> None:
        """Until the replica has every transaction that committed before ``lsn``."""
        self.wait_until(lambda: lsn_from_watermark(self.state_version()) >= lsn)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            last: Exception | None = None
            try:
                if condition():
                    return
            except (apsw.Error, ZerocacheError) as error:
                # The file may be in the middle of being replaced.
                last = error
            if time.monotonic() > deadline:
                raise AssertionError(f"never true ({last}); the log:\n{self.log()}")
            threading.Event().wait(0.02)

    def catch_up(self) -> None:
        """Write a marker upstream and wait until the replica has it."""
        with psycopg.connect(self.config.upstream.db, autocommit=True) as upstream:
            row = upstream.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
            assert row is not None
            upstream.execute(
                sql.SQL("UPDATE {} SET permissions = permissions").format(
                    sql.Identifier(self.config.app_schema, "permissions")
                )
            )
            self.wait_for_lsn(lsn_from_text(row[0]))


def compare(replicator: Replicator) -> int:
    """Assert that every replica table equals upstream, row by row; the number of rows compared."""
    connection = replicator.connection()
    compared = 0
    with psycopg.connect(replicator.config.upstream.db) as upstream:
        upstream.execute(
            "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';"
            "SET bytea_output = 'hex'; SET extra_float_digits = 1"
        )
        for facts in load_tables(connection).values():
            expected = _upstream_rows(upstream, facts.table)
            actual = _replica_rows(connection, facts.table)
            assert len(actual) == len(expected), facts.table.name
            for ours, theirs in zip(actual, expected, strict=True):
                assert ours == theirs, facts.table.name
            compared += len(actual)
    connection.close()
    return compared


def _sort_key(row: tuple[Any, ...]) -> str:
    return repr(row)


def _upstream_rows(
    upstream: psycopg.Connection[Any], table: PublishedTable
) -> list[tuple[Any, ...]]:
    decoders = [column_decoder(column) for column in table.columns]
    columns = sql.SQL(", ").join(
        # As COPY prints it; a cast to text is something else for bpchar, inet and bool.
        sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN format('%s', {0}) END").format(
            sql.Identifier(column.name)
        )
        for column in table.columns
    )
    query = sql.SQL("SELECT {} FROM {}").format(columns, sql.Identifier(table.schema, table.name))
    rows = []
    for row in upstream.execute(query):
        rows.append(
            tuple(
                decode(text) if decode is not None and text is not None else text
                for decode, text in zip(decoders, row, strict=True)
            )
        )
    return sorted(rows, key=_sort_key)


def _replica_rows(connection: apsw.Connection, table: PublishedTable) -> list[tuple[Any, ...]]:
    names = ", ".join(f'"{column.name}"' for column in table.columns)
    rows = connection.execute(f'SELECT {names} FROM "{table.wire_name}"')  # noqa: S608 - test
    return sorted(rows.fetchall(), key=_sort_key)


def settle(replicator: Replicator) -> None:
    """Until the replica has everything that is committed, and no backfill is outstanding."""
    replicator.catch_up()
    # Replica identities are set after the fact, as schema changes of their own.
    replicator.wait_until(lambda: not _outstanding(replicator))
    replicator.catch_up()
    replicator.wait_until(lambda: not _outstanding(replicator))


def _outstanding(replicator: Replicator) -> bool:
    connection = replicator.connection()
    try:
        return bool(load_pending(connection))
    finally:
        connection.close()


def described(replicator: Replicator) -> dict[str, Any]:
    """The replica's schema as far as it does not depend on how the replica came to it."""
    connection = replicator.connection()
    try:
        described: dict[str, Any] = {}
        for name, table in load_schema(connection).items():
            if name.startswith(replicator.config.app_schema):
                continue
            columns = connection.execute(f"SELECT name FROM pragma_table_info('{name}')").fetchall()  # noqa: S608 - test
            described[name] = (
                dict(table.columns),
                table.keys,
                sorted(table.indexes),
                sorted(columns),
                sorted(
                    (index.name, index.unique, index.columns)
                    for index in indexes_of(connection, name)
                ),
            )
        return described
    finally:
        connection.close()
