"""What Postgres knows about tables, reduced to what compiling ZQL for Postgres needs.

Owns the mapping from Postgres types to client types (api-and-auth.md §7.6) and, per column, the
SQL expression of its *value*: the text, number or boolean that queries compare and clients see.
It opens no connection; :data:`CATALOG_QUERY` is run by its callers. Invariant: a value expression
has one SQL type per client type (text, a number, boolean) and is NULL where ZQL sees null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from psycopg import sql

from zerocache.errors import QueryError

ClientType: TypeAlias = Literal["string", "number", "boolean", "json"]

CATALOG_QUERY = resources.files(__package__).joinpath("catalog.sql").read_text(encoding="utf-8")

_INTEGERS = frozenset({"int2", "int4", "int8"})
_FLOATS = frozenset({"float4", "float8", "numeric"})
_DATES = frozenset({"date", "timestamp", "timestamptz"})
_TIMES = frozenset({"time", "timetz"})
_ISBN_FAMILY = frozenset({"ean13", "isbn", "isbn13", "ismn", "ismn13", "issn", "issn13", "upc"})
_NETWORK = frozenset({"inet", "cidr", "macaddr", "macaddr8"})
_TEXTS = frozenset({"text", "varchar", "bpchar", "uuid", "pg_lsn"}) | _NETWORK | _ISBN_FAMILY
# Their cast to text differs from what the type prints: blanks lost, netmask added.
_PRINTED = frozenset({"bpchar", "inet", "cidr"})
_VECTORS = frozenset({"int2vector", "oidvector"})
_MS_PER_DAY = "86400000"


@dataclass(frozen=True, slots=True)
class PostgresColumn:
    """``pg_type`` is the base type's name, for arrays the element's; ``cast`` the declared type,
    qualified and quoted. ``client_type`` is None for types no client can see. Under a collation
    that is not deterministic, different texts may be equal to Postgres, but never to ZQL."""

    name: str
    client_type: ClientType | None
    pg_type: str
    cast: str
    not_null: bool = False
    is_array: bool = False
    is_enum: bool = False
    is_deterministic: bool = True

    def raw(self, alias: str) -> sql.Composable:
        return sql.Identifier(alias, self.name)

    def value(self, alias: str) -> sql.Composable:
        """The value to compare and order by; json columns: their text."""
        raw = self.raw(alias)
        if self.client_type == "json" or self.is_enum:
            return _cast(raw, "text")
        return _scalar(raw, self.pg_type)

    def output(self, alias: str) -> sql.Composable:
        """The value in the form that becomes JSON for a client."""
        raw = self.raw(alias)
        if self.client_type != "json":
            return self.value(alias)
        if not self.is_array:
            return raw
        if self.is_enum or self.pg_type not in _DATES | _TIMES:
            return sql.SQL("pg_catalog.to_json({})").format(raw)
        return _array_of_times(raw, self.pg_type)

    def is_null(self, alias: str) -> sql.Composable:
        """Whether ZQL sees null; a stored JSON ``null`` is one."""
        if self.client_type == "json" and not self.is_array:
            return sql.SQL("({raw} IS NULL OR {typeof}({raw}) = 'null')").format(
                raw=self.raw(alias), typeof=self._json_typeof()
            )
        return sql.SQL("({} IS NULL)").format(self.value(alias))

    def json_scalar(self, alias: str, kind: ClientType) -> sql.Composable:
        """The value of a json column if it is a scalar of type ``kind``, else NULL."""
        if self.is_array:
            return sql.SQL("NULL")
        types = {"string": "text", "number": "float8", "boolean": "bool"}
        return sql.SQL(
            "CASE WHEN {typeof}({raw}) = {kind} THEN ({raw} #>> '{{}}')::{type} END"
        ).format(
            typeof=self._json_typeof(),
            raw=self.raw(alias),
            kind=sql.Literal(kind),
            type=sql.SQL(types[kind]),
        )

    def _json_typeof(self) -> sql.Composable:
        return sql.SQL("jsonb_typeof" if self.pg_type == "jsonb" else "json_typeof")

    @property
    def is_integer(self) -> bool:
        return not self.is_array and self.pg_type in _INTEGERS

    @property
    def compares_as_stored(self) -> bool:
        """Whether ``=`` on the stored values means ZQL's ``=``, so that indexes are of use."""
        exact = self.pg_type in _INTEGERS | {"text", "varchar", "uuid", "bool"}
        return exact and not self.is_array and not self.is_enum and self.is_deterministic


def _cast(expression: sql.Composable, to: str) -> sql.Composable:
    return sql.SQL("{}::{}").format(expression, sql.SQL(to))


def _scalar(raw: sql.Composable, pg_type: str) -> sql.Composable:
    if pg_type in _INTEGERS | {"text", "varchar", "bool"}:
        return raw
    if pg_type in _PRINTED:
        return sql.SQL("CASE WHEN {raw} IS NOT NULL THEN format('%s', {raw}) END").format(raw=raw)
    if pg_type == "float4":
        # By way of text: 1.1 stays 1.1, where widening the bits gives 1.100000023841858.
        return _finite(_cast(_cast(raw, "text"), "float8"))
    if pg_type in _FLOATS:
        return _finite(_cast(raw, "float8"))
    if pg_type in _DATES:
        milliseconds = sql.SQL("(extract(epoch from {}) * 1000)").format(raw)
        return _finite(_cast(milliseconds, "float8"))
    if pg_type == "time":
        return sql.SQL("trunc(extract(epoch from {}) * 1000)::int8").format(raw)
    if pg_type == "timetz":
        # Normalised to UTC the epoch may fall outside the day on either side.
        return sql.SQL(
            "((trunc(extract(epoch from {raw}) * 1000)::int8 % {day}) + {day}) % {day}"
        ).format(raw=raw, day=sql.SQL(_MS_PER_DAY))
    return _cast(raw, "text")


def _finite(number: sql.Composable) -> sql.Composable:
    """NaN and infinities have no JSON form and count as null."""
    return sql.SQL(
        "NULLIF(NULLIF(NULLIF({}, 'NaN'::float8), 'Infinity'::float8), '-Infinity'::float8)"
    ).format(number)


def _array_of_times(raw: sql.Composable, pg_type: str) -> sql.Composable:
    """``{"dims": [..], "flat": [..]}``: SQL cannot nest an array of unknown depth again."""
    return sql.SQL(
        "CASE WHEN {raw} IS NOT NULL THEN json_build_object("
        "'dims', (SELECT json_agg(array_length({raw}, d)) "
        "FROM generate_series(1, array_ndims({raw})) AS d), "
        "'flat', (SELECT json_agg({element}) FROM unnest({raw}) AS e(v))) END"
    ).format(raw=raw, element=_scalar(sql.Identifier("e", "v"), pg_type))


def nest_array(value: Any) -> Any:
    """Undo :func:`_array_of_times`: a flat list and its dimensions become nested lists."""
    if value is None:
        return None
    flat = value["flat"] or []
    for length in reversed((value["dims"] or [])[1:]):
        flat = [flat[at : at + length] for at in range(0, len(flat), length)]
    return flat


def needs_nesting(column: PostgresColumn) -> bool:
    return column.is_array and not column.is_enum and column.pg_type in _DATES | _TIMES


@dataclass(frozen=True, slots=True)
class PostgresTable:
    """One table under its wire name; ``primary_key`` completes orders (zql.md §1.4)."""

    name: str
    columns: Mapping[str, PostgresColumn]
    primary_key: tuple[str, ...]

    def column(self, name: str) -> PostgresColumn:
        found = self.columns.get(name)
        if found is None or found.client_type is None:
            problem = "does not exist" if found is None else "has a type no client can see"
            known = ", ".join(n for n, c in self.columns.items() if c.client_type)
            raise QueryError(
                f'column "{name}" of table "{self.name}" {problem}; use one of: {known}'
            )
        return found

    @property
    def identifier(self) -> sql.Identifier:
        return table_identifier(self.name)

    @property
    def visible_columns(self) -> tuple[PostgresColumn, ...]:
        return tuple(c for c in self.columns.values() if c.client_type is not None)


PostgresTables: TypeAlias = Mapping[str, PostgresTable]


def table_identifier(wire_name: str) -> sql.Identifier:
    """``task`` is in schema public, ``billing.invoice`` in the one it names."""
    schema, dot, name = wire_name.partition(".")
    return sql.Identifier(schema, name) if dot else sql.Identifier("public", wire_name)


def client_type_of(pg_type: str, *, is_array: bool, is_enum: bool) -> ClientType | None:
    if pg_type in _VECTORS:
        return None
    if is_array:
        return "json"
    if is_enum or pg_type in _TEXTS:
        return "string"
    if pg_type in _INTEGERS | _FLOATS | _DATES | _TIMES:
        return "number"
    if pg_type in ("json", "jsonb"):
        return "json"
    return "boolean" if pg_type == "bool" else None


def tables_from_catalog(
    rows: Iterable[Mapping[str, Any]], *, domains: bool = True
) -> dict[str, PostgresTable]:
    """Tables by wire name from the rows of :data:`CATALOG_QUERY`.

    ``domains``: whether a column of a domain type shows as its base type (mutators see it) or is
    hidden (replication does not follow domains). The primary key is the one the replica would
    choose; empty if there is none.
    """
    columns: dict[str, dict[str, PostgresColumn]] = {}
    keys: dict[str, list[list[str]]] = {}
    for row in rows:
        name = row["table"] if row["schema"] == "public" else f"{row['schema']}.{row['table']}"
        column = _column(row, hidden=row["is_domain"] and not domains)
        columns.setdefault(name, {})[column.name] = column
        keys[name] = json.loads(row["keys"]) if row["keys"] else []
    return {
        name: PostgresTable(name, MappingProxyType(found), _row_key(found, keys[name]))
        for name, found in columns.items()
    }


def _column(row: Mapping[str, Any], *, hidden: bool) -> PostgresColumn:
    is_array, is_enum = bool(row["is_array"]), bool(row["is_enum"])
    seen = client_type_of(row["pg_type"], is_array=is_array, is_enum=is_enum)
    return PostgresColumn(
        row["column"],
        None if hidden else seen,
        row["pg_type"],
        row["cast"],
        bool(row["not_null"]),
        is_array,
        is_enum,
        bool(row["is_deterministic"]),
    )


def _row_key(
    columns: Mapping[str, PostgresColumn], keys: Iterable[Iterable[str]]
) -> tuple[str, ...]:
    usable = [
        tuple(key)
        for key in keys
        if all(columns[c].not_null and columns[c].client_type is not None for c in key)
    ]
    return min(usable, key=lambda key: (len(key), key), default=())
