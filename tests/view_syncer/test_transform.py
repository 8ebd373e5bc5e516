"""Named queries: checklist items 10, 24-26, 30, 31 of api-and-auth.md §9."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import UNSET

from tests.view_syncer.application import Application, endpoint
from view_syncer.api_client import ApiClient, RequestContext
from view_syncer.transform import (
    NamedQuery,
    QueryTransformer,
    RejectedQuery,
    TransformedQuery,
)
from zerocache.errors import ClientFacingError
from zerocache.zql.ast import parse_query

ALICE = RequestContext(auth_token="t1", user_id="u1")
OPEN = NamedQuery("h1", "issue.open", [{"owner": "é😀"}])
BAD = NamedQuery("h2", "issue.bad", [])
AST = {"table": "issue", "limit": 3}


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def transformer(application: Application, client: ApiClient, clock: Clock) -> QueryTransformer:
    application.default = success(good(OPEN))
    return QueryTransformer(client, endpoint(application.url("/query")), clock=clock)


def good(query: NamedQuery, ast: Any = AST) -> dict[str, Any]:
    return {"id": query.id, "name": query.name, "ast": ast}


def success(*answers: dict[str, Any], **extra: Any) -> tuple[int, Any]:
    return 200, {"kind": "QueryResponse", "queries": list(answers), **extra}


TRANSFORMED = TransformedQuery("h1", "issue.open", parse_query(AST))


async def test_request_and_answer(application: Application, transformer: QueryTransformer) -> None:
    application.default = success({**good(OPEN), "later": 1}, userID="u1", later=2)
    outcome = await transformer.transform([OPEN], ALICE)
    assert outcome.results == {"h1": TRANSFORMED}
    assert (outcome.identity, outcome.validated) == ("u1", True)
    (request,) = application.requests
    assert request.path == "/query"
    assert request.headers["Authorization"] == "Bearer t1"
    assert request.body == [
        "transform",
        [{"id": "h1", "name": "issue.open", "args": [{"owner": "é😀"}]}],
    ]


@pytest.mark.parametrize(
    ("extra", "identity"), [({"userID": "u9"}, "u9"), ({"userID": None}, None), ({}, UNSET)]
)
async def test_the_identity_is_a_user_nobody_or_unknown(
    application: Application, transformer: QueryTransformer, extra: dict[str, Any], identity: Any
) -> None:
    application.default = success(good(OPEN), **extra)
    assert (await transformer.transform([OPEN], ALICE)).identity == identity
    assert (await transformer.validate(ALICE)).identity == identity


async def test_tuple_answers_of_old_sdks(
    application: Application, transformer: QueryTransformer
) -> None:
    application.default = (200, ["transformed", [good(OPEN)]])
    outcome = await transformer.transform([OPEN], ALICE)
    assert outcome.results == {"h1": TRANSFORMED}
    assert (outcome.identity, outcome.validated) == (UNSET, True)


async def test_one_rejected_query_leaves_the_others(
    application: Application, transformer: QueryTransformer
) -> None:
    rejection = {
        "error": "app",
        "id": "h2",
        "name": "issue.bad",
        "message": "no",
        "details": {"a": 1},
    }
    application.default = success(good(OPEN), rejection)
    outcome = await transformer.transform([OPEN, BAD], ALICE)
    assert outcome.results["h1"] == TRANSFORMED
    rejected = outcome.results["h2"]
    assert isinstance(rejected, RejectedQuery)
    assert rejected.body() == rejection


@pytest.mark.parametrize("error", ["app", "parse"])
async def test_a_parse_error_always_has_a_message(
    application: Application, transformer: QueryTransformer, error: str
) -> None:
    application.default = success({"error": error, "id": "h2", "name": "issue.bad"})
    rejected = (await transformer.transform([BAD], ALICE)).results["h2"]
    assert isinstance(rejected, RejectedQuery)
    assert ("message" in rejected.body()) is (error == "parse")
    assert "details" not in rejected.body()


async def test_a_query_left_unanswered_is_rejected(
    application: Application, transformer: QueryTransformer
) -> None:
    application.default = success(good(OPEN), good(NamedQuery("foreign", "x", [])))
    outcome = await transformer.transform([OPEN, BAD], ALICE)
    assert set(outcome.results) == {"h1", "h2"}
    assert isinstance(outcome.results["h2"], RejectedQuery)


@pytest.mark.parametrize(
    "as_answer",
    [
        lambda body: {"kind": "TransformFailed", **body},
        lambda body: ["transformFailed", {"kind": "TransformFailed", **body}],
    ],
)
@pytest.mark.parametrize("ids", [["h1"], []])
async def test_a_whole_failure_of_the_application(
    application: Application, transformer: QueryTransformer, as_answer: Any, ids: list[str]
) -> None:
    body = {
        "origin": "server",
        "reason": "database",
        "message": "db is down",
        "queryIDs": ids,
        "details": {"code": 7},
    }
    application.default = (200, as_answer(body))
    with pytest.raises(ClientFacingError) as caught:
        await transformer.transform([OPEN], ALICE)
    assert caught.value.body() == {"kind": "TransformFailed", **body, "queryIDs": ["h1"]}


@pytest.mark.parametrize(
    "answer",
    [
        "<html>",
        "",
        {},
        {"kind": "QueryResponse"},
        {"kind": "MutateResponse", "mutations": []},
        {"queries": []},
        ["transformed"],
        ["other", []],
        {"kind": "TransformFailed", "reason": "mood", "message": "x"},
        {"kind": "QueryResponse", "queries": [{"id": "h1", "name": "n"}]},
        {"kind": "QueryResponse", "queries": [{"id": "h1", "name": "n", "ast": {}}]},
        {"kind": "QueryResponse", "queries": [{"id": "h1", "name": "n", "error": "mood"}]},
        {"kind": "QueryResponse", "queries": [], "userID": 7},
    ],
)
async def test_unusable_answers_are_parse_failures(
    application: Application, transformer: QueryTransformer, answer: Any
) -> None:
    application.default = (200, answer)
    with pytest.raises(ClientFacingError) as caught:
        await transformer.transform([OPEN, BAD], ALICE)
    body = caught.value.body()
    assert body.pop("message")
    assert body == {
        "kind": "TransformFailed",
        "origin": "zeroCache",
        "reason": "parse",
        "queryIDs": ["h1", "h2"],
    }


async def test_statuses_reach_the_client(
    application: Application, transformer: QueryTransformer
) -> None:
    """sync-protocol.md §10 #55"""
    application.default = (401, "who?")
    with pytest.raises(ClientFacingError) as caught:
        await transformer.transform([OPEN], ALICE)
    assert caught.value.extra == {
        "reason": "http",
        "status": 401,
        "bodyPreview": "who?",
        "queryIDs": ["h1"],
    }


async def test_an_override_that_is_not_allowed_is_never_called(
    application: Application, transformer: QueryTransformer
) -> None:
    with pytest.raises(ClientFacingError) as caught:
        await transformer.transform([OPEN], replace(ALICE, url=application.url("/elsewhere")))
    assert caught.value.extra == {"reason": "internal", "queryIDs": ["h1"]}
    assert application.requests == []


# -- cache --------------------------------------------------------------------------------------


async def test_the_same_query_within_five_seconds_is_one_call(
    application: Application, transformer: QueryTransformer, clock: Clock
) -> None:
    await transformer.transform([OPEN], ALICE)
    clock.now_s += 4.9
    outcome = await transformer.transform([OPEN], ALICE)
    assert outcome.results == {"h1": TRANSFORMED}
    assert (outcome.validated, outcome.identity) == (False, UNSET)
    assert len(application.requests) == 1
    clock.now_s += 0.2
    assert (await transformer.transform([OPEN], ALICE)).validated
    assert len(application.requests) == 2


@pytest.mark.parametrize(
    "other",
    [
        replace(ALICE, auth_token="t2"),
        replace(ALICE, cookie="c"),
        replace(ALICE, origin="https://o.test"),
        replace(ALICE, user_id="u2"),
        replace(ALICE, client_headers={"X-Tenant": "b"}),
        replace(ALICE, request_headers={"x-proxy": "b"}),
        "url",
    ],
)
async def test_callers_the_application_could_tell_apart_share_nothing(
    application: Application, client: ApiClient, clock: Clock, other: Any
) -> None:
    application.default = success(good(OPEN))
    target = endpoint(
        application.url("/query") + "*",
        allowed_client_headers=frozenset({"x-tenant"}),
        allowed_request_headers=frozenset({"x-proxy"}),
    )
    transformer = QueryTransformer(client, target, clock=clock)
    if other == "url":
        other = replace(ALICE, url=application.url("/query2"))
    first = replace(ALICE, url=application.url("/query1")) if other.url else ALICE
    await transformer.transform([OPEN], first)
    await transformer.transform([OPEN], other)
    assert len(application.requests) == 2


async def test_headers_that_are_not_forwarded_make_no_difference(
    application: Application, transformer: QueryTransformer
) -> None:
    await transformer.transform([OPEN], ALICE)
    await transformer.transform([OPEN], replace(ALICE, request_headers={"user-agent": "x"}))
    assert len(application.requests) == 1


@pytest.mark.parametrize(
    "forged", [NamedQuery("h1", "issue.other", OPEN.args), NamedQuery("h1", "issue.open", [])]
)
async def test_an_id_reused_for_another_query_does_not_meet_the_cache(
    application: Application, transformer: QueryTransformer, forged: NamedQuery
) -> None:
    await transformer.transform([forged], ALICE)
    await transformer.transform([OPEN], ALICE)
    assert len(application.requests) == 2


async def test_only_missing_queries_are_asked_and_errors_are_never_cached(
    application: Application, transformer: QueryTransformer
) -> None:
    rejection = {"error": "app", "id": "h2", "name": "issue.bad"}
    application.default = success(good(OPEN), rejection)
    await transformer.transform([OPEN, BAD], ALICE)
    outcome = await transformer.transform([OPEN, BAD], ALICE)
    assert outcome.validated
    assert set(outcome.results) == {"h1", "h2"}
    assert [q["id"] for q in application.requests[1].body[1]] == ["h2"]


# -- validation ---------------------------------------------------------------------------------


async def test_validation_always_asks(
    application: Application, transformer: QueryTransformer
) -> None:
    await transformer.transform([OPEN], ALICE)
    application.default = success()
    assert (await transformer.validate(ALICE)).validated
    assert (await transformer.validate(ALICE)).validated
    assert [r.body for r in application.requests[1:]] == [["transform", []]] * 2


async def test_validation_fails_with_the_status(
    application: Application, transformer: QueryTransformer
) -> None:
    application.default = (403, "")
    with pytest.raises(ClientFacingError) as caught:
        await transformer.validate(ALICE)
    assert (caught.value.extra["status"], caught.value.extra["queryIDs"]) == (403, [])


async def test_transforming_nothing_asks_nothing(
    application: Application, transformer: QueryTransformer
) -> None:
    assert (await transformer.transform([], ALICE)).results == {}
    assert application.requests == []


async def test_without_an_endpoint_claims_are_trusted_and_named_queries_ignored(
    client: ApiClient,
) -> None:
    transformer = QueryTransformer(client, endpoint())
    assert not transformer.enabled
    validation = await transformer.validate(ALICE)
    assert (validation.identity, validation.validated) == (UNSET, True)
    assert (await transformer.transform([OPEN], ALICE)).results == {}
