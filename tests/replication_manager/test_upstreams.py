"""Databases as companies have them, replicated whole: copy, then stream (replication.md §1)."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare, settle
from zerocache.replica.reader import load_schema

NewReplicator = Callable[..., Replicator]


def _of(new_replicator: NewReplicator, *publications: str, **options: Any) -> Replicator:
    """A replicator of some publications."""
    replicator = new_replicator(**options)
    config = replicator.config
    app = config.app.model_copy(update={"publications": publications})
    replicator.config = config.model_copy(update={"app": app})
    return replicator


def _tables(replicator: Replicator) -> set[str]:
    """The user tables that clients may know."""
    connection = replicator.connection()
    try:
        return {name for name in load_schema(connection) if replicator.config.app.id not in name}
    finally:
        connection.close()


def test_rows_that_any_filter_lets_through(new_replicator: NewReplicator, run_sql: RunSql) -> None:
    """§10.2 #10; updates across a filter's border arrive as inserts and deletes."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT i, 0 FROM "
        "generate_series(995, 1005) i; CREATE PUBLICATION even FOR TABLE t WHERE (id % 2 = 0);"
        "CREATE PUBLICATION large FOR TABLE t WHERE (id > 1000)"
    )
    replicator = _of(new_replicator, "even", "large")
    replicator.start()
    ids = "SELECT id FROM t ORDER BY id"
    copied = [996, 998, 1000, 1001, 1002, 1003, 1004, 1005]
    assert replicator.rows(ids) == [(number,) for number in copied]
    run_sql("INSERT INTO t VALUES (1, 0), (2, 0), (2001, 0), (2002, 0)")
    run_sql("UPDATE t SET id = 11 WHERE id = 996; UPDATE t SET id = 12 WHERE id = 995")
    run_sql("UPDATE t SET n = 1")
    replicator.catch_up()
    streamed = [2, 12, 998, 1000, 1001, 1002, 1003, 1004, 1005, 2001, 2002]
    assert replicator.rows(ids) == [(number,) for number in streamed]
    assert replicator.rows("SELECT DISTINCT n FROM t") == [(1,)]


def test_one_unfiltered_publication_lets_all_rows_through(
    new_replicator: NewReplicator, run_sql: RunSql
) -> None:
    """§10.2 #9"""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2);"
        "CREATE PUBLICATION even FOR TABLE t WHERE (id % 2 = 0); CREATE PUBLICATION al FOR TABLE t"
    )
    replicator = _of(new_replicator, "al", "even")
    replicator.start()
    run_sql("INSERT INTO t VALUES (3), (4)")
    replicator.catch_up()
    assert replicator.rows("SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,), (4,)]


def test_schemas_beside_public(new_replicator: NewReplicator, run_sql: RunSql) -> None:
    run_sql(
        'CREATE SCHEMA sales; CREATE SCHEMA "Odd-Name"; CREATE SCHEMA hidden;'
        "CREATE TABLE sales.t (id int PRIMARY KEY, x text); CREATE TABLE t (id int PRIMARY KEY);"
        'CREATE TABLE "Odd-Name"."T" (id int PRIMARY KEY); CREATE TABLE hidden.t (id int);'
        "INSERT INTO sales.t VALUES (1, 'a'); INSERT INTO t VALUES (2);"
        'INSERT INTO "Odd-Name"."T" VALUES (3);'
        'CREATE PUBLICATION p FOR TABLE t, TABLES IN SCHEMA sales, "Odd-Name"'
    )
    replicator = _of(new_replicator, "p")
    replicator.start()
    assert _tables(replicator) == {"t", "sales.t", "Odd-Name.T"}
    run_sql(
        "UPDATE sales.t SET x = 'b'; DELETE FROM t; CREATE TABLE sales.later (id int PRIMARY KEY)"
    )
    run_sql("INSERT INTO sales.later VALUES (4)")
    settle(replicator)
    assert replicator.rows('SELECT id, x FROM "sales.t"') == [(1, "b")]
    assert replicator.rows('SELECT id FROM "sales.later"') == [(4,)]
    assert compare(replicator)


def test_generated_columns(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #13: not published by default, whatever PostgreSQL 15 lists."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED);"
        "CREATE UNIQUE INDEX ON t (d); INSERT INTO t VALUES (1, 2)"
    )
    replicator.start()
    run_sql("INSERT INTO t VALUES (2, 3)")
    run_sql("UPDATE t SET n = 5 WHERE id = 1")
    replicator.catch_up()
    assert replicator.rows("SELECT name FROM pragma_table_info('t')") == [
        ("id",), ("n",), ("_0_version",),
    ]  # fmt: skip
    assert replicator.rows("SELECT id, n FROM t ORDER BY id") == [(1, 5), (2, 3)]


def test_published_generated_columns(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    """§10.2 #13: PostgreSQL 18 can; older versions do not know the option."""
    run_sql(
        "CREATE TABLE t (id int PRIMARY KEY, n int, d int GENERATED ALWAYS AS (n * 2) STORED);"
        "INSERT INTO t VALUES (1, 2)"
    )
    publish = "CREATE PUBLICATION p FOR TABLE t WITH (publish_generated_columns = stored)"
    if postgres.psql("SELECT current_setting('server_version_num')::int < 180000") == [(True,)]:
        with pytest.raises(psycopg.errors.SyntaxError, match="publish_generated_columns"):
            run_sql(publish)
        return
    run_sql(publish)
    replicator = _of(new_replicator, "p")
    replicator.start()
    run_sql("INSERT INTO t VALUES (2, 3); UPDATE t SET n = 5 WHERE id = 1")
    replicator.catch_up()
    assert replicator.rows("SELECT id, n, d FROM t ORDER BY id") == [(1, 5, 10), (2, 3, 6)]


def test_identity_and_serial_columns(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #14"""
    run_sql(
        "CREATE TABLE t (a int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b bigint GENERATED BY "
        "DEFAULT AS IDENTITY, c serial, d bigserial, e smallserial, x text);"
        "INSERT INTO t (x) VALUES ('copied')"
    )
    replicator.start()
    run_sql("INSERT INTO t (x) VALUES ('streamed')")
    replicator.catch_up()
    assert replicator.rows("SELECT a, b, c, d, e, typeof(a), typeof(d) FROM t ORDER BY a") == [
        (1, 1, 1, 1, 1, "integer", "integer"),
        (2, 2, 2, 2, 2, "integer", "integer"),
    ]


PARTITIONED = (
    "CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
    "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);"
    "CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20) PARTITION BY RANGE (id);"
    "CREATE TABLE p2a PARTITION OF p2 FOR VALUES FROM (10) TO (20);"
    "INSERT INTO p VALUES (1, 'a'), (11, 'b');"
)


def test_leaves_are_tables_where_the_root_is_not_published_as_one(
    new_replicator: NewReplicator, run_sql: RunSql
) -> None:
    """§1.4; a row that moves is deleted there and inserted here."""
    run_sql(PARTITIONED + "CREATE PUBLICATION leaves FOR TABLE p")
    replicator = _of(new_replicator, "leaves")
    replicator.start()
    assert _tables(replicator) == {"p1", "p2a"}
    run_sql("UPDATE p SET id = 12, t = 'moved' WHERE id = 1; INSERT INTO p VALUES (2, 'c')")
    replicator.catch_up()
    assert replicator.rows("SELECT id, t FROM p1") == [(2, "c")]
    assert replicator.rows("SELECT id, t FROM p2a ORDER BY id") == [(11, "b"), (12, "moved")]


def test_partitions_of_partitions_are_one_table(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #15"""
    run_sql(PARTITIONED)
    replicator.start()
    run_sql("UPDATE p SET id = 12 WHERE id = 1; INSERT INTO p VALUES (2, 'c')")
    replicator.catch_up()
    assert _tables(replicator) == {"p"}
    assert replicator.rows("SELECT id FROM p ORDER BY id") == [(2,), (11,), (12,)]


def test_join_table_made_later_gets_an_identity(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    """§10.2 #16: PostgreSQL refuses its updates until then."""
    run_sql("CREATE TABLE a (id int PRIMARY KEY)")
    replicator.start()
    run_sql("CREATE TABLE a_b (a int NOT NULL, b int NOT NULL, UNIQUE (a, b))")
    name = replicator.config.upstream.db.rsplit("/", 1)[1]
    identity = "SELECT relreplident FROM pg_class WHERE relname = 'a_b'"
    replicator.wait_until(lambda: postgres.psql(identity, database=name) == [("i",)])
    run_sql("INSERT INTO a_b VALUES (1, 1), (1, 2)")
    run_sql("UPDATE a_b SET b = 3 WHERE b = 1; DELETE FROM a_b WHERE b = 2")
    settle(replicator)
    assert replicator.rows("SELECT a, b FROM a_b") == [(1, 3)]
    assert "a_b" in _tables(replicator)


def test_reserved_words(replicator: Replicator, run_sql: RunSql) -> None:
    """§10.2 #18, #19"""
    run_sql('CREATE TABLE transaction ("a.b" int PRIMARY KEY, "trigger" text, "index" int)')
    run_sql("INSERT INTO transaction VALUES (1, 'x', 2)")
    replicator.start()
    run_sql('UPDATE transaction SET "index" = 3; ALTER TABLE transaction ADD "order" int DEFAULT 4')
    run_sql('CREATE INDEX "group" ON transaction ("index"); INSERT INTO transaction VALUES (2)')
    run_sql('ALTER TABLE transaction RENAME "trigger" TO "select"')
    settle(replicator)
    assert replicator.rows('SELECT "a.b", "select", "index", "order" FROM "transaction"') == [
        (1, "x", 3, 4),
        (2, None, None, 4),
    ]


def test_apps_and_shards_share_a_database(
    new_replicator: NewReplicator, run_sql: RunSql, app_id: str
) -> None:
    """§1.2, §10.2 #5: names made of digits only, ids that continue each other, two shards."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY)")
    apps = [
        new_replicator(app=app_id),
        new_replicator(app=app_id, shard={"num": 1}),
        new_replicator(app=app_id + "_0"),
        new_replicator(app="1"),
    ]
    for replicator in apps:
        replicator.start()
    run_sql("INSERT INTO t VALUES (1); ALTER TABLE t ADD x int DEFAULT 5")
    for replicator in apps:
        settle(replicator)
        assert replicator.rows("SELECT id, x FROM t") == [(1, 5)]
    for replicator in apps:
        assert replicator.stop() == 0
        assert "replica_reset" not in replicator.log()
    # Slots are named after the shard, and one must not be taken for another's.
    run_sql("INSERT INTO t VALUES (2, 6)")
    apps[0].start()
    apps[0].catch_up()
    assert apps[0].rows("SELECT count(*) FROM t") == [(2,)]
    with psycopg.connect(apps[0].config.upstream.db) as connection:
        slots = connection.execute(
            "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
        ).fetchall()
    expected = {f"{app_id}_0_a", f"{app_id}_1_a", f"{app_id}_0_0_a", "1_0_a"}
    assert {name for (name,) in slots} == expected


def test_slots_fail_over_where_the_server_can(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    """§1.8: from PostgreSQL 17 on, ignored below."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY)")
    replicator = new_replicator()
    config = replicator.config
    upstream = config.upstream.model_copy(update={"pg_replication_slot_failover": True})
    replicator.config = config.model_copy(update={"upstream": upstream})
    replicator.start()
    new = postgres.psql("SELECT current_setting('server_version_num')::int >= 170000") == [(True,)]
    option = "failover" if new else "false"
    slots = f"SELECT {option} FROM pg_replication_slots WHERE slot_name LIKE %s"
    assert postgres.psql(slots, config.app.id + "%") == [(new,)]


def test_new_replica_is_made_beside_the_old_one(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    """§10.2 #25: the old one serves until the new one is there; then it, its slot and row go."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY)")
    old, new = new_replicator(), new_replicator()
    old.start()
    run_sql("INSERT INTO t VALUES (1)")
    old.catch_up()
    new.start()
    assert old.next_message("fatal")["exit"] == 14
    assert old.rows("SELECT count(*) FROM t") == [(1,)]
    run_sql("INSERT INTO t VALUES (2)")
    new.catch_up()
    new.stop()
    new.start()
    prefix = f"{old.config.app.id}_0_"
    slots = "SELECT substr(slot_name, length(%s) + 1) FROM pg_replication_slots "
    slots += "WHERE slot_name LIKE %s"
    assert postgres.psql(slots, prefix, prefix + "%") == [("b",)]
    run_sql("INSERT INTO t VALUES (3)")
    new.catch_up()
    assert new.rows("SELECT count(*) FROM t") == [(3,)]


# --- roles ---------------------------------------------------------------------------------------


@contextmanager
def _role(postgres: PostgresCluster, database: str, attributes: str) -> Iterator[str]:
    """A role that may create schemas in ``database``; its name."""
    name = database.rsplit("/", 1)[1]
    role = f"role_{name}"
    postgres.psql(f"CREATE ROLE {role} LOGIN {attributes}")
    postgres.psql(f'GRANT CREATE ON DATABASE "{name}" TO {role}')
    try:
        yield role
    finally:
        postgres.drop_slots(name)
        postgres.psql(f"DROP OWNED BY {role} CASCADE", database=name)
        postgres.psql(f"DROP ROLE {role}")


def _as(role: str, database: str) -> str:
    return database.replace("postgres@", f"{role}@")


def _nothing_was_changed(database: str, app_id: str) -> None:
    with psycopg.connect(database) as connection:
        left = connection.execute(
            "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE %s), "
            "(SELECT count(*) FROM pg_publication WHERE pubname LIKE %s), "
            "(SELECT count(*) FROM pg_replication_slots WHERE database = current_database())",
            [app_id + "%", f"_{app_id}%"],
        ).fetchone()
    assert left == (0, 0, 0)


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("REVOKE SELECT ON t FROM PUBLIC", "no SELECT on t"),
        ("REVOKE USAGE ON SCHEMA private FROM PUBLIC", "GRANT USAGE on the schema"),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "row security on t"),
    ],
)
def test_role_that_may_not_read_everything(
    new_replicator: NewReplicator,
    run_sql: RunSql,
    postgres: PostgresCluster,
    database: str,
    app_id: str,
    lacking: str,
    said: str,
) -> None:
    run_sql(
        "CREATE SCHEMA private; CREATE TABLE private.t (id int PRIMARY KEY);"
        "CREATE TABLE t (id int PRIMARY KEY);"
        "GRANT SELECT ON t, private.t TO PUBLIC; GRANT USAGE ON SCHEMA private TO "
        f"PUBLIC; CREATE PUBLICATION p FOR TABLE t, private.t; {lacking}"
    )
    with _role(postgres, database, "REPLICATION") as role:
        replicator = _of(new_replicator, "p", url=_as(role, database))
        replicator.start(wait=False)
        message = replicator.next_message("fatal")
        assert message["exit"] == 78
        assert message["message"].startswith("ZC123")
        assert said in message["message"]
        _nothing_was_changed(database, app_id)


def test_role_that_may_read_and_replicate_is_enough(
    new_replicator: NewReplicator,
    run_sql: RunSql,
    postgres: PostgresCluster,
    database: str,
    app_id: str,
) -> None:
    """§10.2 #11: no event triggers then, which is said, and written down."""
    run_sql("CREATE TABLE t (id int PRIMARY KEY, n int); CREATE PUBLICATION p FOR TABLE t")
    run_sql("GRANT SELECT ON t TO PUBLIC; INSERT INTO t VALUES (1, 1)")
    with _role(postgres, database, "REPLICATION") as role:
        replicator = _of(new_replicator, "p", url=_as(role, database))
        replicator.start()
        run_sql("UPDATE t SET n = 2; INSERT INTO t VALUES (2, 2)")
        replicator.catch_up()
        assert replicator.rows("SELECT id, n FROM t ORDER BY id") == [(1, 2), (2, 2)]
        with psycopg.connect(database) as connection:
            detection = f'SELECT "ddlDetection" FROM {app_id}_0."shardConfig"'
            assert connection.execute(detection.encode()).fetchone() == (False,)
        assert "ddl_detection_unavailable" in replicator.log()
        assert replicator.stop() == 0


# Everything of one app but its event triggers, which only superusers may own.
_GIVE_AWAY = """
DO $$ DECLARE owned text; BEGIN
    FOR owned IN SELECT format('SCHEMA %I', nspname) FROM pg_namespace WHERE nspname LIKE '{app}%'
        UNION ALL SELECT 'TABLE ' || oid::regclass FROM pg_class
            WHERE relkind = 'r' AND relnamespace::regnamespace::text LIKE '{app}%'
        UNION ALL SELECT 'FUNCTION ' || oid::regprocedure FROM pg_proc
            WHERE pronamespace::regnamespace::text LIKE '{app}%'
        UNION ALL SELECT format('PUBLICATION %I', pubname) FROM pg_publication
        UNION ALL SELECT 'TABLE t'
    LOOP EXECUTE format('ALTER %s OWNER TO {role}', owned); END LOOP;
END $$;
"""


def test_triggers_of_another_role_are_not_left_outdated(
    new_replicator: NewReplicator,
    run_sql: RunSql,
    postgres: PostgresCluster,
    database: str,
    app_id: str,
) -> None:
    """§10.2 #12"""
    run_sql("CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
    first = _of(new_replicator, "p")
    first.start()
    first.stop()
    with _role(postgres, database, "REPLICATION") as role:
        run_sql(
            _GIVE_AWAY.replace("{app}", app_id).replace("{role}", role)
            + f"COMMENT ON FUNCTION {app_id}_0.update_schemas() IS 'of an older version'"
        )
        replicator = _of(new_replicator, "p", url=_as(role, database))
        replicator.start(wait=False)
        message = replicator.next_message("fatal")
        assert message["exit"] == 78
        assert message["message"].startswith("ZC123")
        assert "event triggers" in message["message"]


def test_identity_whose_index_is_gone(
    replicator: Replicator, run_sql: RunSql, database: str, app_id: str
) -> None:
    """§1.7: PostgreSQL would refuse the table's updates."""
    run_sql(
        "CREATE TABLE t (id int NOT NULL CONSTRAINT gone UNIQUE); ALTER TABLE t REPLICA IDENTITY "
        "USING INDEX gone; ALTER TABLE t DROP CONSTRAINT gone"
    )
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert message["message"].startswith("ZC119")
    assert "public.t" in message["message"]
    _nothing_was_changed(database, app_id)
