"""``zerocache verify`` finds every kind of difference, and none where changes are under way."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import apsw
import psycopg
import pytest

from replication_manager import verify as module
from replication_manager.verify import (
    EXIT_DIFFERENT,
    EXIT_EQUAL,
    EXIT_IMPOSSIBLE,
    print_verdict,
    verify,
)
from tests.conftest import PostgresCluster
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator
from tests.replication_manager.test_crash import TABLES, write_load
from zerocache import cli
from zerocache.errors import ReplicationError
from zerocache.protocol.versions import Lsn

_SCRIPT = """
CREATE SCHEMA other;
CREATE TABLE issue (id int PRIMARY KEY, title text, n float8, j jsonb);
CREATE TABLE other.pair (a int, b int, t text, PRIMARY KEY (a, b));
CREATE TABLE plain (n int, t text);
INSERT INTO issue SELECT i, 'secret ' || i, i, '{"a": 1}' FROM generate_series(1, 5000) i;
INSERT INTO other.pair VALUES (1, 1, 'x'), (1, 2, NULL);
INSERT INTO plain VALUES (1, 'same'), (1, 'same'), (2, NULL);
CREATE PUBLICATION everything FOR TABLES IN SCHEMA public, other;
"""


@pytest.fixture
def running(replicator: Replicator, run_sql: RunSql) -> Replicator:
    run_sql(_SCRIPT)
    config = replicator.config
    replicator.config = config.model_copy(
        update={"app": config.app.model_copy(update={"publications": ("everything",)})}
    )
    replicator.start()
    return replicator


def _tamper(replicator: Replicator, *statements: str) -> None:
    with contextlib.closing(apsw.Connection(str(replicator.file))) as connection:
        connection.set_busy_timeout(5_000)
        for statement in statements:
            connection.execute(statement)


def _printed(replicator: Replicator, *, show_values: bool = False) -> list[str]:
    lines: list[str] = []
    verdict = verify(replicator.config.upstream.db, replicator.file)
    print_verdict(verdict, show_values=show_values, write=lines.append)
    return lines


def test_equal_replicas_are_equal(running: Replicator) -> None:
    lines = _printed(running)
    assert len(lines) == 1
    assert lines[0].endswith("no differences")
    assert int(lines[0].split()[0]) >= 5_005


@pytest.mark.parametrize(
    ("statement", "line"),
    [
        ("DELETE FROM issue WHERE id = 7", "issue (id=7): missing in the replica"),
        (
            "INSERT INTO issue SELECT 9999, title, n, j, _0_version FROM issue WHERE id = 1",
            "issue (id=9999): only in the replica",
        ),
        ("UPDATE issue SET title = 'x' WHERE id = 7", "issue (id=7): other values of title"),
        ("UPDATE issue SET title = NULL WHERE id = 7", "issue (id=7): other values of title"),
        ("UPDATE issue SET n = 7.0 WHERE id = 7", "issue (id=7): other values of n"),
        (
            "UPDATE issue SET n = '7', j = '{\"a\":1}' WHERE id = 7",
            "issue (id=7): other values of n, j",
        ),
        (
            "UPDATE \"other.pair\" SET t = '' WHERE b = 2",
            "other.pair (a=1, b=2): other values of t",
        ),
        ("DELETE FROM plain WHERE rowid = 1", ": missing in the replica"),
        ("DELETE FROM plain WHERE n = 1", ": missing in the replica, 2 times"),
        ("INSERT INTO plain VALUES (2, '', '00')", ": only in the replica"),
    ],
)
def test_a_difference_is_named(running: Replicator, statement: str, line: str) -> None:
    _tamper(running, statement)
    lines = _printed(running)
    assert lines[0].endswith(line)
    assert lines[-1].endswith("1 difference")
    assert "secret" not in "".join(lines)


def test_every_difference_is_counted_once(running: Replicator) -> None:
    _tamper(
        running,
        "UPDATE issue SET id = id + 100000 WHERE id <= 10",
        "UPDATE plain SET t = t || '!' WHERE n = 1",
    )
    assert _printed(running)[-1].endswith("22 differences")


def test_values_are_shown_on_request(running: Replicator) -> None:
    _tamper(running, "UPDATE issue SET title = 'mine' WHERE id = 7")
    lines = _printed(running, show_values=True)
    assert "title: upstream 'secret 7', replica 'mine'" in lines[0]


def test_changes_under_way_are_no_differences(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql(TABLES)
    run_sql("INSERT INTO account VALUES (99, 1, 'nobody writes it')")
    replicator.start()
    with write_load(database, seed=3):
        for _ in range(3):
            assert verify(database, replicator.file).differences == ()
    _tamper(replicator, "DELETE FROM account WHERE id = 99")
    with write_load(database, seed=4):
        found = verify(database, replicator.file).differences
    assert [(one.table, one.key) for one in found] == [("account", (("id", 99),))]


class _HeldCommit:
    """A transaction that is in the WAL, and so reaches the replica, but is not visible to any
    snapshot until :meth:`end`: its commit waits for a standby that does not exist."""

    def __init__(self, replicator: Replicator, postgres: PostgresCluster, database: str) -> None:
        self._postgres = postgres
        self._url = database
        postgres.psql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        postgres.psql("SELECT pg_reload_conf()")
        self._writer = threading.Thread(target=self._write)
        self._writer.start()
        # Not by a later transaction: that one's end would tell snapshots of this one's number.
        replicator.wait_until(
            lambda: replicator.rows("SELECT 1 FROM account WHERE id = 99") != [] and self._waits()
        )

    def _write(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = on")
            connection.execute("INSERT INTO account VALUES (99, 1, 'not visible yet')")

    def _waits(self) -> bool:
        query = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        return self._postgres.psql(query) != []

    def end(self) -> None:
        self._postgres.psql("ALTER SYSTEM RESET synchronous_standby_names")
        self._postgres.psql("SELECT pg_reload_conf()")
        self._writer.join()


@pytest.fixture
def held_commit(
    replicator: Replicator, run_sql: RunSql, database: str, postgres: PostgresCluster
) -> Iterator[_HeldCommit]:
    # Nobody else is to wait for the standby.
    name = database.rsplit("/", 1)[1]
    run_sql(TABLES + f'ALTER DATABASE "{name}" SET synchronous_commit = local')
    replicator.start()
    held = _HeldCommit(replicator, postgres, database)
    yield held
    held.end()


def test_a_commit_in_the_wal_that_is_not_visible_yet_is_waited_for(
    replicator: Replicator,
    database: str,
    held_commit: _HeldCommit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It is the only transaction there is: nothing with a higher number has ended before it.
    monkeypatch.setattr(module, "_pause", held_commit.end)
    verdict = verify(database, replicator.file)
    assert verdict.differences == ()
    assert verdict.compared >= 51


def test_a_commit_that_is_not_visible_for_long_is_no_difference_unless_it_stays(
    replicator: Replicator,
    database: str,
    held_commit: _HeldCommit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_COMMIT_S", 0.0)
    found = verify(database, replicator.file).differences
    assert [(one.kind, one.key) for one in found] == [("extra", (("id", 99),))]

    def marking(url: str, mark: Callable[[str], Lsn] = module._mark) -> Lsn:
        held_commit.end()  # after the first round's snapshot
        return mark(url)

    monkeypatch.setattr(module, "_mark", marking)
    assert verify(database, replicator.file).differences == ()


def test_another_schema_is_a_difference(
    running: Replicator, run_sql: RunSql, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.stop()
    run_sql("CREATE TABLE late (id int PRIMARY KEY)")
    lines: list[str] = []
    marks: list[Lsn] = []

    def marking(url: str, mark: Callable[[str], Lsn] = module._mark) -> Lsn:
        marks.append(mark(url))
        return marks[-1]

    monkeypatch.setattr(module, "_mark", marking)
    verdict = verify(running.config.upstream.db, running.file, wait_s=0)
    print_verdict(verdict, show_values=False, write=lines.append)
    assert lines[0] == "schema: table late was added"
    assert lines[-1].endswith("1 difference")
    # A replica that stands still is waited for once.
    assert len(marks) == 1


def test_a_replica_that_stands_still_cannot_be_compared(running: Replicator) -> None:
    running.stop()
    with pytest.raises(ReplicationError, match="has not reached"):
        verify(running.config.upstream.db, running.file, wait_s=0)


def test_exit_statuses(
    running: Replicator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ZERO_UPSTREAM_DB", running.config.upstream.db)
    monkeypatch.setenv("ZERO_REPLICA_FILE", str(running.file))
    monkeypatch.setenv("NODE_ENV", "development")
    monkeypatch.chdir(running.directory)
    assert cli.main(["verify"]) == EXIT_EQUAL
    _tamper(running, "UPDATE issue SET title = 'mine' WHERE id = 7")
    assert cli.main(["verify", "--show-values"]) == EXIT_DIFFERENT
    assert "'mine'" in capsys.readouterr().out
    monkeypatch.setenv("ZERO_REPLICA_FILE", str(running.directory / "nowhere.db"))
    assert cli.main(["verify"]) == EXIT_IMPOSSIBLE
    assert "no replica" in capsys.readouterr().err
