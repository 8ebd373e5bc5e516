from pathlib import Path

import apsw
import pytest

from tests.replica.tables import build_replica
from zerocache.errors import ReplicaError
from zerocache.replica.reader import ReplicaState, load_schema, open_replica, read_state
from zerocache.replica.writer import ReplicaWriter


def test_missing_replica_is_an_error_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(ReplicaError, match="does not exist"):
        open_replica(tmp_path / "r.db")
    assert not (tmp_path / "r.db").exists()


def test_foreign_file_is_an_error(tmp_path: Path) -> None:
    apsw.Connection(str(tmp_path / "other.db")).execute("CREATE TABLE t (a)")
    with pytest.raises(ReplicaError, match="is not a replica"):
        read_state(open_replica(tmp_path / "other.db"))


def test_readers_cannot_write(tmp_path: Path) -> None:
    connection = open_replica(build_replica(tmp_path / "r.db"))
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM task")


def test_new_replica_stands_at_its_own_version(tmp_path: Path) -> None:
    state = read_state(open_replica(build_replica(tmp_path / "r.db")))
    assert (state.version, state.log_pos, state.log_floor) == ("110", 0, 0)
    assert state.replica_version == "110"


def test_snapshot_sees_rows_and_state_of_one_commit(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", {"task": [(1, "one", None, None)]})
    reader = open_replica(path)
    writer = ReplicaWriter(path)
    reader.execute("BEGIN")
    before = read_state(reader)
    writer.begin_transaction("120")
    writer.delete("task", {"id": 1})
    writer.end_transaction()
    after = writer.commit()
    assert read_state(reader) == before
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (1,)
    reader.execute("COMMIT")
    assert read_state(reader) == after == ReplicaState(after.version, 1, 0, before.replica_version)
    assert reader.execute("SELECT count(*) FROM task").fetchone() == (0,)
    writer.close()


def test_schema(tmp_path: Path) -> None:
    tables = load_schema(open_replica(build_replica(tmp_path / "r.db")))
    assert list(tables) == ["app.note", "task"]
    task = tables["task"]
    assert list(task.columns) == ["id", "slug", "title", "rank"]
    assert task.keys == (("id",), ("slug",))
    assert task.indexes == (("id",), ("slug",), ("title",))
    assert task.columns["id"].client_type == "number"
    assert task.columns["id"].not_null
    assert task.columns["title"].client_type == "string"
    assert tables["app.note"].keys == ()
