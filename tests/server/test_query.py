"""The query endpoint: shapes of answers, and which failure reaches how far."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.server.conftest import schema, zql
from zerocache.errors import QueryError
from zerocache.server import (
    ApplicationError,
    QueryParseError,
    define_queries,
    define_query,
    handle_query_request,
    handle_query_request_sync,
    must_get_query,
)
from zerocache.zql.ast import Query
from zerocache.zql.builder import QueryBuilder

Json = dict[str, Any]


def _positive(value: Any) -> int:
    if value <= 0:
        raise ValueError("must be positive")
    return int(value) * 10


def top(args: int, ctx: Any) -> QueryBuilder:
    return zql.issue.where_exists("comments", lambda c: c.where("issueID", "x")).limit(args)


def refuse(args: Any, ctx: Any) -> QueryBuilder:
    raise ApplicationError("not for you", {"user": ctx})


def unreadable(args: Any, ctx: Any) -> QueryBuilder:
    raise QueryParseError("what is this?", {"got": args})


QUERIES = define_queries(
    {
        "issue": {
            "all": define_query(lambda args, ctx: zql.issue),
            "top": define_query(_positive, top),
            "refuse": define_query(refuse),
            "unreadable": define_query(unreadable),
        }
    }
)


def handler(name: str, args: Any) -> QueryBuilder:
    found: QueryBuilder = must_get_query(QUERIES, name).fn(args=args, ctx="u1")
    return found


def request(*queries: tuple[str, list[Any]]) -> list[Any]:
    return ["transform", [{"id": f"q{at}", "name": n, "args": a} for at, (n, a) in
                          enumerate(queries)]]  # fmt: skip


async def answer(body: Any, **options: Any) -> Any:
    """The answer of the asynchronous endpoint, which the synchronous one must share."""
    found = await handle_query_request(handler, schema, body, **options)
    assert handle_query_request_sync(handler, schema, body, **options) == found
    json.dumps(found)
    return found


async def test_queries_come_back_with_server_names() -> None:
    found = await answer(json.dumps(request(("issue.top", [2]), ("issue|all", []))))
    assert found == {
        "kind": "QueryResponse",
        "queries": [
            {
                "id": "q0",
                "name": "issue.top",
                "ast": {
                    "table": "issue",
                    "limit": 20,
                    "where": {
                        "type": "correlatedSubquery",
                        "op": "EXISTS",
                        "related": {
                            "system": "client",
                            "correlation": {"parentField": ["id"], "childField": ["issue_id"]},
                            "subquery": {
                                "table": "comment",
                                "alias": "zsubq_comments",
                                "where": {
                                    "type": "simple",
                                    "op": "=",
                                    "left": {"type": "column", "name": "issue_id"},
                                    "right": {"type": "literal", "value": "x"},
                                },
                            },
                        },
                    },
                },
            },
            {"id": "q1", "name": "issue|all", "ast": {"table": "issue"}},
        ],
    }


async def test_empty_request_only_tells_who_is_logged_in() -> None:
    empty = {"kind": "QueryResponse", "queries": []}
    assert await answer(["transform", []]) == empty
    assert await answer(["transform", []], user_id=None) == {**empty, "userID": None}
    assert await answer(["transform", []], user_id="u1") == {**empty, "userID": "u1"}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        None,
        {},
        [],
        ["transform"],
        ["other", []],
        ["transform", [{"id": "q", "name": "n"}]],
        ["transform", [{"id": "q", "name": "n", "args": [], "extra": 1}]],
        ["transform", [{"id": 1, "name": "n", "args": []}]],
    ],
)
async def test_unusable_body_is_a_parse_failure(body: Any) -> None:
    found = await answer(body)
    assert (found["kind"], found["origin"]) == ("TransformFailed", "server")
    assert (found["reason"], found["queryIDs"]) == ("parse", [])


async def test_failing_queries_leave_their_siblings_alone() -> None:
    body = request(
        ("issue.refuse", []), ("issue.unreadable", [1]), ("gone", []), ("issue.top", [0]),
        ("issue.all", []),
    )  # fmt: skip
    found = (await answer(body))["queries"]
    assert found[0] == {
        "error": "app", "id": "q0", "name": "issue.refuse", "message": "not for you",
        "details": {"user": "u1"},
    }  # fmt: skip
    assert found[1]["error"] == "parse"
    assert found[1]["details"] == {"got": 1}
    assert found[2]["error"] == "app"
    assert 'query "gone" is not defined' in found[2]["message"]
    assert found[3]["error"] == "app"
    assert found[3]["details"] == {"type": "InputValidationError", "result": "must be positive"}
    assert found[4]["ast"] == {"table": "issue"}


async def test_name_that_cannot_be_mapped_fails_the_request() -> None:
    def foreign(name: str, args: Any) -> QueryBuilder:
        return QueryBuilder(schema, Query("elsewhere"))

    found = await handle_query_request(foreign, schema, request(("a", []), ("b", [])))
    assert (found["kind"], found["reason"]) == ("TransformFailed", "internal")
    assert found["queryIDs"] == ["q0", "q1"]
    assert 'table "elsewhere"' in found["message"]


async def test_anything_but_a_query_fails_the_request() -> None:
    wrong: Any = lambda name, args: "issue"  # noqa: E731
    found = await handle_query_request(wrong, schema, request(("a", [])))
    assert (found["reason"], found["queryIDs"]) == ("internal", ["q0"])


async def test_handlers_run_concurrently() -> None:
    arrived = asyncio.Barrier(2)

    async def meet(name: str, args: Any) -> QueryBuilder:
        # Passes only when both handlers are waiting at once.
        await asyncio.wait_for(arrived.wait(), 5)
        return zql.issue

    found = await handle_query_request(meet, schema, request(("a", []), ("b", [])))
    assert [q["ast"] for q in found["queries"]] == [{"table": "issue"}] * 2


async def test_legacy_response_is_a_tuple() -> None:
    found = await answer(request(("issue.all", [])), legacy_response=True, user_id="u1")
    ast = {"table": "issue"}
    assert found == ["transformed", [{"id": "q0", "name": "issue.all", "ast": ast}]]
    tag, failure = await answer({}, legacy_response=True)
    assert (tag, failure["reason"]) == ("transformFailed", "parse")


def test_only_the_first_argument_reaches_the_handler() -> None:
    seen: list[Any] = []

    def record(name: str, args: Any) -> QueryBuilder:
        seen.append(args)
        raise QueryError("seen")

    body = request(("a", []), ("b", [None]), ("c", [1, 2]))
    handle_query_request_sync(record, schema, body)
    assert seen == [None, None, 1]
