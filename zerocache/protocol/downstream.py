"""What the server says on port 4848 (sync-protocol.md §2.3), as encoded frames.

Owns the bytes of every downstream message but the parts of a poke (``poke_parts.py``). It must
never emit a property the client's stricter parsers refuse, nor JSON that is not JSON: msgspec
writes no ``NaN`` and omits nothing silently. Every function returns the payload of one *text*
frame as UTF-8.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from zerocache.errors import ClientFacingError

encode: Final = msgspec.json.encode

PONG: Final = b'["pong",{}]'

_FIRST_WITH_STRUCTURED_FAILURES = 38
_FIRST_WITHOUT_MANDATORY_DETAILS = 39


def connected(wsid: str, timestamp_ms: int | None = None) -> bytes:
    now = timestamp_ms if timestamp_ms is not None else time.time_ns() // 1_000_000
    return encode(("connected", {"wsid": wsid, "timestamp": now}))


def pong() -> bytes:
    return PONG


def error(failure: ClientFacingError, version: int | None = None) -> bytes:
    """The ``error`` frame of ``failure``, translated for clients that predate its kind (§2.4)."""
    body = failure.body()
    if version is not None and version < _FIRST_WITH_STRUCTURED_FAILURES:
        if failure.kind == "PushFailed":
            return _legacy_push_failure(body)
        if failure.kind == "TransformFailed":
            body = {"kind": "Internal", "message": body["message"], "origin": body["origin"]}
    return encode(("error", body))


def _legacy_push_failure(body: Mapping[str, Any]) -> bytes:
    legacy = {
        "error": "http",
        "status": body.get("status", 500),
        "details": body["message"],
        "mutationIDs": body.get("mutationIDs", []),
    }
    return encode(("pushResponse", legacy))


def poke_start(poke_id: str, base_cookie: str | None) -> bytes:
    return encode(("pokeStart", {"pokeID": poke_id, "baseCookie": base_cookie}))


def poke_end(poke_id: str, cookie: str) -> bytes:
    return encode(("pokeEnd", {"pokeID": poke_id, "cookie": cookie}))


def poke_cancel(poke_id: str) -> bytes:
    return encode(("pokeEnd", {"pokeID": poke_id, "cookie": "", "cancel": True}))


def delete_clients(client_ids: Iterable[str]) -> bytes:
    return encode(("deleteClients", {"clientIDs": list(client_ids)}))


def transform_error(errors: Iterable[Mapping[str, Any]], version: int | None = None) -> bytes:
    """Named queries the application rejected: ``{error, id, name, message?, details?}`` each."""
    entries = [dict(entry) for entry in errors]
    if version is not None and version < _FIRST_WITHOUT_MANDATORY_DETAILS:
        for entry in entries:
            entry["error"] = "app"
            entry.setdefault("details", None)
    return encode(("transformError", entries))


def inspect_reply(request_id: str, op: str, value: Any) -> bytes:
    """Exactly these three members: the client's inspector refuses any other (§7)."""
    return encode(("inspect", {"id": request_id, "op": op, "value": value}))


# -- single patch operations, the fragments of poke parts ----------------------------------------


def put_query(query_hash: str) -> bytes:
    return encode({"op": "put", "hash": query_hash})


def del_query(query_hash: str) -> bytes:
    return encode({"op": "del", "hash": query_hash})


def put_row(table: str, value_json: str) -> str:
    """A full row whose ``value_json`` is already JSON text (SQLite writes it)."""
    return f'{{"op":"put","tableName":{encode(table).decode()},"value":{value_json}}}'


def del_row(table: str, key_json: str) -> str:
    return f'{{"op":"del","tableName":{encode(table).decode()},"id":{key_json}}}'


def put_mutation(client_id: str, mutation_id: int, result_json: bytes | str) -> bytes:
    raw = result_json.encode() if isinstance(result_json, str) else result_json
    identity = {"id": mutation_id, "clientID": client_id}
    return encode({"op": "put", "mutation": {"id": identity, "result": msgspec.Raw(raw)}})


def del_mutation(client_id: str, mutation_id: int) -> bytes:
    return encode({"op": "del", "id": {"id": mutation_id, "clientID": client_id}})
