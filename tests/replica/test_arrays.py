import json
import math
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerocache.replica.types import text_decoder


def decode(upstream_type: str, text: str, *, is_enum: bool = False) -> Any:
    decoder = text_decoder(upstream_type, is_enum, True)
    assert decoder is not None
    return decoder(text)


@pytest.mark.parametrize(
    ("upstream_type", "text", "stored"),
    [
        ("int4[]", "{}", "[]"),
        ("int4[]", "{1,NULL,-3}", "[1,null,-3]"),
        ("int8[]", "{9007199254740993,-1}", "[9007199254740993,-1]"),
        ("int4[][]", "{{1,2},{3,4}}", "[[1,2],[3,4]]"),
        ("int4[]", "[0:2]={7,8,9}", "[7,8,9]"),
        ("text[]", "[-1:0]={a,b}", '["a","b"]'),
        ("bool[]", "{t,f,NULL}", "[true,false,null]"),
        ("bool[][]", "{{t},{f}}", "[[true],[false]]"),
        ("text[]", '{a,"",NULL,"NULL","b,c","{d}"}', '["a","",null,"NULL","b,c","{d}"]'),
        ("text[]", r'{"quote \" backslash \\"}', r'["quote \" backslash \\"]'),
        ("text[]", '{"line\n"}', r'["line\n"]'),
        ("text[]", "{größe, x}".replace(" ", ""), '["größe","x"]'),
        ("float8[]", "{1.5,2,1e+20,NaN,Infinity}", "[1.5,2,1e+20,null,null]"),
        ("numeric[]", "{1.10,2.00,NaN}", "[1.1,2,null]"),
        ("jsonb[]", r'{"{\"a\": [1, 2]}","\"x\"",12345678901234567890,null,NULL}',
         '[{"a": [1, 2]},"x",12345678901234567890,null,null]'),
        ("date[]", "{1970-01-02,infinity}", "[86400000,null]"),
        ("timestamptz[]", '{"1970-01-01 00:00:01.0005+00"}', "[1000.5]"),
        ("time[]", "{24:00:00}", "[86400000]"),
        ("uuid[]", "{00000000-0000-0000-0000-000000000001,NULL}",
         '["00000000-0000-0000-0000-000000000001",null]'),
        ("bytea[]", r'{"\\x00ff"}', r'["\\x00ff"]'),
        ("box[]", "{(1,1),(0,0);(3,3),(2,2)}", '["(1,1),(0,0)","(3,3),(2,2)"]'),
        ("point[]", '{"(1,2)"}', '["(1,2)"]'),
    ],
)  # fmt: skip
def test_array(upstream_type: str, text: str, stored: str) -> None:
    assert decode(upstream_type, text) == stored
    assert json.loads(stored) is not None


def test_enum_array_is_strings_even_if_the_enum_is_named_like_a_number() -> None:
    assert decode("int4[]", "{1,two}", is_enum=True) == '["1","two"]'


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)


@pytest.fixture
def connection(database: str) -> psycopg.Connection[Any]:
    return psycopg.connect(database, autocommit=True, options="-c TimeZone=UTC")


def test_text_arrays_of_a_real_server(connection: psycopg.Connection[Any]) -> None:
    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(st.none(), texts, st.sampled_from(["NULL", "null", '"', "\\", ""]))))
    def check(values: list[str | None]) -> None:
        row = connection.execute("SELECT %s::text[]::text", [values]).fetchone()
        assert row is not None
        assert json.loads(decode("text[]", row[0])) == values

    check()


def test_number_arrays_of_a_real_server(connection: psycopg.Connection[Any]) -> None:
    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(st.lists(st.floats(), min_size=2, max_size=2)),
        st.lists(st.integers(-(2**63), 2**63 - 1)),
        st.lists(st.booleans()),
    )
    def check(floats: list[list[float]], integers: list[int], booleans: list[bool]) -> None:
        row = connection.execute(
            "SELECT %s::float8[]::text, %s::int8[]::text, %s::bool[]::text",
            [floats, integers, booleans],
        ).fetchone()
        assert row is not None
        finite = [[n if math.isfinite(n) else None for n in pair] for pair in floats]
        assert json.loads(decode("float8[]", row[0])) == finite
        assert json.loads(decode("int8[]", row[1])) == integers
        assert json.loads(decode("bool[]", row[2])) == booleans

    check()


def test_json_arrays_of_a_real_server(connection: psycopg.Connection[Any]) -> None:
    documents = st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), texts),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)
        ),
        max_leaves=6,
    )

    @settings(max_examples=100, deadline=None)
    @given(st.lists(documents, max_size=4))
    def check(values: list[Any]) -> None:
        encoded = [json.dumps(value) for value in values]
        row = connection.execute(
            "SELECT %s::jsonb[]::text, %s::json[]::text", [encoded, encoded]
        ).fetchone()
        assert row is not None
        assert json.loads(decode("jsonb[]", row[0])) == values
        assert json.loads(decode("json[]", row[1])) == values

    check()
