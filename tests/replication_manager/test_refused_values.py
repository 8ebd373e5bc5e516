"""What the replica cannot take is refused by the name of its table, and never quoted."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest

from replication_manager.refused_values import refused
from tests.replica.tables import build_replica
from zerocache.replica.writer import ReplicaWriter


def _value_error() -> ValueError:
    try:
        int("secret")
    except ValueError as error:
        return error
    raise AssertionError


def test_an_undecodable_value_is_not_quoted() -> None:
    error = refused(_value_error(), "person")
    assert error.code == "ZC235"
    assert "person" in str(error)
    assert "secret" not in str(error)


def test_a_row_beyond_the_limit_of_sqlite_is_refused_by_name(tmp_path: Path) -> None:
    writer = ReplicaWriter(build_replica(tmp_path / "r.db"))
    writer.read(lambda db: db.limit(apsw.SQLITE_LIMIT_LENGTH, 1_000))
    writer.begin_transaction("zzzzzzzzzzzzz")
    with pytest.raises(apsw.TooBigError) as caught:
        writer.insert("task", {"id": 1, "title": "x" * 2_000})
    error = refused(caught.value, "task")
    assert error.code == "ZC239"
    assert "task" in str(error)
    writer.close()
