"""What clients send on port 4848 (sync-protocol.md §2.2), decoded into immutable structs.

Owns the shape of every upstream message and nothing about what it causes. Strict on structure
(type, arity, required members, value types), tolerant of unknown properties, because every
addition to the protocol so far was an optional property. Invariant: :func:`decode_upstream`
either returns a complete message or raises ``InvalidMessage``; nothing else escapes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import msgspec

from zerocache.errors import ClientFacingError, QueryError
from zerocache.protocol.client_schema import ClientSchema, decode_client_schema
from zerocache.protocol.identifiers import fault_of
from zerocache.zql.ast import And, Condition, Exists, Or, Query, parse_query

Number: TypeAlias = int | float
InspectOp: TypeAlias = Literal["authenticate", "version", "metrics", "queries", "analyze-query"]
T = TypeVar("T")

MAX_QUERY_DEPTH: Final = 100
"""Nesting a query may have. Later stages recurse over it; a hostile client must not choose how
deep. The deepest query the official builder was seen to make has about ten levels."""

_SPELLED: Final = {"id": "ID", "ids": "IDs", "url": "URL"}


def _wire_name(name: str) -> str:
    """``client_group_id`` → ``clientGroupID``."""
    first, *rest = name.split("_")
    return first + "".join(_SPELLED.get(part, part.capitalize()) for part in rest)


class _Message(msgspec.Struct, frozen=True, rename=_wire_name, kw_only=True):
    """Base that only fixes how members are spelled on the wire."""


# -- desired queries ---------------------------------------------------------------------------


class PutQuery(msgspec.Struct, frozen=True):
    """The client wants a query. Members that were not sent are None.

    A hash the group already knows may come without a definition, so ``is_defined`` is for the
    caller to check where it needs one.
    """

    hash: str
    ttl_ms: Number | None = None
    query: Query | None = None
    ast_json: bytes | None = None  # as the client wrote it: stored and shown, never re-encoded
    name: str | None = None
    args: list[Any] | None = None

    @property
    def is_defined(self) -> bool:
        """Either an AST, or a name with arguments; not both, not half."""
        named = self.name is not None and self.args is not None
        if self.query is not None:
            return self.name is None and self.args is None
        return named


class DeleteQuery(msgspec.Struct, frozen=True, tag="del", tag_field="op"):
    hash: str


class ClearQueries(msgspec.Struct, frozen=True, tag="clear", tag_field="op"):
    """Drop every desire of the sending client, ignoring TTLs."""


QueryOp: TypeAlias = PutQuery | DeleteQuery | ClearQueries


class _WirePut(_Message, frozen=True, tag="put", tag_field="op"):
    hash: str
    ttl: Number | None = None
    ast: msgspec.Raw = msgspec.Raw()
    name: str | None = None
    args: list[Any] | None = None


_WireOp: TypeAlias = _WirePut | DeleteQuery | ClearQueries


# -- messages ----------------------------------------------------------------------------------


class DeleteClients(_Message, frozen=True):
    """``client_group_ids`` is obsolete: accepted, ignored, never acknowledged."""

    client_ids: tuple[str, ...] = ()
    client_group_ids: tuple[str, ...] = ()


class InitConnection(_Message, frozen=True):
    desired_queries_patch: tuple[QueryOp, ...]
    client_schema: ClientSchema | None = None
    deleted: DeleteClients | None = None
    user_push_url: str | None = None
    user_push_headers: Mapping[str, str] = {}
    user_query_url: str | None = None
    user_query_headers: Mapping[str, str] = {}
    active_clients: tuple[str, ...] | None = None
    traceparent: str | None = None


class ChangeDesiredQueries(_Message, frozen=True):
    desired_queries_patch: tuple[QueryOp, ...]
    traceparent: str | None = None


class UpdateAuth(_Message, frozen=True):
    auth: str


class CustomMutation(msgspec.Struct, frozen=True):
    """A mutation the application runs; ``raw`` is forwarded to it byte for byte."""

    id: int
    client_id: str
    name: str
    raw: bytes


class CrudOp(_Message, frozen=True):
    op: Literal["insert", "upsert", "update", "delete"]
    table_name: str
    primary_key: tuple[str, ...]
    value: dict[str, Any]


class CrudMutation(msgspec.Struct, frozen=True):
    """A mutation the server runs itself (api-and-auth.md §5.1)."""

    id: int
    client_id: str
    ops: tuple[CrudOp, ...]


Mutation: TypeAlias = CustomMutation | CrudMutation


class Push(msgspec.Struct, frozen=True):
    """``auth`` of the wire message is deprecated and dropped."""

    client_group_id: str
    mutations: tuple[Mutation, ...]
    push_version: Number
    request_id: str
    timestamp: Number
    schema_version: Number | None = None
    traceparent: str | None = None


class AckMutationResponses(_Message, frozen=True):
    id: int
    client_id: str


class Ping(_Message, frozen=True):
    pass


class AnalyzeOptions(_Message, frozen=True):
    synced_rows: bool = True
    vended_rows: bool = False
    join_plans: bool = False


class Inspect(msgspec.Struct, frozen=True):
    """``password`` belongs to ``authenticate``, ``client_id`` to ``queries``, the rest to
    ``analyze-query``."""

    id: str
    op: InspectOp
    password: str | None = None
    client_id: str | None = None
    query: Query | None = None
    name: str | None = None
    args: list[Any] | None = None
    options: AnalyzeOptions = AnalyzeOptions()


class Pull(_Message, frozen=True):
    """Mutation recovery of old clients; never answered."""

    client_group_id: str
    cookie: str | None
    request_id: str


class CloseConnection(_Message, frozen=True):
    """Obsolete, has no effect."""


UpstreamMessage: TypeAlias = (
    InitConnection
    | ChangeDesiredQueries
    | DeleteClients
    | UpdateAuth
    | Push
    | AckMutationResponses
    | Ping
    | Inspect
    | Pull
    | CloseConnection
)


# -- wire forms that need a second step ---------------------------------------------------------


class _WireInit(_Message, frozen=True):
    desired_queries_patch: list[_WireOp]
    client_schema: msgspec.Raw = msgspec.Raw(b"null")
    deleted: DeleteClients | None = None
    user_push_url: str | None = None
    user_push_headers: dict[str, str] | None = None
    user_query_url: str | None = None
    user_query_headers: dict[str, str] | None = None
    active_clients: tuple[str, ...] | None = None
    traceparent: str | None = None


class _WireChange(_Message, frozen=True):
    desired_queries_patch: list[_WireOp]
    traceparent: str | None = None


class _WirePush(_Message, frozen=True):
    client_group_id: str
    mutations: list[msgspec.Raw]
    push_version: Number
    request_id: str
    timestamp: Number
    schema_version: Number | None = None
    traceparent: str | None = None


class _WireCustom(_Message, frozen=True, tag="custom"):
    id: int
    client_id: str
    name: str
    args: list[msgspec.Raw]
    timestamp: Number


class _CrudArg(_Message, frozen=True):
    ops: tuple[CrudOp, ...]


class _WireCrud(_Message, frozen=True, tag="crud"):
    id: int
    client_id: str
    name: Literal["_zero_crud"]
    args: tuple[_CrudArg]
    timestamp: Number


class _WireInspect(_Message, frozen=True):
    id: str
    op: InspectOp
    value: msgspec.Raw = msgspec.Raw()
    client_id: str | None = None
    ast: msgspec.Raw = msgspec.Raw()
    name: str | None = None
    args: list[Any] | None = None
    options: AnalyzeOptions | None = None


# -- decoding ----------------------------------------------------------------------------------


def _query(raw: msgspec.Raw) -> tuple[Query | None, bytes | None]:
    text = bytes(raw)
    if text in (b"", b"null"):
        return None, None
    query = parse_query(text)
    text.decode()  # what the decoder passed over must be text as well: it is stored
    _check_depth(query)
    return query, text


def _check_depth(query: Query) -> None:
    """Breadth first, so that the check itself needs no stack."""
    level: list[Query | Condition] = [query]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_QUERY_DEPTH:
            raise QueryError(f"a query is nested deeper than {MAX_QUERY_DEPTH} levels")
        level = [child for node in level for child in _children(node)]


def _children(node: Query | Condition) -> list[Query | Condition]:
    if isinstance(node, Query):
        children: list[Query | Condition] = [r.subquery for r in node.related or ()]
        if node.where is not None:
            children.append(node.where)
        return children
    if isinstance(node, And | Or):
        return list(node.conditions)
    return [node.related.subquery] if isinstance(node, Exists) else []


def _query_op(op: _WireOp) -> QueryOp:
    if not isinstance(op, _WirePut):
        return op
    fault = fault_of(op.hash)
    if fault is not None:
        raise msgspec.ValidationError(f"the hash of a query {fault}")
    if op.name is not None and "\0" in op.name:
        raise msgspec.ValidationError("the name of a query contains a NUL character")
    query, ast_json = _query(op.ast)
    return PutQuery(op.hash, op.ttl, query, ast_json, op.name, op.args)


def _client_schema(raw: msgspec.Raw) -> ClientSchema | None:
    text = bytes(raw)
    if text == b"null":
        return None
    try:
        return decode_client_schema(text)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"`clientSchema` is none: {error}") from error


def _init_connection(body: _WireInit) -> InitConnection:
    return InitConnection(
        desired_queries_patch=tuple(map(_query_op, body.desired_queries_patch)),
        client_schema=_client_schema(body.client_schema),
        deleted=body.deleted,
        user_push_url=body.user_push_url,
        user_push_headers=body.user_push_headers or {},
        user_query_url=body.user_query_url,
        user_query_headers=body.user_query_headers or {},
        active_clients=body.active_clients,
        traceparent=body.traceparent,
    )


def _change_desired(body: _WireChange) -> ChangeDesiredQueries:
    return ChangeDesiredQueries(
        desired_queries_patch=tuple(map(_query_op, body.desired_queries_patch)),
        traceparent=body.traceparent,
    )


_decode_mutation: Final = msgspec.json.Decoder(_WireCustom | _WireCrud).decode


def _mutation(raw: msgspec.Raw) -> Mutation:
    wire = _decode_mutation(raw)
    if isinstance(wire, _WireCustom):
        return CustomMutation(wire.id, wire.client_id, wire.name, bytes(raw))
    ops = wire.args[0].ops
    if any(not op.primary_key for op in ops):
        raise msgspec.ValidationError("a CRUD operation has an empty `primaryKey`")
    return CrudMutation(wire.id, wire.client_id, ops)


def _push(body: _WirePush) -> Push:
    return Push(
        body.client_group_id,
        tuple(map(_mutation, body.mutations)),
        body.push_version,
        body.request_id,
        body.timestamp,
        body.schema_version,
        body.traceparent,
    )


def _inspect(body: _WireInspect) -> Inspect:
    password = None
    query = None
    if body.op == "authenticate":
        password = msgspec.json.decode(bytes(body.value) or b"null", type=str)
    elif body.op == "analyze-query":
        # `value` is what clients before the `ast` member called it.
        query = _query(body.ast)[0] or _query(body.value)[0]
    return Inspect(
        body.id,
        body.op,
        password,
        body.client_id,
        query,
        body.name,
        body.args,
        body.options or AnalyzeOptions(),
    )


def _plain(kind: type[T]) -> Callable[[msgspec.Raw], T]:
    return msgspec.json.Decoder(kind).decode


def _staged(kind: type[T], finish: Callable[[T], Any]) -> Callable[[msgspec.Raw], Any]:
    decode = msgspec.json.Decoder(kind).decode
    return lambda raw: finish(decode(raw))


_decode_frame: Final = msgspec.json.Decoder(tuple[str, msgspec.Raw]).decode
_decode_body: Final[Mapping[str, Callable[[msgspec.Raw], Any]]] = {
    "initConnection": _staged(_WireInit, _init_connection),
    "changeDesiredQueries": _staged(_WireChange, _change_desired),
    "deleteClients": _plain(DeleteClients),
    "updateAuth": _plain(UpdateAuth),
    "push": _staged(_WirePush, _push),
    "ackMutationResponses": _plain(AckMutationResponses),
    "ping": _plain(Ping),
    "inspect": _staged(_WireInspect, _inspect),
    "pull": _plain(Pull),
    "closeConnection": _staged(list[msgspec.Raw], lambda _: CloseConnection()),
}
_PING: Final = Ping()


def decode_upstream(frame: str | bytes) -> UpstreamMessage:
    """Decode one text frame; any fault is an ``InvalidMessage`` that names the place."""
    if frame == '["ping",{}]' or frame == b'["ping",{}]':
        return _PING
    kind = "frame"
    try:
        kind, body = _decode_frame(frame)
        decode = _decode_body.get(kind)
        if decode is None:
            raise msgspec.ValidationError(f"unknown message type {kind[:40]!r}")
        message: UpstreamMessage = decode(body)
    except (msgspec.DecodeError, QueryError, ValueError, RecursionError) as error:
        raise ClientFacingError(
            "InvalidMessage", f"The server cannot read this {kind[:40]} message: {error}"
        ) from error
    return message
