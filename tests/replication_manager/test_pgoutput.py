"""pgoutput decoding: a round trip through an encoder written from the specification alone."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication_manager.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Origin,
    PgoutputError,
    Relation,
    RelationColumn,
    Truncate,
    Type,
    Update,
    decode,
)
from zerocache.replica.types import UNCHANGED, TextRow


def string(text: str) -> bytes:
    return text.encode() + b"\0"


def row(values: TextRow) -> bytes:
    parts = [struct.pack(">H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            parts.append(b"t" + struct.pack(">i", len(value.encode())) + value.encode())
    return b"".join(parts)


def encode(message: Message, old_kind: bytes = b"K") -> bytes:
    match message:
        case Begin(lsn, time, xid):
            return b"B" + struct.pack(">QqI", lsn, time, xid)
        case Commit(lsn, end_lsn, time):
            return b"C\0" + struct.pack(">QQq", lsn, end_lsn, time)
        case Origin(lsn, name):
            return b"O" + struct.pack(">Q", lsn) + string(name)
        case Type(oid, schema, name):
            return b"Y" + struct.pack(">I", oid) + string(schema) + string(name)
        case Insert(relation, new):
            return b"I" + struct.pack(">I", relation) + b"N" + row(new)
        case Update(relation, None, new):
            return b"U" + struct.pack(">I", relation) + b"N" + row(new)
        case Update(relation, list(old), new):
            return b"U" + struct.pack(">I", relation) + old_kind + row(old) + b"N" + row(new)
        case Delete(relation, old):
            return b"D" + struct.pack(">I", relation) + old_kind + row(old)
        case Truncate(relations, cascade, restart):
            flags = cascade | restart << 1
            return b"T" + struct.pack(f">Ib{len(relations)}I", len(relations), flags, *relations)
        case LogicalMessage(transactional, lsn, prefix, content):
            head = b"M" + struct.pack(">bQ", transactional, lsn) + string(prefix)
            return head + struct.pack(">I", len(content)) + content
        case Relation():
            return encode_relation(message)
    raise AssertionError(message)


def encode_relation(relation: Relation) -> bytes:
    data = b"R" + struct.pack(">I", relation.oid) + string(relation.schema) + string(relation.name)
    data += relation.identity.encode() + struct.pack(">H", len(relation.columns))
    for column in relation.columns:
        data += struct.pack(">b", column.is_key) + string(column.name)
        data += struct.pack(">Ii", column.type_oid, column.type_modifier)
    return data


lsns = st.integers(0, 2**64 - 1)
oids = st.integers(0, 2**32 - 1)
times = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
values = st.one_of(st.none(), texts, st.just(UNCHANGED))
tuples: st.SearchStrategy[Any] = st.lists(values, max_size=12)
columns = st.builds(RelationColumn, names, st.booleans(), oids, st.integers(-1, 2**31 - 1))
relations = st.builds(
    Relation, oids, names, names, st.sampled_from("dnfi"), st.lists(columns, max_size=6).map(tuple)
)
messages = st.one_of(
    st.builds(Begin, lsns, times, oids),
    st.builds(Commit, lsns, lsns, times),
    st.builds(Origin, lsns, names),
    st.builds(Type, oids, names, names),
    relations,
    st.builds(Insert, oids, tuples),
    st.builds(Update, oids, st.none() | tuples, tuples),
    st.builds(Delete, oids, tuples),
    st.builds(Truncate, st.lists(oids, max_size=4).map(tuple), st.booleans(), st.booleans()),
    st.builds(LogicalMessage, st.booleans(), lsns, names, st.binary(max_size=30)),
)


@given(messages)
def test_decoding_inverts_encoding(message: Message) -> None:
    assert decode(encode(message)) == message


@given(messages, st.data())
def test_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    payload = encode(message)
    end = data.draw(st.integers(0, len(payload) - 1))
    with pytest.raises(PgoutputError):
        decode(payload[:end])


@given(messages)
def test_message_with_a_tail_is_refused(message: Message) -> None:
    with pytest.raises(PgoutputError, match="the rest would be lost"):
        decode(encode(message) + b"\0")


@given(st.binary(max_size=60))
def test_noise_is_a_message_or_an_error_of_ours(payload: bytes) -> None:
    try:
        message = decode(payload)
    except PgoutputError:
        return
    assert isinstance(message, Message)


def test_unchanged_values_come_from_the_whole_old_row() -> None:
    sent = Update(1, ["a", None, "c"], ["b", UNCHANGED, UNCHANGED])
    assert decode(encode(sent, b"O")) == Update(1, ["a", None, "c"], ["b", None, "c"])


def test_unchanged_values_are_not_taken_from_a_key() -> None:
    sent = Update(1, ["a", None], ["b", UNCHANGED])
    assert decode(encode(sent, b"K")) == sent


def test_whole_old_row_of_a_delete() -> None:
    assert decode(encode(Delete(1, ["a", None]), b"O")) == Delete(1, ["a", None])


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"Z", "'Z'"),
        (b"", "0 bytes"),
        (b"I\0\0\0\1K\0\0", "'K' in an insert"),
        (b"D\0\0\0\1N\0\0", "'N' in a delete"),
        (b"U\0\0\0\1X\0\0", "'X' in an update"),
        (b"U\0\0\0\1K\0\0K\0\0", "where the new one belongs"),
        (b"I\0\0\0\1N\0\1b\0\0\0\1x", "only text"),
        (b"I\0\0\0\1N\0\1t\0\0\0\1\xff", "utf-8"),
    ],
)
def test_what_is_wrong_is_said(payload: bytes, why: str) -> None:
    with pytest.raises(PgoutputError, match=why):
        decode(payload)
