"""Automatic indexes: when one serves a wish, and what the writer makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.replica.tables import build_replica
from zerocache.errors import ReplicaError
from zerocache.replica.auto_index import (
    ExistingIndex,
    IndexWish,
    as_index,
    auto_indexes,
    count_rows,
    estimate_bytes,
    highest_rowid,
    indexes_of,
    note_asked,
    statistics,
    without_redundant,
)
from zerocache.replica.planner_statistics import ASSUMED_ROWS
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.writer import ReplicaWriter

RANKED = IndexWish("task", ("title",), (("rank", False), ("id", True)))
ROWS = 500


@pytest.fixture
def replica(tmp_path: Path) -> Path:
    rows = [(i, f"s{i}", f"t{i % 5}", float(i)) for i in range(ROWS)]
    return build_replica(tmp_path / "replica.db", {"task": rows})


@pytest.fixture
def writer(replica: Path) -> Iterator[ReplicaWriter]:
    with_clock = ReplicaWriter(replica, now_ms=lambda: 1_000)
    yield with_clock
    with_clock.close()


def existing(*columns: tuple[str, bool], unique: bool = False) -> ExistingIndex:
    return ExistingIndex("i", "task", unique, columns)


def never() -> bool:
    return False


@pytest.mark.parametrize(
    "index",
    [
        existing(("title", False), ("rank", False), ("id", True)),
        existing(("title", True), ("rank", False), ("id", True), ("slug", False)),
        existing(("title", False), ("rank", True), ("id", False)),
        existing(("title", False), unique=True),
    ],
    ids=["same", "longer", "read backwards", "unique on what is equal"],
)
def test_an_index_serves_a_wish(index: ExistingIndex) -> None:
    assert index.serves(RANKED)


@pytest.mark.parametrize(
    "index",
    [
        existing(("title", False), ("rank", False)),
        existing(("title", False), ("rank", False), ("id", False)),
        existing(("rank", False), ("title", False), ("id", True)),
        existing(("id", False), unique=True),
    ],
    ids=["shorter", "other direction", "order first", "unique on something else"],
)
def test_an_index_does_not_serve_a_wish(index: ExistingIndex) -> None:
    assert not index.serves(RANKED)


def test_equal_columns_may_stand_in_any_order() -> None:
    assert existing(("a", False), ("b", False)).serves(IndexWish("task", ("b", "a")))


def test_a_wish_served_by_another_ones_index_is_redundant() -> None:
    short = IndexWish("task", ("title",))
    other = IndexWish("note", ("title",))
    assert without_redundant([short, RANKED, other]) == [RANKED, other]


def test_the_writer_builds_an_index_that_readers_use_and_see(
    writer: ReplicaWriter, replica: Path
) -> None:
    reader = open_replica(replica)
    query = "SELECT id FROM task WHERE title = ? ORDER BY rank, id DESC LIMIT 3"
    before = reader.execute(query, ("t1",)).fetchall()
    writer.create_auto_index(RANKED, never)
    assert reader.execute(query, ("t1",)).fetchall() == before
    explain = f"EXPLAIN QUERY PLAN {query}"
    ((_, _, _, detail),) = reader.execute(explain, ("t1",)).fetchall()
    assert detail == f"SEARCH task USING COVERING INDEX {RANKED.name} (title=?)"
    assert ("title", "rank", "id") in load_schema(reader)["task"].indexes
    (found,) = auto_indexes(reader)
    assert found.index == as_index(RANKED)
    assert (found.created_ms, found.asked_ms) == (1_000, 1_000)
    assert statistics(reader, "task")[RANKED.name][:2] == (ASSUMED_ROWS, ROWS // 5)
    reader.close()


def test_an_index_and_its_times_survive_the_writer(replica: Path) -> None:
    writer = ReplicaWriter(replica)
    writer.create_auto_index(RANKED, never)
    writer.change_auto_indexes(lambda db: note_asked(db, RANKED.name, 5_000))
    writer.close()
    again = ReplicaWriter(replica)
    assert [(a.index.name, a.asked_ms) for a in again.auto_indexes()] == [(RANKED.name, 5_000)]
    again.close()


def test_a_dropped_index_is_gone_and_upstreams_are_refused(
    writer: ReplicaWriter, replica: Path
) -> None:
    writer.create_auto_index(RANKED, never)
    writer.drop_auto_indexes([RANKED.name])
    assert writer.auto_indexes() == []
    with pytest.raises(ValueError, match="upstream"):
        writer.drop_auto_indexes(["task_title"])
    assert {i.name for i in writer.read(lambda db: indexes_of(db, "task"))} >= {"task_title"}


def test_an_interrupted_build_leaves_nothing_behind(writer: ReplicaWriter) -> None:
    with pytest.raises(apsw.InterruptError):
        writer.change_auto_indexes(_count_to_a_million, interrupted=lambda: True)
    assert not writer.in_transaction
    assert writer.auto_indexes() == []
    writer.create_auto_index(RANKED, never)
    assert len(writer.auto_indexes()) == 1


def test_indexes_are_not_changed_inside_a_transaction(writer: ReplicaWriter) -> None:
    writer.begin_transaction("200")
    with pytest.raises(ReplicaError, match="commit first"):
        writer.create_auto_index(RANKED, never)


def test_rows_are_written_through_an_automatic_index(writer: ReplicaWriter) -> None:
    writer.create_auto_index(RANKED, never)
    writer.begin_transaction("200")
    writer.insert("task", {"id": 1_000, "slug": "new", "title": "t1", "rank": -1.0})
    writer.end_transaction()
    writer.commit()
    query = "SELECT id FROM task WHERE title = 't1' ORDER BY rank LIMIT 1"
    assert writer.read(lambda db: db.execute(query).fetchone()) == (1_000,)


def test_sizes_are_estimated_without_reading_the_table(writer: ReplicaWriter) -> None:
    assert writer.read(lambda db: count_rows(db, "task", 10)) == 10
    assert writer.read(lambda db: count_rows(db, "task", 10_000)) == ROWS
    assert writer.read(lambda db: highest_rowid(db, "task")) == ROWS
    assert writer.read(lambda db: highest_rowid(db, "app.note")) == 0
    size = writer.read(lambda db: estimate_bytes(db, IndexWish("task", ("title",))))
    assert size == ROWS * (2 + 12)


def _count_to_a_million(db: apsw.Connection) -> None:
    db.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
        "SELECT count(*) FROM n"
    ).fetchall()
