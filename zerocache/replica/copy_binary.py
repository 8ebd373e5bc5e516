"""Rows from what ``COPY ... TO STDOUT (FORMAT binary)`` sends, where that is exact.

Owns which types those are and how their values become the stored ones: the same, byte for byte, as
:mod:`zerocache.replica.copy_text` makes of the text form (PostgreSQL docs: "COPY", File Formats).
What has no simple binary form (uuid, jsonb, numeric, enums, ...) is sent as its text by the server,
with the output function that the stream uses too. A table with any other column has no plan and is
copied as text. Types are known by their oid, so nothing that merely has such a name is mistaken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from zerocache.replica.numbers import stored_float
from zerocache.replica.published import PublishedColumn, PublishedTable
from zerocache.replica.times import DAY_MS, stored_micros
from zerocache.replica.types import SQLiteValue, column_decoder

Finish: TypeAlias = Callable[[Any], SQLiteValue]

_BOOL, _BYTEA, _INT8, _INT2, _INT4, _TEXT, _JSON, _FLOAT8 = 16, 17, 20, 21, 23, 25, 114, 701
_BPCHAR, _VARCHAR, _DATE, _TIMESTAMP, _TIMESTAMPTZ = 1042, 1043, 1082, 1114, 1184
_UUID, _NUMERIC, _JSONB, _FLOAT4, _TIME, _TIMETZ = 2950, 1700, 3802, 700, 1083, 1266
_AS_TEXT = frozenset({_UUID, _NUMERIC, _JSONB, _FLOAT4, _TIME, _TIMETZ})
# From 1970-01-01 to 2000-01-01, where PostgreSQL's days and microseconds begin.
_EPOCH_DAYS = 10_957
_EPOCH_MICROS = _EPOCH_DAYS * DAY_MS * 1_000
_INFINITE_DAYS = frozenset({-(2**31), 2**31 - 1})
_INFINITE_MICROS = frozenset({-(2**63), 2**63 - 1})


def _stored_date(days: int) -> int | None:
    return None if days in _INFINITE_DAYS else (days + _EPOCH_DAYS) * DAY_MS


def _stored_timestamp(micros: int) -> int | float | None:
    return None if micros in _INFINITE_MICROS else stored_micros(micros + _EPOCH_MICROS)


# By the column's type: the type as which the value is read, and what is done with it then.
_EXACT: dict[int, tuple[int, Finish | None]] = {
    **{oid: (oid, None) for oid in (_INT2, _INT4, _INT8, _BYTEA)},
    **dict.fromkeys((_TEXT, _VARCHAR, _BPCHAR, _JSON), (_TEXT, None)),
    _BOOL: (_BOOL, int),
    _FLOAT8: (_FLOAT8, stored_float),
    _DATE: (_INT4, _stored_date),
    _TIMESTAMP: (_INT8, _stored_timestamp),
    _TIMESTAMPTZ: (_INT8, _stored_timestamp),
}


@dataclass(frozen=True, slots=True)
class BinaryColumn:
    """``read_as`` is the oid of a type with a loader; ``cast`` asks the server for the text."""

    name: str
    read_as: int
    cast: bool
    finish: Finish | None


@dataclass(frozen=True, slots=True)
class BinaryPlan:
    """How the rows of one table are asked for and stored."""

    columns: tuple[BinaryColumn, ...]

    def finish(self, values: list[Any]) -> list[SQLiteValue]:
        """Turn what was read, row after row, into stored values; changes and returns ``values``."""
        width = len(self.columns)
        for at, column in enumerate(self.columns):
            if column.finish is not None:
                read = values[at::width]
                values[at::width] = [
                    None if value is None else column.finish(value) for value in read
                ]
        return values


def plan_of(table: PublishedTable) -> BinaryPlan | None:
    """None for a table that is copied as text: because it must, or because that is faster, which
    it is if nothing but strings is in it (measured)."""
    columns = [*map(_plan_column, table.columns)]
    plans = [column for column in columns if column is not None]
    if len(plans) < len(columns) or all(plan.read_as == _TEXT for plan in plans):
        return None
    return BinaryPlan(tuple(plans))


def _plan_column(column: PublishedColumn) -> BinaryColumn | None:
    exact = _EXACT.get(column.type_oid)
    if exact is not None:
        read_as, finish = exact
        return BinaryColumn(column.name, read_as, cast=False, finish=finish)
    is_enum = column.is_enum and not column.is_array and column.type_kind == "e"
    if is_enum or column.type_oid in _AS_TEXT:
        return BinaryColumn(column.name, _TEXT, cast=True, finish=column_decoder(column))
    return None
