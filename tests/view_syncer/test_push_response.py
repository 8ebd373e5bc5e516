"""Every generation of answers of the mutate endpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import UNSET

from view_syncer.push_response import (
    MutationId,
    MutationResult,
    PushFailure,
    PushSuccess,
    decode_push_response,
)
from zerocache.errors import ApplicationCallError

ID = {"id": 4, "clientID": "c1"}
KEY = MutationId(4, "c1")


def decoded(answer: Any) -> PushSuccess | PushFailure:
    return decode_push_response(json.dumps(answer).encode())


@pytest.mark.parametrize("kind", [{"kind": "MutateResponse"}, {}])
@pytest.mark.parametrize(
    ("result", "error"),
    [
        ({}, None),
        ({"data": {"x": 1}}, None),
        ({"error": "app", "message": "m", "details": [1]}, "app"),
        ({"error": "alreadyProcessed", "details": "d"}, "alreadyProcessed"),
        ({"error": "oooMutation"}, "oooMutation"),
    ],
)
def test_success(kind: dict[str, Any], result: Any, error: Any) -> None:
    answer: dict[str, Any] = {
        **kind,
        "mutations": [{"id": ID, "result": result, "later": 1}],
        "later": 2,
    }
    assert decoded(answer) == PushSuccess((MutationResult(KEY, error),), UNSET)


@pytest.mark.parametrize("user_id", ["u1", None])
def test_success_with_identity(user_id: str | None) -> None:
    answer: dict[str, Any] = {"kind": "MutateResponse", "mutations": [], "userID": user_id}
    assert decoded(answer) == PushSuccess((), user_id)


@pytest.mark.parametrize(
    "reason", ["database", "parse", "oooMutation", "unsupportedPushVersion", "internal"]
)
def test_failure(reason: Any) -> None:
    answer = {
        "kind": "PushFailed",
        "origin": "server",
        "reason": reason,
        "message": "m",
        "mutationIDs": [ID],
        "details": {"x": 1},
    }
    expected = PushFailure("server", reason, "m", (KEY,), details={"x": 1})
    assert decoded(answer) == expected


@pytest.mark.parametrize(
    ("answer", "origin", "reason", "status"),
    [
        ({"error": "http", "status": 418, "details": "d"}, "zeroCache", "http", 418),
        ({"error": "http"}, "zeroCache", "http", 500),
        ({"error": "unsupportedPushVersion"}, "server", "unsupportedPushVersion", None),
        ({"error": "unsupportedSchemaVersion"}, "server", "internal", None),
        ({"error": "zeroPusher", "details": "d"}, "server", "internal", None),
    ],
)
def test_legacy_failures(answer: Any, origin: str, reason: str, status: int | None) -> None:
    failure = decoded({**answer, "mutationIDs": [ID]})
    assert isinstance(failure, PushFailure)
    assert (failure.origin, failure.reason, failure.status) == (origin, reason, status)
    assert failure.mutation_ids == (KEY,)
    assert failure.details == answer.get("details", UNSET)


@pytest.mark.parametrize(
    "answer",
    [
        [],
        {},
        "x",
        {"kind": "QueryResponse", "queries": []},
        {"kind": "Other", "mutations": []},
        {"mutations": [{"id": ID}]},
        {"mutations": [{"id": {"id": "4", "clientID": "c"}, "result": {}}]},
        {"mutations": [{"id": ID, "result": {"error": "mood"}}]},
        {"kind": "PushFailed", "reason": "mood", "message": "m"},
        {"kind": "PushFailed", "reason": "parse"},
        {"error": "mood"},
    ],
)
def test_anything_else_is_a_parse_failure(answer: Any) -> None:
    with pytest.raises(ApplicationCallError) as caught:
        decoded(answer)
    assert caught.value.reason == "parse"


def test_text_that_is_not_json_is_a_parse_failure() -> None:
    with pytest.raises(ApplicationCallError) as caught:
        decode_push_response(b"<html>\xff")
    assert caught.value.reason == "parse"
