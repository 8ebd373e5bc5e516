"""Very wide rows and very large values: copied, streamed, kept when they do not change.

Sizes are such that every limit of a smaller order would show; ``benchmarks.large_values`` is the
same with hundreds of megabytes.
"""

from __future__ import annotations

import psycopg
import pytest

from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator

COLUMNS = 1_600
"""PostgreSQL's limit. SQLite's is 2,000."""
SIZE = 6_000_000

LARGE = f"""
CREATE TABLE large (id int PRIMARY KEY, n int, t text, j jsonb, b bytea, a text[]);
INSERT INTO large SELECT 1, 0, repeat('äb', {SIZE // 2}), to_jsonb(repeat('x"\\', {SIZE // 3})),
  decode(repeat('00ff', {SIZE // 2}), 'hex'), ARRAY[repeat('y', {SIZE})];
"""


def _wide(name: str, key: str) -> str:
    columns = ", ".join(f"c{i} text" for i in range(1, COLUMNS))
    return f"CREATE TABLE {name} (id int NOT NULL, {columns}{key});"


def _equal(replicator: Replicator, rows: int) -> None:
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict
    assert verdict.compared >= rows


def _insert_wide(url: str, table: str, number: int) -> None:
    names = ", ".join(["%s"] * COLUMNS)
    values = [number, *(f"{(number + i) % 100}" if i % 7 else None for i in range(1, COLUMNS))]
    with psycopg.connect(url) as connection:
        statement = f"INSERT INTO {table} VALUES ({names})"  # noqa: S608 - a constant
        connection.execute(statement.encode(), values)


@pytest.mark.parametrize(
    ("key", "identity"),
    [(", PRIMARY KEY (id)", "DEFAULT"), (", PRIMARY KEY (id)", "FULL"), ("", "FULL")],
    ids=["key", "full identity", "no key"],
)
def test_rows_of_1600_columns(
    replicator: Replicator, run_sql: RunSql, database: str, key: str, identity: str
) -> None:
    run_sql(_wide("wide", key) + f"ALTER TABLE wide REPLICA IDENTITY {identity}")
    _insert_wide(database, "wide", 1)
    replicator.start()
    for number in (2, 3, 4):
        _insert_wide(database, "wide", number)
    run_sql("UPDATE wide SET c1 = 'new', c1599 = NULL, c800 = 'x' WHERE id IN (1, 2)")
    run_sql("UPDATE wide SET id = 7 WHERE id = 3")
    run_sql("DELETE FROM wide WHERE id = 4")
    _equal(replicator, 3)


def test_large_values_are_copied_streamed_and_kept(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(LARGE)
    replicator.start()
    run_sql("INSERT INTO large SELECT 2, 1, t, j, b, a FROM large")
    # What does not change is not sent ('u' in pgoutput), and must stay as it is.
    run_sql("UPDATE large SET n = n + 10")
    run_sql("UPDATE large SET t = t || 'z', id = 3 WHERE id = 2")
    _equal(replicator, 2)
    rows = replicator.rows("SELECT id, n, length(t), length(j), length(b), length(a) FROM large")
    assert rows == [
        (1, 10, SIZE, SIZE // 3 * 5 + 2, SIZE, SIZE + 4),
        (3, 11, SIZE + 1, SIZE // 3 * 5 + 2, SIZE, SIZE + 4),
    ]


def test_unchanged_values_under_full_identity(replicator: Replicator, run_sql: RunSql) -> None:
    run_sql(LARGE + "ALTER TABLE large REPLICA IDENTITY FULL")
    replicator.start()
    run_sql("UPDATE large SET n = n + 10")
    run_sql("UPDATE large SET b = NULL")
    _equal(replicator, 1)
