"""What writes the catalogue's entries of columns, and leaves all values as they are: no row is read
again for it. Oracle: ``verify``."""

from __future__ import annotations

import psycopg
from psycopg import sql

from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, settle

TABLE = (
    "CREATE TABLE t (id int PRIMARY KEY, s text);"
    "INSERT INTO t SELECT i, 's' || i FROM generate_series(1, 50) i;"
)


def _hook(app_id: str) -> sql.Composed:
    return sql.SQL("SELECT {}.update_schemas()").format(sql.Identifier(f"{app_id}_0"))


def test_values_that_vacuum_moves_out_of_the_catalogue(
    replicator: Replicator, run_sql: RunSql, database: str, app_id: str
) -> None:
    run_sql(TABLE)
    replicator.start()
    run_sql("ALTER TABLE t ADD d char(6) DEFAULT 'c'")
    settle(replicator)
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("VACUUM FULL t")
        assert verify(database, replicator.file).is_equal
        connection.execute(_hook(app_id))
    settle(replicator)
    assert verify(database, replicator.file).is_equal
    assert "backfill_started" not in replicator.log()


def test_the_suspicion_that_values_were_rewritten_is_no_difference_between_rows(
    replicator: Replicator, run_sql: RunSql, database: str, app_id: str
) -> None:
    run_sql(TABLE)
    replicator.start()
    run_sql("ALTER TABLE t ADD d char(6) DEFAULT 'c'")
    run_sql("ALTER TABLE t ALTER d DROP DEFAULT")
    settle(replicator)
    with psycopg.connect(database, autocommit=True) as connection:
        # Looks like ALTER d TYPE char(6) USING ...
        connection.execute("VACUUM FULL t")
        assert verify(database, replicator.file).is_equal
        connection.execute(_hook(app_id))
    settle(replicator)
    assert verify(database, replicator.file).is_equal


def test_privileges_granted_in_the_transaction_that_has_a_table_read_again(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql(TABLE)
    replicator.start()
    run_sql(
        "ALTER TABLE t ADD d text DEFAULT md5(random()::text); GRANT SELECT (id, s) ON t TO PUBLIC"
    )
    settle(replicator)
    assert verify(database, replicator.file).is_equal
    assert replicator.log().count("backfill_started") == 1
