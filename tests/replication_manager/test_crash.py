"""What is left after kill -9 at random moments: nothing lost, nothing applied twice."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.conftest import PostgresCluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare
from zerocache.protocol.versions import lsn_from_text, lsn_from_watermark

TABLES = """
CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL, note text);
CREATE TABLE event (id bigserial PRIMARY KEY, account int, at timestamptz DEFAULT now());
CREATE TABLE plain (n int);
INSERT INTO account SELECT i, 100, 'x' FROM generate_series(1, 50) i;
"""


def _write(url: str, stop: threading.Event, seed: int) -> None:
    """Small and middling transactions: moves, inserts, deletes, key changes, rollbacks."""
    rng = random.Random(seed)
    with psycopg.connect(url, autocommit=True) as connection:
        while not stop.is_set():
            a, b = rng.randint(1, 50), rng.randint(1, 50)
            with connection.transaction(force_rollback=rng.random() < 0.1):
                connection.execute("UPDATE account SET balance = balance - 1 WHERE id = %s", [a])
                connection.execute("UPDATE account SET balance = balance + 1 WHERE id = %s", [b])
                connection.execute(
                    "INSERT INTO event (account) SELECT %s FROM generate_series(1, %s)",
                    [a, rng.choice([1, 2, 300])],
                )
                connection.execute("INSERT INTO plain VALUES (%s)", [a])
                if rng.random() < 0.2:
                    connection.execute("DELETE FROM event WHERE id %% 7 = %s", [a % 7])
                if rng.random() < 0.05:
                    connection.execute("UPDATE event SET id = -id WHERE account = %s", [b])


@contextmanager
def write_load(url: str, seed: int) -> Iterator[None]:
    stop = threading.Event()
    writer = threading.Thread(target=_write, args=(url, stop, seed))
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join()


def _confirmed(postgres: PostgresCluster, app_id: str) -> int:
    rows = postgres.psql(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots "
        "WHERE starts_with(slot_name, %s)",
        app_id,
    )
    return lsn_from_text(rows[0][0])


def test_nothing_is_lost_or_doubled_by_kill(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    generation = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    with write_load(database, seed):
        for _ in range(5):
            threading.Event().wait(rng.uniform(0.05, 0.6))
            replicator.kill()
            replicator.start()
    replicator.catch_up()
    assert compare(replicator) > 50, f"seed {seed}"
    # It went on from where it was; it did not start over.
    assert replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') == generation
    log = replicator.rows('SELECT count(*), max(pos) FROM "_zero.changeLog"')
    state = replicator.rows('SELECT logPos, logFloor FROM "_zero.replicationState"')
    assert log[0] == (state[0][0] - state[0][1], state[0][0])


def test_upstream_is_never_told_more_than_the_replica_has(
    replicator: Replicator, run_sql: RunSql, database: str, postgres: PostgresCluster
) -> None:
    run_sql(TABLES)
    replicator.start()
    samples: list[tuple[int, int]] = []
    with write_load(database, seed=1):
        # A busy machine may take its time with the first acknowledgement.
        while len(samples) < 30 or samples[-1][1] == samples[0][1]:
            threading.Event().wait(0.03)
            # Read in this order: the replica may only move on in between.
            confirmed = _confirmed(postgres, replicator.config.app.id)
            samples.append((lsn_from_watermark(replicator.state_version()), confirmed))
    replicator.catch_up()
    assert samples[-1][1] > samples[0][1]
    versions = replicator.rows('SELECT DISTINCT version FROM "_zero.changeLog"')
    committed = sorted(lsn_from_watermark(version) for (version,) in versions)
    # Keepalives may move the slot past WAL that is not ours, never past a transaction.
    for had, confirmed in samples:
        assert not [lsn for lsn in committed if had < lsn <= confirmed]


def test_acknowledgements_follow_the_commits(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql(TABLES)
    replicator.start()
    run_sql("UPDATE account SET note = 'y'")
    replicator.catch_up()
    reached = lsn_from_watermark(replicator.state_version())
    replicator.wait_until(lambda: _confirmed(postgres, replicator.config.app.id) >= reached)


def test_killed_initial_sync_starts_over(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql("CREATE TABLE big (id int PRIMARY KEY, t text)")
    run_sql("INSERT INTO big SELECT i, repeat('x', 200) FROM generate_series(1, 100000) i")
    partial = Path(f"{replicator.file}.initial-sync")
    for _ in range(3):
        replicator.start(wait=False)
        replicator.wait_until(partial.exists)
        replicator.kill()
    assert not replicator.file.exists()
    replicator.start()
    assert compare(replicator) >= 100_000
    assert not partial.exists()
    # The slots of the attempts that died are gone; nothing pins WAL but ours.
    slots = "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    assert postgres.psql(slots, replicator.config.app.id) == [(1,)]


def test_stop_is_obeyed_inside_a_huge_transaction(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql("CREATE TABLE big (id int PRIMARY KEY, t text)")
    replicator.start()
    before = replicator.state_version()
    run_sql("INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 800000) i")
    # The replica's log file grows as soon as rows arrive.
    wal = Path(f"{replicator.file}-wal")
    replicator.wait_until(lambda: wal.stat().st_size > 1_000_000)
    assert replicator.stop() == 0
    # It did not wait for the end of the transaction.
    assert replicator.state_version() == before


def test_columns_called_like_row_numbers(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE r (rowid int, oid_ int, id int PRIMARY KEY); INSERT INTO r VALUES (5,6,7)"
    )
    replicator.start()
    run_sql("UPDATE r SET rowid = 50; INSERT INTO r VALUES (8, 8, 8)")
    run_sql("DELETE FROM r WHERE id = 8")
    replicator.catch_up()
    assert compare(replicator)
    logged = replicator.rows('SELECT DISTINCT row FROM "_zero.changeLog" WHERE "table" = \'r\'')
    assert sorted(logged) == [(1,), (2,)]
