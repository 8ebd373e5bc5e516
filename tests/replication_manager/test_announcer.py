"""What clients will not see is said once."""

from __future__ import annotations

from structlog.testing import capture_logs

from replication_manager.announcer import HiddenAnnouncer
from tests.conftest import PostgresCluster
from tests.replica.tables import column, table
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator
from zerocache.replica.published import PublishedSchema


def _schema(*names: str) -> PublishedSchema:
    return PublishedSchema(tables=tuple(table(n, [column("span", 1, "interval")]) for n in names))


def test_only_what_is_new_is_said() -> None:
    announcer = HiddenAnnouncer()
    with capture_logs() as logs:
        announcer.announce(_schema("a"))
        announcer.announce(_schema("a"))
        announcer.announce(_schema("a", "b"))
        announcer.announce(_schema("b"))
        announcer.announce(_schema("a", "b"))
    columns = [line["columns"] for line in logs if "columns" in line]
    tables = [line["tables"] for line in logs if "tables" in line]
    assert columns == [{"a.span": "interval"}, {"b.span": "interval"}, {"a.span": "interval"}]
    assert tables == [["a"], ["b"], ["a"]]


def test_announced_once_at_start_and_once_when_a_column_is_added(
    replicator: Replicator, run_sql: RunSql, postgres: PostgresCluster
) -> None:
    run_sql("CREATE TABLE t (id int PRIMARY KEY, span interval)")
    replicator.start()
    # A connection that ends is followed by another session of the same process.
    name = replicator.config.upstream.db.rsplit("/", 1)[1]
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s"
    postgres.psql(end, name)
    replicator.catch_up()
    run_sql("ALTER TABLE t ADD COLUMN area box")
    replicator.catch_up()
    log = replicator.log()
    assert log.count("columns_hidden_from_clients") == 2
    assert log.count("t.span") == 1
    assert log.count("t.area") == 1
