"""What whole replication processes do about a slot in danger, a lost one, and a silent network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg
import pytest

from replication_manager.verify import verify
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare
from tests.replication_manager.proxy import Proxy

NewReplicator = Callable[..., Replicator]
TABLE = "CREATE TABLE issue (id int PRIMARY KEY, title text)"
OFTEN = {"report_interval_ms": 200}


@pytest.fixture
def small() -> Iterator[PostgresCluster]:
    """A server that keeps little WAL for slots."""
    cluster = make_cluster(max_slot_wal_keep_size="48MB", max_wal_size="32MB", min_wal_size="32MB")
    yield cluster
    destroy_cluster(cluster)


def figures(replicator: Replicator) -> dict[str, Any]:
    """What the process says of itself, asked as the supervisor does."""
    assert replicator.control is not None
    replicator.control.send(b'{"type":"figures","request":1}')
    answer: dict[str, Any] = replicator.next_message("figures")["values"]
    return answer


def slots(postgres: PostgresCluster, replicator: Replicator) -> list[str]:
    query = "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    return [name for (name,) in postgres.psql(query, replicator.config.app.id)]


def generation(replicator: Replicator) -> str:
    return str(replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')[0][0])


def test_slot_lag_and_position_are_shown(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql(TABLE)
    replicator = new_replicator(replication_lag=OFTEN)
    replicator.start()
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    replicator.catch_up()
    shown: dict[str, Any] = {}

    def is_complete() -> bool:
        """What is shown comes from several threads, one after the other."""
        shown.update(figures(replicator))
        metrics, slot = shown["metrics"], shown["slot"]
        stored = metrics.get("replication.stored_bytes", 0)
        return bool(slot and slot["active"] and stored and "replication.last_total_lag" in metrics)

    replicator.wait_until(is_complete)
    assert shown["slot"]["slot"] == slots(postgres, replicator)[0]
    assert shown["slot"]["status"] == "ok"
    assert shown["slot"]["problem"] is None
    metrics = shown["metrics"]
    assert metrics["replication.slot_health{status=ok}"] == 1
    assert metrics["replication.slot_health{status=lost}"] == 0
    assert 0 <= metrics["replication.last_total_lag"] < 30_000
    assert metrics["replication.stored_bytes"] > 0
    assert metrics["replication.slot_wal_status{status=reserved}"] == 1
    assert metrics["replication.slot_inactive_seconds"] >= 0
    assert metrics["replication.initial_sync_runs{result=success}"] == 1
    kinds = {one["name"]: one["kind"] for one in shown["series"]}
    assert kinds["replication.slot_lag_bytes"] == "gauge"
    assert kinds["replication.stored_bytes"] == "counter"
    assert "/" in shown["lsn"]


def test_a_dropped_slot_ends_in_one_new_sync(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster, database: str
) -> None:
    run_sql(TABLE)
    replicator.start()
    before = generation(replicator)
    (slot,) = slots(postgres, replicator)
    # Its walsender returns at once, unless it is dropped in the same moment.
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for _ in range(100):
            connection.execute(
                "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots "
                "WHERE slot_name = %s",
                [slot],
            )
            try:
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
                break
            except psycopg.errors.ObjectInUse:
                continue
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    replicator.wait_until(lambda: generation(replicator) > before)
    assert verify(database, replicator.file).is_equal
    assert replicator.log().count("initial_sync_finished") == 2


def test_danger_is_told_before_the_slot_is_lost_and_then_one_sync_follows(
    new_replicator: NewReplicator, small: PostgresCluster, postgres: PostgresCluster
) -> None:
    """The change database stands still, so nothing can be acknowledged."""
    small.psql(TABLE)
    other = postgres.create_database()
    replicator = new_replicator(
        url=small.url, change={"db": postgres.url_of(other)}, replication_lag=OFTEN
    )
    written = 0

    def write(until: Callable[[], bool]) -> None:
        nonlocal written
        query = (
            "INSERT INTO issue SELECT i, repeat('x', 900) FROM generate_series(%s::int, %s::int) i"
        )
        while not until():
            assert written < 400_000
            small.psql(query, written, written + 1_999)
            written += 2_000
            # A writer that outran the looks would lose the slot before anybody could warn.
            (retained,) = small.psql(
                "SELECT max(pg_current_wal_lsn() - restart_lsn)::int8 FROM pg_replication_slots"
            )[0]
            replicator.wait_until(partial(has_seen, retained))

    def has_seen(retained: int) -> bool:
        if "slot_in_danger" in replicator.log():
            return True
        slot = figures(replicator)["slot"]
        return slot is not None and bool(slot["retained_bytes"] >= retained)

    def is_lost() -> bool:
        small.psql("CHECKPOINT")
        return bool(small.psql("SELECT 1 FROM pg_replication_slots WHERE wal_status = 'lost'"))

    try:
        replicator.start()
        before = generation(replicator)
        table = f'"{replicator.config.cdc_schema}"."replicationState"'
        with psycopg.connect(postgres.url_of(other)) as blocker:
            blocker.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
            write(lambda: "slot_in_danger" in replicator.log())
            write(is_lost)
        replicator.wait_until(lambda: generation(replicator) > before)
        replicator.catch_up()
        assert compare(replicator) >= written
        log = replicator.log()
        assert "bytes of WAL are left" in log or "next checkpoint" in log
        assert log.count("initial_sync_finished") == 2
    finally:
        replicator.kill()
        postgres.drop_database(other)


def test_a_silent_network_is_noticed_and_the_stream_begun_again(
    new_replicator: NewReplicator, run_sql: RunSql, proxy: Proxy, proxied_url: str, database: str
) -> None:
    run_sql(TABLE)
    replicator = new_replicator(
        url=proxied_url,
        upstream={"db": proxied_url, "pg_stream_inbound_timeout_ms": 2_000},
        change={"db": database},
        replication_lag=OFTEN,
    )
    replicator.start()
    before = generation(replicator)
    proxy.freeze()
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    replicator.wait_until(lambda: "replication_stream_silent" in replicator.log())
    replicator.wait_until(lambda: replicator.rows("SELECT id FROM issue") == [(1,)])
    assert generation(replicator) == before
    assert replicator.stop() == 0
