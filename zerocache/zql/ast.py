"""The ZQL syntax tree as it travels on the wire (zql.md §1.1-1.2).

Immutable, hashable through equality of fields, decoded and encoded by msgspec; names are server
names. Nothing here evaluates anything. Unknown keys are ignored on decoding.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from zerocache.errors import QueryError

Scalar: TypeAlias = str | int | float | bool | None
LiteralValue: TypeAlias = str | int | float | bool | list[str | int | float | bool] | None
Direction: TypeAlias = Literal["asc", "desc"]
System: TypeAlias = Literal["client", "permissions", "test"]
SimpleOperator: TypeAlias = Literal[
    "=", "!=", "IS", "IS NOT", "<", ">", "<=", ">=",
    "LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE", "IN", "NOT IN",
]  # fmt: skip


class ColumnRef(msgspec.Struct, frozen=True, tag="column"):
    name: str


class LiteralRef(msgspec.Struct, frozen=True, tag="literal"):
    value: LiteralValue


class StaticRef(msgspec.Struct, frozen=True, tag="static"):
    """A parameter bound before evaluation: a claim of the token (zql.md §5)."""

    anchor: Literal["authData", "preMutationRow"]
    field: str | list[str]


ValueRef: TypeAlias = ColumnRef | LiteralRef | StaticRef


class Correlation(msgspec.Struct, frozen=True, rename="camel"):
    parent_field: list[str]
    child_field: list[str]


class CorrelatedSubquery(msgspec.Struct, frozen=True, omit_defaults=True):
    correlation: Correlation
    subquery: Query
    hidden: bool | None = None
    system: System | None = None


class Simple(msgspec.Struct, frozen=True, tag="simple"):
    op: SimpleOperator
    left: ValueRef
    right: ValueRef


class And(msgspec.Struct, frozen=True, tag="and"):
    conditions: list[Condition]


class Or(msgspec.Struct, frozen=True, tag="or"):
    conditions: list[Condition]


class Exists(msgspec.Struct, frozen=True, tag="correlatedSubquery", omit_defaults=True):
    op: Literal["EXISTS", "NOT EXISTS"]
    related: CorrelatedSubquery
    flip: bool | None = None
    scalar: bool | None = None


Condition: TypeAlias = Simple | And | Or | Exists


class Start(msgspec.Struct, frozen=True):
    row: dict[str, Any]
    exclusive: bool


class Query(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    table: str
    schema: str | None = None
    alias: str | None = None
    where: Condition | None = None
    related: list[CorrelatedSubquery] | None = None
    limit: int | None = None
    order_by: list[tuple[str, Direction]] | None = None
    start: Start | None = None


_decoder = msgspec.json.Decoder(Query)


def parse_query(data: bytes | str | dict[str, Any]) -> Query:
    """Decode an AST from JSON text or parsed JSON; :class:`QueryError` says where it is wrong."""
    try:
        return msgspec.convert(data, Query) if isinstance(data, dict) else _decoder.decode(data)
    except (msgspec.ValidationError, msgspec.DecodeError) as error:
        raise QueryError(f"not a valid query: {error}") from error


def to_json(query: Query) -> bytes:
    """The AST as JSON; absent members are omitted."""
    return msgspec.json.encode(query)
