from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerocache.replica.copy_text import decode_columns, parse_rows

ESCAPES = {
    "\\": "\\\\",
    "\t": "\\t",
    "\n": "\\n",
    "\r": "\\r",
    "\b": "\\b",
    "\f": "\\f",
    "\v": "\\v",
}

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
fields = st.one_of(st.none(), texts, st.sampled_from(["\\N", "\\", "\t", "\n", "\r\n", "N"]))


def encode(rows: list[list[str | None]]) -> bytes:
    def field(value: str | None) -> str:
        if value is None:
            return "\\N"
        return "".join(ESCAPES.get(character, character) for character in value)

    return "".join("\t".join(map(field, row)) + "\n" for row in rows).encode()


@given(st.lists(st.lists(fields, min_size=3, max_size=3), min_size=1))
def test_rows_survive_escaping(rows: list[list[str | None]]) -> None:
    assert parse_rows(encode(rows)[:-1]) == rows


def test_one_column_tables_keep_empty_strings() -> None:
    assert parse_rows(b"\n\n\\N") == [[""], [""], [None]]


def test_json_escape_of_nul_stays_json_text() -> None:
    assert parse_rows(b'{"a":"\\\\u0000"}') == [['{"a":"\\u0000"}']]


def test_columns_are_decoded_except_nulls() -> None:
    rows: list[list[str | None]] = [["1", "a", None], ["2", None, "3"]]
    assert list(decode_columns(rows, [int, None, int])) == [(1, "a", None), (2, None, 3)]
    assert list(decode_columns([["1"], ["2"]], [int])) == [(1,), (2,)]
    assert list(decode_columns([], [int])) == []


def test_rows_of_a_table_without_columns() -> None:
    assert list(decode_columns(parse_rows(b"\n"), [])) == [(), ()]


def test_rows_with_a_missing_field_are_refused() -> None:
    with pytest.raises(ValueError):
        list(decode_columns([["1", "2"], ["3"]], [int, int]))


def test_copy_of_a_real_server(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (n serial, a text, b text)")

        @settings(max_examples=25, deadline=None)
        @given(st.lists(st.tuples(fields, fields), min_size=1, max_size=5))
        def check(rows: list[tuple[Any, Any]]) -> None:
            connection.execute("TRUNCATE t")
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t (a, b) VALUES (%s, %s)", rows)
                with cursor.copy("COPY (SELECT a, b FROM t ORDER BY n) TO STDOUT") as copy:
                    assert list(map(tuple, parse_rows(b"".join(copy)[:-1]))) == rows

        check()
