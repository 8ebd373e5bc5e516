"""When the stream commits, announces and acknowledges, with a scripted connection."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from replication_manager.applier import Applier
from replication_manager.backfill import Backfiller
from replication_manager.lag_reports import LagReports
from replication_manager.position import SlotPosition
from replication_manager.schema_events import SchemaEvents
from replication_manager.segments import Part, SegmentBuilder
from replication_manager.stream import ChangeStream, LogWriter, StreamLimits
from replication_manager.walsender import StreamEnded
from zerocache.metrics import Metrics
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import Lsn, Watermark, watermark_from_lsn
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedSchema,
    PublishedTable,
)
from zerocache.replica.writer import ReplicaWriter

_OID = 1000
_COLUMN = PublishedColumn(
    name="id", position=1, type_name="int4", type_oid=23, type_category="N", not_null=True
)
_SCHEMA = PublishedSchema(
    tables=(PublishedTable(schema="public", name="t", oid=_OID, columns=(_COLUMN,)),),
    indexes=(
        PublishedIndex(
            schema="public", table="t", name="t_pkey", columns=(("id", "ASC"),), unique=True
        ),
    ),
)
_START = 0x10
_RELATION = (
    struct.pack(">cI", b"R", _OID) + b"public\0t\0d" + struct.pack(">HB3sIi", 1, 1, b"id\0", 23, -1)
)


def _xlog(payload: bytes) -> bytes:
    return struct.pack(">cqqq", b"w", 0, 0, 0) + payload


def _begin(lsn: int) -> bytes:
    return _xlog(struct.pack(">cQqI", b"B", lsn, 0, 7))


def _commit(lsn: int) -> bytes:
    return _xlog(struct.pack(">cbQQq", b"C", 0, lsn, lsn + 8, 0))


def _insert(key: int) -> bytes:
    text = str(key).encode()
    return _xlog(struct.pack(">cIcHcI", b"I", _OID, b"N", 1, b"t", len(text)) + text)


def _transaction(lsn: int) -> list[bytes]:
    return [_begin(lsn), _insert(lsn), _commit(lsn)]


def _keepalive(lsn: int, reply: bool = False) -> bytes:
    return struct.pack(">cqqb", b"k", lsn, 0, reply)


class _Ended(Exception):
    """The script is at its end."""


class ScriptedConnection:
    """Yields frames; None means that nothing more has arrived, a float lets time pass."""

    def __init__(self, script: list[bytes | float | None]) -> None:
        self.script = deque(script)
        self.now = 1000.0
        self.sent: list[int] = []

    def next_frame(self) -> memoryview | None:
        if not self.script:
            raise _Ended
        if isinstance(self.script[0], bytes):
            return memoryview(self.script.popleft())  # type: ignore[arg-type]
        return None

    def read_socket(self) -> None:
        """Frames arrive only while waiting."""

    def wait(self, timeout_s: float) -> bool:
        if self.script and not isinstance(self.script[0], bytes):
            passed = self.script.popleft()
            if passed is not None:
                self.now += float(passed)
                return False
        return True

    def check_stop(self) -> None:
        """Nobody asks to stop."""

    def send_status(self, lsn: int) -> None:
        self.sent.append(lsn)


class BufferedConnection(ScriptedConnection):
    """What is read from the socket is many frames at once, and more than one ask can take."""

    def read_socket(self) -> None:
        if self.script and self.script[0] is None:
            self.script.popleft()

    def wait(self, timeout_s: float) -> bool:
        return bool(timeout_s)


class EndlessBackfill:
    """Has another chunk whenever it is asked."""

    active = active_or_due = True
    holds = False

    def __init__(self) -> None:
        self.chunks = 0

    def step(self) -> bool:
        self.chunks += 1
        if self.chunks > 100:
            raise _Ended
        return True


@dataclass(frozen=True)
class Replica:
    path: Path
    writer: ReplicaWriter


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    path = tmp_path / "replica.db"
    config = ReplicaConfig(
        replica_version=watermark_from_lsn(_START), publications=("p",), app_id="a", shard_num=0
    )
    with BulkLoader(path, config, _SCHEMA) as loader:
        loader.finish()
    return Replica(path, ReplicaWriter(path))


_SHARD = ShardNames("zero")


class ScriptedStore:
    """Stores at once what it is given, unless it is held back."""

    def __init__(self, *, held: bool = False) -> None:
        self.held = held
        self.stored = Lsn(_START)
        self.parts: list[Part] = []
        self.reached = Lsn(0)
        self.full_for = 0

    def put(self, parts: Sequence[Part]) -> None:
        self.parts += parts
        self._move(max((part.watermark for part in parts if part.is_last), default=self.stored))

    def mark_reached(self, position: Lsn) -> None:
        self.reached = position
        self._move(position)

    def _move(self, position: Lsn) -> None:
        if not self.held:
            self.stored = max(self.stored, position)

    @property
    def is_full(self) -> bool:
        self.full_for -= 1
        return self.full_for >= 0

    def wait_for_space(self, timeout_s: float) -> None:
        """There is space as soon as ``is_full`` says so."""

    def check(self) -> None:
        """Nothing fails here."""


def _log(store: ScriptedStore) -> LogWriter:
    return LogWriter(SegmentBuilder(_SHARD.ddl_prefix, Lsn(_START)), store)  # type: ignore[arg-type]


def _applier(writer: ReplicaWriter) -> Applier:
    return Applier(writer, lambda _: None, SchemaEvents(writer, _SHARD))


def _run(
    replica: Replica,
    *script: bytes | float | None,
    limits: StreamLimits | None = None,
    store: ScriptedStore | None = None,
) -> tuple[list[int], list[Watermark]]:
    """Play the script; what was sent upstream, and the versions that were announced."""
    connection = ScriptedConnection([_xlog(_RELATION), *script])
    published: list[Watermark] = []
    stream = ChangeStream(
        connection,  # type: ignore[arg-type]
        replica.writer,
        _applier(replica.writer),
        SlotPosition(replica.path),
        published.append,
        lambda: None,
        limits or StreamLimits(),
        Backfiller("postgresql://nobody", _SHARD, replica.writer),
        _log(store or ScriptedStore()),
        LagReports(_SHARD, Metrics()),
        monotonic=lambda: connection.now,
    )
    with pytest.raises(_Ended):
        stream.run()
    return connection.sent, published


def test_transactions_that_arrived_together_are_committed_together(replica: Replica) -> None:
    _, published = _run(replica, *_transaction(0x20), *_transaction(0x30), None, None)
    assert published == [watermark_from_lsn(0x30)]
    assert replica.writer.state.log_pos == 2


def test_a_pause_inside_a_transaction_commits_nothing(replica: Replica) -> None:
    _, published = _run(replica, _begin(0x20), _insert(1), None, 5.0, None)
    assert published == []
    assert replica.writer.state.version == watermark_from_lsn(_START)


def test_a_full_group_does_not_wait_for_a_pause(replica: Replica) -> None:
    limits = StreamLimits(group_changes=2)
    _, published = _run(
        replica, *_transaction(0x20), *_transaction(0x30), *_transaction(0x40), limits=limits
    )
    assert published == [watermark_from_lsn(0x30)]


def test_acknowledgement_follows_after_the_interval(replica: Replica) -> None:
    sent, _ = _run(replica, *_transaction(0x20), None, None)
    assert sent == []
    sent, _ = _run(replica, *_transaction(0x30), None, 0.3, None)
    assert sent == [0x30]


def test_keepalives_move_the_position_only_when_nothing_is_outstanding(
    replica: Replica,
) -> None:
    store = ScriptedStore()
    sent, _ = _run(
        replica,
        _begin(0x20),
        _keepalive(0x21),  # inside a transaction
        _insert(1),
        _commit(0x20),
        _keepalive(0x22),  # the transaction is not stored yet
        None,
        0.3,
        None,  # stored and acknowledged
        _keepalive(0x30),  # soon after the last one: not yet
        None,
        2.0,
        _keepalive(0x40),
        None,
        0.3,
        None,
        store=store,
    )
    assert sent == [0x20, 0x40]
    assert store.reached == 0x40


def test_requested_reply_confirms_what_is_stored_by_then(replica: Replica) -> None:
    sent, published = _run(replica, *_transaction(0x20), _keepalive(0x50, reply=True), None)
    assert published == [watermark_from_lsn(0x20)]
    assert sent == [0x50]


def test_requested_reply_inside_a_transaction_moves_nothing(replica: Replica) -> None:
    sent, _ = _run(replica, _begin(0x20), _insert(1), _keepalive(0x50, reply=True), None)
    assert sent == [_START]


def test_what_the_log_does_not_have_is_announced_but_not_acknowledged(replica: Replica) -> None:
    store = ScriptedStore(held=True)
    sent, published = _run(
        replica,
        *_transaction(0x20),
        None,
        5.0,
        _keepalive(0x50, reply=True),
        5.0,
        None,
        store=store,
    )
    assert published == [watermark_from_lsn(0x20)]
    assert sent == [_START]
    assert store.reached == 0


def test_a_full_log_makes_upstream_wait(replica: Replica) -> None:
    store = ScriptedStore()
    store.full_for = 3
    _, published = _run(replica, *_transaction(0x20), None, None, store=store)
    assert store.full_for < 0
    assert published == [watermark_from_lsn(0x20)]


def test_silence_towards_the_server_is_bounded(replica: Replica) -> None:
    limits = StreamLimits(wal_sender_timeout_s=60, inbound_timeout_s=0)
    sent, _ = _run(replica, None, 44.0, 2.0, None, None, limits=limits)
    assert sent == [_START]


def test_silence_of_the_server_ends_the_stream(replica: Replica) -> None:
    connection = ScriptedConnection([None, 119.0, 2.0, None])
    stream = ChangeStream(
        connection,  # type: ignore[arg-type]
        replica.writer,
        _applier(replica.writer),
        SlotPosition(replica.path),
        lambda _: None,
        lambda: None,
        StreamLimits(inbound_timeout_s=120),
        Backfiller("postgresql://nobody", _SHARD, replica.writer),
        _log(ScriptedStore()),
        LagReports(_SHARD, Metrics()),
        monotonic=lambda: connection.now,
    )
    with pytest.raises(StreamEnded):
        stream.run()


def test_transactions_the_replica_has_are_skipped(replica: Replica) -> None:
    _run(replica, *_transaction(0x20), None, None)
    _, published = _run(replica, *_transaction(0x20), *_transaction(0x30), None, None)
    assert published == [watermark_from_lsn(0x30)]
    assert replica.writer.state.log_pos == 2


def test_rows_read_again_let_those_pass_that_have_arrived(replica: Replica) -> None:
    frames = [frame for lsn in range(0x20, 0x30) for frame in _transaction(lsn)]
    connection = BufferedConnection([None, _xlog(_RELATION), *frames, None])
    backfill = EndlessBackfill()
    # What was published after how many chunks.
    published: list[tuple[Watermark, int]] = []
    stream = ChangeStream(
        connection,  # type: ignore[arg-type]
        replica.writer,
        _applier(replica.writer),
        SlotPosition(replica.path),
        lambda version: published.append((version, backfill.chunks)),
        lambda: None,
        StreamLimits(group_changes=1),
        backfill,  # type: ignore[arg-type]
        _log(ScriptedStore()),
        LagReports(_SHARD, Metrics()),
        monotonic=lambda: connection.now,
    )
    with pytest.raises(_Ended):
        stream.run()
    first = dict(reversed(published))
    # One before the first frame is looked at, and one after each transaction.
    assert [first.get(watermark_from_lsn(lsn)) for lsn in range(0x20, 0x30)] == [*range(1, 17)]
