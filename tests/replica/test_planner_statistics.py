"""A table that was small when statistics were gathered, and is not any more."""

from __future__ import annotations

from pathlib import Path

import apsw

from tests.replica.tables import CONFIG, column, index, table
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.planner_statistics import ASSUMED_ROWS, assume_growth
from zerocache.replica.published import PublishedSchema
from zerocache.replica.reader import open_replica
from zerocache.replica.writer import ReplicaWriter

TASK = table("task", [column("id", 1, "int4"), column("owner", 2, "text")], primary_key=("id",))
SCHEMA = PublishedSchema(
    tables=(TASK,),
    indexes=(
        index(TASK, "id", unique=True, is_primary=True),
        index(TASK, "owner"),
    ),
)
# What the engine asks to fill many windows: first rows of each of several owners.
WINDOWS = """
    SELECT t0."id" FROM json_each(?) AS p CROSS JOIN "task" AS t0 WHERE t0._rowid_ IN (
        SELECT t1._rowid_ FROM "task" AS t1 WHERE t1."owner" = p."value" ORDER BY t1."id" LIMIT 2)
"""


def replica(path: Path, rows: int) -> Path:
    with BulkLoader(path, CONFIG, SCHEMA) as loader:
        loader.insert_rows("task", [(i, f"o{i}") for i in range(rows)])
        loader.finish()
    return path


def row_counts(connection: apsw.Connection) -> set[int]:
    stats = connection.execute("SELECT stat FROM sqlite_stat1 WHERE tbl = 'task'")
    return {int(stat.split()[0]) for (stat,) in stats}


def plan(connection: apsw.Connection) -> list[str]:
    steps = connection.execute(f"EXPLAIN QUERY PLAN {WINDOWS}", ("[]",))
    return [step[3] for step in steps]


def test_table_with_one_row_at_the_initial_sync_is_searched(tmp_path: Path) -> None:
    reader = open_replica(replica(tmp_path / "replica.db", 1))
    assert row_counts(reader) == {ASSUMED_ROWS}
    steps = plan(reader)
    assert not any(step.startswith("SCAN t") for step in steps), steps
    reader.close()


def test_table_with_one_row_when_the_writer_starts_is_searched(tmp_path: Path) -> None:
    path = replica(tmp_path / "replica.db", 1)
    before = apsw.Connection(str(path))
    before.execute("UPDATE sqlite_stat1 SET stat = '1 1'")
    before.close()
    ReplicaWriter(path).close()
    reader = open_replica(path)
    steps = plan(reader)
    assert not any(step.startswith("SCAN t") for step in steps), steps
    reader.close()


def test_figures_of_large_tables_are_kept(tmp_path: Path) -> None:
    reader = open_replica(replica(tmp_path / "replica.db", ASSUMED_ROWS * 3))
    assert row_counts(reader) == {ASSUMED_ROWS * 3}
    reader.close()


def test_database_without_statistics_is_left_alone() -> None:
    assume_growth(apsw.Connection(":memory:"))
