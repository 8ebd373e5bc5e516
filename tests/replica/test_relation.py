from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.replica.tables import TASK, TASK_INDEXES, build_replica, column, index, table
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.published import PublishedSchema
from zerocache.replica.reader import open_replica
from zerocache.replica.relation import RelationWriter
from zerocache.replica.types import UNCHANGED
from zerocache.replica.writer import ReplicaWriter

PAIR = table(
    "pair",
    [column("a", 1, not_null=True), column("b", 2, not_null=True), column("note", 3)],
    replica_identity="f",
)
LOOSE = table("loose", [column("a", 1), column("b", 2)], replica_identity="f")
RANKED = table("ranked", [column("rank", 1, "float8", not_null=True), column("name", 2)])
SCHEMA = PublishedSchema(
    tables=(TASK, PAIR, LOOSE, RANKED),
    indexes=(
        *TASK_INDEXES,
        index(PAIR, "b", "a", unique=True),
        index(RANKED, "rank", unique=True, is_primary=True),
    ),
)
SELECT = {
    "task": "SELECT rowid, * FROM task",
    "pair": "SELECT rowid, * FROM pair",
    "loose": "SELECT rowid, * FROM loose",
    "ranked": "SELECT rowid, * FROM ranked",
}
START: dict[str, list[tuple[Any, ...]]] = {
    "task": [(1, "a", "one", 0.5), (2, "b", "two", None)],
    "pair": [("x", "y", "first"), ("x", "z", "second")],
    "loose": [("same", None), ("same", None), ("other", "1")],
}
TASK_COLUMNS = ["id", "slug", "title", "rank"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ReplicaWriter]:
    writer = ReplicaWriter(build_replica(tmp_path / "r.db", START, SCHEMA))
    yield writer
    writer.close()


@pytest.fixture
def result(writer: ReplicaWriter, tmp_path: Path) -> Callable[[str], list[tuple[Any, ...]]]:
    """Rowid and columns of a table after what was done is committed."""
    reader: apsw.Connection = open_replica(tmp_path / "r.db")

    def read(name: str) -> list[tuple[Any, ...]]:
        writer.end_transaction()
        writer.commit()
        return [row[:-1] for row in reader.execute(SELECT[name])]

    return read


def begin(writer: ReplicaWriter, *shape: Any) -> RelationWriter:
    writer.begin_transaction("120")
    return writer.relation(*shape)


Result = Callable[[str], list[tuple[Any, ...]]]


def test_tuples_follow_the_column_order_of_the_relation(
    writer: ReplicaWriter, result: Result
) -> None:
    relation = begin(writer, "task", ["rank", "title", "slug", "id"], ["id"])
    relation.update(None, [9, "nine", "i", 2])
    assert result("task")[1] == (2, 2, "i", "nine", 9)


def test_unchanged_values_keep_what_is_stored(writer: ReplicaWriter, result: Result) -> None:
    relation = begin(writer, "task", TASK_COLUMNS, ["id"])
    relation.update(None, [1, "a", UNCHANGED, None])
    relation.update([2, None, None, None], [3, "c", UNCHANGED, UNCHANGED])
    assert result("task") == [(1, 1, "a", "one", None), (2, 3, "c", "two", None)]


def test_key_change_keeps_the_rowid(writer: ReplicaWriter, result: Result) -> None:
    relation = begin(writer, "task", TASK_COLUMNS, ["id"])
    relation.update([1, None, None, None], [5, "a", "one", 0.5])
    assert result("task")[0] == (1, 5, "a", "one", 0.5)


def test_chain_of_key_changes_in_one_transaction(writer: ReplicaWriter, result: Result) -> None:
    relation = begin(writer, "task", TASK_COLUMNS, ["id"])
    for old, new in ((1, 3), (2, 1), (3, 2)):
        relation.update([old, None, None, None], [new, UNCHANGED, UNCHANGED, UNCHANGED])
    assert [row[:3] for row in result("task")] == [(1, 2, "a"), (2, 1, "b")]


def test_whole_rows_are_reduced_to_the_best_key(writer: ReplicaWriter, result: Result) -> None:
    relation = begin(writer, "pair", ["a", "b", "note"], None)
    relation.update(["x", "y", "outdated"], ["x", "y", "changed"])
    relation.delete(["x", "z", "outdated"])
    assert result("pair") == [(1, "x", "y", "changed")]


def test_equal_rows_without_key_are_changed_one_at_a_time(
    writer: ReplicaWriter, result: Result
) -> None:
    relation = begin(writer, "loose", ["a", "b"], None)
    relation.update(["same", None], ["same", "2"])
    assert result("loose") == [(1, "same", "2"), (2, "same", None), (3, "other", "1")]
    relation = begin_next(writer, "loose", ["a", "b"], None)
    relation.delete(["same", None])
    assert result("loose") == [(1, "same", "2"), (3, "other", "1")]


def begin_next(writer: ReplicaWriter, *shape: Any) -> RelationWriter:
    writer.begin_transaction("121")
    return writer.relation(*shape)


def test_key_the_replica_stores_as_null_is_still_found(
    writer: ReplicaWriter, result: Result
) -> None:
    relation = begin(writer, "ranked", ["rank", "name"], ["rank"])
    relation.insert([None, "NaN"])
    relation.update(None, [None, "still NaN"])
    assert result("ranked") == [(1, None, "still NaN")]


def test_unchanged_value_of_a_row_never_seen_is_null(writer: ReplicaWriter, result: Result) -> None:
    relation = begin(writer, "task", TASK_COLUMNS, ["id"])
    relation.update(None, [7, "g", UNCHANGED, None])
    assert result("task")[2] == (3, 7, "g", None, None)


def test_partial_update_collides_by_a_key_made_of_old_and_new_values(
    writer: ReplicaWriter, result: Result
) -> None:
    relation = begin(writer, "pair", ["a", "b", "note"], ["a", "b"])
    relation.update(["x", "y", None], [UNCHANGED, "z", "moved"])
    assert result("pair") == [(1, "x", "z", "moved")]


def test_relations_of_one_shape_are_shared(writer: ReplicaWriter) -> None:
    first = writer.relation("task", TASK_COLUMNS, ["id"])
    assert writer.relation("task", tuple(TASK_COLUMNS), ("id",)) is first


def test_indexes_of_unchanged_columns_are_not_named(tmp_path: Path) -> None:
    """Naming them would write them: with many indexes that is most of an update's cost."""
    writer = ReplicaWriter(build_replica(tmp_path / "r.db", {"task": [(1, "a", "x", 1.0)]}))
    relation = writer.relation("task", ("id", "slug", "title", "rank"), ("id",))
    statements: list[str] = []

    def note(cursor: apsw.Cursor, statement: str, bindings: object) -> bool:
        statements.append(statement)
        return True

    relation._cursor.exec_trace = note
    writer.begin_transaction(watermark_from_lsn(10**6))
    relation.update(None, [1, "a", "x", 2.0])
    relation.update(None, [1, "b", UNCHANGED, 2.0])
    updates = [statement for statement in statements if statement.startswith("UPDATE")]
    assert ['"slug"' in statement for statement in updates] == [False, True]
    assert ['"title"' in statement for statement in updates] == [False, False]
    writer.end_transaction()
    writer.commit()
    rows = open_replica(tmp_path / "r.db").execute("SELECT id, slug, title, rank FROM task")
    assert rows.fetchall() == [(1, "b", "x", 2.0)]
    writer.close()


def test_equal_numbers_of_another_type_are_written(tmp_path: Path) -> None:
    columns = [column("id", 1, "int4", not_null=True), column("n", 2, "numeric")]
    numbers = table("t", columns, primary_key=("id",))
    indexes = (index(numbers, "id", unique=True), index(numbers, "n"))
    schema = PublishedSchema(tables=(numbers,), indexes=indexes)
    writer = ReplicaWriter(build_replica(tmp_path / "r.db", {"t": [(1, 1)]}, schema))
    writer.begin_transaction(watermark_from_lsn(10**6))
    writer.relation("t", ("id", "n"), ("id",)).update(None, [1, 1.0])
    writer.end_transaction()
    writer.commit()
    rows = open_replica(tmp_path / "r.db").execute("SELECT typeof(n) FROM t").fetchall()
    assert rows == [("real",)]
    writer.close()
