"""Which changes of the published schema make a replica useless, and which do not."""

from __future__ import annotations

import threading

import psycopg
import pytest

from replication_manager.schema_drift import schema_differences
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare, settle
from zerocache.postgres.introspection import read_published_schema
from zerocache.replica.layout import facts_of

_TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE t (id int PRIMARY KEY, m mood, ms mood[], n numeric(10, 4), at timestamp(6), s text);
ALTER TABLE t ADD d int DEFAULT 7;
CREATE TABLE parted (id int, part int, PRIMARY KEY (id, part)) PARTITION BY LIST (part);
CREATE TABLE part1 PARTITION OF parted FOR VALUES IN (1);
CREATE SCHEMA hidden;
CREATE TABLE hidden.part2 (id int NOT NULL, part int NOT NULL);
CREATE PUBLICATION p FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true);
CREATE PUBLICATION q FOR TABLE t WHERE (id > 0);
"""


def _differences(database: str, *changes: str) -> list[str]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(_TABLES.encode())
        facts = facts_of(read_published_schema(connection, ("p", "q")))
        for change in changes:
            connection.execute(change.encode())
        now = read_published_schema(connection, ("p", "q"))
        return schema_differences({one.table.wire_name: one for one in facts}, now)


@pytest.mark.parametrize(
    "change",
    [
        # Rows are not sent again for any of these.
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "ALTER TABLE t ALTER n TYPE numeric(10, 1)",
        "ALTER TABLE t ALTER at TYPE timestamp(0)",
        "ALTER TABLE t ALTER s TYPE text USING upper(s)",
        # The values that older rows have in it are in the catalogue, or were.
        "ALTER TABLE t ALTER d TYPE int USING d + 1",
        "VACUUM FULL t; ALTER TABLE t ALTER d TYPE int USING d + 1",
        "ALTER TABLE t ALTER d TYPE int USING d + 1; VACUUM FULL t",
        "ALTER TABLE parted DETACH PARTITION part1",
        "DROP TABLE part1",
        "ALTER TABLE parted ATTACH PARTITION hidden.part2 FOR VALUES IN (2)",
        # In between, rows were not sent at all.
        "DROP PUBLICATION q; CREATE PUBLICATION q FOR TABLE t WHERE (id > 0)",
        "ALTER PUBLICATION q DROP TABLE t; ALTER PUBLICATION q ADD TABLE t WHERE (id > 0)",
        "ALTER PUBLICATION q SET (publish = 'insert')",
    ],
)
def test_what_the_stream_does_not_carry_is_a_difference(database: str, change: str) -> None:
    assert _differences(database, *change.split("; "))


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TYPE mood ADD VALUE 'great'",
        "ALTER TYPE mood ADD VALUE 'awful' BEFORE 'sad'",
        "ALTER TABLE t ALTER s SET DEFAULT 'x'",
        "ALTER TABLE t ALTER s SET STATISTICS 500",
        "INSERT INTO t VALUES (1); TRUNCATE t",
        "INSERT INTO t VALUES (1); VACUUM FULL t",
        "GRANT SELECT (s) ON t TO PUBLIC",
        "ANALYZE",
        "CREATE INDEX ON t (s)",
        "CREATE TABLE part3 PARTITION OF parted FOR VALUES IN (3)",
        "TRUNCATE parted",
        "ALTER TABLE hidden.part2 ADD COLUMN more int",
        "COMMENT ON TABLE t IS 'nothing'",
    ],
)
def test_what_leaves_all_rows_as_they_are_is_none(database: str, change: str) -> None:
    assert _differences(database, *change.split("; ")) == []


def test_uniqueness_given_up_displaces_no_row(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE u (id int PRIMARY KEY, name text); CREATE UNIQUE INDEX name ON u (name);"
        "INSERT INTO u VALUES (1, 'same')"
    )
    replicator.start()
    run_sql("INSERT INTO u VALUES (3, 'makes the relation known')")
    replicator.catch_up()
    run_sql("DROP INDEX name; INSERT INTO u VALUES (2, 'same')")
    settle(replicator)
    assert replicator.rows("SELECT id FROM u WHERE name = 'same' ORDER BY id") == [(1,), (2,)]
    assert compare(replicator) >= 3


def test_publication_made_anew_is_copied(replicator: Replicator, run_sql: RunSql) -> None:
    """What happened between DROP and CREATE is not in the stream, whoever looks when."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION parts FOR TABLE t")
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("parts",)})}
    )
    replicator.start()
    replicator.stop()
    run_sql("INSERT INTO t VALUES (1)")
    run_sql("DROP PUBLICATION parts")
    run_sql("INSERT INTO t VALUES (2)")
    run_sql("CREATE PUBLICATION parts FOR TABLE t")
    replicator.start()
    settle(replicator)
    assert replicator.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,)]


def test_publication_made_anew_while_streaming(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION parts FOR TABLE t")
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("parts",)})}
    )
    replicator.start()
    run_sql("INSERT INTO t VALUES (1)")
    replicator.catch_up()
    run_sql("DROP PUBLICATION parts")
    run_sql("INSERT INTO t VALUES (2)")
    threading.Event().wait(0.2)
    run_sql("CREATE PUBLICATION parts FOR TABLE t")
    run_sql("INSERT INTO t VALUES (3)")
    replicator.wait_until(
        lambda: replicator.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]
    )
