"""Following the change log from a position on, beside the manager that fills it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replication_manager.applier import Applier
from replication_manager.change_db import ChangeDb
from replication_manager.log_reader import LogReader, LogTooShort, OtherGeneration
from replication_manager.schema_events import SchemaEvents
from replication_manager.verify import verify
from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import Replicator
from tests.replication_manager.test_change_store import (
    PUBLICATIONS,
    db,
    one,
    open_db,
    parts_of,
    shard,
)
from tests.replication_manager.test_crash import TABLES, write_load
from tests.replication_manager.test_segments import relation, row, transaction
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn, lsn_from_watermark
from zerocache.replica.writer import ReplicaWriter

__all__ = ("db", "open_db", "shard")  # fixtures
WAIT_S = 60.0


def store(db: ChangeDb, *payloads: bytes) -> None:
    parts = parts_of(*payloads)
    db.begin()
    db.write(parts)
    db.commit(parts[-1].watermark)


def begun(messages: Iterator[bytes]) -> list[int]:
    return [int.from_bytes(m[1:9], "big") for m in messages if m[:1] == b"B"]


def test_a_reader_gets_what_is_after_its_position_and_then_what_is_stored(
    db: ChangeDb, open_db: Callable[..., ChangeDb]
) -> None:
    # One segment of three transactions; the reader has the first.
    store(
        db,
        *transaction(20, relation(1), row(1)),
        *transaction(25, relation(2), row(2)),
        *transaction(30, row(1), row(2)),
    )
    reader = LogReader(open_db("reader"), "1aa", Lsn(20))
    messages = list(reader.read())
    assert messages == [
        relation(1),
        *transaction(25, relation(2), row(2)),
        *transaction(30, row(1), row(2)),
    ]
    assert reader.position == 30
    assert list(reader.read()) == []
    assert not reader.wait(0.01)
    store(db, *transaction(40, relation(1), row(1)))
    assert reader.wait(WAIT_S)
    assert begun(reader.read()) == [40]


def test_what_is_not_committed_is_not_read(db: ChangeDb, open_db: Callable[..., ChangeDb]) -> None:
    reader = LogReader(open_db("reader"), "1aa", Lsn(10))
    db.begin()
    db.write(one(20))
    assert list(reader.read()) == []
    db.commit(Lsn(20))
    assert begun(reader.read()) == [20]


def test_a_reader_behind_the_purge_is_refused(
    db: ChangeDb, open_db: Callable[..., ChangeDb]
) -> None:
    for lsn in (20, 30, 40):
        store(db, *transaction(lsn, relation(1), row(1)))
    assert db.purge(Lsn(30)) == 2
    with pytest.raises(LogTooShort):
        list(LogReader(open_db("late"), "1aa", Lsn(20)).read())
    assert begun(LogReader(open_db("just"), "1aa", Lsn(30)).read()) == [40]


def test_a_reader_ahead_of_the_log_waits_for_it(
    db: ChangeDb, open_db: Callable[..., ChangeDb]
) -> None:
    """The stream forwards before it stores."""
    reader = LogReader(open_db("reader"), "1aa", Lsn(30))
    store(db, *transaction(20, relation(1), row(1)))
    assert list(reader.read()) == []
    store(db, *transaction(30, relation(1), row(1)), *transaction(40, row(1)))
    assert begun(reader.read()) == [40]


def test_a_reader_of_another_generation_is_refused(
    db: ChangeDb, open_db: Callable[..., ChangeDb]
) -> None:
    reader = LogReader(open_db("reader"), "1aa", Lsn(10))
    db.reset("1bb", PUBLICATIONS, Lsn(50))
    with pytest.raises(OtherGeneration, match="1bb"):
        list(reader.read())


def test_a_replica_elsewhere_follows_by_the_log_alone(
    replicator: Replicator, run_sql: RunSql, database: str, tmp_path: Path
) -> None:
    """What a view-syncer's replica will do over the network."""
    run_sql(TABLES)
    replicator.start()
    replicator.stop()
    copy = tmp_path / "elsewhere.db"
    copy.write_bytes(replicator.file.read_bytes())
    replicator.start()
    config = replicator.config
    names = ShardNames(config.app.id)
    writer = ReplicaWriter(copy)
    applier = Applier(writer, lambda _: None, SchemaEvents(writer, names))
    log = ChangeDb(config.change.db, names, "reader", 20_000)
    reader = LogReader(log, writer.state.replica_version, lsn_from_watermark(writer.state.version))

    def follow() -> None:
        for payload in reader.read():
            applier.apply(payload)
        writer.commit()

    with write_load(database, seed=11):
        for _ in range(10):
            assert reader.wait(WAIT_S)
            follow()
        run_sql("ALTER TABLE account RENAME COLUMN note TO remark")
    replicator.catch_up()
    while writer.state.version < replicator.state_version():
        assert reader.wait(WAIT_S)
        follow()
    # Verify marks upstream with a transaction of its own, which comes by the log, too.
    assert reader.position == lsn_from_watermark(writer.state.version)
    replica = {name: writer.read(lambda c, n=name: c.execute(n).fetchall()) for name in _QUERIES}  # type: ignore[misc]
    assert {name: replicator.rows(name) for name in _QUERIES} == replica
    assert verify(database, replicator.file).is_equal
    writer.close()
    log.close()


_QUERIES = (
    "SELECT id, balance, remark, _0_version FROM account ORDER BY id",
    "SELECT id, account, at, _0_version FROM event ORDER BY id",
    "SELECT n, _0_version FROM plain ORDER BY n, _0_version",
    'SELECT stateVersion FROM "_zero.replicationState"',
)
