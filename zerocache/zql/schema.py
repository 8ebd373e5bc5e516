"""The schema of an application, written in Python: tables, columns and relationships.

Owns the description the query builder, the CRUD helpers and the name mapping work from. It never
touches a database. Invariant: a :class:`Schema` is consistent once it exists; every name a
relationship or a primary key mentions is declared, because :func:`create_schema` refuses others.

    issue = table(
        "issue",
        {"id": string(), "title": string(), "ownerID": string(optional=True, from_name="owner_id")},
        primary_key="id",
    )
    schema = create_schema(
        [user, issue, label, taken],
        relationships={
            "issue": {
                "owner": one("user", source="ownerID", dest="id"),
                "labels": many(
                    "label", source="id", dest="id", via=junction("taken", "issueID", "labelID")
                ),
            }
        },
    )
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from zerocache.errors import QueryError

ClientType: TypeAlias = Literal["string", "number", "boolean", "json"]
Cardinality: TypeAlias = Literal["one", "many"]
Columns: TypeAlias = str | Iterable[str]

RESERVED_PREFIX = "zsubq_"


@dataclass(frozen=True, slots=True)
class Column:
    """One column as clients see it; ``server_name`` is its name in the database if different."""

    type: ClientType
    optional: bool = False
    server_name: str | None = None


def string(*, optional: bool = False, from_name: str | None = None) -> Column:
    """Text, varchar, uuid, enums, inet, ..."""
    return Column("string", optional, from_name)


def number(*, optional: bool = False, from_name: str | None = None) -> Column:
    """Integers, floats, numeric; dates and times as epoch milliseconds."""
    return Column("number", optional, from_name)


def boolean(*, optional: bool = False, from_name: str | None = None) -> Column:
    return Column("boolean", optional, from_name)


def json(*, optional: bool = False, from_name: str | None = None) -> Column:
    """json, jsonb and every array."""
    return Column("json", optional, from_name)


@dataclass(frozen=True, slots=True)
class Table:
    """A table under its client name. ``server_name`` may carry a schema: ``"billing.invoice"``."""

    name: str
    columns: Mapping[str, Column]
    primary_key: tuple[str, ...]
    server_name: str

    def server_column(self, column: str) -> str:
        """The database's name of ``column``; :class:`QueryError` if there is no such column."""
        known = self.columns.get(column)
        if known is None:
            raise QueryError(
                f'column "{column}" is not part of table "{self.name}"; '
                f"declare it in the schema or use one of: {', '.join(self.columns)}"
            )
        return known.server_name or column


def table(
    name: str,
    columns: Mapping[str, Column],
    *,
    primary_key: Columns,
    from_name: str | None = None,
) -> Table:
    """Declare a table; ``from_name`` is its name in the database when that differs."""
    key = _names(primary_key)
    for column in key:
        if column not in columns:
            raise QueryError(
                f'primary key of table "{name}" names column "{column}", which is not declared; '
                f"declare it or choose among: {', '.join(columns)}"
            )
        if columns[column].optional:
            raise QueryError(
                f'primary key column "{column}" of table "{name}" is optional; '
                "a key identifies a row, so it can never be null: remove optional=True"
            )
    return Table(name, MappingProxyType(dict(columns)), key, from_name or name)


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of a relationship: ``source`` columns here equal ``dest`` columns of ``table``."""

    source: tuple[str, ...]
    table: str
    dest: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relationship:
    """One hop, or two with the junction table in between."""

    cardinality: Cardinality
    hops: tuple[Hop, ...]

    @property
    def dest_table(self) -> str:
        return self.hops[-1].table


@dataclass(frozen=True, slots=True)
class Junction:
    """The table between two others: ``near`` points to the source, ``far`` to the destination."""

    table: str
    near: tuple[str, ...]
    far: tuple[str, ...]


def junction(table: str, near: Columns, far: Columns) -> Junction:
    return Junction(table, _names(near), _names(far))


def one(to: str, *, source: Columns, dest: Columns, via: Junction | None = None) -> Relationship:
    """At most one row of ``to``: a result shows an object or None."""
    return _relationship("one", to, source, dest, via)


def many(to: str, *, source: Columns, dest: Columns, via: Junction | None = None) -> Relationship:
    """Any number of rows of ``to``: a result shows a list."""
    return _relationship("many", to, source, dest, via)


def _relationship(
    cardinality: Cardinality, to: str, source: Columns, dest: Columns, via: Junction | None
) -> Relationship:
    start, end = _names(source), _names(dest)
    if via is None:
        return Relationship(cardinality, (Hop(start, to, end),))
    return Relationship(cardinality, (Hop(start, via.table, via.near), Hop(via.far, to, end)))


@dataclass(frozen=True, slots=True)
class Schema:
    """Everything an application declares about its data. Build it with :func:`create_schema`."""

    tables: Mapping[str, Table]
    relationships: Mapping[str, Mapping[str, Relationship]] = field(default_factory=dict)

    def table(self, name: str) -> Table:
        known = self.tables.get(name)
        if known is None:
            raise QueryError(
                f'table "{name}" is not part of the schema; '
                f"declare it or use one of: {', '.join(self.tables)}"
            )
        return known

    def relationship(self, table: str, name: str) -> Relationship:
        declared = self.relationships.get(table, {})
        if name not in declared:
            raise QueryError(
                f'relationship "{name}" is not declared for table "{table}"; '
                f"declare it in create_schema or use one of: {', '.join(declared) or '(none)'}"
            )
        return declared[name]


def create_schema(
    tables: Iterable[Table],
    relationships: Mapping[str, Mapping[str, Relationship]] | None = None,
) -> Schema:
    """Check the pieces against each other and freeze them."""
    by_name: dict[str, Table] = {}
    for each in tables:
        if each.name in by_name:
            raise QueryError(f'table "{each.name}" is declared twice; remove one declaration')
        by_name[each.name] = each
    declared = {
        name: MappingProxyType(dict(relations)) for name, relations in (relationships or {}).items()
    }
    schema = Schema(MappingProxyType(by_name), MappingProxyType(declared))
    for table_name, relations in declared.items():
        for name, relation in relations.items():
            _check_relationship(schema, table_name, name, relation)
    return schema


def _check_relationship(schema: Schema, table_name: str, name: str, relation: Relationship) -> None:
    where = f'relationship "{name}" of table "{table_name}"'
    source = schema.table(table_name)
    if name in source.columns:
        raise QueryError(f"{where} has the name of a column; rename the relationship")
    if name.startswith(RESERVED_PREFIX):
        raise QueryError(f'{where} starts with the reserved "{RESERVED_PREFIX}"; rename it')
    for hop in relation.hops:
        target = schema.table(hop.table)
        if not hop.source or len(hop.source) != len(hop.dest):
            raise QueryError(
                f"{where} pairs {list(hop.source)} with {list(hop.dest)}; "
                "both sides need the same number of columns, at least one"
            )
        for column in hop.source:
            source.server_column(column)
        for column in hop.dest:
            target.server_column(column)
        source = target


def _names(columns: Columns) -> tuple[str, ...]:
    return (columns,) if isinstance(columns, str) else tuple(columns)
