"""Which schema changes begin the reading of a table anew; the oracle is upstream.

That a table is read to its end although something was announced of it is seen in the log alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import psycopg
import pytest
from psycopg import sql

from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, settle
from zerocache.failpoints import VARIABLE, Place
from zerocache.postgres.ddl import DDL_LOCK

NewReplicator = Callable[..., Replicator]
TABLES = (
    "CREATE TYPE mood AS ENUM ('sad', 'glad');"
    "CREATE TABLE t (id int PRIMARY KEY, s text NOT NULL, m mood NOT NULL);"
    "INSERT INTO t SELECT i, repeat('s', 3000) || i, 'sad' FROM generate_series(1, 4000) i;"
    "ALTER TABLE t ADD n int DEFAULT 0;"
    "CREATE PUBLICATION parts FOR TABLE t"
)
# Has the table read again: nothing but the rows has the values.
REWRITE = "ALTER TABLE t ALTER s TYPE text USING upper(s)"

# Whether the replication process only has to read what it is told.
SENT = (
    "SELECT sent_lsn >= %s FROM pg_stat_replication r JOIN pg_replication_slots s "
    "ON s.active_pid = r.pid WHERE s.database = current_database() AND NOT s.temporary"
)


@pytest.fixture
def reader(new_replicator: NewReplicator, run_sql: RunSql, app_id: str) -> Replicator:
    run_sql(TABLES)
    return new_replicator(app={"id": app_id, "publications": ("parts",)})


@contextmanager
def _held_before_its_snapshot(replicator: Replicator) -> Iterator[None]:
    """The backfill that :data:`REWRITE` causes has begun, and cannot get its snapshot."""
    url = replicator.config.upstream.db
    with psycopg.connect(url) as holding:
        # A snapshot for replication waits for all transactions under way.
        holding.execute("SELECT pg_current_xact_id()")
        with psycopg.connect(url) as upstream:
            upstream.execute(REWRITE)
        replicator.wait_until(lambda: "backfill_started" in replicator.log())
        yield


def _announced(replicator: Replicator, change: str) -> None:
    """Make the change, and wait until the replica has it."""
    url, seen = replicator.config.upstream.db, replicator.log().count("schema_changed")
    with psycopg.connect(url) as upstream:
        upstream.execute(change.encode())
        upstream.execute(
            sql.SQL("SELECT {}.update_schemas()").format(
                sql.Identifier(f"{replicator.config.app.id}_0")
            )
        )
    replicator.wait_until(lambda: replicator.log().count("schema_changed") > seen)


def _assert_equal(replicator: Replicator) -> None:
    settle(replicator)
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, (verdict, replicator.log())


HARMLESS = (
    "GRANT SELECT (id, s) ON t TO PUBLIC",
    "ALTER TABLE t ALTER s SET STATISTICS 17",
    "CREATE INDEX by_s ON t (n DESC, s)",
)


def test_what_alters_nothing_that_is_read_lets_the_reading_go_on(reader: Replicator) -> None:
    reader.start()
    with _held_before_its_snapshot(reader):
        for change in HARMLESS:
            _announced(reader, change)
    _assert_equal(reader)
    assert reader.log().count("backfill_started") == 1
    indexes = reader.rows("SELECT name FROM pragma_index_list('t')")
    assert ("by_s",) in indexes


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE t ADD d int DEFAULT 7",
        "ALTER TABLE t DROP n",
        "ALTER TABLE t RENAME n TO number",
        "ALTER TABLE t RENAME TO renamed",
        "ALTER TABLE t ALTER n TYPE bigint",
        "ALTER TABLE t ALTER s TYPE text USING md5(s)",
        "ALTER TABLE t ALTER n SET DEFAULT 8",
        "ALTER TABLE t ALTER n SET NOT NULL",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "CREATE UNIQUE INDEX ON t (s)",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "ALTER PUBLICATION parts SET TABLE t WHERE (id % 2 = 0)",
    ],
)
def test_what_may_make_rows_wrong_has_them_read_again(reader: Replicator, change: str) -> None:
    reader.start()
    with _held_before_its_snapshot(reader):
        _announced(reader, change)
        reader.wait_until(lambda: "backfill_cancelled" in reader.log())
    _assert_equal(reader)


def _change_between_its_rows(replicator: Replicator, *changes: str) -> None:
    """Make changes while some rows of the backfill that :data:`REWRITE` causes are in the replica
    and others are not; nothing is announced in between but them."""
    replicator.start(environment={VARIABLE: f"{Place.MID_BACKFILL.value}:1:stop"})
    assert replicator.process is not None
    process = psutil.Process(replicator.process.pid)
    with psycopg.connect(replicator.config.upstream.db, autocommit=True) as upstream:
        # The process must not be stopped while it has this lock.
        upstream.execute("SELECT pg_advisory_lock(%s)", [DDL_LOCK])
        upstream.execute(REWRITE)
        replicator.wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        for change in changes:
            upstream.execute(change.encode())
        row = upstream.execute("SELECT pg_current_wal_flush_lsn()::text").fetchone()
        replicator.wait_until(lambda: upstream.execute(SENT, row).fetchall() == [(True,)])
    process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("change", [HARMLESS[0], HARMLESS[2]])
def test_reading_goes_on_where_it_was(reader: Replicator, app_id: str, change: str) -> None:
    _change_between_its_rows(reader, change, f'SELECT "{app_id}_0".update_schemas()')
    _assert_equal(reader)
    told = reader.log()
    assert told.count("backfill_started") == 1
    assert told.rindex("schema_changed") < told.index("backfill_finished")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "ALTER PUBLICATION parts SET TABLE t WHERE (id % 2 = 0)",
        "CREATE UNIQUE INDEX ON t (s)",
    ],
)
def test_rows_that_were_read_already_are_read_again(reader: Replicator, change: str) -> None:
    _change_between_its_rows(reader, change)
    _assert_equal(reader)
    assert "backfill_cancelled" in reader.log()
