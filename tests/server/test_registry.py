"""Trees of mutators and queries: names, overrides, lookup, validators."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from zerocache.errors import SdkError
from zerocache.server import (
    InputValidationError,
    Mutator,
    define_mutator,
    define_mutators,
    define_queries,
    define_query,
    get_mutator,
    get_query,
    must_get_mutator,
    must_get_query,
)


def called(**given: Any) -> Any:
    return given


class Args(pydantic.BaseModel):
    id: int


MUTATORS = define_mutators(
    {"issue": {"create": define_mutator(called), "close": called}, "top": define_mutator(called)}
)


def test_mutators_get_the_path_as_their_name() -> None:
    create = must_get_mutator(MUTATORS, "issue.create")
    assert create.name == "issue.create"
    assert create.fn(tx=1, args=2, ctx=3) == {"tx": 1, "args": 2, "ctx": 3}
    assert must_get_mutator(MUTATORS, "top").name == "top"
    assert must_get_mutator(MUTATORS, "issue.close").name == "issue.close"


def test_mutators_are_looked_up_by_dots_only() -> None:
    assert get_mutator(MUTATORS, "issue|create") is None
    assert get_mutator(MUTATORS, "issue") is None
    assert get_mutator(MUTATORS, "issue.create.more") is None
    with pytest.raises(SdkError, match=r"defined are: issue.close, issue.create, top"):
        must_get_mutator(MUTATORS, "missing")


def test_overrides_merge_deeply_and_replace_leaves() -> None:
    other = define_mutator(lambda **given: "other")
    merged = define_mutators(MUTATORS, {"issue": {"create": other}, "new": {"a": other}})
    assert must_get_mutator(merged, "issue.create").fn(tx=None) == "other"
    assert must_get_mutator(merged, "issue.close") == must_get_mutator(MUTATORS, "issue.close")
    assert must_get_mutator(merged, "new.a").name == "new.a"
    replaced = define_mutators(MUTATORS, {"issue": other})
    assert isinstance(replaced["issue"], Mutator)


def test_queries_are_looked_up_by_dots_and_pipes() -> None:
    queries = define_queries({"issue": {"all": define_query(called)}})
    assert get_query(queries, "issue|all") is get_query(queries, "issue.all")
    assert must_get_query(queries, "issue.all").fn(args=1, ctx=2) == {"args": 1, "ctx": 2}
    assert get_query(queries, "issue") is None
    with pytest.raises(SdkError, match='query "x" is not defined'):
        must_get_query(queries, "x")


def test_hash_of_a_query_is_over_the_arguments_as_they_came() -> None:
    queries = define_queries({"tasksByOwner": define_query(str.upper, called), "all": called})
    assert must_get_query(queries, "tasksByOwner").hash("u1") == "38lys05zgiocs"
    assert must_get_query(queries, "all").hash() == "zkptxf9wovj8"


def test_functions_see_what_the_validator_returns() -> None:
    assert define_mutator(str.upper, called).fn(tx=None, args="a")["args"] == "A"
    assert define_query(Args, called).fn(args={"id": "7"})["args"] == Args(id=7)
    adapter = pydantic.TypeAdapter(list[int])
    assert define_query(adapter, called).fn(args=["1"])["args"] == [1]


def test_refused_arguments_are_reported_with_details() -> None:
    with pytest.raises(InputValidationError, match="arguments of query are not valid") as caught:
        define_query(Args, called).fn(args={"id": "x"})
    assert caught.value.details["type"] == "InputValidationError"
    [problem] = caught.value.details["result"]
    assert problem["loc"] == ("id",)
