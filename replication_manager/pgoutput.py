"""Decodes pgoutput, protocol version 1 (replication.md §3), without any I/O.

Owns the payload of the stream's XLogData frames: bytes in, one frozen message out. Values stay the
text Postgres sent; what they mean is decided where the relation is known. Nothing is skipped: a
payload that cannot be read in full raises, because every later row depends on it.

Tuples are plain lists, one element per column: text, None for NULL, or UNCHANGED for a TOASTed
value that was not sent. Hundreds of thousands of them pass per second, hence no object per value.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TypeAlias

import msgspec

from zerocache.errors import ReplicationError
from zerocache.replica.types import UNCHANGED, TextRow

_BEGIN = struct.Struct(">xQqI")
_COMMIT = struct.Struct(">xbQQq")
_LSN = struct.Struct(">Q")
_OID = struct.Struct(">I")
_RELATION_TAIL = struct.Struct(">BH")
_COLUMN_TAIL = struct.Struct(">Ii")
_TRUNCATE = struct.Struct(">xIb")
_MESSAGE = struct.Struct(">xbQ")
_ROW_HEAD = struct.Struct(">xIBH")
_TUPLE_HEAD = struct.Struct(">BH")
_row_head = _ROW_HEAD.unpack_from
_tuple_head = _TUPLE_HEAD.unpack_from
_length = _OID.unpack_from

_KEY, _OLD, _NEW = b"KON"
_TEXT, _NULL, _TOASTED = b"tnu"


class PgoutputError(ReplicationError):
    """A payload is not pgoutput version 1 in text mode."""

    code = "ZC220"


class Begin(msgspec.Struct, frozen=True, gc=False):
    """``lsn`` is that of the commit record: the watermark of the whole transaction."""

    lsn: int
    commit_time_us: int
    xid: int


class Commit(msgspec.Struct, frozen=True, gc=False):
    """``lsn`` equals the one of Begin; ``end_lsn`` is the first byte after the record."""

    lsn: int
    end_lsn: int
    commit_time_us: int


class Origin(msgspec.Struct, frozen=True, gc=False):
    lsn: int
    name: str


class RelationColumn(msgspec.Struct, frozen=True, gc=False):
    name: str
    is_key: bool
    type_oid: int
    type_modifier: int


class Relation(msgspec.Struct, frozen=True):
    """Describes the tuples that follow under ``oid``. ``identity`` is one of ``d n f i``."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


class Type(msgspec.Struct, frozen=True, gc=False):
    oid: int
    schema: str
    name: str


class Insert(msgspec.Struct, frozen=True, gc=False):
    relation: int
    new: TextRow


class Update(msgspec.Struct, frozen=True, gc=False):
    """``old`` is None if the key did not change, the key columns (others None) if it did, and the
    whole old row under identity FULL; then values unchanged in ``new`` are filled in from it."""

    relation: int
    old: TextRow | None
    new: TextRow


class Delete(msgspec.Struct, frozen=True, gc=False):
    """``old`` has the key columns (others None), or the whole row under identity FULL."""

    relation: int
    old: TextRow


class Truncate(msgspec.Struct, frozen=True, gc=False):
    relations: tuple[int, ...]
    cascade: bool
    restart_identity: bool


class LogicalMessage(msgspec.Struct, frozen=True, gc=False):
    """``pg_logical_emit_message``; those of other applications arrive too."""

    transactional: bool
    lsn: int
    prefix: str
    content: bytes


Message: TypeAlias = (
    Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage
)


def decode(payload: bytes) -> Message:
    """The message in ``payload``; :class:`PgoutputError` if it is not exactly one."""
    try:
        message, end = _DECODERS[payload[0]](payload)
    except (KeyError, IndexError, struct.error, ValueError) as error:
        tag = payload[:1].decode("ascii", "replace")
        raise PgoutputError(
            f"a pgoutput message {tag!r} of {len(payload)} bytes cannot be decoded "
            f"({type(error).__name__}: {error}): skipping it would lose changes; check that the "
            "server is PostgreSQL 15 or later and report this as a bug"
        ) from error
    if end != len(payload):
        raise PgoutputError(
            f"a pgoutput message {chr(payload[0])!r} of {len(payload)} bytes ends after {end}: "
            "the rest would be lost; report this as a bug"
        )
    return message


def _insert(data: bytes) -> tuple[Insert, int]:
    _, kind, _ = head = _row_head(data)
    if kind != _NEW:
        raise ValueError(f"tuple of kind {chr(kind)!r} in an insert")
    new, end = _tuple(data, 8, head[2])
    return Insert(head[0], new), end


def _update(data: bytes) -> tuple[Update, int]:
    relation, kind, count = _row_head(data)
    row, end = _tuple(data, 8, count)
    if kind == _NEW:
        return Update(relation, None, row), end
    if kind not in (_KEY, _OLD):
        raise ValueError(f"tuple of kind {chr(kind)!r} in an update")
    new_kind, count = _tuple_head(data, end)
    if new_kind != _NEW:
        raise ValueError(f"tuple of kind {chr(new_kind)!r} where the new one belongs")
    new, end = _tuple(data, end + 3, count)
    if kind == _OLD and UNCHANGED in new:
        new = [old if value is UNCHANGED else value for old, value in zip(row, new, strict=True)]
    return Update(relation, row, new), end


def _delete(data: bytes) -> tuple[Delete, int]:
    relation, kind, count = _row_head(data)
    if kind not in (_KEY, _OLD):
        raise ValueError(f"tuple of kind {chr(kind)!r} in a delete")
    old, end = _tuple(data, 8, count)
    return Delete(relation, old), end


def _tuple(data: bytes, at: int, count: int) -> tuple[TextRow, int]:
    row: TextRow = []
    append = row.append
    for _ in range(count):
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _length(data, at + 1)[0]
            append(data[start:at].decode())
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _TOASTED:
            append(UNCHANGED)
            at += 1
        else:
            raise ValueError(f"value of kind {chr(kind)!r}: only text was asked for")
    return row, at


def _begin(data: bytes) -> tuple[Begin, int]:
    return Begin(*_BEGIN.unpack_from(data)), _BEGIN.size


def _commit(data: bytes) -> tuple[Commit, int]:
    _, lsn, end_lsn, commit_time_us = _COMMIT.unpack_from(data)
    return Commit(lsn, end_lsn, commit_time_us), _COMMIT.size


def _origin(data: bytes) -> tuple[Origin, int]:
    name, end = _string(data, 9)
    return Origin(_LSN.unpack_from(data, 1)[0], name), end


def _relation(data: bytes) -> tuple[Relation, int]:
    oid = _OID.unpack_from(data, 1)[0]
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity, count = _RELATION_TAIL.unpack_from(data, at)
    at += _RELATION_TAIL.size
    columns = []
    for _ in range(count):
        is_key = bool(data[at] & 1)
        column, at = _string(data, at + 1)
        columns.append(RelationColumn(column, is_key, *_COLUMN_TAIL.unpack_from(data, at)))
        at += _COLUMN_TAIL.size
    return Relation(oid, schema, name, chr(identity), tuple(columns)), at


def _type(data: bytes) -> tuple[Type, int]:
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    return Type(_OID.unpack_from(data, 1)[0], schema, name), at


def _truncate(data: bytes) -> tuple[Truncate, int]:
    count, flags = _TRUNCATE.unpack_from(data)
    relations = struct.unpack_from(f">{count}I", data, _TRUNCATE.size)
    return Truncate(relations, bool(flags & 1), bool(flags & 2)), _TRUNCATE.size + 4 * count


def _logical_message(data: bytes) -> tuple[LogicalMessage, int]:
    flags, lsn = _MESSAGE.unpack_from(data)
    prefix, at = _string(data, _MESSAGE.size)
    start = at + 4
    end = start + _OID.unpack_from(data, at)[0]
    return LogicalMessage(bool(flags & 1), lsn, prefix, data[start:end]), end


def _string(data: bytes, at: int) -> tuple[str, int]:
    """A NUL-terminated string at ``at`` and the position after it."""
    end = data.index(0, at)
    return data[at:end].decode(), end + 1


_DECODERS: dict[int, Callable[[bytes], tuple[Message, int]]] = {
    ord("B"): _begin,
    ord("C"): _commit,
    ord("D"): _delete,
    ord("I"): _insert,
    ord("M"): _logical_message,
    ord("O"): _origin,
    ord("R"): _relation,
    ord("T"): _truncate,
    ord("U"): _update,
    ord("Y"): _type,
}
