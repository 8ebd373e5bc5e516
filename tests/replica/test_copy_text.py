from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerocache.replica.copy_text import decode_rows

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


def _texts(data: bytes, width: int) -> list[list[Any]]:
    return [list(row) for row in decode_rows(data, [None] * width)]


@given(st.lists(st.lists(fields, min_size=3, max_size=3), min_size=1))
def test_rows_survive_escaping(rows: list[list[str | None]]) -> None:
    assert _texts(encode(rows)[:-1], 3) == rows


def test_one_column_tables_keep_empty_strings() -> None:
    assert _texts(b"\n\n\\N", 1) == [[""], [""], [None]]


def test_json_escape_of_nul_stays_json_text() -> None:
    assert _texts(b'{"a":"\\\\u0000"}', 1) == [['{"a":"\\u0000"}']]


def test_columns_are_decoded_except_nulls() -> None:
    rows = list(decode_rows(b"1\ta\t\\N\n2\t\\N\t3", [int, None, int]))
    assert rows == [(1, "a", None), (2, None, 3)]
    assert list(decode_rows(b"1\n2", [int])) == [(1,), (2,)]


def test_rows_of_a_table_without_columns() -> None:
    assert list(decode_rows(b"\n", [])) == [(), ()]


@pytest.mark.parametrize("data", [b"1\t2\n3", b"1\t2\n3\t4\t5", b"1", b""])
def test_rows_with_another_number_of_fields_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="fields"):
        list(decode_rows(data, [None, None]))


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
                    assert list(decode_rows(b"".join(copy)[:-1], [None, None])) == rows

        check()
