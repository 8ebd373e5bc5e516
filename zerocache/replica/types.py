"""From Postgres types and text values to what the replica stores and clients see.

Owns the mapping of replication.md §4.2: which client type a column has, and how the text form of a
value (``TimeZone=UTC``, ``DateStyle=ISO``, ``bytea_output=hex``, ``extra_float_digits>=1``) becomes
an SQLite value. Initial copy and change stream use the same decoders, so a value is stored the
same way whichever path brought it. Nothing here knows tables or connections.

Non-finite numbers and infinite dates have no JSON form and are stored as NULL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, Literal, TypeAlias

from zerocache.replica import arrays, times
from zerocache.replica.numbers import decode_bool, decode_float, decode_numeric
from zerocache.replica.published import PublishedColumn
from zerocache.replica.schema import ClientType

SQLiteValue: TypeAlias = str | int | float | bytes | None
TextDecoder: TypeAlias = Callable[[str], SQLiteValue]


class _Unchanged(Enum):
    UNCHANGED = "unchanged"


UNCHANGED: Final = _Unchanged.UNCHANGED
"""Stands for a TOASTed value that an update did not touch and upstream did not send."""

Unchanged: TypeAlias = Literal[_Unchanged.UNCHANGED]
TextRow: TypeAlias = list[str | Unchanged | None]
StoredRow: TypeAlias = list[SQLiteValue | Unchanged]

_NUMBERS = ("int2", "int4", "int8", "float4", "float8", "numeric")
_TIMES = ("date", "timestamp", "timestamptz", "time", "timetz")
_STRINGS = ("text", "varchar", "bpchar", "uuid", "inet", "cidr", "macaddr", "macaddr8", "pg_lsn")
_ISBN_FAMILY = ("ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc")
_CLIENT_TYPES: dict[str, ClientType] = {
    **dict.fromkeys(_NUMBERS + _TIMES, "number"),
    **dict.fromkeys(_STRINGS + _ISBN_FAMILY, "string"),
    "json": "json",
    "jsonb": "json",
    "bool": "boolean",
}
# Array types by category whose text form is not that of an array.
_VECTORS = frozenset({"int2vector", "oidvector"})


def _decode_bytea(text: str) -> bytes:
    return bytes.fromhex(text[2:])


_DECODERS: dict[str, TextDecoder] = {
    "int2": int,
    "int4": int,
    "int8": int,
    "float4": decode_float,
    "float8": decode_float,
    "numeric": decode_numeric,
    "bool": decode_bool,
    "date": times.decode_date,
    "timestamp": times.decode_timestamp,
    "timestamptz": times.decode_timestamp,
    "time": times.decode_time,
    "timetz": times.decode_time,
    "bytea": _decode_bytea,
}


def stored_type_name(column: PublishedColumn) -> str:
    """The type name the replica's metadata keeps for ``column``.

    Only base types and enums are looked up by name. A domain, composite or range that happens to
    be called like a known base type must not be taken for it, so those carry their kind.
    """
    name = column.type_name.rstrip("[]")
    if column.type_kind in ("b", "e") or not (name in _CLIENT_TYPES or name in _DECODERS):
        return column.type_name
    return f"{column.type_kind}:{column.type_name}"


def client_type(upstream_type: str, is_enum: bool, is_array: bool) -> ClientType | None:
    """The type clients see, or None for columns that are stored but never synced.

    ``upstream_type`` is what :func:`stored_type_name` returned.
    """
    if upstream_type in _VECTORS:
        return None
    if is_array:
        return "json"
    if is_enum:
        return "string"
    return _CLIENT_TYPES.get(upstream_type)


def text_decoder(upstream_type: str, is_enum: bool, is_array: bool) -> TextDecoder | None:
    """The function from a value's text form to its stored form; None if they are the same."""
    if upstream_type in _VECTORS:
        return None
    if is_array:
        element_type = upstream_type.rstrip("[]")
        encoder = _element_encoder(element_type, is_enum)
        return arrays.array_decoder(encoder, boxes=element_type == "box")
    if is_enum:
        return None
    return _DECODERS.get(upstream_type)


def column_decoder(column: PublishedColumn) -> TextDecoder | None:
    return text_decoder(stored_type_name(column), column.is_enum, column.is_array)


def row_decoder(decoders: Sequence[TextDecoder | None]) -> Callable[[TextRow], StoredRow]:
    """Combine the decoders of a relation's columns into one for its tuples."""
    active = [(at, decoder) for at, decoder in enumerate(decoders) if decoder is not None]

    def decode(row: TextRow) -> StoredRow:
        stored: StoredRow = row[:]  # type: ignore[assignment]  # a text row is a stored row
        for at, decoder in active:
            value = row[at]
            if value is not None and value is not UNCHANGED:
                stored[at] = decoder(value)
        return stored

    return decode


def _element_encoder(element_type: str, is_enum: bool) -> arrays.ElementEncoder:
    """How an element of an array, in text form, is written as JSON."""
    if is_enum:
        return arrays.json_string
    if element_type in ("json", "jsonb"):
        return arrays.json_verbatim
    if element_type in ("int2", "int4", "int8"):
        return arrays.json_integer
    if element_type == "bool":
        return arrays.json_boolean
    if _CLIENT_TYPES.get(element_type) == "number":
        return arrays.json_number(_DECODERS[element_type])
    return arrays.json_string
