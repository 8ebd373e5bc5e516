"""What has tripped replication before (replication.md §10): each on a real server, end to end."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare, settle

NewReplicator = Callable[..., Replicator]
GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'


def test_messages_of_other_programs(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.1 #9: between and inside transactions, transactional or not, text or not."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY)")
    replicator.start()
    emit = "SELECT pg_logical_emit_message({}, '{}', {});"
    for prefix in ("other", "zero/0/ddl", f"{replicator.config.app.id}/7/ddl", ""):
        for content in ("'not json'", "'\\xff00ff'::bytea", "repeat('x', 100000)"):
            run_sql(emit.format("false", prefix, content))
            run_sql(
                "INSERT INTO t SELECT coalesce(max(id), 0) + 1 FROM t;"
                + emit.format("true", prefix, content)
                + emit.format("false", prefix, content)
            )
    replicator.catch_up()
    assert replicator.rows("SELECT count(*) FROM t") == [(12,)]
    assert "replication_interrupted" not in replicator.log()


def test_constraints_that_hold_at_commit_only(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.1 #4: two rows may share a value in the middle of a transaction."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY, rank int UNIQUE DEFERRABLE INITIALLY DEFERRED);"
        "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)"
    )
    replicator.start()
    run_sql("UPDATE t SET rank = 2 WHERE id = 1; UPDATE t SET rank = 1 WHERE id = 2")
    run_sql("UPDATE t SET rank = rank % 3 + 1")
    replicator.catch_up()
    assert compare(replicator)
    assert replicator.rows("SELECT count(*) FROM t") == [(3,)]


def test_index_left_by_a_failed_build(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    """§10.1 #4: it is unique by name only."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY, a int); INSERT INTO t VALUES (1, 5), (2, 5)")
    build = "CREATE UNIQUE INDEX CONCURRENTLY broken ON t (a)"
    with (
        psycopg.connect(database, autocommit=True) as connection,
        pytest.raises(psycopg.errors.UniqueViolation),
    ):
        connection.execute(build.encode())
    replicator.start()
    run_sql("INSERT INTO t VALUES (3, 5)")
    replicator.catch_up()
    assert replicator.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]


def test_row_that_takes_the_places_of_several_others(
    replicator: Replicator, run_sql: RunSql
) -> None:
    """§10.1 #5: within one transaction upstream made room for it first."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY, a int UNIQUE, b int UNIQUE);"
        "INSERT INTO t VALUES (1, 1, 1), (2, 2, 2), (3, 3, 3)"
    )
    replicator.start()
    run_sql(
        "DELETE FROM t WHERE id = 2; UPDATE t SET a = 2 WHERE id = 1;"
        "UPDATE t SET id = 2, b = 20 WHERE id = 3; INSERT INTO t VALUES (3, 1, 3), (4, NULL, NULL),"
        "(5, NULL, NULL)"
    )
    replicator.catch_up()
    assert compare(replicator)
    assert replicator.rows("SELECT count(*) FROM t") == [(5,)]


def test_a_users_trigger_that_changes_every_new_table(
    replicator: Replicator, run_sql: RunSql
) -> None:
    """§10.2 #55: DDL inside DDL is one change, and new tables need no backfill."""
    run_sql("""
        CREATE FUNCTION secure() RETURNS event_trigger LANGUAGE plpgsql AS $$
        DECLARE made record; BEGIN
            FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
                IF made.object_type = 'table' THEN
                    EXECUTE format(
                        'ALTER TABLE %s ENABLE ROW LEVEL SECURITY', made.objid::regclass);
                END IF;
            END LOOP;
        END $$;
        CREATE EVENT TRIGGER secure ON ddl_command_end WHEN TAG IN ('CREATE TABLE')
            EXECUTE FUNCTION secure()
    """)
    replicator.start()
    generation = replicator.rows(GENERATION)
    run_sql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
    settle(replicator)
    assert replicator.rows("SELECT id FROM t") == [(1,)]
    assert replicator.rows(GENERATION) == generation
    changes = [line for line in replicator.log().splitlines() if "schema_changed" in line]
    assert len(changes) == 1
    assert "backfills=0" in changes[0]


def test_views_refreshed_beside_their_readers(replicator: Replicator, database: str) -> None:
    """§10.2 #56: what PostgreSQL makes and drops on the way is nobody's table."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);"
            "CREATE MATERIALIZED VIEW v AS SELECT id FROM t; CREATE UNIQUE INDEX ON v (id)"
        )
        replicator.start()
        connection.execute("INSERT INTO t VALUES (2)")
        connection.execute("REFRESH MATERIALIZED VIEW CONCURRENTLY v")
        connection.execute("INSERT INTO t VALUES (3)")
    settle(replicator)
    assert compare(replicator)
    assert "schema_changed" not in replicator.log()


def test_comments_on_publications_change_nothing(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #57: neither does the manual hook where triggers have told already."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY)")
    replicator.start()
    app = replicator.config.app.id
    hook = f"COMMENT ON PUBLICATION _{app}_public_0 IS 'x'; SELECT {app}_0.update_schemas();"
    run_sql(hook + f"ALTER TABLE t ADD x int DEFAULT 1; {hook}")
    run_sql(hook + "INSERT INTO t VALUES (1)")
    settle(replicator)
    assert replicator.rows("SELECT id, x FROM t") == [(1, 1)]
    assert replicator.log().count("schema_changed") == 1


@pytest.mark.parametrize(
    ("change", "undo", "said"),
    [
        ('ALTER TABLE t RENAME TO "a/b"', 'ALTER TABLE "a/b" RENAME TO t', "a/b"),
        ('ALTER TABLE t RENAME n TO "n/m"', 'ALTER TABLE t RENAME "n/m" TO n', "n/m"),
        ("ALTER TABLE t ADD _0_version int", "ALTER TABLE t DROP _0_version", "_0_version"),
    ],
)
def test_changes_that_cannot_be_replicated(
    replicator: Replicator, run_sql: RunSql, change: str, undo: str, said: str
) -> None:
    """§10.2 #59: the statement is named, and once it is undone replication goes on."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)")
    replicator.start()
    run_sql("INSERT INTO t VALUES (2, 2)")
    replicator.catch_up()
    run_sql(change)
    replicator.wait_until(lambda: "replication_interrupted" in replicator.log())
    assert said in replicator.log()
    assert replicator.rows("SELECT count(*) FROM t") == [(2,)]
    run_sql(undo)
    run_sql("INSERT INTO t VALUES (3, 3)")
    replicator.wait_until(lambda: replicator.rows("SELECT count(*) FROM t") == [(3,)])
    settle(replicator)
    assert compare(replicator)


def test_tables_published_later_with_or_without_a_key(
    new_replicator: NewReplicator, run_sql: RunSql
) -> None:
    """§10.2 #64: of key columns only, without any key, and empty."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;"
        "CREATE TABLE key_only (a int, b int, PRIMARY KEY (a, b));"
        "INSERT INTO key_only SELECT i, i FROM generate_series(1, 3000) i;"
        "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE keyless (a int, b text);"
        "INSERT INTO keyless SELECT i / 2, 'x' FROM generate_series(1, 100) i"
    )
    replicator = new_replicator()
    config = replicator.config
    app = config.app.model_copy(update={"publications": ("p",)})
    replicator.config = config.model_copy(update={"app": app})
    replicator.start()
    run_sql("ALTER PUBLICATION p ADD TABLE key_only, empty, keyless")
    run_sql("INSERT INTO key_only VALUES (0, 0); INSERT INTO keyless VALUES (1000, 'new')")
    run_sql("DELETE FROM key_only WHERE a = 5; INSERT INTO empty VALUES (1)")
    settle(replicator)
    assert replicator.rows("SELECT count(*) FROM keyless") == [(101,)]
    assert compare(replicator) >= 3000


def test_slot_that_the_server_gave_up(new_replicator: NewReplicator) -> None:
    """§10.2 #26: WAL beyond max_slot_wal_keep_size is gone; a new sync, and it goes on."""
    cluster = make_cluster(max_slot_wal_keep_size="1MB", min_wal_size="32MB", max_wal_size="32MB")
    try:
        cluster.psql("CREATE TABLE t (id int PRIMARY KEY, x text)")
        replicator = new_replicator(url=cluster.url)
        replicator.start()
        generation = replicator.rows(GENERATION)
        assert replicator.stop() == 0
        _write_until_lost(cluster)
        replicator.start()
        assert replicator.rows(GENERATION) > generation
        assert "replication slot" in replicator.log()
        cluster.psql("INSERT INTO t VALUES (-1, 'streamed')")
        replicator.catch_up()
        assert compare(replicator) > 1
        assert replicator.stop() == 0
        assert cluster.psql("SELECT count(*) FROM pg_replication_slots") == [(1,)]
    finally:
        destroy_cluster(cluster)


def _write_until_lost(cluster: PostgresCluster) -> None:
    status = "SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'"
    for at in range(20):
        first = at * 1_000
        cluster.psql(
            f"INSERT INTO t SELECT {first} + i, repeat('x', 1000) FROM generate_series(1, 1000) i"
        )
        cluster.psql("SELECT pg_switch_wal()")
        cluster.psql("CHECKPOINT")
        if cluster.psql(status) == [(1,)]:
            return
    raise AssertionError("the server kept the slot")
