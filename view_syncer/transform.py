"""Turns named queries into syntax trees by asking the application (api-and-auth.md §3).

Owns the request, the shapes of the answer and the short-lived cache. It must never cache an error
or share an answer between callers that differ in anything the application could see, and never
log what the application wrote into messages or details. Invariant: every query asked for is in
the outcome, transformed or rejected, unless no endpoint is configured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import structlog
from msgspec import UNSET

from view_syncer.api_client import ApiClient, ApiEndpoint, RequestContext
from view_syncer.auth import Identity
from zerocache.errors import ApplicationCallError, ClientFacingError, QueryError
from zerocache.zql.ast import Query, parse_query

log = structlog.get_logger(__name__)

CACHE_TTL_S: Final = 5.0
"""Below the typical life of a short-lived token, so that a revoked one is noticed soon."""


class NamedQuery(NamedTuple):
    """``id`` is the client's opaque query hash."""

    id: str
    name: str
    args: Sequence[Any]


@dataclass(frozen=True, slots=True)
class TransformedQuery:
    id: str
    name: str
    query: Query


@dataclass(frozen=True, slots=True)
class RejectedQuery:
    """The application refused one query; the others are not affected."""

    id: str
    name: str
    error: Literal["app", "parse"]
    message: str | None = None
    details: Any = UNSET

    def body(self) -> dict[str, Any]:
        """The entry of a ``transformError`` message."""
        entry: dict[str, Any] = {"error": self.error, "id": self.id, "name": self.name}
        if self.message is not None:
            entry["message"] = self.message
        if self.details is not UNSET:
            entry["details"] = self.details
        return entry


@dataclass(frozen=True, slots=True)
class TransformOutcome:
    """Answers by query id, and what the call tells about the caller.

    ``validated``: the application accepted the credentials just now (not from the cache).
    """

    results: Mapping[str, TransformedQuery | RejectedQuery] = field(default_factory=dict)
    identity: Identity = UNSET
    validated: bool = False


class _Answer(msgspec.Struct, frozen=True):
    id: str
    name: str
    ast: msgspec.Raw = msgspec.Raw()
    error: Literal["app", "parse"] | None = None
    message: str | None = None
    details: Any = UNSET


class _Success(msgspec.Struct, frozen=True, tag="QueryResponse", tag_field="kind"):
    queries: list[_Answer]
    user_id: Identity = msgspec.field(name="userID", default=UNSET)


class _Failure(msgspec.Struct, frozen=True, tag="TransformFailed", tag_field="kind"):
    reason: Literal["database", "parse", "internal"]
    message: str
    query_ids: list[str] = msgspec.field(name="queryIDs", default_factory=list)
    details: Any = UNSET


_decode_object: Final[Callable[[bytes], _Success | _Failure]] = msgspec.json.Decoder(
    _Success | _Failure
).decode
_decode_pair: Final = msgspec.json.Decoder(
    tuple[Literal["transformed", "transformFailed"], msgspec.Raw]
).decode
_decode_answers: Final = msgspec.json.Decoder(list[_Answer]).decode
_decode_failure: Final = msgspec.json.Decoder(_Failure).decode

_Key: TypeAlias = tuple[object, ...]


class QueryTransformer:
    """One per process, shared by all client groups. ``clock`` gives seconds, monotonically."""

    def __init__(
        self,
        client: ApiClient,
        endpoint: ApiEndpoint,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._endpoint = endpoint
        self._clock = clock
        # In order of insertion, hence of expiry: expired entries are at the front.
        self._cache: dict[_Key, tuple[float, TransformedQuery]] = {}

    @property
    def enabled(self) -> bool:
        return self._endpoint.enabled

    async def validate(self, context: RequestContext) -> TransformOutcome:
        """Ask only whether the credentials are good; never answered from the cache.

        Raises ``TransformFailed``. Without an endpoint the client's claim is trusted.
        """
        if not self.enabled:
            return TransformOutcome(validated=True)
        identity, _ = await self._call((), context)
        return TransformOutcome(identity=identity, validated=True)

    async def transform(
        self, queries: Iterable[NamedQuery], context: RequestContext
    ) -> TransformOutcome:
        """Trees for ``queries``. Raises ``TransformFailed`` if the request failed as a whole."""
        asked = {query.id: query for query in queries}
        if not asked:
            return TransformOutcome()
        if not self.enabled:
            log.warning(
                "named_queries_ignored",
                names=sorted({query.name for query in asked.values()}),
                hint=f"set {self._endpoint.allowlist.variable}",
            )
            return TransformOutcome()
        caller = self._caller(context)
        keys = {id_: (*caller, *_identify(query)) for id_, query in asked.items()}
        results: dict[str, TransformedQuery | RejectedQuery] = {}
        self._drop_expired()
        for id_, key in keys.items():
            if key in self._cache:
                results[id_] = self._cache[key][1]
        missing = [query for id_, query in asked.items() if id_ not in results]
        if not missing:
            return TransformOutcome(results)
        identity, answers = await self._call(missing, context)
        self._remember(answers, keys)
        for query in missing:
            results[query.id] = answers.get(query.id) or _unanswered(query)
        return TransformOutcome(results, identity, validated=True)

    # -- cache --

    def _caller(self, context: RequestContext) -> _Key:
        """Everything about the caller that the application could base its answer on."""
        headers = self._endpoint.headers(context)
        return (
            context.auth_token,
            context.cookie,
            context.origin,
            context.user_id,
            self._endpoint.target(context),
            tuple(sorted((name.lower(), value) for name, value in headers.items())),
        )

    def _drop_expired(self) -> None:
        now = self._clock()
        for key, (expires, _) in list(self._cache.items()):
            if expires > now:
                break
            del self._cache[key]

    def _remember(
        self,
        answers: Mapping[str, TransformedQuery | RejectedQuery],
        keys: Mapping[str, _Key],
    ) -> None:
        expires = self._clock() + CACHE_TTL_S
        for id_, answer in answers.items():
            if isinstance(answer, TransformedQuery) and id_ in keys:
                self._cache.pop(keys[id_], None)  # so that it goes to the end
                self._cache[keys[id_]] = (expires, answer)

    # -- the call --

    async def _call(
        self, queries: Sequence[NamedQuery], context: RequestContext
    ) -> tuple[Identity, Mapping[str, TransformedQuery | RejectedQuery]]:
        body = msgspec.json.encode(
            ("transform", [{"id": q.id, "name": q.name, "args": q.args} for q in queries])
        )
        ids = [query.id for query in queries]
        try:
            text = await self._client.post(self._endpoint, context, body)
            response = _decode(text)
            if isinstance(response, _Success):
                return response.user_id, {a.id: _result(a) for a in response.queries}
        except ApplicationCallError as error:
            failure = error.to_client("TransformFailed", queryIDs=ids)
        except (msgspec.DecodeError, QueryError, UnicodeDecodeError, RecursionError) as error:
            failure = ApplicationCallError(
                "parse", f"The answer of the query endpoint cannot be used: {error}"
            ).to_client("TransformFailed", queryIDs=ids)
        else:
            failure = _whole_failure(response, ids)
        log.warning(
            "transform_failed",
            origin=failure.origin,
            reason=failure.extra["reason"],
            status=failure.extra.get("status"),
            queries=len(ids),
        )
        raise failure


def _identify(query: NamedQuery) -> _Key:
    """The id alone will not do: it is chosen by the client, and a client could give the id of
    one query to another to have the wrong tree remembered for everybody with its credentials."""
    return query.id, query.name, msgspec.json.encode(query.args, order="sorted")


def _decode(text: bytes) -> _Success | _Failure:
    if not text.lstrip().startswith(b"["):
        return _decode_object(text)
    kind, body = _decode_pair(text)
    if kind == "transformed":
        return _Success(_decode_answers(body))
    return _decode_failure(body)


def _result(answer: _Answer) -> TransformedQuery | RejectedQuery:
    if answer.error is None:
        if not bytes(answer.ast):
            raise QueryError(f"query {answer.id!r} has neither `ast` nor `error`")
        return TransformedQuery(answer.id, answer.name, parse_query(bytes(answer.ast)))
    message = answer.message
    if message is None and answer.error == "parse":
        message = "The application could not read this query."  # clients insist on a text here
    log.warning(
        "query_rejected",
        query=answer.id,
        name=answer.name,
        error=answer.error,
        has_details=answer.details is not UNSET,
    )
    return RejectedQuery(answer.id, answer.name, answer.error, message, answer.details)


def _unanswered(query: NamedQuery) -> RejectedQuery:
    log.warning("query_unanswered", query=query.id, name=query.name)
    return RejectedQuery(
        query.id, query.name, "parse", "The application's query endpoint did not answer this query."
    )


def _whole_failure(failure: _Failure, ids: list[str]) -> ClientFacingError:
    extra: dict[str, Any] = {"reason": failure.reason, "queryIDs": failure.query_ids or ids}
    if failure.details is not UNSET:
        extra["details"] = failure.details
    return ClientFacingError("TransformFailed", failure.message, origin="server", **extra)
