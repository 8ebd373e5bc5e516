"""The query endpoint: names and arguments in, syntax trees in server names out (§7.7).

Owns the shape of the answer. It never runs a query and opens no connection. Invariant: one
failing query leaves its siblings alone; only a name that cannot be mapped fails the request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import msgspec

from zerocache.errors import SdkError
from zerocache.server.endpoint import (
    UNSET,
    Body,
    BodyError,
    Json,
    LogLevel,
    UserID,
    convert,
    identity,
    logger,
    parse_json,
    settle,
)
from zerocache.server.errors import QueryParseError, describe, details_of
from zerocache.zql.builder import QueryBuilder, to_server_names
from zerocache.zql.normal import builder_json
from zerocache.zql.schema import Schema

QueryHandler: TypeAlias = Callable[[str, Any], QueryBuilder | Awaitable[QueryBuilder]]
"""``handler(name, args)``: the query called ``name``, or an exception."""


class QueryRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    name: str
    args: list[Any]


async def handle_query_request(
    handler: QueryHandler,
    schema: Schema,
    body: Body,
    user_id: UserID = UNSET,
    log_level: LogLevel = "info",
    *,
    legacy_response: bool = False,
) -> Any:
    """Answer zerocache with the queries it asks for; send the result as JSON, HTTP 200.

    All handlers run concurrently. An empty request is legal: it asks who is logged in
    (``user_id``, see :func:`~zerocache.server.handle_mutate_request`).
    """
    log = logger(__name__, log_level)
    try:
        requests = parse_requests(body)
    except BodyError as error:
        log.error("query_request_not_understood", error=str(error))
        return unusable_body(error, legacy_response=legacy_response)
    outcomes = await asyncio.gather(*(_ask(handler, request) for request in requests))
    return respond(requests, outcomes, schema, user_id, log, legacy_response=legacy_response)


async def _ask(handler: QueryHandler, request: QueryRequest) -> QueryBuilder | Exception:
    try:
        found: QueryBuilder = await settle(handler(request.name, argument(request)))
    except Exception as error:
        return error
    return found


def argument(request: QueryRequest) -> Any:
    return request.args[0] if request.args else None


def parse_requests(body: Body) -> list[QueryRequest]:
    message = convert(parse_json(body), list)
    if len(message) != 2 or message[0] != "transform":
        raise BodyError('the body is not ["transform", [...]]')
    return convert(message[1], list[QueryRequest])


def unusable_body(error: BodyError, *, legacy_response: bool) -> Any:
    failure = _failed("parse", f"the query request is not valid: {error}", [], error)
    return ["transformFailed", failure] if legacy_response else failure


def respond(
    requests: Sequence[QueryRequest],
    outcomes: Sequence[QueryBuilder | Exception],
    schema: Schema,
    user_id: UserID,
    log: Any,
    *,
    legacy_response: bool,
) -> Any:
    """The answer once every handler has returned or raised."""
    try:
        queries = [_answer(*pair, schema) for pair in zip(requests, outcomes, strict=True)]
    except Exception as error:
        log.error("query_names_not_mapped", error=describe(error))
        failure = _failed("internal", describe(error), [r.id for r in requests], error)
        return ["transformFailed", failure] if legacy_response else failure
    for query in queries:
        if "error" in query:
            log.warning("query_failed", query=query["name"], error=query["message"])
    if legacy_response:
        return ["transformed", queries]
    return {"kind": "QueryResponse", "queries": queries, **identity(user_id)}


def _answer(request: QueryRequest, outcome: QueryBuilder | Exception, schema: Schema) -> Json:
    if isinstance(outcome, Exception):
        return {
            "error": "parse" if isinstance(outcome, QueryParseError) else "app",
            "id": request.id,
            "name": request.name,
            "message": describe(outcome),
            **details_of(outcome),
        }
    if not isinstance(outcome, QueryBuilder):
        raise SdkError(
            f'query "{request.name}" returned a {type(outcome).__name__}; '
            "return a query of create_builder(schema)"
        )
    ast = builder_json(to_server_names(outcome, schema))
    return {"id": request.id, "name": request.name, "ast": ast}


def _failed(reason: str, message: str, ids: list[str], error: Exception) -> Json:
    return {
        "kind": "TransformFailed",
        "origin": "server",
        "reason": reason,
        "message": message,
        "queryIDs": ids,
        **details_of(error),
    }
