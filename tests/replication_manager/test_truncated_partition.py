"""TRUNCATE of one partition, which PostgreSQL does not publish if its root is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, settle

GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'
TABLES = (
    "CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
    "CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (100);"
    "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (100) TO (200);"
    "INSERT INTO p SELECT i, 'x' FROM generate_series(50, 150) i"
)


@pytest.mark.parametrize(
    "script",
    [
        "TRUNCATE p0",
        "TRUNCATE p0; INSERT INTO p VALUES (51, 'y')",
        "BEGIN; TRUNCATE p0; INSERT INTO p VALUES (52, 'z'); COMMIT; UPDATE p SET t = 'u'",
        "TRUNCATE p; INSERT INTO p VALUES (53, 'a')",
    ],
)
def test_rows_of_a_truncated_partition_leave(
    new_replicator: Callable[..., Replicator], run_sql: RunSql, script: str
) -> None:
    run_sql(TABLES)
    replicator = new_replicator()
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql(script)
    left = "SELECT count(*) FROM p WHERE id NOT IN (51, 52, 53) AND id < 100"
    replicator.wait_until(lambda: replicator.rows(left) == [(0,)])
    settle(replicator)
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict
    assert replicator.rows(GENERATION) == before
