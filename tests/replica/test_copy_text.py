from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerocache.errors import ReplicationError
from zerocache.replica.copy_text import decode_columns, iter_row_batches, parse_rows

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


def read(chunks: list[bytes], batch_bytes: int = 1) -> list[list[str | None]]:
    return [row for batch in iter_row_batches(chunks, batch_bytes=batch_bytes) for row in batch]


@given(st.lists(st.lists(fields, min_size=3, max_size=3)), st.integers(1, 7), st.integers(1, 40))
def test_rows_survive_chunks_that_end_anywhere(
    rows: list[list[str | None]], step: int, batch_bytes: int
) -> None:
    data = encode(rows)
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    assert read(chunks, batch_bytes) == rows


def test_one_column_tables_keep_empty_strings() -> None:
    assert read([b"\n\n\\N\n"]) == [[""], [""], [None]]


def test_json_escape_of_nul_stays_json_text() -> None:
    assert parse_rows(b'{"a":"\\\\u0000"}') == [['{"a":"\\u0000"}']]


def test_no_rows() -> None:
    assert read([]) == []
    assert read([b""]) == []


def test_input_that_ends_inside_a_row_is_refused() -> None:
    with pytest.raises(ReplicationError, match="ended inside a row"):
        read([b"1\t2\n3"])


def test_batches_are_bounded() -> None:
    sizes = [len(batch) for batch in iter_row_batches([b"0123456789\n"] * 100, batch_bytes=110)]
    assert sizes == [10] * 10


def test_columns_are_decoded_except_nulls() -> None:
    rows: list[list[str | None]] = [["1", "a", None], ["2", None, "3"]]
    assert list(decode_columns(rows, [int, None, int])) == [(1, "a", None), (2, None, 3)]
    assert list(decode_columns([["1"], ["2"]], [int])) == [(1,), (2,)]
    assert list(decode_columns([], [int])) == []


def test_rows_with_a_missing_field_are_refused() -> None:
    with pytest.raises(ValueError):
        list(decode_columns([["1", "2"], ["3"]], [int, int]))


def test_copy_of_a_real_server(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE t (n serial, a text, b text)")

        @settings(max_examples=25, deadline=None)
        @given(st.lists(st.tuples(fields, fields), max_size=5))
        def check(rows: list[tuple[Any, Any]]) -> None:
            connection.execute("TRUNCATE t")
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO t (a, b) VALUES (%s, %s)", rows)
                with cursor.copy("COPY (SELECT a, b FROM t ORDER BY n) TO STDOUT") as copy:
                    assert list(map(tuple, read(list(map(bytes, copy))))) == rows

        check()
