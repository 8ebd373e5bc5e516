"""The initial sync: parallel copy, progress, interruptions, what is not covered by snapshots."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from replication_manager import initial_sync
from replication_manager.initial_sync import SyncSettings, run_initial_sync
from replication_manager.signals import Stopped, StopSignal
from replication_manager.table_copy import lock_tables, open_snapshot
from tests.conftest import PostgresCluster
from zerocache.errors import ReplicationError, UpstreamSetupError
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.setup import set_up_upstream
from zerocache.postgres.shard import ShardNames
from zerocache.replica.reader import load_schema, open_replica, read_state


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    signal = StopSignal()
    yield signal
    signal.close()


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def settings(database: str, app_id: str, tmp_path: Path, reports: list[str]) -> SyncSettings:
    return SyncSettings(
        url=database,
        shard=ShardNames(app_id),
        replica_file=tmp_path / "replica.db",
        workers=3,
        report=reports.append,
    )


def _prepare(settings: SyncSettings, script: str) -> None:
    with psycopg.connect(settings.url) as connection:
        connection.execute(script.encode())
    set_up_upstream(settings.url, settings.shard)


def test_more_tables_than_workers(settings: SyncSettings, stop: StopSignal) -> None:
    tables = [f"t{number}" for number in range(10)]
    _prepare(
        settings,
        "".join(
            f"CREATE TABLE {name} (id int PRIMARY KEY);"
            f"INSERT INTO {name} SELECT generate_series(1, {number * 1000});"
            for number, name in enumerate(tables)
        ),
    )
    run_initial_sync(settings, stop)
    connection = open_replica(settings.replica_file)
    for number, name in enumerate(tables):
        assert connection.execute(f"SELECT count(*) FROM {name}").fetchall() == [(number * 1000,)]
    assert set(tables) < set(load_schema(connection))
    state = read_state(connection)
    assert state.version == state.replica_version
    connection.close()


def test_progress_tells_rows_size_and_rate(
    settings: SyncSettings,
    stop: StopSignal,
    reports: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(initial_sync, "_REPORT_INTERVAL_S", 0.0)
    _prepare(settings, "CREATE TABLE t (id int PRIMARY KEY)")
    with psycopg.connect(settings.url, autocommit=True) as connection:
        connection.execute("INSERT INTO t SELECT generate_series(1, 10000)")
        connection.execute("ANALYZE t")
    run_initial_sync(settings, stop)
    copying = [line for line in reports if "rows/s" in line]
    assert any("of about 10,00" in line for line in copying)
    assert any("copied 10,001 rows" in line for line in reports)


def test_stop_ends_the_copy_and_leaves_nothing(
    settings: SyncSettings, stop: StopSignal, postgres: PostgresCluster
) -> None:
    _prepare(settings, "CREATE TABLE t AS SELECT repeat('x', 100) FROM generate_series(1, 50000)")
    stop.set()
    with pytest.raises(Stopped):
        run_initial_sync(settings, stop)
    assert list(settings.replica_file.parent.iterdir()) == []
    slots = "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    assert postgres.psql(slots, settings.shard.slot_prefix) == [(0,)]


def test_tables_rewritten_after_the_snapshot_are_noticed(
    settings: SyncSettings, database: str
) -> None:
    _prepare(settings, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    with psycopg.connect(database) as exporter:
        exporter.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        row = exporter.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        with psycopg.connect(database) as other:
            other.execute("ALTER TABLE t ALTER id TYPE bigint")
        with open_snapshot(database, "test", row[0]) as connection:
            schema = read_published_schema(connection, settings.shard.all_publications)
            # What the check is for: the snapshot says the table is empty.
            assert connection.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
            with pytest.raises(ReplicationError, match="rewritten"):
                lock_tables(connection, schema.tables)


def test_inherited_rows_are_copied_once(settings: SyncSettings, stop: StopSignal) -> None:
    _prepare(
        settings,
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);"
        "INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2)",
    )
    run_initial_sync(settings, stop)
    connection = open_replica(settings.replica_file)
    assert connection.execute("SELECT id FROM parent").fetchall() == [(1,)]
    assert connection.execute("SELECT id FROM child").fetchall() == [(2,)]
    connection.close()


def test_row_security_is_an_error_not_missing_rows(
    settings: SyncSettings, stop: StopSignal, postgres: PostgresCluster, database: str, app_id: str
) -> None:
    name = database.rsplit("/", 1)[1]
    _prepare(
        settings,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);"
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
    )
    postgres.psql(f"CREATE ROLE {app_id} LOGIN REPLICATION")
    for schema in ("public", app_id, f"{app_id}_0"):
        postgres.psql(f"GRANT ALL ON SCHEMA {schema} TO {app_id}", database=name)
        postgres.psql(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {app_id}", database=name)
    postgres.psql(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {app_id}_0 TO {app_id}", database=name)
    limited = SyncSettings(
        url=postgres.url_of(name, app_id),
        shard=settings.shard,
        replica_file=settings.replica_file,
        workers=1,
    )
    with pytest.raises(UpstreamSetupError, match="row security"):
        run_initial_sync(limited, stop)
    postgres.psql(f"DROP OWNED BY {app_id}", database=name)
    postgres.psql(f"DROP ROLE {app_id}")


def test_the_claim_is_finished_when_nothing_slow_is_left(
    settings: SyncSettings, stop: StopSignal
) -> None:
    """A process killed while it builds indexes must leave a slot that is dropped."""
    _prepare(settings, "CREATE TABLE t (id int PRIMARY KEY); CREATE INDEX ON t (id DESC)")
    unfinished: dict[str, int] = {}

    def report(line: str) -> None:
        with psycopg.connect(settings.url) as connection:
            row = connection.execute(
                sql.SQL('SELECT count(*) FROM {} WHERE "initialSyncContext" IS NULL').format(
                    sql.Identifier(settings.shard.shard_schema, "replicas")
                )
            ).fetchone()
        assert row is not None
        unfinished[line] = row[0]

    run_initial_sync(replace(settings, report=report), stop)
    late = [line for line in unfinished if "index" in line or "statistics" in line]
    assert len(late) >= 3
    assert {unfinished[line] for line in late} == {1}


@pytest.fixture
def waiting_truncate(database: str) -> Iterator[Callable[[], None]]:
    """Starts a TRUNCATE of the table ``a`` that has to wait; returns once it waits."""
    with ThreadPoolExecutor(1) as pool, psycopg.connect(database, autocommit=True) as observer:

        def truncate() -> None:
            with psycopg.connect(database) as connection:
                connection.execute("TRUNCATE a")

        started: list[Future[None]] = []

        def start() -> None:
            started.append(pool.submit(truncate))
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'a'::regclass"
            while observer.execute(waiting).fetchall() != [(1,)]:
                assert not started[0].done()

        yield start
    for one in started:
        one.result()


def test_whoever_waits_for_a_table_does_not_stop_the_copy(
    settings: SyncSettings,
    stop: StopSignal,
    monkeypatch: pytest.MonkeyPatch,
    waiting_truncate: Callable[[], None],
) -> None:
    """A reader on a second connection would queue behind it, and it behind the first one."""
    tables = ("a", "b", "c")
    _prepare(
        settings,
        "".join(
            f"CREATE TABLE {name} (id int PRIMARY KEY);"
            f"INSERT INTO {name} SELECT generate_series(1, 1000);"
            for name in tables
        ),
    )

    def lock_and_be_waited_for(connection: Any, published: Any) -> None:
        lock_tables(connection, published)
        waiting_truncate()

    monkeypatch.setattr(initial_sync, "lock_tables", lock_and_be_waited_for)
    run_initial_sync(settings, stop)
    replica = open_replica(settings.replica_file)
    for name in tables:
        assert replica.execute(f"SELECT count(*) FROM {name}").fetchall() == [(1000,)]
    replica.close()
