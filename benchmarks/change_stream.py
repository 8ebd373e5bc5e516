"""The stream into replica and change log: a backlog of single-row transactions, without clients.

A replication process is stopped, transactions are committed meanwhile, then it is started again:
how many per second reach the replica, and the change log, with the change database upstream and on
a server of its own. Nothing but PostgreSQL limits the writer, so the figure is the process' own
speed on a machine that decodes the WAL at the same time. The comparison with the reference server
is in replication.py. Options: ``--quick``.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from benchmarks.cluster import Cluster
from zerocache.config import Config
from zerocache.control import CONTROL_FD_VARIABLE, RUNTIME_DIR_VARIABLE
from zerocache.protocol.versions import lsn_from_text, lsn_from_watermark
from zerocache.replica.reader import open_replica, read_state

_TRANSACTIONS = 60_000
_QUICK_TRANSACTIONS = 10_000
_APP = "bench"
_POLL_S = 0.05
_LIMIT_S = 600.0
_SCHEMA = """
CREATE TABLE item (id int PRIMARY KEY, title text, votes int, at timestamptz DEFAULT now());
INSERT INTO item SELECT i, 'title ' || i, 0 FROM generate_series(1, 1000) i;
CREATE PROCEDURE write(count int) LANGUAGE plpgsql AS $$
BEGIN
    FOR n IN 1..count LOOP
        UPDATE item SET votes = n WHERE id = n % 1000 + 1;
        COMMIT;
    END LOOP;
END $$;
"""


def measure(upstream: Cluster, change: Cluster, count: int, name: str) -> str:
    """One line of the report."""
    url = upstream.create_database(name)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_SCHEMA)
    with tempfile.TemporaryDirectory(prefix="zerocache-bench-") as folder:
        config = Config.model_validate(
            {
                "upstream": {"db": url},
                "change": {"db": change.url(name)},
                "app": {"id": f"{_APP}_{name}"},
                "replica": {"file": f"{folder}/replica.db"},
                "development": True,
            }
        )
        with _running(config, folder):
            pass
        end = _write(url, count)
        with _running(config, folder) as process:
            began = time.monotonic()
            replica_s = _until(began, lambda: _replica_position(config) >= end)
            log_s = _until(began, lambda: _log_position(config) >= end)
            cpu_s = _cpu_s(process.pid)
    return (
        f"{name:12} {count} transactions: replica {count / replica_s:,.0f} tx/s, "
        f"change log {count / log_s:,.0f} tx/s, {1e6 * cpu_s / count:.0f} us of CPU each"
    )


@contextmanager
def _running(config: Config, folder: str) -> Iterator[subprocess.Popen[bytes]]:
    """A replication process that is ready."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environ = {
        **os.environ,
        **config.to_environment(),
        CONTROL_FD_VARIABLE: str(theirs.fileno()),
        RUNTIME_DIR_VARIABLE: folder,
    }
    with theirs, Path(folder, "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "replication_manager"],
            env=environ, pass_fds=(theirs.fileno(),), stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while b'"ready"' not in (packet := ours.recv(65536)):
            if not packet:
                raise RuntimeError(Path(folder, "log").read_text())
        yield process
    finally:
        process.terminate()
        process.wait(60)
        ours.close()


def _write(url: str, count: int) -> int:
    """Commit the transactions; the position behind them."""
    with psycopg.connect(url, autocommit=True) as connection:
        # Otherwise each COMMIT waits for its flush, and the writer would be what is measured.
        connection.execute("SET synchronous_commit = off")
        connection.execute("CALL write(%s)", [count])
        connection.execute("SET synchronous_commit = on")
        row = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        connection.execute("UPDATE item SET votes = -1 WHERE id = 1")
    assert row is not None
    return lsn_from_text(row[0])


def _until(began: float, condition: Callable[[], bool]) -> float:
    while not condition():
        if time.monotonic() - began > _LIMIT_S:
            raise TimeoutError("the stream did not catch up")
        select.select([], [], [], _POLL_S)
    return time.monotonic() - began


def _replica_position(config: Config) -> int:
    connection = open_replica(Path(config.replica.file))
    try:
        return lsn_from_watermark(read_state(connection).version)
    finally:
        connection.close()


def _log_position(config: Config) -> int:
    with psycopg.connect(config.change.db) as connection:
        table = psycopg.sql.Identifier(config.cdc_schema, "replicationState")
        query = psycopg.sql.SQL('SELECT "lastWatermark" FROM {}').format(table)
        row = connection.execute(query).fetchone()
    return lsn_from_watermark(row[0]) if row else 0


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    count = _QUICK_TRANSACTIONS if parser.parse_args().quick else _TRANSACTIONS
    with ExitStack() as stack:
        upstream, other = (stack.enter_context(Cluster()) for _ in range(2))
        other.create_database("elsewhere")
        print(measure(upstream, upstream, count, "upstream"), flush=True)
        print(measure(upstream, other, count, "elsewhere"), flush=True)


if __name__ == "__main__":
    main()
