"""The replication process as a whole: first start, stream, restarts, what goes wrong."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import psycopg
import pytest

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import TIMEOUT_S, Replicator, compare, settle
from zerocache.replica.notifier import watch_versions

NewReplicator = Callable[..., Replicator]
ISSUES = "CREATE TABLE issue (id int PRIMARY KEY, title text, open bool, due timestamptz);"


@pytest.fixture
def unprivileged(
    new_replicator: NewReplicator, postgres: PostgresCluster, database: str, app_id: str
) -> Iterator[Replicator]:
    """A replicator whose role may not create event triggers, of a table ``issue`` it owns."""
    name, role = database.rsplit("/", 1)[1], f"{app_id}_role"
    postgres.psql(f'CREATE ROLE "{role}" LOGIN REPLICATION')
    postgres.psql(f'GRANT ALL ON DATABASE "{name}" TO "{role}"')
    postgres.psql(f'GRANT ALL ON SCHEMA public TO "{role}"', database=name)
    url = postgres.url_of(name, role)
    with psycopg.connect(url) as connection:
        connection.execute(ISSUES.encode())
        connection.execute("CREATE PUBLICATION mine FOR TABLE issue")
    yield new_replicator(url=url, app={"id": app_id, "publications": ("mine",)})
    postgres.psql(f'REASSIGN OWNED BY "{role}" TO postgres', database=name)
    postgres.psql(f'DROP OWNED BY "{role}"', database=name)
    postgres.psql(f'DROP ROLE "{role}"')


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


def test_empty_tables_are_copied(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(ISSUES)
    replicator.start()
    assert replicator.rows("SELECT count(*) FROM issue") == [(0,)]


def test_restart_resumes_after_the_last_transaction(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql(ISSUES + "INSERT INTO issue VALUES (1, 'one')")
    replicator.start()
    generation = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    assert replicator.stop() == 0
    run_sql("INSERT INTO issue VALUES (2, 'two')")
    replicator.start()
    replicator.catch_up()
    assert replicator.rows("SELECT id FROM issue ORDER BY id") == [(1,), (2,)]
    # Not a second copy: the same generation, and the row has the version of its transaction.
    assert replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') == generation
    assert replicator.rows("SELECT _0_version FROM issue WHERE id = 2") > generation


def test_key_changes_keep_the_row(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(ISSUES + "INSERT INTO issue VALUES (1, 'one'), (2, 'two')")
    replicator.start()
    before = replicator.rows("SELECT rowid FROM issue WHERE id = 1")
    run_sql("UPDATE issue SET id = 10 WHERE id = 1")
    replicator.catch_up()
    assert replicator.rows("SELECT rowid FROM issue WHERE id = 10") == before
    assert compare(replicator)


def test_truncate_then_insert_in_one_transaction(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(ISSUES + "INSERT INTO issue VALUES (1, 'one'), (2, 'two')")
    replicator.start()
    run_sql("TRUNCATE issue; INSERT INTO issue VALUES (3, 'three')")
    replicator.catch_up()
    assert replicator.rows("SELECT id FROM issue") == [(3,)]


def test_toasted_values_survive_updates_of_other_columns(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql("CREATE TABLE doc (id int PRIMARY KEY, body text, n int)")
    run_sql("ALTER TABLE doc ALTER body SET STORAGE EXTERNAL")
    run_sql("INSERT INTO doc VALUES (1, repeat('x', 10000), 0)")
    replicator.start()
    run_sql("UPDATE doc SET n = 1")
    replicator.catch_up()
    assert replicator.rows("SELECT length(body), n FROM doc") == [(10000, 1)]


def test_keyless_tables_follow_upstream(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE by_index (a int NOT NULL, b int NOT NULL, c text, UNIQUE (a, b));"
        "CREATE TABLE full_rows (a int, b text); ALTER TABLE full_rows REPLICA IDENTITY FULL;"
        "CREATE TABLE inserts (a int);"
        "INSERT INTO by_index VALUES (1, 1, 'x'), (1, 2, 'y');"
        "INSERT INTO full_rows VALUES (1, 'x'), (1, 'x'), (2, NULL);"
        "INSERT INTO inserts VALUES (1), (1)"
    )
    replicator.start()
    run_sql(
        "UPDATE by_index SET c = 'z' WHERE b = 2; DELETE FROM by_index WHERE b = 1;"
        "UPDATE full_rows SET b = 'changed' WHERE a = 2;"
        "DELETE FROM full_rows WHERE ctid = (SELECT ctid FROM full_rows WHERE a = 1 LIMIT 1);"
        "INSERT INTO inserts VALUES (1)"
    )
    replicator.catch_up()
    assert compare(replicator) >= 6


def test_partitioned_table_is_one_table(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY HASH (id);"
        "CREATE TABLE p0 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "INSERT INTO p SELECT i, 'x' FROM generate_series(1, 10) i"
    )
    replicator.start()
    run_sql("UPDATE p SET t = 'y' WHERE id < 5; DELETE FROM p WHERE id = 9")
    replicator.catch_up()
    assert replicator.rows("SELECT count(*), sum(t = 'y') FROM p") == [(9, 4)]
    assert replicator.rows("SELECT count(*) FROM sqlite_schema WHERE name = 'p0'") == [(0,)]


def test_two_apps_share_a_database(new_replicator: NewReplicator, run_sql: RunSql) -> None:
    run_sql(ISSUES)
    first = new_replicator()
    second = new_replicator(app=first.config.app.id + "_b")
    first.start()
    second.start()
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    for replicator in (first, second):
        replicator.catch_up()
        assert compare(replicator)
    assert first.stop() == second.stop() == 0


def test_publication_with_row_filter_and_column_list(
    new_replicator: NewReplicator, run_sql: RunSql
) -> None:
    run_sql(
        ISSUES + "INSERT INTO issue VALUES (1, 'a', true), (2, 'b', false);"
        "CREATE PUBLICATION parts FOR TABLE issue (id, open) WHERE (id < 100)"
    )
    replicator = new_replicator()
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("parts",)})}
    )
    replicator.start()
    run_sql("INSERT INTO issue VALUES (3, 'c', true), (101, 'hidden', true)")
    replicator.catch_up()
    assert replicator.rows("SELECT id, open FROM issue ORDER BY id") == [(1, 1), (2, 0), (3, 1)]


def test_changed_publications_start_a_new_sync(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(ISSUES + "CREATE PUBLICATION parts FOR TABLE issue (id)")
    replicator.start()
    replicator.stop()
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("parts",)})}
    )
    run_sql("INSERT INTO issue VALUES (1, 'x')")
    replicator.start()
    assert replicator.rows("SELECT name FROM pragma_table_info('issue')") == [
        ("id",),
        ("_0_version",),
    ]
    assert replicator.rows("SELECT id FROM issue") == [(1,)]


def test_without_event_triggers_a_schema_change_ends_in_a_new_sync(
    unprivileged: Replicator, run_sql: RunSql
) -> None:
    replicator = unprivileged
    replicator.start()
    before = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    run_sql("ALTER TABLE issue ADD COLUMN extra int DEFAULT 7")
    run_sql("INSERT INTO issue (id) VALUES (2)")
    replicator.wait_until(
        lambda: replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') > before
    )
    replicator.catch_up()
    assert compare(replicator)
    assert "replica_reset" in replicator.log()
    assert "ddl_detection_unavailable" in replicator.log()


def test_without_event_triggers_announced_changes_arrive_live(
    unprivileged: Replicator, run_sql: RunSql, app_id: str
) -> None:
    replicator = unprivileged
    replicator.start()
    before = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    hook = f'SELECT "{app_id}_0".update_schemas();'
    run_sql(
        "INSERT INTO issue (id, title) VALUES (1, 'a');"
        f"ALTER TABLE issue ADD extra int DEFAULT 7; {hook}"
        "INSERT INTO issue (id, extra) VALUES (2, 8)"
    )
    run_sql(f"ALTER TABLE issue ALTER title TYPE text USING upper(title); {hook}")
    settle(replicator)
    assert replicator.rows("SELECT id, title, extra FROM issue ORDER BY id") == [
        (1, "A", 7),
        (2, None, 8),
    ]
    replicator.stop()
    run_sql(f"ALTER TABLE issue DROP COLUMN due; {hook}")
    replicator.start()
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') == before
    run_sql("ALTER TABLE issue ADD unannounced int")
    replicator.wait_until(
        lambda: replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') > before
    )
    settle(replicator)
    assert compare(replicator)


def test_without_event_triggers_a_truncated_partition_is_noticed(
    unprivileged: Replicator, run_sql: RunSql
) -> None:
    replicator = unprivileged
    run_sql(
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);"
        "CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (100) TO (200);"
        "INSERT INTO p SELECT generate_series(50, 150);"
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC;"
        "ALTER PUBLICATION mine SET (publish_via_partition_root);"
        "ALTER PUBLICATION mine ADD TABLE p"
    )
    replicator.start()
    before = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    run_sql("TRUNCATE p0; INSERT INTO p0 VALUES (7)")
    replicator.wait_until(lambda: replicator.rows("SELECT count(*) FROM p") == [(52,)])
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"') == before


def test_missing_slot_ends_in_a_new_sync(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql(ISSUES)
    replicator.start()
    replicator.stop()
    postgres.psql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
        "WHERE slot_name LIKE %s",
        replicator.config.app.id + "%",
    )
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    replicator.start()
    assert compare(replicator)


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_damaged_file_ends_in_a_new_sync(
    replicator: Replicator, run_sql: RunSql, content: bytes
) -> None:
    run_sql(ISSUES + "INSERT INTO issue VALUES (1, 'one')")
    replicator.file.write_bytes(content)
    replicator.start()
    assert compare(replicator)


def test_replica_of_another_database_is_replaced(
    new_replicator: NewReplicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql(ISSUES + "INSERT INTO issue VALUES (1, 'one')")
    other = postgres.create_database()
    try:
        stranger = new_replicator(url=postgres.url_of(other))
        stranger.start()
        stranger.stop()
        replicator = new_replicator()
        stranger.file.rename(replicator.file)
        replicator.start()
        assert compare(replicator)
        replicator.stop()
    finally:
        postgres.drop_database(other)


@pytest.mark.parametrize("log_is_lost", [False, True])
def test_an_older_copy_of_the_replica_is_continued_only_from_the_change_log(
    replicator: Replicator, run_sql: RunSql, log_is_lost: bool
) -> None:
    run_sql(ISSUES)
    replicator.start()
    replicator.stop()
    copy = replicator.file.read_bytes()
    replicator.start()
    run_sql("INSERT INTO issue VALUES (1, 'acknowledged')")
    replicator.catch_up()
    replicator.stop()
    replicator.file.write_bytes(copy)
    if log_is_lost:
        run_sql(f'DROP SCHEMA "{replicator.config.cdc_schema}" CASCADE')
    replicator.start()
    assert replicator.rows("SELECT id FROM issue") == [(1,)]
    assert ("older copy" in replicator.log()) == log_is_lost
    assert ("change_log_replayed" in replicator.log()) != log_is_lost


def test_an_idle_replica_is_continued(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    """Acknowledging WAL without transactions for us must not look like an older copy."""
    name = replicator.config.upstream.db.rsplit("/", 1)[1]
    run_sql(ISSUES + f'ALTER DATABASE "{name}" SET wal_sender_timeout = 1000')
    replicator.start()
    confirmed = "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name LIKE %s"
    slot = replicator.config.app.id + "%"
    before = postgres.psql(confirmed, slot)
    other = postgres.create_database()
    postgres.psql("CREATE TABLE noise AS SELECT generate_series(1, 100000)", database=other)
    postgres.drop_database(other)
    replicator.wait_until(lambda: postgres.psql(confirmed, slot) != before)
    replicator.stop()
    replicator.start()
    assert "older copy" not in replicator.log()


def test_somebody_elses_sqlite_file_is_not_overwritten(
    replicator: Replicator, run_sql: RunSql
) -> None:
    connection = apsw.Connection(str(replicator.file))
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert "precious" in message["message"]
    assert replicator.rows("SELECT count(*) FROM precious") == [(0,)]


def test_take_over_from_a_process_that_still_runs(
    replicator: Replicator, run_sql: RunSql, tmp_path: Path
) -> None:
    run_sql(ISSUES)
    replicator.start()
    first = replicator.process
    assert first is not None
    first.send_signal(19)  # SIGSTOP: it keeps its connection but does nothing
    successor = Replicator(replicator.config, replicator.directory)
    try:
        successor.start()
        run_sql("INSERT INTO issue VALUES (1, 'one')")
        successor.catch_up()
        assert compare(successor)
        successor.stop()
    finally:
        first.kill()
        first.wait()


def test_a_displaced_process_ends_instead_of_fighting(
    new_replicator: NewReplicator, run_sql: RunSql
) -> None:
    """replication.md §10.2 #24"""
    run_sql(ISSUES)
    first, second = new_replicator(), new_replicator()
    # The same file, as in a rolling update on one machine: a copy could be an older one by now.
    second.config = first.config
    first.start()
    second.start()
    assert first.next_message("fatal")["exit"] == 14
    assert first.process is not None
    assert first.process.wait(TIMEOUT_S) == 14
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    second.catch_up()
    assert second.rows("SELECT id FROM issue") == [(1,)]


def test_wrong_wal_level_is_explained(new_replicator: NewReplicator) -> None:
    cluster = make_cluster(wal_level="replica", max_wal_senders="5")
    try:
        replicator = new_replicator(url=cluster.url)
        replicator.start(wait=False)
        message = replicator.next_message("fatal")
        assert "wal_level = replica" in message["message"]
        assert message["exit"] == 78
        assert cluster.psql("SELECT count(*) FROM pg_publication") == [(0,)]
    finally:
        destroy_cluster(cluster)


def test_role_without_replication_is_explained(
    new_replicator: NewReplicator, postgres: PostgresCluster, database: str, app_id: str
) -> None:
    postgres.psql(f'CREATE ROLE "{app_id}" LOGIN')
    name = database.rsplit("/", 1)[1]
    replicator = new_replicator(url=postgres.url_of(name, app_id))
    replicator.start(wait=False)
    message = replicator.next_message("fatal")
    assert "REPLICATION" in message["message"]
    assert postgres.psql("SELECT count(*) FROM pg_publication", database=name) == [(0,)]
    postgres.psql(f'DROP ROLE "{app_id}"')


def test_server_restart_is_survived(new_replicator: NewReplicator) -> None:
    cluster = make_cluster(fsync="on")
    try:
        cluster.psql(ISSUES)
        replicator = new_replicator(url=cluster.url)
        replicator.start()
        cluster.psql("INSERT INTO issue VALUES (1, 'before')")
        cluster.stop()
        cluster.start()
        cluster.psql("INSERT INTO issue VALUES (2, 'after')")
        replicator.catch_up()
        assert compare(replicator) >= 2
        assert replicator.stop() == 0
    finally:
        destroy_cluster(cluster)


def test_huge_transaction_needs_little_memory(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql("CREATE TABLE big (id int PRIMARY KEY, t text)")
    replicator.start()
    assert replicator.process is not None
    status = Path(f"/proc/{replicator.process.pid}/status")
    run_sql("INSERT INTO big SELECT i, repeat('x', 100) FROM generate_series(1, 300000) i")
    replicator.catch_up()
    peak_kb = next(
        int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line
    )
    assert peak_kb < 220_000
    assert replicator.rows("SELECT count(*) FROM big") == [(300000,)]


def test_failed_initial_sync_leaves_no_slot(
    new_replicator: NewReplicator, postgres: PostgresCluster, database: str, run_sql: RunSql
) -> None:
    # A file where the replica's directory should be: the sync fails after the slot was made.
    replicator = new_replicator()
    (replicator.directory / "file").write_text("")
    config = replicator.config
    replicator.config = config.model_copy(
        update={
            "replica": config.replica.model_copy(
                update={"file": str(replicator.directory / "file" / "replica.db")}
            )
        }
    )
    replicator.start(wait=False)
    replicator.wait_until(lambda: "replication_impossible" in replicator.log())
    replicator.stop()
    slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE %s"
    assert postgres.psql(slots, config.app.id + "%") == [(0,)]


def test_every_value_is_stored_the_same_by_copy_and_stream(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN small AS int;"
        "CREATE TABLE v (id int PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric,"
        " b bool, t text, vc varchar(10), c char(5), u uuid, j json, jb jsonb, d date,"
        " ts timestamp, tz timestamptz, ti time, tiz timetz, by bytea, m mood, ia int[], ta text[],"
        " ba bool[], ma mood[], ja jsonb[], dom small, iv interval, ip inet, r int4range);"
    )
    row = (
        "32767, 9007199254740993, 1.1, 0.1, 12345678901234567890.5, true,"
        " E'tab\\t nl\\n back\\\\ \\\\N', 'x', 'ab', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',"
        " '{\"a\": \"\\u0041\\n\"}', '[1, 2.50]', '2024-02-29', '2019-01-12 00:30:35.381101',"
        " '2019-01-12 00:30:35.381101+01', '12:34:56.7891', '24:00:00+02', '\\xdeadbeef', 'ok',"
        """ '{1,NULL,3}', '{"a b",NULL,"c\\"d"}', '{t,f}', '{sad}',"""
        " array['{\"x\": 1}'::jsonb], 5, '1 day 2 hours', '10.0.0.1', '[1,5)'"
    )
    extremes = (
        "-32768, -9223372036854775808, 'NaN', 'Infinity', 'NaN', false, '', '', '',"
        " '00000000-0000-0000-0000-000000000000', 'null', 'null', '0001-01-01 BC',"
        " '0044-03-15 12:00:00 BC', 'infinity', '24:00:00', '00:00:00-15:59', '\\x', 'sad',"
        " '{}', '{{a,b},{c,d}}', '{}', '{}', '{}', 0, '0', '::1', 'empty'"
    )
    late = (
        "0, 0, 3.4e38, 1e300, 0.000, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'infinity',"
        " '294276-12-31 23:59:59.999999', '10000-01-01 00:00:00.000001+00', NULL, NULL, NULL, NULL,"
        " '[0:1]={1,2}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
    )
    rows = (row, extremes, late)
    for at, values in enumerate(rows):
        run_sql(f"INSERT INTO v VALUES ({at}, {values})")
    replicator.start()
    for at, values in enumerate(rows):
        run_sql(f"INSERT INTO v VALUES ({at + 100}, {values})")
    replicator.catch_up()
    names = [
        name
        for (name,) in replicator.rows("SELECT name FROM pragma_table_info('v')")
        if name not in ("id", "_0_version")
    ]
    columns = ", ".join(f'"{name}", typeof("{name}")' for name in names)
    copied = replicator.rows(f"SELECT {columns} FROM v WHERE id < 100 ORDER BY id")
    streamed = replicator.rows(f"SELECT {columns} FROM v WHERE id >= 100 ORDER BY id")
    assert copied == streamed
    assert len(copied) == len(rows)
    assert replicator.rows("SELECT tz, i8, ti FROM v WHERE id = 0") == [
        (1547249435381.101, 9007199254740993, 45296789)
    ]


def test_the_environment_is_clean_after_stop(replicator: Replicator, run_sql: RunSql) -> None:
    replicator.start()
    assert (replicator.directory / "version-ready.sock").exists()
    replicator.stop()
    assert not (replicator.directory / "version-ready.sock").exists()
    assert not any(name.endswith(".initial-sync") for name in os.listdir(replicator.directory))
    with psycopg.connect(replicator.config.upstream.db) as connection:
        idle = connection.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE application_name LIKE 'zero-%' AND datname = current_database()"
        ).fetchone()
    assert idle == (0,)


async def test_every_commit_is_announced(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(ISSUES)
    replicator.start()
    versions = watch_versions(replicator.directory / "version-ready.sock")
    first = await anext(versions)
    assert first == replicator.state_version()
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    second = await asyncio.wait_for(anext(versions), 10)
    assert second > first
    assert second == replicator.state_version()
    await versions.aclose()


def test_auto_reset_off_keeps_serving_what_is_there(
    unprivileged: Replicator, run_sql: RunSql
) -> None:
    replicator = unprivileged
    replicator.config = replicator.config.model_copy(update={"auto_reset": False})
    run_sql("INSERT INTO issue VALUES (1, 'one')")
    replicator.start()
    run_sql("ALTER TABLE issue ADD COLUMN extra int")
    run_sql("INSERT INTO issue VALUES (2, 'two')")
    replicator.wait_until(lambda: "replication_halted" in replicator.log())
    assert replicator.rows("SELECT id FROM issue") == [(1,)]
    assert replicator.stop() == 0
    replicator.start(wait=False)
    assert "ZERO_AUTO_RESET" in replicator.next_message("fatal")["message"]
