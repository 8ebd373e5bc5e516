"""What servers that miss the move of a partition tree would send, and that it is never applied."""

from __future__ import annotations

import struct
from pathlib import Path

import msgspec
import pytest

from replication_manager.applier import Applier
from replication_manager.partition_roots import Upheaval, compare_roots
from replication_manager.schema_events import SchemaEvents
from zerocache.errors import ResyncRequired
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedPartition,
    PublishedSchema,
    PublishedTable,
)
from zerocache.replica.schema_change import EventInfo, SchemaEvent
from zerocache.replica.writer import ReplicaWriter

_SHARD = ShardNames("zero")
_ROOT, _NEAR, _SUB, _LEAF = 100, 101, 102, 103
_ID = PublishedColumn(
    name="id", position=1, type_name="int4", type_oid=23, type_category="N", not_null=True
)


def _table(name: str, oid: int, *partitions: int, born_attached: bool = True) -> PublishedTable:
    return PublishedTable(
        schema="public",
        name=name,
        oid=oid,
        columns=(_ID,),
        primary_key=("id",),
        partitions=tuple(
            PublishedPartition(oid=part, storage=part, born_attached=born_attached)
            for part in partitions
        ),
    )


def _schema(*tables: PublishedTable) -> PublishedSchema:
    return PublishedSchema(
        tables=tables,
        indexes=tuple(
            PublishedIndex(
                schema="public",
                table=table.name,
                name=f"{table.name}_pkey",
                columns=(("id", "ASC"),),
                unique=True,
                is_primary=True,
            )
            for table in tables
        ),
    )


_TOGETHER = _schema(_table("root", _ROOT, _NEAR, _SUB, _LEAF))
_APART = _schema(_table("root", _ROOT, _NEAR), _table("sub", _SUB, _LEAF))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (_TOGETHER, _APART, Upheaval(True, frozenset([_ROOT]))),
        (_APART, _TOGETHER, Upheaval(True)),
        (_TOGETHER, _schema(), Upheaval(True)),
        (_schema(), _TOGETHER, Upheaval(True)),
        # What happens to one partition alone, or to tables without any, is no upheaval.
        (_schema(_table("root", _ROOT, _NEAR)), _schema(_table("root", _ROOT)), Upheaval()),
        (
            _schema(_table("root", _ROOT, _NEAR)),
            _schema(_table("root", _ROOT), _table("near", _NEAR)),
            Upheaval(),
        ),
        (_schema(_table("root", _ROOT)), _TOGETHER, Upheaval()),
        (_schema(), _schema(_table("a", 1), _table("b", 2)), Upheaval()),
        (_TOGETHER, _TOGETHER, Upheaval()),
    ],
)
def test_which_changes_a_walsender_may_miss(
    before: PublishedSchema, after: PublishedSchema, expected: Upheaval
) -> None:
    assert compare_roots(before.tables, after.tables) == expected


def _begin(lsn: int) -> bytes:
    return struct.pack(">cQqI", b"B", lsn, 0, 7)


def _commit(lsn: int) -> bytes:
    return struct.pack(">cbQQq", b"C", 0, lsn, lsn + 8, 0)


def _relation(oid: int, name: str) -> bytes:
    described = b"public\0" + name.encode() + b"\0d"
    return struct.pack(">cI", b"R", oid) + described + struct.pack(">HB3sIi", 1, 1, b"id\0", 23, -1)


def _insert(oid: int, key: int) -> bytes:
    text = str(key).encode()
    return struct.pack(">cIcHcI", b"I", oid, b"N", 1, b"t", len(text)) + text


def _event(schema: PublishedSchema) -> bytes:
    content = msgspec.json.encode(SchemaEvent(schema=schema, event=EventInfo("ALTER TABLE")))
    head = struct.pack(">cbQ", b"M", 1, 0) + _SHARD.ddl_prefix.encode() + b"\0"
    return head + struct.pack(">I", len(content)) + content


_DETACH = [_begin(0x20), _event(_APART), _commit(0x20)]


@pytest.fixture
def writer(tmp_path: Path) -> ReplicaWriter:
    path = tmp_path / "replica.db"
    config = ReplicaConfig(
        replica_version=watermark_from_lsn(0x10), publications=("p",), app_id="zero", shard_num=0
    )
    with BulkLoader(path, config, _TOGETHER) as loader:
        loader.finish()
    return ReplicaWriter(path)


def _apply(writer: ReplicaWriter, *payloads: bytes) -> Applier:
    applier = Applier(writer, lambda _: None, SchemaEvents(writer, _SHARD))
    for payload in payloads:
        applier.apply(payload)
    return applier


def test_the_walsender_is_left_after_a_tree_has_moved(writer: ReplicaWriter) -> None:
    applier = _apply(writer, *_DETACH[:-1])
    assert applier.is_outdated
    assert not _apply(writer, *_DETACH[1:1]).is_outdated


def test_rows_of_the_former_root_in_the_same_transaction_cannot_be_told_apart(
    writer: ReplicaWriter,
) -> None:
    rows = [_relation(_ROOT, "root"), _relation(_LEAF, "leaf"), _insert(_ROOT, 1)]
    with pytest.raises(ResyncRequired, match="rows of root"):
        _apply(writer, _begin(0x20), *rows, _event(_APART), _insert(_ROOT, 2))


def test_a_late_transaction_that_still_takes_a_partition_for_part_of_its_former_root(
    writer: ReplicaWriter,
) -> None:
    _apply(writer, *_DETACH)
    writer.commit()
    late = [_begin(0x30), _relation(_ROOT, "root"), _relation(_LEAF, "leaf"), _insert(_ROOT, 1)]
    with pytest.raises(ResyncRequired, match="rows of root"):
        _apply(writer, *late)


def test_partitions_that_are_where_they_belong_raise_nothing(writer: ReplicaWriter) -> None:
    _apply(writer, *_DETACH)
    writer.commit()
    near = [_relation(_ROOT, "root"), _relation(_NEAR, "near"), _insert(_ROOT, 1)]
    leaf = [_relation(_SUB, "sub"), _relation(_LEAF, "leaf"), _insert(_SUB, 2)]
    applier = _apply(writer, _begin(0x30), *near, *leaf, _commit(0x30))
    writer.commit()
    assert not applier.is_outdated
    assert writer.state.version == watermark_from_lsn(0x30)


def test_a_move_that_is_sent_again_makes_the_next_walsender_outdated_too(
    writer: ReplicaWriter,
) -> None:
    """The process was killed before the change log had it, and the replica did."""
    _apply(writer, *_DETACH)
    writer.commit()
    before = [_begin(0x18), _relation(_ROOT, "root"), _relation(_LEAF, "leaf"), _commit(0x18)]
    applier = _apply(writer, *before)
    assert not applier.is_outdated
    for payload in _DETACH:
        applier.apply(payload)
    assert applier.is_outdated


def test_a_move_that_is_replayed_from_the_change_log_is_over_with_its_transaction(
    writer: ReplicaWriter,
) -> None:
    events = SchemaEvents(writer, _SHARD)
    replaying = Applier(writer, lambda _: None, events)
    later = [_begin(0x30), _relation(_ROOT, "root"), _insert(_ROOT, 1), _commit(0x30)]
    for payload in [*_DETACH, *later]:
        replaying.apply(payload)
    writer.commit()
    assert writer.state.version == watermark_from_lsn(0x30)
    assert not Applier(writer, lambda _: None, events).is_outdated
