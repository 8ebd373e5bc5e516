"""The change log of whole replication processes: what it holds, who owns it, what it survives."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from replication_manager.change_db import ChangeDb, LogState
from replication_manager.change_log import QUEUE_BYTES_AT_MOST, queue_bytes
from replication_manager.segments import read_messages
from replication_manager.verify import verify
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import TIMEOUT_S, Replicator, compare
from tests.replication_manager.test_crash import TABLES, write_load
from zerocache.failpoints import VARIABLE, Place
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn, lsn_from_text, lsn_from_watermark

NewReplicator = Callable[..., Replicator]


@pytest.fixture
def other() -> Iterator[PostgresCluster]:
    """Another server than upstream's, which a test may stop."""
    cluster = make_cluster(wal_level="replica", max_replication_slots="0")
    yield cluster
    destroy_cluster(cluster)


def read_log(replicator: Replicator) -> tuple[LogState, list[int]]:
    """The state of the log, and the LSN of each transaction in it."""
    config = replicator.config
    db = ChangeDb(config.change.db, ShardNames(config.app.id), "test", 20_000)
    try:
        state = db.state()
        assert state is not None
        messages = read_messages(db.parts_after(Lsn(0), state.last))
        begun = [message for message in messages if message[:1] == b"B"]
        return state, [int.from_bytes(message[1:9], "big") for message in begun]
    finally:
        db.close()


def confirmed(replicator: Replicator, postgres: PostgresCluster) -> int:
    rows = postgres.psql(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots "
        "WHERE starts_with(slot_name, %s)",
        replicator.config.app.id,
    )
    return lsn_from_text(rows[0][0])


def generation(replicator: Replicator) -> str:
    return str(replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')[0][0])


def applied(replicator: Replicator) -> list[int]:
    rows = replicator.rows('SELECT DISTINCT version FROM "_zero.changeLog"')
    return sorted(lsn_from_watermark(version) for (version,) in rows)


def test_every_transaction_of_the_stream_is_in_the_log(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    with write_load(database, seed=3):
        threading.Event().wait(1.5)
        run_sql("ALTER TABLE account ADD COLUMN extra int DEFAULT 3")
    replicator.catch_up()
    replicator.stop()
    state, stored = read_log(replicator)
    assert state.replica_version == generation(replicator)
    assert stored == sorted(set(stored))
    assert set(applied(replicator)) <= set(stored)
    assert state.last == stored[-1] == lsn_from_watermark(replicator.state_version())


def test_upstream_is_never_told_more_than_the_log_has(
    replicator: Replicator, run_sql: RunSql, database: str, postgres: PostgresCluster
) -> None:
    run_sql(TABLES)
    replicator.start()
    samples: list[tuple[int, LogState]] = []
    with write_load(database, seed=4):
        # A busy machine may take its time with the first acknowledgement.
        while len(samples) < 25 or samples[-1][0] == samples[0][0]:
            threading.Event().wait(0.03)
            # In this order: the log may only move on in between.
            told = confirmed(replicator, postgres)
            samples.append((told, read_log(replicator)[0]))
    replicator.catch_up()
    for told, state in samples:
        assert told <= max(state.last, state.reached)
    assert samples[-1][0] > samples[0][0]


@pytest.mark.parametrize("place", [Place.BEFORE_STORE, Place.STORED, Place.DURABLE])
def test_killed_between_replica_and_log(
    replicator: Replicator, run_sql: RunSql, database: str, place: Place
) -> None:
    run_sql(TABLES)
    replicator.start()
    before = generation(replicator)
    replicator.stop()
    with write_load(database, seed=5):
        for times in (1, 7):
            replicator.start(wait=False, environment={VARIABLE: f"{place.value}:{times}"})
            assert replicator.process is not None
            replicator.process.wait(TIMEOUT_S)
            replicator.kill()
    replicator.start()
    assert verify(database, replicator.file).is_equal
    replicator.stop()
    assert generation(replicator) == before
    state, stored = read_log(replicator)
    assert stored == sorted(set(stored))
    assert set(applied(replicator)) <= set(stored)
    assert state.last == stored[-1]


def test_a_lost_end_of_the_replica_is_found_in_the_log(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    """As after a power failure: commits of the replica that were not synced are gone."""
    run_sql(TABLES)
    replicator.start()
    before = generation(replicator)
    with write_load(database, seed=6):
        threading.Event().wait(0.5)
        replicator.stop()
    copy = replicator.file.read_bytes()
    replicator.start()
    with write_load(database, seed=7):
        threading.Event().wait(0.5)
        run_sql("CREATE TABLE label (id int PRIMARY KEY, name text)")
        run_sql("INSERT INTO label VALUES (1, 'x')")
        run_sql("ALTER TABLE label RENAME COLUMN name TO title")
        run_sql("INSERT INTO label SELECT i, 'y' FROM generate_series(2, 20000) i")
    replicator.catch_up()
    version = lsn_from_watermark(replicator.state_version())
    replicator.wait_until(lambda: read_log(replicator)[0].last >= version)
    replicator.kill()
    replicator.file.write_bytes(copy)
    Path(f"{replicator.file}-wal").unlink(missing_ok=True)
    Path(f"{replicator.file}-shm").unlink(missing_ok=True)
    replicator.start()
    # Before anybody was told of it.
    assert lsn_from_watermark(replicator.state_version()) >= version
    assert "change_log_replayed" in replicator.log()
    assert verify(database, replicator.file).is_equal
    assert generation(replicator) == before


def test_a_second_manager_takes_over_under_load(
    new_replicator: NewReplicator, run_sql: RunSql, database: str
) -> None:
    """Back and forth between two machines, each with its own, older copy of the replica."""
    run_sql(TABLES)
    first = new_replicator()
    second = new_replicator(app=first.config.app.id)
    first.start()
    before = generation(first)
    second.file.write_bytes(first.file.read_bytes())
    rng = random.Random(8)
    with write_load(database, seed=8):
        for _ in range(2):
            for new, old in ((second, first), (first, second)):
                threading.Event().wait(rng.uniform(0.2, 0.6))
                new.start()
                assert old.next_message("fatal")["exit"] == 14
                assert old.process is not None
                assert old.process.wait(TIMEOUT_S) == 14
                old.kill()
    assert verify(database, first.file).is_equal
    first.stop()
    assert generation(first) == generation(second) == before
    state, stored = read_log(first)
    assert state.owner == first.config.task_id
    assert stored == sorted(set(stored))
    assert set(applied(first)) <= set(stored)


def test_the_log_may_live_on_another_server_that_goes_away(
    new_replicator: NewReplicator, run_sql: RunSql, database: str, other: PostgresCluster
) -> None:
    run_sql(TABLES)
    replicator = new_replicator(change={"db": other.url})
    replicator.start()
    before = generation(replicator)
    run_sql("INSERT INTO plain VALUES (1)")
    replicator.catch_up()
    told = read_log(replicator)[0].last
    other.stop()
    with write_load(database, seed=9):
        replicator.wait_until(lambda: "change database failed" in replicator.log())
        threading.Event().wait(0.3)
    assert replicator.process is not None
    assert replicator.process.poll() is None
    other.start()
    assert verify(database, replicator.file).is_equal
    replicator.stop()
    assert generation(replicator) == before
    state, stored = read_log(replicator)
    assert state.last > told
    assert set(applied(replicator)) <= set(stored)


@pytest.mark.parametrize(
    ("share", "rows", "row_bytes", "at_most"),
    [(0, 100_000, 500, 50_000), (1, 20_000, 8_000, QUEUE_BYTES_AT_MOST // 8_000 * 1.25)],
    ids=["least", "all of the memory"],
)
def test_memory_is_bounded_while_the_change_database_stands_still(
    new_replicator: NewReplicator,
    run_sql: RunSql,
    database: str,
    other: PostgresCluster,
    postgres: PostgresCluster,
    share: float,
    rows: int,
    row_bytes: int,
    at_most: float,
) -> None:
    run_sql("CREATE TABLE big (id int PRIMARY KEY, t text)")
    replicator = new_replicator(
        change={"db": other.url},
        change_streamer={"back_pressure_limit_heap_proportion": share},
    )
    replicator.start()
    told = confirmed(replicator, postgres)
    cdc = f'"{replicator.config.cdc_schema}"'
    with psycopg.connect(other.url) as blocker:
        blocker.execute(f'LOCK TABLE {cdc}."replicationState" IN ACCESS EXCLUSIVE MODE'.encode())
        for start in range(0, rows, rows // 20):
            run_sql(
                f"INSERT INTO big SELECT i, repeat('x', {row_bytes}) "
                f"FROM generate_series({start}, {start + rows // 20 - 1}) i"
            )
        replicator.wait_until(lambda: "replication_waits_for_change_db" in replicator.log())
        # The replica has some of it, upstream was told nothing of that.
        assert 0 < replicator.rows("SELECT count(*) FROM big")[0][0] < at_most
        assert confirmed(replicator, postgres) < told + 100_000
        assert replicator.process is not None
        status = Path(f"/proc/{replicator.process.pid}/status").read_text()
        peak_kb = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
        assert peak_kb < 200_000 + queue_bytes(share, 2**40) // 1024
    replicator.catch_up()
    assert compare(replicator) >= rows


def test_much_memory_is_no_reason_to_queue_much() -> None:
    mib = 1024 * 1024
    assert queue_bytes(0.04, 24 * 1024 * mib) == QUEUE_BYTES_AT_MOST == 64 * mib
    assert queue_bytes(0.04, 512 * mib) < 21 * mib
    assert queue_bytes(0.04, mib) == 4 * mib


def test_a_lost_change_database_costs_no_replica(
    new_replicator: NewReplicator, run_sql: RunSql, database: str
) -> None:
    run_sql(TABLES)
    replicator = new_replicator()
    replicator.start()
    before = generation(replicator)
    run_sql("INSERT INTO plain VALUES (1)")
    replicator.catch_up()
    replicator.stop()
    run_sql(f'DROP SCHEMA "{replicator.config.cdc_schema}" CASCADE')
    run_sql("INSERT INTO plain VALUES (2)")
    replicator.start()
    assert verify(database, replicator.file).is_equal
    replicator.stop()
    assert generation(replicator) == before
    state, stored = read_log(replicator)
    assert state.last == stored[-1]


def test_a_large_transaction_is_in_the_log_as_a_whole(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql("CREATE TABLE big (id int PRIMARY KEY, t text)")
    replicator.start()
    replicator.stop()
    copy = replicator.file.read_bytes()
    replicator.start()
    run_sql(
        "INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 50000) i;"
        "INSERT INTO big VALUES (0, repeat('large', 1000000))"
    )
    replicator.catch_up()
    replicator.stop()
    replicator.file.write_bytes(copy)
    replicator.start()
    assert replicator.rows("SELECT count(*), max(length(t)) FROM big") == [(50_001, 5_000_000)]
    assert verify(database, replicator.file).is_equal


def test_an_unreachable_change_database_is_explained(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql(TABLES)
    replicator = new_replicator(change={"db": postgres.url_of("no_such_database")})
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert "no_such_database" in message["message"]
    assert message["exit"] == 78


def test_a_publication_of_the_change_log_itself_is_refused(
    new_replicator: NewReplicator, run_sql: RunSql, database: str, app_id: str
) -> None:
    run_sql(TABLES + "CREATE PUBLICATION everything FOR ALL TABLES")
    replicator = new_replicator(app={"id": app_id, "publications": ("everything",)})
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert "ZC244" in message["message"]
    assert "FOR ALL TABLES" in message["message"]
    with psycopg.connect(database) as connection:
        query = "SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, %s)"
        assert connection.execute(query, [app_id]).fetchone() == (0,)
