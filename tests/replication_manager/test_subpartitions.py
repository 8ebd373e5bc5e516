"""Partitions whose root changes, with partitions of their own: the server's walsender goes on to
take the lowest ones for parts of the old root. Oracle: ``verify``."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import psycopg
import pytest

from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, settle

GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'
TREE = (
    "CREATE SCHEMA away;"
    "CREATE TABLE root (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
    "CREATE TABLE near PARTITION OF root FOR VALUES FROM (0) TO (100);"
    "CREATE TABLE sub (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
    "CREATE TABLE leaf PARTITION OF sub FOR VALUES FROM (100) TO (200);"
)
ATTACH = "ALTER TABLE root ATTACH PARTITION sub FOR VALUES FROM (100) TO (200);"
DETACH = "ALTER TABLE root DETACH PARTITION sub;"
# The walsender has sent a row of the leaf before the change.
WARM = "INSERT INTO leaf VALUES (101, 'a'), (102, 'b'); INSERT INTO near VALUES (1, 'a')"


def assert_alike(replicator: Replicator) -> None:
    settle(replicator)
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict


@pytest.fixture
def warm(replicator: Replicator, run_sql: RunSql) -> Replicator:
    run_sql(TREE + ATTACH)
    replicator.start()
    run_sql(WARM)
    return replicator


def test_rows_after_the_detachment_of_a_partitioned_partition(
    warm: Replicator, run_sql: RunSql
) -> None:
    run_sql(DETACH)
    run_sql("INSERT INTO leaf VALUES (103, 'c'); UPDATE sub SET t = 'd' WHERE id = 101")
    run_sql("DELETE FROM leaf WHERE id = 102; INSERT INTO root VALUES (2, 'b')")
    before = warm.rows(GENERATION)
    assert_alike(warm)
    assert warm.rows("SELECT id, t FROM sub ORDER BY id") == [(101, "d"), (103, "c")]
    assert warm.rows(GENERATION) == before


def test_rows_after_the_attachment_of_a_partitioned_partition(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql(TREE)
    replicator.start()
    run_sql(WARM)
    before = replicator.rows(GENERATION)
    run_sql(ATTACH)
    run_sql("INSERT INTO leaf VALUES (103, 'c'); UPDATE leaf SET t = 'd' WHERE id = 101")
    assert_alike(replicator)
    assert replicator.rows(GENERATION) == before


def test_rows_of_the_transaction_that_detaches(warm: Replicator, run_sql: RunSql) -> None:
    run_sql(f"INSERT INTO leaf VALUES (103, 'c'); {DETACH} INSERT INTO leaf VALUES (104, 'e')")
    assert_alike(warm)


def test_rows_of_the_transaction_that_attaches(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(TREE)
    replicator.start()
    run_sql(WARM)
    run_sql(f"INSERT INTO leaf VALUES (103, 'c'); {ATTACH} INSERT INTO leaf VALUES (104, 'e')")
    assert_alike(replicator)


def test_rows_written_before_the_detachment_and_committed_after_it(
    warm: Replicator, run_sql: RunSql, database: str
) -> None:
    with psycopg.connect(database) as writer:
        # From here on it needs no lock of the root to write into the leaf.
        writer.execute("UPDATE leaf SET t = 'w' WHERE id = 101")
        writer.commit()
        writer.execute("INSERT INTO leaf VALUES (103, 'c')")
        writer.execute("UPDATE leaf SET t = 'd' WHERE id = 102")
        try:
            run_sql("SET LOCAL lock_timeout = '2s';" + DETACH)
        except psycopg.errors.LockNotAvailable:
            # Newer servers lock the lowest partitions, too: then there is no such writer.
            writer.commit()
            run_sql(DETACH)
        warm.catch_up()
        writer.commit()
    assert_alike(warm)


def test_partitions_of_a_root_that_becomes_published(
    replicator: Replicator, run_sql: RunSql
) -> None:
    """What the walsender has seen of unpublished ones it would go on to leave out."""
    run_sql(TREE + ATTACH + "ALTER TABLE root SET SCHEMA away; ALTER TABLE near SET SCHEMA away")
    run_sql("ALTER TABLE leaf SET SCHEMA away; ALTER TABLE sub SET SCHEMA away;")
    replicator.start()
    run_sql("INSERT INTO away.root VALUES (1, 'a'), (101, 'b')")
    replicator.catch_up()
    run_sql("ALTER TABLE away.root SET SCHEMA public")
    settle(replicator)
    run_sql("INSERT INTO root VALUES (2, 'c'), (102, 'd')")
    assert_alike(replicator)
    assert replicator.rows("SELECT count(*) FROM root") == [(4,)]
