"""Batches: what two snapshots of a replica differ in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.view_syncer.ivm.replica import Change, Replica, Row, Table
from view_syncer.ivm import changes
from view_syncer.ivm.changes import Batch, TableChanges, read_batch
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import open_replica, read_state

TABLES = {
    "t": Table({"id": "text", "a": "int4", "b": "text"}, ("id",)),
    "u": Table({"id": "text"}, ("id",)),
}
WATCHED = {"t": ("a", "id")}


@dataclass
class Pinned:
    db: apsw.Connection
    version: Watermark
    log_pos: int
    log_floor: int


def pin(replica: Replica) -> Pinned:
    db = open_replica(replica.path)
    db.execute("BEGIN")
    state = read_state(db)
    return Pinned(db, state.version, state.log_pos, state.log_floor)


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    one = Replica(tmp_path / "r.db", TABLES, {"t": [row("x", 1), row("y", 2)]})
    yield one
    one.close()


def row(name: str, a: int | None = None, b: str | None = None) -> Row:
    return {"id": name, "a": a, "b": b}


def put(name: str, a: int | None = None, b: str | None = None) -> Change:
    return Change("put", "t", row(name, a, b))


def delete(name: str) -> Change:
    return Change("delete", "t", None, (name,))


def batch(replica: Replica, *transactions: list[Change], watched: Any = WATCHED) -> Batch:
    old = pin(replica)
    replica.commit(*transactions)
    return read_batch(old, pin(replica), watched)


def test_images_are_the_watched_columns_before_and_after(replica: Replica) -> None:
    changes = batch(replica, [put("x", 7, "new"), put("z", 3), delete("y")]).tables["t"]
    assert changes.columns == {"a": 0, "id": 1}
    # The rowid that y had is that of z now: for a client both.
    assert changes.old == {1: (1, "x"), 2: (2, "y")}
    assert set(changes.new.values()) == {(7, "x"), (3, "z")}


def test_versions_are_those_of_the_snapshots(replica: Replica) -> None:
    old = pin(replica)
    replica.commit([put("x", 7)])
    new = pin(replica)
    found = read_batch(old, new, WATCHED)
    assert (found.old_version, found.new_version) == (old.version, new.version)
    assert not read_batch(new, new, WATCHED)


def test_several_changes_of_a_row_are_one(replica: Replica) -> None:
    changes = batch(replica, [put("x", 5)], [put("x", 6), put("x", 9)]).tables["t"]
    assert (changes.old, changes.new) == ({1: (1, "x")}, {1: (9, "x")})


def test_a_row_that_came_and_went_is_left_out(replica: Replica) -> None:
    changes = batch(replica, [put("z"), delete("z")]).tables["t"]
    assert changes.rowids() == set()


def test_a_deleted_row_has_no_new_image(replica: Replica) -> None:
    changes = batch(replica, [delete("x")]).tables["t"]
    assert (changes.old, changes.new) == ({1: (1, "x")}, {})
    assert changes.differs(1, [])


def test_a_rekeyed_row_keeps_its_rowid(replica: Replica) -> None:
    changes = batch(replica, [Change("move", "t", row("w", 1), ("x",))]).tables["t"]
    assert (changes.old, changes.new) == ({1: (1, "x")}, {1: (1, "w")})


def test_tables_nobody_watches_are_not_read(replica: Replica) -> None:
    found = batch(replica, [Change("put", "u", {"id": "1"})])
    assert not found


def test_a_truncated_table_is_named_and_its_rows_are_not(replica: Replica) -> None:
    found = batch(replica, [put("y", 1), Change("truncate", "t"), put("z", 1)])
    assert found.truncated == {"t"}
    assert found.tables == {}
    assert found


def test_a_truncation_of_an_unwatched_table_is_no_news(replica: Replica) -> None:
    assert not batch(replica, [Change("truncate", "u")])


def test_a_changed_schema_resets_whatever_table_it_is(replica: Replica) -> None:
    old = pin(replica)
    db = apsw.Connection(str(replica.path))
    db.execute(
        "INSERT INTO \"_zero.changeLog\" (version, \"table\", row, op) VALUES ('zz', 'u', 0, 'r')"
    )
    db.execute('UPDATE "_zero.replicationState" SET logPos = logPos + 1')
    db.close()
    found = read_batch(old, pin(replica), WATCHED)
    assert found.reset
    assert found.tables == {}


def test_a_log_that_no_longer_reaches_back_names_no_rows(replica: Replica) -> None:
    old = pin(replica)
    new = pin(replica)
    new.log_floor = old.log_pos
    assert not read_batch(old, new, WATCHED).reset
    new.log_floor = old.log_pos + 1
    found = read_batch(old, new, WATCHED)
    assert (found.truncated, found.reset) == ({"t"}, False)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE \"_zero.tableMetadata\" SET minRowVersion = 'zz'",
        "UPDATE \"_zero.column_metadata\" SET upstream_type = 'int4' WHERE table_name = 'u'",
        "DELETE FROM \"_zero.tableMetadata\" WHERE table_name = 'u'",
    ],
)
def test_a_log_that_may_have_lost_a_change_of_the_schema_resets(
    replica: Replica, statement: str
) -> None:
    old = pin(replica)
    db = apsw.Connection(str(replica.path))
    db.execute(statement)
    db.close()
    new = pin(replica)
    new.log_floor = old.log_pos + 1
    assert read_batch(old, new, WATCHED).reset


def test_images_are_made_of_a_bounded_number_of_rows(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_IMAGES", 5)
    old = pin(replica)
    replica.commit([put(f"n{i}") for i in range(5)])
    assert len(read_batch(old, pin(replica), WATCHED).tables["t"].new) == 5
    replica.commit([put("one more")])
    found = read_batch(old, pin(replica), WATCHED)
    assert (found.truncated, found.tables) == ({"t"}, {})


def test_no_images_are_made_of_what_is_recomputed(replica: Replica) -> None:
    old = pin(replica)
    replica.commit([put("x", 5), put("z")])
    asked: list[tuple[str, int]] = []

    def ask(table: str, rows: int) -> bool:
        asked.append((table, rows))
        return True

    found = read_batch(old, pin(replica), WATCHED, ask)
    assert (found.truncated, found.tables, asked) == ({"t"}, {}, [("t", 2)])


def test_entries_behind_the_newer_snapshot_belong_to_the_next_batch(replica: Replica) -> None:
    old = pin(replica)
    replica.commit([put("x", 5)])
    new = pin(replica)
    replica.commit([put("y", 6)])
    assert read_batch(old, new, WATCHED).tables["t"].rowids() == {1}
    assert read_batch(new, pin(replica), WATCHED).tables["t"].rowids() == {2}


def test_a_row_differs_only_in_the_columns_asked_about() -> None:
    changes = TableChanges({"a": 0, "b": 1}, {1: (1, "x")}, {1: (1, "y"), 2: (None, None)})
    assert not changes.differs(1, ["a"])
    assert changes.differs(1, ["a", "b"])
    assert changes.differs(2, [])
