"""The replication process as a whole: first start, stream, restarts."""

from __future__ import annotations

from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare

ISSUES = "CREATE TABLE issue (id int PRIMARY KEY, title text, open bool, due timestamptz);"


def test_first_start_copies_and_then_streams(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        ISSUES + "INSERT INTO issue SELECT i, 'title ' || i, i % 2 = 0, now() "
        "FROM generate_series(1, 1000) i"
    )
    replicator.start()
    assert compare(replicator) >= 1000
    run_sql("INSERT INTO issue VALUES (2000, 'new', true, now())")
    run_sql("UPDATE issue SET title = 'changed' WHERE id < 10; DELETE FROM issue WHERE id = 50")
    replicator.catch_up()
    assert compare(replicator) >= 1000
    assert replicator.stop() == 0
