"""Rows as patch operations: every value as clients must read it, every key as they know it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.view_syncer.ivm.replica import Change, Replica, Table, client_tables
from view_syncer.ivm.encode import ClientTables, Encoder, PatchSql, SyncedTable, register_functions
from view_syncer.ivm.pipeline import TableDelta
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.protocol.joined_rows import JoinedRows
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.schema import ReplicaColumn, ReplicaTable
from zerocache.replica.sql import quote

_ODD = 'app.odd "table"'
# Its columns are named as those of what its rows are looked up with.
_LOOKUP = "lookup"
TABLES = {
    "t": Table({"id": "int8", "f": "float8", "s": "text", "b": "bool", "j": "jsonb"}, ("id",)),
    "pair": Table({"p": "text", "q": "int4"}, ("p", "q")),
    _ODD: Table({"it's": "text", 'say "x"': "int4", "Ünï": "json"}, ("it's",)),
    _LOOKUP: Table(
        {"value": "int8", "count": "text", "pointer": "bool", "wanted": "int4"}, ("value",)
    ),
    "wide": Table({f"c{i}": "int4" if i % 2 else "json" for i in range(150)}, ("c1",)),
}


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    one = Replica(tmp_path / "replica.db", TABLES)
    yield one
    one.close()


def reader(replica: Replica) -> apsw.Connection:
    """A snapshot of the replica as it is now."""
    db = open_replica(replica.path)
    register_functions(db)
    db.execute("BEGIN")
    db.execute('SELECT 1 FROM "t"').fetchall()
    return db


def encoder(replica: Replica, client: ClientTables | None = None) -> Encoder:
    return Encoder(client or client_tables(TABLES), load_schema(reader(replica)))


def put(replica: Replica, table: str, row: dict[str, Any]) -> int:
    replica.commit([Change("put", table, row)])
    sql = f"SELECT max(rowid) FROM {quote(table)}"  # noqa: S608 (quoted)
    [[rowid]] = reader(replica).execute(sql)
    return int(rowid)


def value(replica: Replica, table: str, row: dict[str, Any]) -> Any:
    """``row`` as a client reads it after its way through replica and encoder."""
    rowid = put(replica, table, row)
    [text] = encoder(replica).puts(reader(replica), {table: {rowid}})
    operation = json.loads(text)
    assert operation["op"] == "put"
    assert operation["tableName"] == table
    return operation["value"]


def row(**columns: Any) -> dict[str, Any]:
    return {"id": 1, "f": None, "s": None, "b": None, "j": None, **columns}


def test_nulls_are_sent_and_the_row_version_is_not(replica: Replica) -> None:
    assert value(replica, "t", row()) == row()


@pytest.mark.parametrize("boolean", [True, False])
def test_booleans_are_json_booleans(replica: Replica, boolean: bool) -> None:
    assert value(replica, "t", row(b=boolean))["b"] is boolean


@pytest.mark.parametrize(
    "document",
    [
        True,
        0,
        "",
        "null",
        [],
        {},
        [None, {"a": [1.5, "é😀"]}],
        {"quote\"'": "\\ \u0001"},
        "}",
        ["]"],
    ],
)
def test_json_is_embedded_not_quoted(replica: Replica, document: Any) -> None:
    assert value(replica, "t", row(j=document))["j"] == document


@pytest.mark.parametrize(
    "text", ["", "é😀", "\"'\\", "line\nbreak\ttab\x01\x1f", "</script>", "{}"]
)
def test_strings_survive_whatever_is_in_them(replica: Replica, text: str) -> None:
    assert value(replica, "t", row(s=text))["s"] == text


def test_numbers_survive_exactly(tmp_path: Path) -> None:
    schema = {"n": ReplicaTable("n", {"v": ReplicaColumn("v", "float8", "number")}, (("v",),))}
    client = ClientTables("n", {"n": SyncedTable("n", ("v",), ("v",))})
    db = apsw.Connection(":memory:")
    db.execute("CREATE TABLE n (v)")

    @settings(max_examples=300)
    @given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53))
    def check(number: float) -> None:
        db.execute("DELETE FROM n")
        db.execute("INSERT INTO n VALUES (?)", (number,))
        [text] = Encoder(client, schema).puts(db, {"n": {1}})
        assert json.loads(text)["value"]["v"] == number

    check()


@pytest.mark.parametrize("integer", [2**53 - 1, -(2**53) + 1, 0])
def test_integers_up_to_the_limit_are_exact(replica: Replica, integer: int) -> None:
    assert value(replica, "t", row(id=integer))["id"] == integer


@pytest.mark.parametrize("integer", [2**53, -(2**53), 2**63 - 1])
def test_integers_beyond_the_limit_are_refused_with_table_and_column(
    replica: Replica, integer: int
) -> None:
    with pytest.raises(UnsafeIntegerError, match=f"column 'id' of table 't' holds {integer}"):
        value(replica, "t", row(id=integer))


def test_a_large_float_is_no_unsafe_integer(replica: Replica) -> None:
    assert value(replica, "t", row(f=1e300))["f"] == 1e300


def test_json_too_deep_for_sqlite_fails_as_a_query_not_as_the_engine(replica: Replica) -> None:
    rowid = put(replica, "t", row())
    # Only as text: Python cannot build such a value either.
    replica.writer.begin_transaction("9" + "0" * 9)
    replica.writer.update("t", {"id": 1}, {"id": 1, "j": "[" * 1500 + "]" * 1500})
    replica.writer.end_transaction()
    replica.writer.commit()
    with pytest.raises(QueryError, match="table 't' cannot be encoded"):
        encoder(replica).puts(reader(replica), {"t": {rowid}})


def test_a_row_too_large_for_sqlite_fails_as_a_query_not_as_the_engine(replica: Replica) -> None:
    """JSON may be larger than what is stored: every control character takes six bytes."""
    rowid = put(replica, "t", row(s="\x01" * 1_000))
    db = reader(replica)
    db.limit(apsw.SQLITE_LIMIT_LENGTH, 3_000)
    with pytest.raises(QueryError, match="table 't' cannot be encoded"):
        encoder(replica).puts(db, {"t": {rowid}})


def test_names_with_quotes_and_a_schema_survive(replica: Replica) -> None:
    odd = {"it's": "a'b", 'say "x"': 7, "Ünï": {"k": 1}}
    assert value(replica, _ODD, odd) == odd


def test_more_columns_than_one_sql_function_takes(replica: Replica) -> None:
    wide = {c: i if i % 2 else [{"i": i}] for i, c in enumerate(TABLES["wide"].columns)}
    assert value(replica, "wide", wide) == wide


def test_only_declared_columns_are_sent(replica: Replica) -> None:
    client = ClientTables("few", {"t": SyncedTable("t", ("s", "id"), ("id",))})
    rowid = put(replica, "t", row(s="x", f=1.5))
    [text] = encoder(replica, client).puts(reader(replica), {"t": {rowid}})
    assert json.loads(text)["value"] == {"s": "x", "id": 1}


def test_rows_of_undeclared_tables_are_dropped(replica: Replica) -> None:
    client = ClientTables("few", {"t": SyncedTable("t", ("id",), ("id",))})
    rowid = put(replica, "pair", {"p": "a", "q": 1})
    only_t = encoder(replica, client)
    db = reader(replica)
    rows = {"pair": {rowid}}
    assert only_t.puts(db, rows) == []
    assert only_t.dels(db, rows) == []
    assert only_t.delta(db, db, {"pair": TableDelta(entered={rowid})}).puts == []


def test_custom_statements_replace_the_declared_ones(replica: Replica) -> None:
    sql = "SELECT _rowid_, 'made ' || id FROM t WHERE _rowid_ IN (SELECT value FROM carray(?))"
    client = ClientTables("own", {}, {"t": PatchSql(sql, sql)})
    rowid = put(replica, "t", row(id=5))
    assert encoder(replica, client).puts(reader(replica), {"t": {rowid}}) == ["made 5"]


def test_client_schemas_are_equal_by_digest() -> None:
    one, same = client_tables(TABLES, "x"), ClientTables("x", {})
    assert one == same
    assert hash(one) == hash(same)
    assert one != client_tables(TABLES, "y")
    assert one.row_keys["pair"] == ("p", "q")


# -- deltas ------------------------------------------------------------------------------------


def test_a_row_that_left_is_deleted_by_the_key_it_had(replica: Replica) -> None:
    rowid = put(replica, "pair", {"p": "a", "q": 1})
    old = reader(replica)
    replica.commit([Change("delete", "pair", None, ("a", 1))])
    patch = encoder(replica).delta(old, reader(replica), {"pair": TableDelta(left={rowid})})
    [(table, deleted, text)] = patch.dels
    assert (table, deleted) == ("pair", rowid)
    assert json.loads(text) == {"op": "del", "tableName": "pair", "id": {"p": "a", "q": 1}}
    assert patch.puts == []


def test_an_edited_row_is_put_whole(replica: Replica) -> None:
    rowid = put(replica, "t", row(s="x", f=1.5))
    old = reader(replica)
    replica.commit([Change("put", "t", row(s="y", f=1.5))])
    patch = encoder(replica).delta(old, reader(replica), {"t": TableDelta(edited={rowid})})
    assert patch.dels == []
    assert [json.loads(p)["value"] for p in patch.puts] == [row(s="y", f=1.5)]


def _as_edit(replica: Replica, *changes: Change) -> tuple[list[Any], list[Any]]:
    rowid = put(replica, "pair", {"p": "a", "q": 1})
    old = reader(replica)
    replica.commit(changes)
    patch = encoder(replica).delta(old, reader(replica), {"pair": TableDelta(edited={rowid})})
    # Whoever else holds the row, its old key is gone from the client.
    assert all(deleted == 0 for _, deleted, _ in patch.dels)
    return [json.loads(t)["id"] for *_, t in patch.dels], [
        json.loads(t)["value"] for t in patch.puts
    ]


def test_a_row_with_a_new_key_is_deleted_by_the_old_one_and_put(replica: Replica) -> None:
    assert _as_edit(replica, Change("move", "pair", {"p": "a", "q": 2}, ("a", 1))) == (
        [{"p": "a", "q": 1}],
        [{"p": "a", "q": 2}],
    )


def test_a_rowid_reused_by_another_row_deletes_the_former(replica: Replica) -> None:
    delete = Change("delete", "pair", None, ("a", 1))
    assert _as_edit(replica, delete, Change("put", "pair", {"p": "z", "q": 9})) == (
        [{"p": "a", "q": 1}],
        [{"p": "z", "q": 9}],
    )


def test_the_key_of_a_deletion_is_the_one_the_client_declared(replica: Replica) -> None:
    client = ClientTables("q", {"pair": SyncedTable("pair", ("p", "q"), ("q",))})
    rowid = put(replica, "pair", {"p": "a", "q": 1})
    [(_, _, text)] = encoder(replica, client).dels(reader(replica), {"pair": {rowid}})
    assert json.loads(text)["id"] == {"q": 1}


def test_ilike_folds_with_full_unicode_rules() -> None:
    db = apsw.Connection(":memory:")
    register_functions(db)
    assert db.execute("SELECT zc_lower('ÀÉ'), zc_lower(5), zc_lower(NULL)").fetchall() == [
        ("àé", 5, None)
    ]


# -- many rows at a time ----------------------------------------------------------------------


def _t(number: int, **values: Any) -> Change:
    return Change("put", "t", {"id": number, **dict.fromkeys("fsbj"), **values})


@pytest.mark.parametrize("rows", [2, 499, 500, 501, 1200])
def test_rows_encoded_together_are_those_encoded_alone(replica: Replica, rows: int) -> None:
    odd = ["\n", "1 {", "\r\n \u2028", '"\\n"', "\x1f\t", ""]
    replica.commit([_t(n, s=odd[n % len(odd)], j=json.dumps(odd)) for n in range(rows)])
    encode, db = encoder(replica), reader(replica)
    rowids = [rowid for (rowid,) in db.execute("SELECT _rowid_ FROM t")]
    together = encode.puts_by_row(db, {"t": rowids})
    alone = {r: text for r in rowids for text in encode.puts(db, {"t": [r]})}
    assert together == {"t": alone}
    assert [json.loads(text)["value"]["s"] for text in alone.values()] == [
        odd[n % len(odd)] for n in range(rows)
    ]
    keys = encode.keys_by_row(db, {"t": rowids})
    assert keys == {"t": {r: encode.keys_by_row(db, {"t": [r]})["t"][r] for r in rowids}}


@pytest.mark.parametrize("rows", [3, 4, 100, 101, 250])
def test_rows_joined_by_sqlite_are_those_encoded_alone(replica: Replica, rows: int) -> None:
    odd = ["\n", ",\n", "},\n{", "\u2028\r\n", '"\\n"', "\x1f\t\0", "é\U0001f600", ""]
    text = [one.replace("\0", "") for one in odd]
    changes = [
        _t(
            n,
            s=text[n % 8],
            j=json.dumps(odd[n % 8], indent=1),
            b=[None, True, False][n % 3],
            f=n / 3,
        )
        for n in range(rows)
    ]
    named = [
        Change(
            "put", _LOOKUP, {"value": n, "count": text[n % 8], "pointer": n % 2 == 0, "wanted": n}
        )
        for n in range(rows)
    ]
    wide = {c: i if i % 2 else [{"i": i}] for i, c in enumerate(TABLES["wide"].columns)}
    replica.commit([*changes, *named, Change("put", "wide", wide)])
    encode, db = encoder(replica), reader(replica)
    rowids = {
        name: [row for (row,) in db.execute(f"SELECT _rowid_ FROM {quote(name)}")]  # noqa: S608
        for name in ("t", _LOOKUP, "wide")
    }
    together = encode.puts(db, {t: [*ids, 10**6] for t, ids in rowids.items()})
    alone = [text for t, ids in rowids.items() for r in ids for text in encode.puts(db, {t: [r]})]
    assert isinstance(together, JoinedRows)
    assert len(together) == len(alone) == 2 * rows + 1
    assert [*together] == alone
    assert json.loads(b"[" + b",".join(block.data for block in together.blocks) + b"]") == [
        json.loads(text) for text in alone
    ]
    assert [json.loads(text)["value"]["s"] for text in alone[:rows]] == [
        text[n % 8] for n in range(rows)
    ]


def test_of_many_rows_those_that_do_not_exist_are_left_out(replica: Replica) -> None:
    replica.commit([_t(n) for n in range(5)])
    encode, db = encoder(replica), reader(replica)
    assert len(encode.puts(db, {"t": range(-100, 1000)})) == 5
    assert len(encode.puts(db, {"t": range(10_000, 11_000)})) == 0
    assert len(encode.puts(db, {"t": range(1, 6), "unknown": range(10), "pair": []})) == 5


def test_a_row_among_many_that_cannot_be_encoded_fails_the_query(replica: Replica) -> None:
    replica.commit([_t(n) for n in range(200)])
    rowids = [row for (row,) in reader(replica).execute("SELECT _rowid_ FROM t")]
    assert len(encoder(replica).puts(reader(replica), {"t": rowids})) == 200
    replica.writer.begin_transaction("9" + "0" * 9)
    replica.writer.update("t", {"id": 150}, {"id": 150, "j": "[" * 1500 + "]" * 1500})
    replica.writer.end_transaction()
    replica.writer.commit()
    with pytest.raises(QueryError, match="table 't' cannot be encoded"):
        encoder(replica).puts(reader(replica), {"t": rowids})


def test_many_rows_too_large_for_one_text_are_encoded_alone(replica: Replica) -> None:
    replica.commit([_t(n, s="x" * 1_000) for n in range(10)])
    db = reader(replica)
    db.limit(apsw.SQLITE_LIMIT_LENGTH, 3_000)
    assert len(encoder(replica).puts(db, {"t": range(1, 11)})) == 10


def test_texts_with_line_breaks_are_encoded_one_by_one(replica: Replica) -> None:
    sql = "SELECT _rowid_, char(10) || id FROM t WHERE _rowid_ IN (SELECT value FROM carray(?))"
    client = ClientTables("custom", {}, {"t": PatchSql(sql, sql)})
    replica.commit([_t(n) for n in (1, 2, 3)])
    assert encoder(replica, client).puts(reader(replica), {"t": [1, 2, 3, 4]}) == [
        "\n1", "\n2", "\n3",
    ]  # fmt: skip


@pytest.mark.parametrize("others", [2, 20])
def test_a_row_among_others_that_cannot_be_encoded_is_named(replica: Replica, others: int) -> None:
    replica.commit([_t(n) for n in (*range(others), 2**53)])
    with pytest.raises(UnsafeIntegerError, match=r"'id'.*9007199254740992"):
        encoder(replica).puts(reader(replica), {"t": range(1, others + 2)})
