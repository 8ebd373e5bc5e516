"""Copies that say nothing: a silent network is given up, a long search is not."""

from __future__ import annotations

from contextlib import closing

import psycopg
import pytest
from msgspec import structs

from replication_manager.signals import StopSignal
from replication_manager.table_copy import copy_tables, open_snapshot, read_sizes
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.proxy import Proxy
from zerocache.postgres.connection import INACTIVITY_VARIABLE, is_transient
from zerocache.postgres.introspection import read_published_schema
from zerocache.replica.published import PublishedTable

# A busy server needs a part of it for its answers.
LIMIT_MS = "1000"
# More than fits between the server and us.
LARGE = (
    "CREATE TABLE t (id int PRIMARY KEY, s text); CREATE PUBLICATION p FOR TABLE t;"
    "INSERT INTO t SELECT i, repeat('x', 20000) FROM generate_series(1, 3000) i"
)
SMALL = (
    "CREATE TABLE t (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;"
    "INSERT INTO t VALUES (1), (2)"
)


def _table(connection: psycopg.Connection) -> PublishedTable:
    (table,) = read_published_schema(connection, ("p",)).tables
    return table


@pytest.mark.parametrize("swallow", [True, False], ids=["swallowing", "blocking"])
def test_a_copy_of_which_nothing_arrives_is_given_up(
    run_sql: RunSql,
    proxied_url: str,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    swallow: bool,
) -> None:
    run_sql(LARGE)
    arrived = 0

    def sink(_: PublishedTable, __: bytes, count: int) -> None:
        nonlocal arrived
        arrived += count
        proxy.freeze(swallow=swallow)

    with psycopg.connect(proxied_url) as holder, closing(StopSignal()) as never:
        ((name,),) = holder.execute("SELECT pg_export_snapshot()").fetchall()
        connection = open_snapshot(proxied_url, "test", name)
        table = _table(connection)
        sizes = read_sizes(connection, [table])
        monkeypatch.setenv(INACTIVITY_VARIABLE, LIMIT_MS)
        with pytest.raises(psycopg.OperationalError, match="no answer") as caught:
            copy_tables(proxied_url, [connection], [table], sizes, sink, never)
        holder.close()
    assert is_transient(caught.value)
    assert connection.closed
    assert 0 < arrived < 3000


def test_a_copy_that_searches_long_for_a_row_is_waited_for(
    run_sql: RunSql, proxied_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INACTIVITY_VARIABLE, LIMIT_MS)
    run_sql(SMALL)
    found: list[bytes] = []
    with psycopg.connect(proxied_url) as holder, closing(StopSignal()) as never:
        ((name,),) = holder.execute("SELECT pg_export_snapshot()").fetchall()
        with open_snapshot(proxied_url, "test", name) as connection:
            searching = {"p": "pg_sleep(2.5) IS NOT NULL AND id = 2"}
            table = structs.replace(_table(connection), publications=searching)
            sizes = read_sizes(connection, [table])
            copy_tables(
                proxied_url,
                [connection],
                [table],
                sizes,
                lambda _, lines, __: found.append(lines),
                never,
            )
    assert found == [b"2"]
