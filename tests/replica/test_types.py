from typing import Any

import psycopg
import pytest

from tests.replica.tables import column
from zerocache.replica.copy_text import decode_rows
from zerocache.replica.types import (
    UNCHANGED,
    client_type,
    column_decoder,
    row_decoder,
    stored_type_name,
    text_decoder,
)


@pytest.mark.parametrize(
    ("upstream_type", "expected"),
    [
        ("int8", "number"),
        ("numeric", "number"),
        ("timetz", "number"),
        ("date", "number"),
        ("bool", "boolean"),
        ("bpchar", "string"),
        ("uuid", "string"),
        ("macaddr8", "string"),
        ("pg_lsn", "string"),
        ("ean13", "string"),
        ("jsonb", "json"),
        ("bytea", None),
        ("interval", None),
        ("money", None),
        ("xml", None),
        ("tsvector", None),
        ("char", None),
        ("name", None),
        ("citext", None),
        ("int2vector", None),
    ],
)
def test_client_type(upstream_type: str, expected: str | None) -> None:
    assert client_type(upstream_type, False, False) == expected


def test_arrays_are_json_whatever_their_elements() -> None:
    assert client_type("interval[]", False, True) == "json"
    assert client_type("mood[][]", True, True) == "json"


def test_enums_are_strings() -> None:
    assert client_type("mood", True, False) == "string"
    assert text_decoder("date", True, False) is None


def test_domain_named_like_a_base_type_is_hidden_text() -> None:
    domain = column("at", 1, "date", type_kind="d")
    assert client_type(stored_type_name(domain), False, False) is None
    assert column_decoder(domain) is None
    assert stored_type_name(column("at", 1, "date")) == "date"
    assert stored_type_name(column("at", 1, "posint", type_kind="d")) == "posint"


def test_array_of_a_domain_is_strings() -> None:
    decoder = column_decoder(column("at", 1, "int4[]", type_kind="d", is_array=True))
    assert decoder is not None
    assert decoder("{1,2}") == '["1","2"]'


def test_vectors_stay_text_although_their_category_is_array() -> None:
    assert text_decoder("int2vector", False, True) is None
    assert client_type("oidvector", False, True) is None


def test_text_needs_no_decoder() -> None:
    for name in ("text", "varchar", "uuid", "json", "jsonb", "interval"):
        assert text_decoder(name, False, False) is None


def test_row_decoder_leaves_nulls_unchanged_values_and_its_input_alone() -> None:
    decode = row_decoder([int, None, int, int])
    row = ["1", "2", None, UNCHANGED]
    assert decode(row) == [1, "2", None, UNCHANGED]
    assert row[0] == "1"


# One row of every mapped type: type, SQL literal, stored value.
VALUES: list[tuple[str, str, Any]] = [
    ("int2", "-32768", -32768),
    ("int8", "9007199254740993", 9007199254740993),
    ("float4", "1.1", 1.1),
    ("float8", "'NaN'", None),
    ("numeric", "'Infinity'", None),
    ("numeric", "12.50", 12.5),
    ("bool", "true", 1),
    ("text", "E'a\\tb\\\\'", "a\tb\\"),
    ("bpchar", "'ab  '::char(4)", "ab  "),
    ("varchar", "''", ""),
    ("uuid", "'A0000000-0000-0000-0000-000000000001'", "a0000000-0000-0000-0000-000000000001"),
    ("inet", "'10.0.0.1/8'", "10.0.0.1/8"),
    ("cidr", "'10.0.0.0/8'", "10.0.0.0/8"),
    ("macaddr", "'08-00-2b-01-02-03'", "08:00:2b:01:02:03"),
    ("pg_lsn", "'16/B374D848'", "16/B374D848"),
    ("date", "'0001-01-01'", -62135596800000),
    ("timestamp", "'2019-01-12 00:30:35.381101'", 1547253035381.101),
    ("timestamptz", "'2019-01-12 00:30:35.381101+01'", 1547249435381.101),
    ("timestamptz", "'infinity'", None),
    ("time", "'24:00:00'", 86400000),
    ("timetz", "'24:00:00+02'", 79200000),
    ("json", '\'{"b": 1,  "a":2}\'', '{"b": 1,  "a":2}'),
    ("jsonb", "'null'", "null"),
    ("jsonb", "NULL", None),
    ("bytea", "'\\x00ff'::bytea", b"\x00\xff"),
    ("bytea", "''::bytea", b""),
    ("interval", "'1 day'", "1 day"),
    ("int4[]", "'{1,NULL}'", "[1,null]"),
    ("text[]", "ARRAY[ARRAY['a','\"'],ARRAY['',NULL]]", '[["a","\\""],["",null]]'),
    ("bool[]", "ARRAY[true,false]", "[true,false]"),
    ("int4range", "'[1,5)'", "[1,5)"),
]


def test_every_type_of_a_real_server_through_copy(database: str) -> None:
    columns = ", ".join(f"c{at} {kind}" for at, (kind, _, _) in enumerate(VALUES))
    literals = ", ".join(value for _, value, _ in VALUES)
    options = "-c TimeZone=UTC -c DateStyle=ISO -c bytea_output=hex -c extra_float_digits=1"
    with psycopg.connect(database, options=options) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE t ({columns})".encode())
        cursor.execute(f"INSERT INTO t VALUES ({literals})".encode())  # noqa: S608
        with cursor.copy("COPY t TO STDOUT") as copy:
            lines = b"".join(copy)[:-1]
    decoders = [text_decoder(kind, False, kind.endswith("[]")) for kind, _, _ in VALUES]
    (stored,) = decode_rows(lines, decoders)
    assert list(stored) == [value for _, _, value in VALUES]
    assert [type(value) for value in stored] == [type(value) for _, _, value in VALUES]
