import subprocess
import sys
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from tests.replica.tables import CONFIG, SCHEMA, TASK, build_replica, column, table
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.published import PublishedSchema
from zerocache.replica.reader import open_replica, read_state


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_rows_carry_the_replica_version(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", {"task": [(1, "a", None, 1.5)], "app.note": [("x", 2)]})
    reader = open_replica(path)
    assert reader.execute("SELECT * FROM task").fetchall() == [(1, "a", None, 1.5, "110")]
    assert reader.execute('SELECT * FROM "app.note"').fetchall() == [("x", 2, "110")]
    assert reader.execute('SELECT count(*) FROM "_zero.changeLog"').fetchone() == (0,)


def test_nothing_but_the_replica_is_left(tmp_path: Path) -> None:
    build_replica(tmp_path / "r.db")
    assert files(tmp_path) == ["r.db"]
    connection = apsw.Connection(str(tmp_path / "r.db"))
    assert connection.pragma("journal_mode") == "wal"


def test_directory_is_created(tmp_path: Path) -> None:
    assert build_replica(tmp_path / "deep" / "er" / "r.db").is_file()


def test_failure_leaves_the_old_replica_untouched(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", {"task": [(1, "a", None, None)]})
    before = path.read_bytes()
    with pytest.raises(apsw.BindingsError):
        build_replica(path, {"task": [(2, "b", None, None), (3,)]})
    assert files(tmp_path) == ["r.db"]
    assert path.read_bytes() == before


def test_remains_of_a_crashed_sync_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "r.db.initial-sync").write_bytes(b"half a file")
    (tmp_path / "r.db.initial-sync-wal").write_bytes(b"its log")
    build_replica(tmp_path / "r.db")
    assert files(tmp_path) == ["r.db"]


def test_log_of_an_older_replica_is_not_replayed_onto_the_new_one(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db", {"task": [(1, "old", None, None)]})
    old = apsw.Connection(str(path))
    old.execute("DELETE FROM task")
    assert (tmp_path / "r.db-wal").stat().st_size > 0
    build_replica(path, {"task": [(2, "new", None, None)]})
    assert open_replica(path).execute("SELECT id FROM task").fetchall() == [(2,)]
    old.close()


def test_rows_that_precision_makes_equal_keep_the_last_one(tmp_path: Path) -> None:
    rows = [(1, "a", None, None), (1, "b", None, None), (2, "c", None, None), (3, "b", None, None)]
    with capture_logs() as logs:
        path = build_replica(tmp_path / "r.db", {"task": rows})
    assert open_replica(path).execute("SELECT id, slug FROM task").fetchall() == [
        (2, "c"),
        (3, "b"),
    ]
    assert [(entry["event"], entry["rows"]) for entry in logs] == [
        ("indistinguishable_rows_dropped", 1),
        ("indistinguishable_rows_dropped", 1),
    ]


def test_progress_names_every_index(tmp_path: Path) -> None:
    steps: list[str] = []
    with BulkLoader(tmp_path / "r.db", CONFIG, SCHEMA) as loader:
        loader.finish(steps.append)
    assert steps == [
        "creating index task_id",
        "creating index task_slug",
        "creating index task_title",
        "collecting statistics",
    ]


def test_table_without_columns_is_stored(tmp_path: Path) -> None:
    schema = PublishedSchema(tables=(table("empty", []), TASK))
    path = build_replica(tmp_path / "r.db", {"empty": [(), ()]}, schema)
    assert open_replica(path).execute("SELECT * FROM empty").fetchall() == [("110",), ("110",)]


def test_many_columns(tmp_path: Path) -> None:
    wide = table("wide", [column(f"c{at}", at) for at in range(1, 1600)])
    path = build_replica(
        tmp_path / "r.db", {"wide": [tuple(range(1599))]}, PublishedSchema(tables=(wide,))
    )
    assert read_state(open_replica(path)).version == "110"


_LOAD = """
import resource, sys
from pathlib import Path
from tests.replica.tables import CONFIG, SCHEMA
from zerocache.replica.bulk import BulkLoader
with BulkLoader(Path(sys.argv[1]), CONFIG, SCHEMA) as loader:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for batch in range(0, 60_000, 1_000):
        numbers = range(batch, batch + 1_000)
        rows = [(i, f"{i * 7919 % 60_000:09}" + "x" * 2_000, "", 1.5) for i in numbers]
        loader.insert_rows("task", rows)
    loader.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_neither_copying_nor_indexing_holds_much_in_memory(tmp_path: Path) -> None:
    """120 MB of rows, and as much of index keys to sort."""
    command = [sys.executable, "-c", _LOAD, str(tmp_path / "r.db")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 120_000, "kilobytes"
