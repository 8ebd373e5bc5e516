from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.replica.tables import build_replica
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.reader import open_replica, read_state
from zerocache.replica.writer import ReplicaWriter

LIMIT = 256 * 1024


class Harness:
    """A writer with a small WAL limit, and a reader that always holds a snapshot."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer = ReplicaWriter(path, wal_limit_bytes=LIMIT)
        self.reader = open_replica(path)
        self.lsn = 10_000
        self.moved = 0
        self.take_snapshot()

    def take_snapshot(self) -> None:
        if self.reader.in_transaction:
            self.reader.execute("COMMIT")
        self.reader.execute("BEGIN")
        read_state(self.reader)

    def move_readers(self) -> None:
        self.moved += 1
        self.take_snapshot()

    def write(self, bytes_: int) -> None:
        self.lsn += 1
        self.writer.begin_transaction(watermark_from_lsn(self.lsn))
        # Another value each time: an indexed one that is there already would not be written.
        title = "xy"[self.lsn % 2] * bytes_
        self.writer.update("task", None, {"id": 1, "slug": "a", "title": title})
        self.writer.end_transaction()
        self.writer.commit()

    @property
    def wal_bytes(self) -> int:
        return self.path.with_name("r.db-wal").stat().st_size


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(build_replica(tmp_path / "r.db"))
    yield harness
    harness.reader.close()
    harness.writer.close()


def test_log_stays_small_although_a_reader_always_holds_a_snapshot(harness: Harness) -> None:
    for _ in range(200):
        harness.write(LIMIT // 8)
        harness.take_snapshot()
        harness.writer.maintain(harness.move_readers)
    assert harness.moved >= 3
    assert harness.wal_bytes <= 8 * LIMIT


def test_without_readers_the_log_is_reused_and_nobody_is_asked(harness: Harness) -> None:
    harness.reader.execute("COMMIT")
    largest = 0
    for _ in range(200):
        harness.write(LIMIT // 8)
        harness.writer.maintain(harness.move_readers)
        largest = max(largest, harness.wal_bytes)
    assert harness.moved == 0
    assert largest <= 8 * LIMIT


def test_reader_that_never_moves_blocks_neither_writer_nor_itself(harness: Harness) -> None:
    before = read_state(harness.reader)
    for _ in range(60):
        harness.write(LIMIT // 8)
        harness.writer.maintain()
    assert read_state(harness.reader) == before
    assert harness.wal_bytes > 5 * LIMIT
    harness.take_snapshot()
    assert read_state(harness.reader) == harness.writer.state


def test_nothing_happens_inside_a_transaction(harness: Harness) -> None:
    for _ in range(60):
        harness.write(LIMIT // 8)
    harness.writer.begin_transaction(watermark_from_lsn(harness.lsn + 1))
    harness.writer.maintain(harness.move_readers)
    assert harness.moved == 0


def test_commits_never_checkpoint(harness: Harness) -> None:
    harness.reader.execute("COMMIT")
    size = harness.path.stat().st_size
    for _ in range(80):
        harness.write(LIMIT // 8)
    assert harness.path.stat().st_size == size
    assert harness.wal_bytes > 8 * LIMIT


def test_synced_commits_are_in_the_files_alone(harness: Harness, tmp_path: Path) -> None:
    """A copy of the two files, as a power loss would leave them, holds the durable state."""
    harness.write(100)
    state = harness.writer.durable()
    copy = tmp_path / "copy.db"
    copy.write_bytes(harness.path.read_bytes())
    tmp_path.joinpath("copy.db-wal").write_bytes(tmp_path.joinpath("r.db-wal").read_bytes())
    recovered = open_replica(copy)
    assert read_state(recovered) == state
    assert recovered.execute("SELECT length(title) FROM task").fetchone() == (100,)
    assert isinstance(recovered, apsw.Connection)
