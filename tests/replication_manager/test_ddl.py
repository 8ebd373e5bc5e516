"""Schema changes follow the rows around them; oracles: upstream, a freshly synced replica."""

# ruff: noqa: S608 - the SQL of tests is made of constants

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from replication_manager.verify import verify
from tests.conftest import PostgresCluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator, compare, described, settle
from zerocache.replica.reader import load_schema

NewReplicator = Callable[..., Replicator]
TABLES = (
    "CREATE TABLE issue (id int PRIMARY KEY, title text, open bool, due timestamptz, n numeric);"
    "CREATE TABLE other (id int PRIMARY KEY, code text NOT NULL UNIQUE);"
    "INSERT INTO issue SELECT i, 't' || i, true, now(), i + 0.25 FROM generate_series(1, 50) i;"
    "INSERT INTO other VALUES (1, 'a'), (2, 'b')"
)
GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE issue ADD extra int",
        "ALTER TABLE issue ADD extra int DEFAULT 7",
        "ALTER TABLE issue ADD extra text DEFAULT 'it''s', ADD x2 bool NOT NULL DEFAULT true",
        "ALTER TABLE issue ADD extra int[] DEFAULT '{1,2}', ADD at timestamptz DEFAULT now()",
        "ALTER TABLE issue ADD extra text DEFAULT md5(random()::text)",
        "ALTER TABLE issue ADD extra serial UNIQUE",
        "ALTER TABLE issue ADD extra int GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE issue DROP COLUMN due",
        "ALTER TABLE issue RENAME COLUMN title TO name",
        "ALTER TABLE issue RENAME COLUMN title TO \"Title\"",
        "ALTER TABLE issue DROP COLUMN title, ADD COLUMN title int DEFAULT 3",
        "ALTER TABLE issue RENAME title TO t; ALTER TABLE issue RENAME due TO title",
        "ALTER TABLE issue ALTER id TYPE bigint",
        "ALTER TABLE issue ALTER id TYPE text",
        "ALTER TABLE issue ALTER id TYPE int USING id + 1000",
        "ALTER TABLE issue ALTER n TYPE numeric(10, 1)",
        "ALTER TABLE issue ALTER n TYPE text",
        "ALTER TABLE issue ALTER title TYPE text USING upper(title)",
        "ALTER TABLE issue ALTER title TYPE varchar(100)",
        "ALTER TABLE issue ALTER due TYPE date",
        "ALTER TABLE issue ALTER title SET NOT NULL",
        "ALTER TABLE other ALTER code DROP NOT NULL",
        "ALTER TABLE issue RENAME TO task",
        "ALTER TABLE issue RENAME TO task; ALTER TABLE other RENAME TO issue",
        "ALTER TABLE other DROP CONSTRAINT other_pkey, ADD CONSTRAINT other_pkey PRIMARY KEY (code)",  # noqa: E501
        "ALTER TABLE other REPLICA IDENTITY FULL",
        "ALTER TABLE issue SET UNLOGGED; ALTER TABLE issue SET LOGGED",
        "CREATE TABLE label (id int PRIMARY KEY, t text); INSERT INTO label VALUES (1, 'x')",
        "CREATE TABLE label AS SELECT id, title FROM issue",
        "CREATE TABLE keyed (a int NOT NULL UNIQUE, b int); INSERT INTO keyed VALUES (1, 1)",
        "DROP TABLE other",
        "DROP TABLE issue; CREATE TABLE issue (id int PRIMARY KEY, title text)",
        "CREATE UNIQUE INDEX ON issue (title); CREATE INDEX ON issue (open DESC, due)",
        "DROP TABLE other; CREATE INDEX other ON issue (title)",
        "CREATE SCHEMA away; ALTER TABLE other SET SCHEMA away",
        "TRUNCATE other; ALTER TABLE other ADD z int DEFAULT 4; INSERT INTO other VALUES (9, 'i')",
        "COMMENT ON TABLE issue IS 'nothing'",
        "CREATE TEMP TABLE scratch (a int)",
    ],
)  # fmt: skip
def test_change_is_followed(
    new_replicator: NewReplicator, run_sql: RunSql, change: str, app_id: str
) -> None:
    run_sql(TABLES)
    replicator = new_replicator()
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql(
        "INSERT INTO issue (id, title) VALUES (100, 'before');"
        f"UPDATE other SET code = code || '!'; {change}"
    )
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows(GENERATION) == before
    fresh = new_replicator(app=f"{app_id}_b")
    fresh.start()
    assert described(replicator) == described(fresh)


def test_rows_around_changes_in_one_transaction(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(TABLES)
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql(
        "INSERT INTO issue (id, title) VALUES (101, 'a'); ALTER TABLE issue ADD extra int;"
        "UPDATE issue SET extra = id; ALTER TABLE issue RENAME extra TO more;"
        "INSERT INTO issue (id, more) VALUES (102, 5); ALTER TABLE issue RENAME TO task;"
        "DELETE FROM task WHERE id < 10; ALTER TABLE task DROP title;"
        "INSERT INTO task (id) VALUES (103); CREATE TABLE issue (id int PRIMARY KEY);"
        "INSERT INTO issue VALUES (1)"
    )
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows("SELECT more FROM task WHERE id = 102") == [(5,)]
    assert replicator.rows(GENERATION) == before


def test_rolled_back_changes_are_nothing(replicator: Replicator, database: str) -> None:
    with psycopg.connect(database) as upstream:
        upstream.execute(TABLES.encode())
    replicator.start()
    before = described(replicator)
    with psycopg.connect(database) as upstream:
        upstream.execute("ALTER TABLE issue ADD extra int")
        upstream.execute("SAVEPOINT a")
        upstream.execute("ALTER TABLE issue DROP title")
        upstream.execute("ROLLBACK TO a")
        upstream.execute("INSERT INTO issue (id, extra) VALUES (100, 3)")
        upstream.rollback()
        upstream.execute("INSERT INTO issue (id) VALUES (101)")
    settle(replicator)
    assert described(replicator) == before
    assert compare(replicator)


def test_changes_made_while_nobody_listened(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(TABLES)
    replicator.start()
    before = replicator.rows(GENERATION)
    replicator.stop()
    run_sql("ALTER TABLE issue ADD extra int DEFAULT 1")
    run_sql("INSERT INTO issue (id, extra) VALUES (100, 2); DROP TABLE other")
    replicator.start()
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows(GENERATION) == before


def test_concurrent_creations(replicator: Replicator, database: str, run_sql: RunSql) -> None:
    run_sql(TABLES)
    replicator.start()

    def create(number: int) -> None:
        with psycopg.connect(database) as upstream:
            upstream.execute(f"CREATE TABLE made{number} (id int PRIMARY KEY)".encode())
            upstream.execute(f"INSERT INTO made{number} VALUES (1)".encode())

    threads = [threading.Thread(target=create, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settle(replicator)
    assert compare(replicator)
    made = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name LIKE 'made%'"
    assert replicator.rows(made) == [(4,)]


def test_concurrent_index_is_one_index(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster, database: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    name = database.rsplit("/", 1)[1]
    postgres.psql("CREATE UNIQUE INDEX CONCURRENTLY by_title ON issue (title)", database=name)
    settle(replicator)
    assert replicator.rows("SELECT \"unique\" FROM pragma_index_list('issue') WHERE name = 'by_title'") == [(1,)]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE mine (id int PRIMARY KEY); INSERT INTO mine VALUES (1)",
        "CREATE TEMP TABLE scratch (id int); CREATE INDEX ON scratch (id); DROP TABLE scratch",
    ],
    ids=["own table", "temporary table"],
)
def test_other_roles_go_on_changing_what_is_theirs(
    replicator: Replicator, run_sql: RunSql, app_id: str, script: str
) -> None:
    """Migrations, and whoever uses temporary tables, seldom have the role of the replication."""
    run_sql(f"{TABLES}; CREATE ROLE {app_id}; GRANT CREATE ON SCHEMA public TO {app_id}")
    replicator.start()
    try:
        run_sql(f"SET ROLE {app_id}; {script}")
        settle(replicator)
        assert compare(replicator)
    finally:
        run_sql(f"DROP OWNED BY {app_id}; DROP ROLE {app_id}")


def test_publication_changes_bring_existing_rows(
    new_replicator: NewReplicator, run_sql: RunSql, app_id: str
) -> None:
    run_sql(TABLES + ";CREATE PUBLICATION parts FOR TABLE issue (id, title) WHERE (id < 40)")
    replicator = new_replicator(app={"id": app_id, "publications": ("parts",)})
    replicator.start()
    run_sql("ALTER PUBLICATION parts ADD TABLE other")
    settle(replicator)
    assert replicator.rows("SELECT id, code FROM other ORDER BY id") == [(1, "a"), (2, "b")]
    run_sql("ALTER PUBLICATION parts SET TABLE issue (id, title, n) WHERE (id > 10), other")
    settle(replicator)
    assert replicator.rows("SELECT count(*), min(id), count(n) FROM issue") == [(40, 11, 40)]
    run_sql("ALTER PUBLICATION parts DROP TABLE other")
    settle(replicator)
    assert replicator.rows("SELECT count(*) FROM sqlite_schema WHERE name = 'other'") == [(0,)]


def test_partitions_come_and_go_with_their_rows(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(
        "CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
        "CREATE TABLE p0 PARTITION OF p FOR VALUES FROM (0) TO (100);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (100) TO (200);"
        "INSERT INTO p SELECT i, 'x' FROM generate_series(50, 150) i"
    )
    replicator.start()
    run_sql("ALTER TABLE p DETACH PARTITION p0")
    settle(replicator)
    assert compare(replicator)
    run_sql("UPDATE p0 SET t = 'y'; ALTER TABLE p ATTACH PARTITION p0 FOR VALUES FROM (0) TO (100)")
    settle(replicator)
    assert compare(replicator)
    run_sql("DROP TABLE p1")
    settle(replicator)
    assert compare(replicator)


def test_manual_hook_with_disabled_triggers(
    replicator: Replicator, run_sql: RunSql, app_id: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    run_sql(f"ALTER EVENT TRIGGER {app_id}_ddl_end_0 DISABLE")
    run_sql(f"ALTER EVENT TRIGGER {app_id}_ddl_start_0 DISABLE")
    run_sql(f'ALTER TABLE issue ADD extra int DEFAULT 5; SELECT "{app_id}_0".update_schemas()')
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows("SELECT DISTINCT extra FROM issue") == [(5,)]


def test_comment_on_a_publication_announces_what_triggers_did_not_see(
    new_replicator: NewReplicator, run_sql: RunSql, app_id: str
) -> None:
    run_sql(f"{TABLES}; CREATE PUBLICATION parts FOR TABLE issue")
    replicator = new_replicator(app={"id": app_id, "publications": ("parts",)})
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql(
        f"ALTER EVENT TRIGGER {app_id}_ddl_end_0 DISABLE;"
        "ALTER PUBLICATION parts ADD TABLE other; ALTER TABLE issue RENAME title TO name;"
        f"ALTER EVENT TRIGGER {app_id}_ddl_end_0 ENABLE;"
        "COMMENT ON PUBLICATION parts IS 'changed'; UPDATE issue SET name = 'new'"
    )
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows("SELECT DISTINCT name FROM issue") == [("new",)]
    assert replicator.rows("SELECT count(*) FROM other") == [(2,)]
    assert replicator.rows(GENERATION) == before


@pytest.mark.parametrize("trigger", ["a_first", "zz_last"])
def test_triggers_that_alter_what_a_command_made(
    replicator: Replicator, run_sql: RunSql, trigger: str
) -> None:
    run_sql(
        f"{TABLES}; CREATE FUNCTION stamp() RETURNS event_trigger LANGUAGE plpgsql AS $$ "
        "DECLARE made record; BEGIN "
        "FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() "
        "WHERE object_type = 'table' AND schema_name = 'public' LOOP "
        "EXECUTE 'ALTER TABLE ' || made.objid::regclass || ' ADD stamp int DEFAULT 5'; END LOOP; "
        "END $$; "
        f"CREATE EVENT TRIGGER {trigger} ON ddl_command_end WHEN TAG IN ('CREATE TABLE') "
        "EXECUTE FUNCTION stamp()"
    )
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql("CREATE TABLE made (id int PRIMARY KEY); INSERT INTO made VALUES (1)")
    settle(replicator)
    assert replicator.rows("SELECT id, stamp FROM made") == [(1, 5)]
    assert replicator.rows(GENERATION) == before
    # What the command itself did is known, so nothing had to be read again.
    assert "backfill_started" not in replicator.log()


def test_keyless_table_with_identity_full_waits_for_a_key(
    replicator: Replicator, run_sql: RunSql
) -> None:
    run_sql("CREATE TABLE plain (a int, t text); ALTER TABLE plain REPLICA IDENTITY FULL;"
            "INSERT INTO plain SELECT i, 'x' FROM generate_series(1, 30) i")  # fmt: skip
    replicator.start()
    before = replicator.rows(GENERATION)
    run_sql("ALTER TABLE plain ADD b text DEFAULT md5(random()::text)")
    run_sql("UPDATE plain SET t = 'y' WHERE a = 1; DELETE FROM plain WHERE a = 2")
    replicator.wait_until(lambda: "backfill_failed" in replicator.log())
    run_sql("ALTER TABLE plain ADD PRIMARY KEY (a)")
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows("SELECT count(b) FROM plain") == [(29,)]
    assert replicator.rows(GENERATION) == before


@pytest.mark.parametrize(
    "change", ['CREATE TABLE "Issue" (id int PRIMARY KEY)', 'ALTER TABLE issue ADD "Title" text']
)
def test_names_that_differ_in_case_only_are_refused_and_mended(
    replicator: Replicator, run_sql: RunSql, change: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    run_sql(change)
    replicator.wait_until(lambda: "SQLite names ignore case" in replicator.log())
    run_sql('DROP TABLE "Issue"' if "CREATE" in change else 'ALTER TABLE issue DROP "Title"')
    replicator.wait_until(
        lambda: "replication_started" in replicator.log().split("ignore case")[-1]
    )
    settle(replicator)
    assert compare(replicator)


def test_a_table_that_cannot_be_replicated_halts(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(TABLES)
    replicator.start()
    run_sql("ALTER TABLE issue REPLICA IDENTITY NOTHING")
    replicator.wait_until(lambda: "REPLICA IDENTITY NOTHING" in replicator.log())
    run_sql("ALTER TABLE issue REPLICA IDENTITY DEFAULT")
    replicator.wait_until(lambda: "replication_started" in replicator.log().split("NOTHING")[-1])
    settle(replicator)
    assert compare(replicator)


BIG = (
    "CREATE TABLE big (id int PRIMARY KEY, t text, n int); ALTER TABLE big ALTER t SET STORAGE "
    "EXTERNAL; INSERT INTO big SELECT i, repeat('x', 3000), 0 FROM generate_series(1, 8000) i"
)


def _disturb(url: str, stop: threading.Event, seed: int) -> None:
    rng = random.Random(seed)
    with psycopg.connect(url, autocommit=True) as upstream:
        while not stop.is_set():
            at = rng.randint(1, 8000)
            choice: list[Any] = [
                f"UPDATE big SET n = n + 1 WHERE id BETWEEN {at} AND {at + 50}",
                f"UPDATE big SET t = 'short' WHERE id = {at}",
                f"DELETE FROM big WHERE id = {at}",
                f"UPDATE big SET id = -id WHERE id = {at}",
                f"INSERT INTO big VALUES ({at}, repeat('y', 3000), 1) ON CONFLICT DO NOTHING",
            ]
            with suppress(psycopg.errors.UniqueViolation):
                upstream.execute(rng.choice(choice).encode())


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE big ADD extra float8 DEFAULT random()",
        "ALTER TABLE big ALTER t TYPE varchar USING t || 'z'",
        "ALTER TABLE big ALTER id TYPE text",
        "ALTER PUBLICATION parts ADD TABLE big",
    ],
)
def test_backfill_beside_writes_and_kills(
    new_replicator: NewReplicator, run_sql: RunSql, database: str, app_id: str, change: str
) -> None:
    run_sql(BIG + ";CREATE TABLE small (id int PRIMARY KEY); CREATE PUBLICATION parts FOR TABLE small")  # fmt: skip  # noqa: E501
    new_table = "PUBLICATION" in change
    if not new_table:
        run_sql("ALTER PUBLICATION parts ADD TABLE big")
    replicator = new_replicator(app={"id": app_id, "publications": ("parts",)})
    replicator.start()
    generation = replicator.rows(GENERATION)
    stop, seed = threading.Event(), random.randrange(1 << 30)
    writer = threading.Thread(target=_disturb, args=(database, stop, seed))
    text_key = "id TYPE text" in change
    if not text_key:
        writer.start()
    run_sql(change)
    for _ in range(2):
        replicator.wait_until(lambda: "backfill_started" in replicator.log())
        replicator.kill()
        replicator.start()
    threading.Event().wait(0.5)
    stop.set()
    if not text_key:
        writer.join()
    settle(replicator)
    assert compare(replicator) > 5000, f"seed {seed}"
    assert replicator.rows(GENERATION) == generation, replicator.log()


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE issue ALTER title TYPE text USING upper(title)",
        "ALTER TABLE issue ALTER title TYPE jsonb USING to_jsonb(upper(title))",
        "ALTER TABLE issue ALTER id TYPE text",
    ],
)
def test_readers_see_all_of_a_rewrite_or_nothing(
    replicator: Replicator, run_sql: RunSql, change: str
) -> None:
    run_sql(TABLES)
    replicator.start()
    before = replicator.rows("SELECT id, title FROM issue")
    run_sql(change)
    rows = before
    while rows == before:
        connection = replicator.connection()
        connection.execute("BEGIN")
        columns = load_schema(connection)["issue"].columns
        assert {"id", "title"} <= columns.keys()
        rows = connection.execute("SELECT id, title FROM issue").fetchall()
        connection.close()
    assert len(rows) == len(before)
    assert not set(rows) & set(before)
    settle(replicator)
    assert compare(replicator)


def test_kill_in_the_middle_of_a_ddl_transaction(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(TABLES + ";CREATE TABLE big (id int PRIMARY KEY, t text)")
    replicator.start()
    generation = replicator.rows(GENERATION)
    for number in range(3):
        run_sql(
            f"ALTER TABLE issue ADD e{number} int DEFAULT {number}; INSERT INTO big "
            f"SELECT i, 'x' FROM generate_series({number * 30000}, {number * 30000 + 29999}) i;"
            f"ALTER TABLE issue RENAME e{number} TO f{number}"
        )
        threading.Event().wait(0.05 * number)
        replicator.kill()
        replicator.start()
    settle(replicator)
    assert compare(replicator) > 90_000
    assert replicator.rows(GENERATION) == generation, replicator.log()


IN_FLIGHT = (
    # Neither of these waits for transactions that have written to the table.
    ("ALTER PUBLICATION parts SET TABLE issue (id, title, n), other", True),
    ("ALTER PUBLICATION parts SET TABLE issue (id, open), other", True),
    ("ALTER PUBLICATION parts SET TABLE issue WHERE (id < 30), other", True),
    ("ALTER PUBLICATION parts DROP TABLE issue", False),
    ("ALTER PUBLICATION parts DROP TABLE issue; ALTER PUBLICATION parts ADD TABLE issue", True),
    ("ALTER SCHEMA app RENAME TO moved", True),
    ("ALTER TYPE app.mood RENAME VALUE 'sad' TO 'blue'", True),
)


@pytest.mark.parametrize("older", [False, True], ids=["", "by an older transaction"])
@pytest.mark.parametrize(("change", "stays"), IN_FLIGHT)
def test_rows_written_before_a_change_and_committed_after_it(
    new_replicator: NewReplicator,
    run_sql: RunSql,
    database: str,
    app_id: str,
    change: str,
    stays: bool,
    older: bool,
) -> None:
    """The change is made by a transaction that has a later number than the rows', or an earlier."""
    run_sql(
        f"CREATE SCHEMA app; SET search_path = app; {TABLES}; CREATE TYPE mood AS ENUM ('sad');"
        "ALTER TABLE issue ADD m mood DEFAULT 'sad'; ALTER TABLE issue ALTER m DROP DEFAULT;"
        "CREATE PUBLICATION parts FOR TABLE issue (id, title, m), other"
    )
    replicator = new_replicator(app={"id": app_id, "publications": ("parts",)})
    replicator.start()
    before = replicator.rows(GENERATION)
    with psycopg.connect(database) as slow, psycopg.connect(database) as changing:
        if older:
            changing.execute("SELECT pg_current_xact_id()")
        slow.execute("UPDATE app.issue SET title = 'late', m = 'sad' WHERE id < 10")
        slow.execute("UPDATE app.issue SET id = id + 1000 WHERE id IN (20, 40)")
        slow.execute("DELETE FROM app.issue WHERE id IN (21, 41)")
        slow.execute("INSERT INTO app.issue (id, title, m) VALUES (25001, 'new', 'sad')")
        changing.execute(f"SET search_path = app; {change}".encode())
        changing.commit()
        replicator.catch_up()
    settle(replicator)
    table = "moved.issue" if "moved" in change else "app.issue"
    count = "SELECT count(*) FROM sqlite_schema WHERE name = ?"
    assert replicator.rows(count, table) == [(int(stays),)]
    verdict = verify(database, replicator.file)
    assert verdict.is_equal, (verdict, replicator.log())
    assert replicator.rows(GENERATION) == before, replicator.log()


def test_partitions_of_a_root_that_moves_out_of_the_publication(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    """pgoutput goes on to send their rows as the root's, which is not published any more."""
    run_sql(
        "CREATE SCHEMA away; CREATE TABLE p (id int PRIMARY KEY, t text) PARTITION BY RANGE (id);"
        "CREATE TABLE leaf PARTITION OF p DEFAULT; INSERT INTO p VALUES (1, 'a'), (2, 'b')"
    )
    replicator.start()
    run_sql("UPDATE leaf SET t = 'c' WHERE id = 1")
    run_sql("ALTER TABLE p SET SCHEMA away")
    run_sql("DELETE FROM away.p WHERE id = 2; INSERT INTO leaf VALUES (3, 'd')")
    leaf = "SELECT count(*) FROM sqlite_schema WHERE name = 'leaf'"
    replicator.wait_until(lambda: replicator.rows(leaf) == [(1,)])
    settle(replicator)
    assert compare(replicator)
    assert replicator.rows("SELECT id FROM leaf ORDER BY id") == [(1,), (3,)]
