"""Replicas of older formats become what this version would have made, step by step."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.replica.tables import build_replica
from zerocache.errors import ReplicaError
from zerocache.replica.layout import FORMAT_VERSION, load_config, load_tables
from zerocache.replica.migrations import MIGRATIONS, Migration, migrate
from zerocache.replica.reader import load_schema, open_replica, read_state
from zerocache.replica.writer import ReplicaWriter

FORMATS = Path(__file__).parent / "formats"
OLD = range(1, FORMAT_VERSION)


def _old_replica(path: Path, version: int) -> Path:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute((FORMATS / f"{version}.sql").read_text())
    return path


def _layout(path: Path) -> list[tuple[Any, ...]]:
    with contextlib.closing(open_replica(path)) as connection:
        return connection.execute(
            "SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%' ORDER BY name"
        ).fetchall()


def test_there_is_a_file_of_every_older_format() -> None:
    assert {file.name for file in FORMATS.iterdir()} == {f"{version}.sql" for version in OLD}
    assert [step.to for step in MIGRATIONS] == [version + 1 for version in OLD]


@pytest.mark.parametrize("version", OLD)
def test_an_older_replica_is_migrated_and_goes_on(tmp_path: Path, version: int) -> None:
    path = _old_replica(tmp_path / "old.db", version)
    migrate(path)
    assert _layout(path) == _layout(build_replica(tmp_path / "new.db"))
    with contextlib.closing(open_replica(path)) as connection:
        config = load_config(connection)
        assert config is not None
        assert config.format_version == FORMAT_VERSION
        state = read_state(connection)
        assert (state.version, state.replica_version, state.log_pos) == ("120", "110", 2)
        assert load_tables(connection).keys() == load_schema(connection).keys()
        assert connection.execute("SELECT * FROM task ORDER BY id").fetchall() == [
            (2, "b", None, None, "110"),
            (3, "c", "third", 2.0, "120"),
        ]
    with contextlib.closing(ReplicaWriter(path)) as writer:
        writer.begin_transaction("130")
        writer.insert("task", {"id": 9, "slug": "z"})
        writer.end_transaction()
        assert writer.commit().log_pos == 3


def test_the_present_format_is_left_alone(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db")
    before = path.read_bytes()
    migrate(path)
    assert path.read_bytes() == before


def test_a_step_that_fails_leaves_the_format_before_it(tmp_path: Path) -> None:
    def fail(connection: apsw.Connection) -> None:
        connection.execute("CREATE TABLE half (done)")
        raise apsw.FullError("the disk is full")

    path = build_replica(tmp_path / "r.db")
    first = Migration(FORMAT_VERSION + 1, lambda db: db.execute("CREATE TABLE first (done)"))
    with pytest.raises(apsw.FullError):
        migrate(path, [*MIGRATIONS, first, Migration(FORMAT_VERSION + 2, fail)])
    with contextlib.closing(open_replica(path)) as connection:
        config = load_config(connection)
        assert config is not None
        assert config.format_version == FORMAT_VERSION + 1
    names = [name for name, _ in _layout(path)]
    assert "first" in names
    assert "half" not in names


def test_a_format_that_no_step_knows_is_refused(tmp_path: Path) -> None:
    path = build_replica(tmp_path / "r.db")
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        connection.execute('UPDATE "_zero.replicationConfig" SET formatVersion = 99')
    with pytest.raises(ReplicaError, match="format 99"):
        migrate(path)
