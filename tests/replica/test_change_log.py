from pathlib import Path

import apsw
import pytest

from tests.replica.tables import build_replica
from zerocache.errors import ReplicaError
from zerocache.replica.change_log import ChangeLog


@pytest.fixture
def connection(tmp_path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(build_replica(tmp_path / "r.db")))
    connection.execute("BEGIN")
    return connection


def positions(connection: apsw.Connection) -> list[int]:
    return [pos for (pos,) in connection.execute('SELECT pos FROM "_zero.changeLog"')]


def record(log: ChangeLog, count: int) -> None:
    log.version = "120"
    for row in range(count):
        log.record("task", row, "s")
    log.version = None


def test_positions_rise_by_one_from_the_last_commit(connection: apsw.Connection) -> None:
    log = ChangeLog(connection, keep=100)
    record(log, 3)
    assert log.finish(0, 0) == (3, 0)
    record(log, 2)
    assert log.finish(3, 0) == (5, 0)
    assert positions(connection) == [1, 2, 3, 4, 5]


def test_nothing_recorded_changes_nothing(connection: apsw.Connection) -> None:
    assert ChangeLog(connection, keep=100).finish(0, 0) == (0, 0)


def test_huge_transaction_is_not_held_in_memory(connection: apsw.Connection) -> None:
    log = ChangeLog(connection, keep=100)
    record(log, 25_000)
    assert len(positions(connection)) == 20_000
    assert log.finish(0, 0) == (25_000, 24_900)
    assert positions(connection) == list(range(24_901, 25_001))


def test_the_rows_of_a_mass_change_are_not_named(connection: apsw.Connection) -> None:
    log = ChangeLog(connection, keep=200_000)
    record(log, 120_000)
    log.version = "121"
    log.record("task", 7, "s")
    log.record("note", 7, "s")
    log.version = None
    # Rows are named until it is clear that there are too many, then no more.
    assert log.finish(0, 0) == (50_003, 0)
    rows = 'SELECT version, "table", row, op FROM "_zero.changeLog" WHERE pos > 50000'
    assert connection.execute(rows).fetchall() == [
        ("120", "task", 0, "t"),
        ("121", "task", 0, "t"),
        ("121", "note", 7, "s"),
    ]
    record(log, 3)
    assert log.finish(50_003, 0) == (50_006, 0)


def test_trimming_waits_until_it_is_worth_it(connection: apsw.Connection) -> None:
    log = ChangeLog(connection, keep=32)
    record(log, 34)
    assert log.finish(0, 0) == (34, 0)
    record(log, 1)
    assert log.finish(34, 0) == (35, 3)


def test_discarded_entries_leave_no_gap(connection: apsw.Connection) -> None:
    log = ChangeLog(connection, keep=100)
    record(log, 3)
    log.discard()
    record(log, 2)
    assert log.finish(0, 0) == (2, 0)


def test_entry_outside_a_transaction_is_refused(connection: apsw.Connection) -> None:
    with pytest.raises(ReplicaError, match="outside a transaction"):
        ChangeLog(connection, keep=100).record("task", 1, "s")


def test_foreign_entries_are_noticed(connection: apsw.Connection) -> None:
    connection.execute("""INSERT INTO "_zero.changeLog" VALUES (7, '1', 'task', 1, 's')""")
    log = ChangeLog(connection, keep=100)
    record(log, 1)
    with pytest.raises(ReplicaError, match="ends at 8, its state says 1"):
        log.finish(0, 0)
