"""The messages of the sync protocol as a client reads them (sync-protocol.md §2.3, §3.2).

Owns their shapes only. Must never apply or judge anything. Invariant: unknown properties are
ignored, as the stock client does; a missing or wrongly typed one fails to decode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Raw, UnsetType

JsonScalar: TypeAlias = str | int | float | bool
Row: TypeAlias = dict[str, Any]
ColumnType: TypeAlias = Literal["string", "number", "boolean", "null", "json"]


class TableSchema(msgspec.Struct, frozen=True, rename="camel"):
    columns: dict[str, dict[str, ColumnType]]
    primary_key: list[str]


class ClientSchema(msgspec.Struct, frozen=True):
    """The ``clientSchema`` of initConnection; ``primary_key`` must be sorted."""

    tables: dict[str, TableSchema]


class RowOp(msgspec.Struct, frozen=True, rename="camel"):
    op: Literal["put", "update", "del", "clear"]
    table_name: str = ""
    value: Row | UnsetType = UNSET
    id: Row | UnsetType = UNSET
    merge: Row | UnsetType = UNSET
    constrain: list[str] | UnsetType = UNSET


class QueryOp(msgspec.Struct, frozen=True):
    op: Literal["put", "del", "clear"]
    hash: str = ""


class MutationId(msgspec.Struct, frozen=True, rename={"client_id": "clientID"}):
    id: int
    client_id: str


class Mutation(msgspec.Struct, frozen=True):
    id: MutationId
    result: Any


class MutationOp(msgspec.Struct, frozen=True):
    op: Literal["put", "del"]
    mutation: Mutation | UnsetType = UNSET
    id: MutationId | UnsetType = UNSET


class PokeStart(
    msgspec.Struct, frozen=True, rename={"poke_id": "pokeID", "base_cookie": "baseCookie"}
):
    poke_id: str
    base_cookie: str | None


class PokeEnd(msgspec.Struct, frozen=True, rename={"poke_id": "pokeID"}):
    poke_id: str
    cookie: str
    cancel: bool = False


_PART_NAMES = {
    "poke_id": "pokeID",
    "last_mutation_ids": "lastMutationIDChanges",
    "desired": "desiredQueriesPatches",
    "got": "gotQueriesPatch",
    "rows": "rowsPatch",
    "mutations": "mutationsPatch",
}


class PokePart(msgspec.Struct, frozen=True, rename=_PART_NAMES):
    poke_id: str
    last_mutation_ids: dict[str, int] | UnsetType = UNSET
    desired: dict[str, list[QueryOp]] | UnsetType = UNSET
    got: list[QueryOp] | UnsetType = UNSET
    rows: list[RowOp] | UnsetType = UNSET
    mutations: list[MutationOp] | UnsetType = UNSET


class CountedPart(msgspec.Struct, frozen=True, rename=_PART_NAMES):
    """A part whose rows stay unparsed JSON: for load, where only their number matters."""

    poke_id: str
    last_mutation_ids: dict[str, int] | UnsetType = UNSET
    desired: dict[str, list[QueryOp]] | UnsetType = UNSET
    got: list[QueryOp] | UnsetType = UNSET
    rows: Raw | UnsetType = UNSET
    mutations: list[MutationOp] | UnsetType = UNSET


class Connected(msgspec.Struct, frozen=True):
    wsid: str
    timestamp: float | None = None


class ServerErrorBody(msgspec.Struct, frozen=True):
    kind: str
    message: str
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Poke:
    """One poke, applied: its ``parts``, or its ``counted`` parts if rows are only counted."""

    base_cookie: str | None
    cookie: str
    parts: tuple[PokePart, ...]
    counted: tuple[CountedPart, ...]
    row_ops: int
    payload_bytes: int
    frames: int
    received_ns: int  # time.monotonic_ns() when the bytes of its end were read


@dataclass(frozen=True, slots=True)
class Other:
    """Any message that is not part of a poke: ``type`` and decoded ``body``."""

    type: str
    body: Any
