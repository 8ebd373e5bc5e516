"""pgoutput decoding: a round trip through an encoder written from the specification alone."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
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
from tests.replica.test_types import VALUES
from zerocache.postgres.introspection import read_published_schema
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.layout import ReplicaConfig
from zerocache.replica.published import wire_name
from zerocache.replica.reader import open_replica
from zerocache.replica.relation import RelationWriter
from zerocache.replica.sql import quote
from zerocache.replica.types import UNCHANGED, StoredRow, TextRow, column_decoder, row_decoder
from zerocache.replica.writer import ReplicaWriter


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


STATEMENTS = """
    INSERT INTO task SELECT n, 'task ' || n, repeat(md5(n::text), 400) FROM generate_series(1, 9) n;
    UPDATE task SET title = 'changed' WHERE id <= 3;
    UPDATE task SET id = id + 100 WHERE id IN (4, 5);
    DELETE FROM task WHERE id = 6;
    UPDATE task SET body = NULL WHERE id = 7;
    INSERT INTO pair VALUES (1, 'x', NULL), (1, 'y', E'tab\\t'), (2, 'x', repeat('long', 3000));
    UPDATE pair SET note = 'new' WHERE b = 'y';
    UPDATE pair SET a = 3 WHERE a = 2;
    DELETE FROM pair WHERE b = 'x' AND a = 1;
    INSERT INTO loose VALUES ('same'), ('same'), ('other');
    DELETE FROM loose WHERE ctid = (SELECT min(ctid) FROM loose);
    INSERT INTO gone VALUES (1);
    TRUNCATE gone;
    INSERT INTO gone VALUES (2);
    BEGIN;
    UPDATE task SET id = 1000 WHERE id = 1;
    UPDATE task SET id = 1 WHERE id = 2;
    UPDATE task SET id = 2, title = 'swapped' WHERE id = 1000;
    COMMIT;
"""
SCHEMA_SQL = """
    CREATE TABLE task (id int PRIMARY KEY, title text NOT NULL, body text);
    CREATE TABLE pair (a int NOT NULL, b text NOT NULL, note text, UNIQUE (b, a));
    CREATE TABLE loose (a text);
    CREATE TABLE gone (id int PRIMARY KEY);
    ALTER TABLE task ALTER body SET STORAGE EXTERNAL;
    ALTER TABLE pair REPLICA IDENTITY FULL;
    ALTER TABLE loose REPLICA IDENTITY FULL;
    CREATE PUBLICATION pub FOR ALL TABLES;
"""
PEEK = """
    SELECT data FROM pg_logical_slot_peek_binary_changes(
        %s, NULL, NULL, 'proto_version', '1', 'publication_names', 'pub', 'messages', 'true')
"""


def apply_all(writer: ReplicaWriter, payloads: list[bytes]) -> set[type]:
    """Apply a stream the way the replication process does; returns the kinds of messages met."""
    relations: dict[int, tuple[RelationWriter, Callable[[TextRow], StoredRow]]] = {}
    met: set[type] = set()
    for message in map(decode, payloads):
        met.add(type(message))
        match message:
            case Begin(lsn):
                writer.begin_transaction(watermark_from_lsn(lsn))
            case Commit():
                writer.end_transaction()
                writer.commit()
            case Relation(oid, schema, name, identity, columns):
                table = wire_name(schema, name)
                key = [c.name for c in columns if c.is_key] if identity != "f" else None
                decoders = {c.name: column_decoder(c) for c in writer.facts(table).table.columns}
                relations[oid] = (
                    writer.relation(table, [c.name for c in columns], key),
                    row_decoder([decoders[c.name] for c in columns]),
                )
            case Insert(oid, new):
                relation, decoded = relations[oid]
                relation.insert(decoded(new))
            case Update(oid, old, new):
                relation, decoded = relations[oid]
                relation.update(None if old is None else decoded(old), decoded(new))
            case Delete(oid, old):
                relation, decoded = relations[oid]
                relation.delete(decoded(old))
            case Truncate(oids):
                for oid in oids:
                    relations[oid][0].truncate()
    return met


def test_stream_of_a_real_server_makes_the_replica_equal(
    database: str, app_id: str, tmp_path: Path
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(SCHEMA_SQL)
        published = read_published_schema(connection, ["pub"])
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [app_id])
        # The slot reads what is flushed; the test cluster commits asynchronously by default.
        connection.execute("SET synchronous_commit = on")
        connection.execute("SELECT pg_logical_emit_message(false, 'app/lag', '{}')")
        connection.execute("SELECT pg_logical_emit_message(true, 'app/ddl', '{}')")
        for statement in STATEMENTS.split(";")[:-1]:
            connection.execute(statement.encode())
        payloads = [bytes(data) for (data,) in connection.execute(PEEK, [app_id])]
        config = ReplicaConfig(
            replica_version="110", publications=("pub",), app_id=app_id, shard_num=0
        )
        with BulkLoader(tmp_path / "r.db", config, published) as loader:
            loader.finish()
        writer = ReplicaWriter(tmp_path / "r.db")
        met = apply_all(writer, payloads)
        writer.close()
        assert met == {Begin, Commit, Relation, Insert, Update, Delete, Truncate, LogicalMessage}
        reader = open_replica(tmp_path / "r.db")
        for table in published.tables:
            select = f"SELECT * FROM {quote(table.name)}"  # noqa: S608
            rows = connection.execute(select.encode()).fetchall()
            stored = [row[:-1] for row in reader.execute(select)]
            assert sorted(stored, key=repr) == sorted(rows, key=repr), table.name


def test_stream_stores_every_type_as_the_copy_does(
    database: str, app_id: str, tmp_path: Path
) -> None:
    options = "-c TimeZone=UTC -c DateStyle=ISO -c bytea_output=hex -c extra_float_digits=1"
    columns = ", ".join(f"c{at} {kind}" for at, (kind, _, _) in enumerate(VALUES))
    literals = ", ".join(value for _, value, _ in VALUES)
    with psycopg.connect(database, autocommit=True, options=options) as connection:
        connection.execute(f"CREATE TABLE t ({columns})".encode())
        connection.execute(b"CREATE PUBLICATION pub FOR ALL TABLES")
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [app_id])
        connection.execute("SET synchronous_commit = on")
        connection.execute(f"INSERT INTO t VALUES ({literals})".encode())  # noqa: S608
        payloads = [bytes(data) for (data,) in connection.execute(PEEK, [app_id])]
        (table,) = read_published_schema(connection, ["pub"]).tables
    (new,) = (message.new for message in map(decode, payloads) if isinstance(message, Insert))
    stored = row_decoder([column_decoder(column) for column in table.columns])(new)
    assert stored == [value for _, _, value in VALUES]
