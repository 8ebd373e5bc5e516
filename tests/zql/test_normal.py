"""Hashes and normal forms: given vectors, the official client's output, and properties."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from zerocache.errors import QueryError
from zerocache.zql.ast import ColumnRef, LiteralRef, Query, Simple
from zerocache.zql.normal import (
    base36,
    h64,
    h128,
    hash_of_name_and_args,
    hash_of_query,
    javascript_json,
    javascript_number,
    normalize,
)

OFFICIAL = json.loads((Path(__file__).parent / "official.json").read_text(encoding="utf-8"))
DONE = {
    "table": "task",
    "where": {
        "type": "simple",
        "left": {"type": "column", "name": "done"},
        "right": {"type": "literal", "value": False},
        "op": "=",
    },
    "limit": 20,
    "orderBy": [["rank", "desc"]],
}


def simple(name: str, value: Any = 1, op: str = "=") -> dict[str, Any]:
    left, right = {"type": "column", "name": name}, {"type": "literal", "value": value}
    return {"type": "simple", "left": left, "right": right, "op": op}


def group(kind: str, *conditions: Any) -> dict[str, Any]:
    return {"type": kind, "conditions": list(conditions)}


def normal_where(where: Any) -> Any:
    return normalize({"table": "t", "where": where}).get("where")


def test_h64_of_the_given_vector() -> None:
    assert h64("abc") == 0x32D153FFAA3DA8FF
    assert base36(h64("abc")) == "rtjjvs99c9of"


def test_h128_begins_with_h64() -> None:
    assert h128("abc") >> 64 == h64("abc")
    assert h128("abc") & 0xFFFFFFFF == xxhash.xxh32_intdigest(b"abc", 3)


@pytest.mark.parametrize(
    ("query", "expected"), [({"table": "task"}, "1j5wlxlrwxc61"), (DONE, "a03qkb4sp9xd")]
)
def test_hashes_of_ad_hoc_queries(query: Any, expected: str) -> None:
    assert hash_of_query(query) == expected


def test_hash_of_a_query_tree_uses_the_builders_key_order() -> None:
    where = Simple("=", ColumnRef("done"), LiteralRef(False))
    query = Query("task", where=where, limit=20, order_by=[("rank", "desc")])
    assert hash_of_query(query) == "a03qkb4sp9xd"


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("tasksByOwner", ["u1"], "38lys05zgiocs"),
        ("all", [], "zkptxf9wovj8"),
        ("q", [{"b": 1, "a": [True, None, 1.5, "é😀"]}], "2a6z1p8viuqln"),
    ],
)
def test_hashes_of_named_queries(name: str, args: list[Any], expected: str) -> None:
    assert hash_of_name_and_args(name, args) == expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_hashes_are_those_of_the_official_client(name: str) -> None:
    assert hash_of_query(OFFICIAL[name]["ast"]) == OFFICIAL[name]["hash"]


def test_query_that_matches_nothing_hashes_like_one_that_matches_all() -> None:
    # The reason why this hash is no key for sharing.
    assert hash_of_query({"table": "t", "where": group("or")}) == hash_of_query({"table": "t"})


def test_flattening_goes_one_level_per_pass() -> None:
    a, b, c, d = (simple(name) for name in "abcd")
    nested = group("and", a, group("and", b, group("and", c, d)))
    assert normal_where(nested) == group("and", a, b, group("and", c, d))


def test_groups_of_one_collapse_and_empty_ones_vanish() -> None:
    assert normal_where(group("or", group("and"), group("and", simple("a")))) == simple("a")
    assert normal_where(group("and", group("or"))) is None


def test_members_sort_by_kind_then_by_content() -> None:
    both = group("or", simple("x"), simple("y"))
    members = [both, simple("b"), simple("a", "10"), simple("a", 9)]
    expected = [simple("a", "10"), simple("a", 9), simple("b"), both]
    assert normal_where(group("and", *members)) == group("and", *expected)


def test_related_sort_by_alias_and_need_one() -> None:
    def entry(**subquery: Any) -> Any:
        correlation = {"childField": ["x"], "parentField": ["y"]}
        return {"subquery": {"table": "t", **subquery}, "correlation": correlation}

    normal = normalize({"table": "t", "related": [entry(alias="b"), entry(alias="a")]})
    assert [e["subquery"]["alias"] for e in normal["related"]] == ["a", "b"]
    assert list(normal["related"][0]) == ["correlation", "subquery"]
    with pytest.raises(QueryError, match="has no alias"):
        normalize({"table": "t", "related": [entry(), entry()]})


def test_static_parameters_cannot_be_sorted() -> None:
    static = {"type": "static", "anchor": "authData", "field": "sub"}
    one = {"type": "simple", "left": {"type": "column", "name": "a"}, "right": static, "op": "="}
    with pytest.raises(QueryError, match="authData"):
        normal_where(group("and", one, one))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (1e-7, "1e-7"),
        (1.5e-6, "0.0000015"),
        (-0.0, "0"),
        (1.0, "1"),
        (123.456, "123.456"),
        (-1.25e-9, "-1.25e-9"),
        (2**53 + 1, "9007199254740992"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (math.inf, "null"),
        (10**400, "null"),
    ],
)
def test_numbers_are_written_as_javascript_does(value: float, expected: str) -> None:
    assert javascript_number(value) == expected


def test_strings_are_written_as_javascript_does() -> None:
    assert javascript_json('é😀\n\x01"\\/\x7f') == '"é😀\\n\\u0001\\"\\\\/\x7f"'
    assert javascript_json("\ud83d") == '"\\ud83d"'
    assert javascript_json("\ud83d\ude00") == '"😀"'


def test_index_keys_come_first_as_in_javascript() -> None:
    assert javascript_json({"b": 1, "10": 2, "9": 3, "01": 4}) == '{"9":3,"10":2,"b":1,"01":4}'


def test_values_beyond_json_are_refused() -> None:
    with pytest.raises(QueryError, match="is not JSON"):
        javascript_json(object())


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc1"), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_text_reads_back_as_the_same_value(value: Any) -> None:
    # JavaScript writes large doubles as digits, which Python would read as other integers.
    assert json.loads(javascript_json(value), parse_int=float) == value


leaves = st.builds(simple, st.sampled_from("abc"), st.sampled_from([1, "x", True, None]))
trees = st.recursive(
    leaves,
    lambda inner: st.builds(
        lambda kind, members: group(kind, *members),
        st.sampled_from(["and", "or"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=10,
)


@given(st.lists(leaves, max_size=5), st.randoms(use_true_random=False))
def test_order_of_simple_members_does_not_matter(members: list[Any], random: Any) -> None:
    shuffled = random.sample(members, len(members))
    assert normal_where(group("and", *members)) == normal_where(group("and", *shuffled))


@given(trees)
def test_normalizing_leaves_its_input_alone(where: Any) -> None:
    before = json.dumps(where)
    normal_where(where)
    assert json.dumps(where) == before


@given(trees)
def test_normal_forms_have_no_group_of_less_than_two(where: Any) -> None:
    def check(condition: Any) -> None:
        for member in condition.get("conditions", []):
            check(member)
        assert len(condition.get("conditions", [1, 2])) >= 2

    normal = normal_where(where)
    if normal is not None:
        check(normal)
