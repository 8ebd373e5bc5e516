"""The writer against a model of what a table does, and its promises to readers."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.tables import SCHEMA, build_replica
from zerocache.errors import ReplicaError, ResyncRequired
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.reader import open_replica, read_state
from zerocache.replica.writer import ReplicaWriter

COLUMNS = ("id", "slug", "title", "rank")
Row = dict[str, Any]
Snapshot = dict[int, tuple[Any, ...]]

keys = st.integers(0, 4)
slugs = st.sampled_from(["a", "b", "c", "d"])
titles = st.sampled_from([None, "x", "y"])
rows = st.fixed_dictionaries({"id": keys, "slug": slugs, "title": titles, "rank": st.just(0.5)})
partial_rows = st.fixed_dictionaries({"id": keys}, optional={"slug": slugs, "title": titles})
operations = st.one_of(
    st.tuples(st.just("insert"), st.none(), rows),
    st.tuples(st.just("update"), st.none() | keys, rows),
    st.tuples(st.just("update"), st.none() | keys, partial_rows),
    st.tuples(st.just("delete"), keys, st.none()),
    st.tuples(st.just("truncate"), st.none(), st.none()),
)
# SQLite commits, each of several upstream transactions, each of several operations.
histories = st.lists(st.lists(st.lists(operations, max_size=4), min_size=1, max_size=3), max_size=6)


class Model:
    """A table with two unique columns, as a list of rows that remember their identity."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.touched: set[int] = set()

    def apply(self, operation: str, key: Any, values: Row | None, version: str) -> None:
        if operation == "truncate":
            self.rows.clear()
        elif operation == "delete":
            self.rows = [row for row in self.rows if row["id"] != key]
        elif operation == "insert":
            assert values is not None
            self._insert(values, version)
        else:
            assert values is not None
            self._update(values["id"] if key is None else key, values, version)

    def _insert(self, values: Row, version: str) -> None:
        row = {**dict.fromkeys(COLUMNS), **values, "version": version}
        self._displace(row, spared=None)
        self.rows.append(row)

    def _update(self, key: Any, values: Row, version: str) -> None:
        found = next((row for row in self.rows if row["id"] == key), None)
        if found is None:
            self._insert(values, version)
            return
        found.update(values, version=version)
        self._displace(found, spared=found)

    def _displace(self, new: Row, spared: Row | None) -> None:
        self.rows = [
            row
            for row in self.rows
            if row is spared
            or not any(new[key] is not None and row[key] == new[key] for key in ("id", "slug"))
        ]

    def contents(self) -> list[tuple[Any, ...]]:
        return sorted((*(row[name] for name in COLUMNS), row["version"]) for row in self.rows)


def snapshot(reader: apsw.Connection) -> Snapshot:
    return {row[0]: row[1:] for row in reader.execute("SELECT rowid, * FROM task")}


def replay(before: Snapshot, after: Snapshot, entries: list[tuple[int, str]]) -> Snapshot:
    """What a reader that knows ``before`` reconstructs by re-reading the logged rows."""
    result = dict(before)
    for row, op in entries:
        if op == "t":
            result.clear()
        else:
            result.pop(row, None)
    for row, op in entries:
        if op != "t" and row in after:
            result[row] = after[row]
    return result


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[ReplicaWriter]:
    writer = ReplicaWriter(build_replica(tmp_path / "r.db"))
    yield writer
    writer.close()


@pytest.fixture
def reader(writer: ReplicaWriter, tmp_path: Path) -> apsw.Connection:
    return open_replica(tmp_path / "r.db")


def log_entries(reader: apsw.Connection, above: int = 0) -> list[tuple[Any, ...]]:
    sql = 'SELECT version, "table", row, op FROM "_zero.changeLog" WHERE pos > ? ORDER BY pos'
    return reader.execute(sql, (above,)).fetchall()


@settings(max_examples=150, deadline=None)
@given(histories)
def test_any_history_leaves_the_rows_of_the_model_and_a_complete_log(
    history: list[list[list[tuple[str, Any, Any]]]],
) -> None:
    model = Model()
    lsn = 10_000
    with TemporaryDirectory() as directory:
        path = build_replica(Path(directory) / "r.db")
        writer, reader = ReplicaWriter(path), open_replica(path)
        for batch in history:
            before, start = snapshot(reader), read_state(reader).log_pos
            for transaction in batch:
                lsn += 1
                version = watermark_from_lsn(lsn)
                writer.begin_transaction(version)
                for operation, key, values in transaction:
                    model.apply(operation, key, values, version)
                    apply(writer, operation, key, values)
                writer.end_transaction()
            state = writer.commit()
            assert state == writer.state == read_state(reader)
            assert state.version == watermark_from_lsn(lsn)
            after = snapshot(reader)
            assert sorted(after.values(), key=lambda row: row[0]) == model.contents()
            entries = [(row, op) for _, _, row, op in log_entries(reader, start)]
            assert len(entries) == state.log_pos - start
            assert replay(before, after, entries) == after
        reader.close()
        writer.close()


def apply(writer: ReplicaWriter, operation: str, key: Any, values: Any) -> None:
    if operation == "truncate":
        writer.truncate(["task"])
    elif operation == "delete":
        writer.delete("task", {"id": key})
    elif operation == "insert":
        writer.insert("task", values)
    else:
        writer.update("task", None if key is None else {"id": key}, values)


@settings(max_examples=75, deadline=None)
@given(st.lists(st.tuples(keys, partial_rows), max_size=12))
def test_rowid_stays_with_a_row_until_it_is_deleted(changes: list[tuple[int, Row]]) -> None:
    with TemporaryDirectory() as directory:
        start = [(n, f"s{n}", None, None) for n in range(5)]
        path = build_replica(Path(directory) / "r.db", {"task": start})
        writer, reader = ReplicaWriter(path), open_replica(path)
        for at, (key, values) in enumerate(changes):
            before = {row[0]: rowid for rowid, row in snapshot(reader).items()}
            writer.begin_transaction(watermark_from_lsn(10_000 + at))
            writer.update("task", {"id": key}, values)
            writer.end_transaction()
            writer.commit()
            after = {row[0]: rowid for rowid, row in snapshot(reader).items()}
            if key in before:
                assert after[values["id"]] == before[key]
            for other in after.keys() & before.keys() - {key, values["id"]}:
                assert after[other] == before[other]
        reader.close()
        writer.close()


def test_collision_is_deleted_and_logged_before_the_change(
    writer: ReplicaWriter, reader: apsw.Connection
) -> None:
    writer.begin_transaction("120")
    writer.insert("task", {"id": 1, "slug": "a"})
    writer.insert("task", {"id": 2, "slug": "b"})
    writer.end_transaction()
    start = writer.commit().log_pos
    writer.begin_transaction("121")
    writer.update("task", None, {"id": 1, "slug": "b"})
    writer.end_transaction()
    writer.commit()
    assert log_entries(reader, start) == [("121", "task", 2, "d"), ("121", "task", 1, "s")]
    assert snapshot(reader) == {1: (1, "b", None, None, "121")}


def test_update_of_a_row_never_seen_inserts_it(
    writer: ReplicaWriter, reader: apsw.Connection
) -> None:
    writer.begin_transaction("120")
    writer.update("task", {"id": 7}, {"id": 8, "slug": "a"})
    writer.delete("task", {"id": 9})
    writer.end_transaction()
    writer.commit()
    assert list(snapshot(reader).values()) == [(8, "a", None, None, "120")]
    assert log_entries(reader) == [("120", "task", 1, "s")]


def test_readers_see_several_upstream_transactions_at_once_with_their_own_versions(
    writer: ReplicaWriter, reader: apsw.Connection
) -> None:
    for version, key in (("120", 1), ("121", 2)):
        writer.begin_transaction(version)
        writer.insert("task", {"id": key, "slug": version})
        writer.end_transaction()
        assert snapshot(reader) == {}
    assert writer.commit().version == "121"
    assert [row[-1] for row in snapshot(reader).values()] == ["120", "121"]
    assert read_state(reader).version == "121"


def test_transaction_without_changes_still_moves_the_version(
    writer: ReplicaWriter, reader: apsw.Connection
) -> None:
    writer.begin_transaction("120")
    writer.end_transaction()
    assert writer.commit().version == read_state(reader).version == "120"
    assert log_entries(reader) == []


def test_commit_of_nothing_does_nothing(writer: ReplicaWriter) -> None:
    assert writer.commit() == writer.state
    assert not writer.in_transaction


def test_rollback_forgets_ended_transactions_too(
    writer: ReplicaWriter, reader: apsw.Connection
) -> None:
    writer.begin_transaction("120")
    writer.insert("task", {"id": 1, "slug": "a"})
    writer.end_transaction()
    writer.begin_transaction("121")
    writer.insert("task", {"id": 2, "slug": "b"})
    assert writer.rollback().version == "110"
    writer.begin_transaction("120")
    writer.insert("task", {"id": 3, "slug": "c"})
    writer.end_transaction()
    writer.commit()
    assert [row[0] for row in snapshot(reader).values()] == [3]
    assert log_entries(reader) == [("120", "task", 1, "s")]


def test_state_survives_reopening(writer: ReplicaWriter, tmp_path: Path) -> None:
    writer.begin_transaction("120")
    writer.insert("task", {"id": 1, "slug": "a"})
    writer.end_transaction()
    state = writer.commit()
    again = ReplicaWriter(tmp_path / "r.db")
    assert again.state == state
    again.close()


def test_uncommitted_work_is_gone_after_a_crash(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db")
    crashed = ReplicaWriter(path)
    crashed.begin_transaction("120")
    crashed.insert("task", {"id": 1, "slug": "a"})
    crashed.end_transaction()
    crashed.close()
    assert ReplicaWriter(path).state.version == "110"


def test_log_is_trimmed_to_its_size(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db")
    writer, reader = ReplicaWriter(path, log_entries=32), open_replica(path)
    for at in range(100):
        writer.begin_transaction(watermark_from_lsn(10_000 + at))
        writer.insert("task", {"id": at, "slug": str(at)})
        writer.end_transaction()
        state = writer.commit()
        positions = [row[0] for row in reader.execute('SELECT pos FROM "_zero.changeLog"')]
        assert positions == list(range(state.log_floor + 1, state.log_pos + 1))
        assert min(at + 1, 32) <= len(positions) <= 34
    writer.close()


def test_transaction_larger_than_the_log_is_trimmed_at_its_own_commit(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db")
    writer, reader = ReplicaWriter(path, log_entries=16), open_replica(path)
    writer.begin_transaction("120")
    for at in range(50):
        writer.insert("task", {"id": at, "slug": str(at)})
    writer.end_transaction()
    assert (writer.commit().log_floor, len(log_entries(reader))) == (34, 16)
    writer.close()


def test_truncate_is_one_entry_per_table(writer: ReplicaWriter, reader: apsw.Connection) -> None:
    writer.begin_transaction("120")
    writer.insert("app.note", {"body": "x"})
    writer.truncate(["task", "app.note"])
    writer.insert("task", {"id": 1, "slug": "a"})
    writer.end_transaction()
    writer.commit()
    assert [entry[1:] for entry in log_entries(reader)] == [
        ("app.note", 1, "s"),
        ("task", 0, "t"),
        ("app.note", 0, "t"),
        ("task", 1, "s"),
    ]


def test_durable_returns_the_state_it_made_durable(writer: ReplicaWriter) -> None:
    writer.begin_transaction("120")
    writer.end_transaction()
    assert writer.durable().version == "110"
    writer.commit()
    assert writer.durable() == writer.state


@pytest.mark.parametrize("watermark", ["110", "0z"])
def test_versions_must_rise(writer: ReplicaWriter, watermark: str) -> None:
    with pytest.raises(ReplicaError, match="is not newer than 110"):
        writer.begin_transaction(watermark)


def test_misuse_is_refused(writer: ReplicaWriter) -> None:
    with pytest.raises(ReplicaError, match="outside a transaction"):
        writer.insert("task", {"id": 1, "slug": "a"})
    writer.begin_transaction("120")
    with pytest.raises(ReplicaError, match="do not nest"):
        writer.begin_transaction("121")
    with pytest.raises(ReplicaError, match="still open"):
        writer.commit()


def test_unknown_table_and_changed_columns_need_a_resync(writer: ReplicaWriter) -> None:
    writer.begin_transaction("120")
    with pytest.raises(ResyncRequired, match="does not have"):
        writer.insert("other", {})
    with pytest.raises(ResyncRequired, match="columns"):
        writer.relation("task", ["id", "slug", "title"], ["id"])


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match="does not exist"):
        ReplicaWriter(tmp_path / "none.db")
    apsw.Connection(str(tmp_path / "other.db")).execute("CREATE TABLE t (a)")
    with pytest.raises(ReplicaError, match="no replica"):
        ReplicaWriter(tmp_path / "other.db")


def test_replica_of_another_format_is_refused(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", schema=SCHEMA)
    connection = apsw.Connection(str(path))
    connection.execute('UPDATE "_zero.replicationConfig" SET formatVersion = 99')
    connection.close()
    with pytest.raises(ReplicaError, match="format 99"):
        ReplicaWriter(path)
