"""The query builder: Python expressions in, ZQL syntax trees out.

Owns :class:`QueryBuilder`, immutable and sharing nothing with the database. It never runs a
query. Invariant: the tree is the one the official JavaScript builder makes of the same calls, in
client names; :func:`to_server_names` makes the tree that travels to a server.

    zql = create_builder(schema)
    zql.issue.where("open", True).where(
        lambda q: q.or_(q.cmp("rank", ">", 3), q.exists("comments"))
    ).related("labels").order_by("created", "desc").limit(20)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replace_dataclass
from typing import Any

import msgspec

from zerocache.errors import QueryError
from zerocache.zql import expression
from zerocache.zql.ast import (
    And,
    ColumnRef,
    Condition,
    CorrelatedSubquery,
    Correlation,
    Direction,
    Exists,
    Or,
    Query,
    Simple,
    Start,
)
from zerocache.zql.expression import ConditionFactory, ExpressionBuilder
from zerocache.zql.schema import RESERVED_PREFIX, Hop, Schema

_MISSING: Any = object()

Refine = Callable[["QueryBuilder"], "QueryBuilder"]


@dataclass(frozen=True, slots=True)
class Format:
    """The shape of a result: one object or a list, and the same for each relationship."""

    singular: bool = False
    relationships: Mapping[str, Format] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QueryBuilder:
    """A query under construction; every method returns a new one.

    ``junction`` names the two-hop relationship whose destination this query refines; limits and
    orders have no defined meaning there and are refused.
    """

    schema: Schema
    ast: Query
    format: Format = field(default_factory=Format)
    junction: str | None = None

    def where(
        self,
        column_or_condition: str | Condition | ConditionFactory,
        op_or_value: Any = _MISSING,
        value: Any = _MISSING,
    ) -> QueryBuilder:
        """Keep rows that match, in addition to earlier ``where`` calls.

        ``where("open", True)``, ``where("rank", ">", 3)`` or ``where(lambda q: q.or_(...))``.
        """
        condition = self._condition(column_or_condition, op_or_value, value)
        _check_columns(self.schema, self.ast.table, condition)
        existing = [] if self.ast.where is None else [self.ast.where]
        return self._with(where=expression.conjunction([*existing, condition]))

    def where_exists(
        self,
        relationship: str,
        refine: Refine | None = None,
        *,
        flip: bool | None = None,
        scalar: bool | None = None,
    ) -> QueryBuilder:
        """Keep rows with at least one related row (that ``refine`` may narrow down)."""
        return self.where(self._exists(relationship, refine, flip=flip, scalar=scalar))

    def related(self, relationship: str, refine: Refine | None = None) -> QueryBuilder:
        """Add the rows of a relationship to each row of the result."""
        if relationship.startswith(RESERVED_PREFIX):
            raise QueryError(
                f'relationship "{relationship}" starts with the reserved "{RESERVED_PREFIX}"'
            )
        declared = self.schema.relationship(self.ast.table, relationship)
        two_hops = len(declared.hops) == 2
        child = QueryBuilder(
            self.schema,
            Query(table=declared.dest_table, alias=relationship),
            Format(singular=declared.cardinality == "one"),
            relationship if two_hops else None,
        )
        refined = refine(child) if refine else child
        entry = _subquery(declared.hops[-1], refined.ast)
        if two_hops:
            through = Query(table=declared.hops[0].table, alias=relationship, related=[entry])
            entry = _subquery(declared.hops[0], through, hidden=True)
        relationships = {**self.format.relationships, relationship: refined.format}
        return replace_dataclass(
            self._with(related=[*(self.ast.related or []), entry]),
            format=Format(self.format.singular, relationships),
        )

    def order_by(self, column: str, direction: Direction = "asc") -> QueryBuilder:
        """Sort by ``column`` after the columns of earlier calls; ties go by primary key."""
        self._refuse_in_junction("an order")
        self.schema.table(self.ast.table).server_column(column)
        if direction not in ("asc", "desc"):
            raise QueryError(f'direction {direction!r} does not exist; use "asc" or "desc"')
        return self._with(order_by=[*(self.ast.order_by or []), (column, direction)])

    def limit(self, count: int) -> QueryBuilder:
        """Keep the first ``count`` rows (within a relationship: of each parent)."""
        self._refuse_in_junction("a limit")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise QueryError(f"limit {count!r} is not a whole number of at least 0")
        return self._with(limit=count)

    def start(self, row: Mapping[str, Any], *, inclusive: bool = False) -> QueryBuilder:
        """Begin after ``row`` (``inclusive``: at it) in the order of the query."""
        for column in row:
            self.schema.table(self.ast.table).server_column(column)
        return self._with(start=Start(dict(row), exclusive=not inclusive))

    def one(self) -> QueryBuilder:
        """At most one row; the result is an object or None instead of a list."""
        return replace_dataclass(
            self._with(limit=1), format=Format(True, self.format.relationships)
        )

    def _condition(
        self, first: str | Condition | ConditionFactory, op_or_value: Any, value: Any
    ) -> Condition:
        if isinstance(first, str):
            if op_or_value is _MISSING:
                raise QueryError(f'where("{first}") compares with nothing; pass a value too')
            if value is _MISSING:
                return expression.cmp(first, op_or_value)
            return expression.cmp(first, op_or_value, value)
        if isinstance(first, Simple | And | Or | Exists):
            return first
        return first(ExpressionBuilder(self._exists))

    def _exists(
        self,
        relationship: str,
        refine: Refine | None = None,
        *,
        flip: bool | None = None,
        scalar: bool | None = None,
    ) -> Condition:
        declared = self.schema.relationship(self.ast.table, relationship)
        two_hops = len(declared.hops) == 2
        alias = f"{RESERVED_PREFIX}{'zhidden_' if two_hops else ''}{relationship}"
        child = QueryBuilder(
            self.schema,
            Query(table=declared.dest_table, alias=alias),
            junction=relationship if two_hops else None,
        )
        refined = refine(child) if refine else child
        found = Exists("EXISTS", _subquery(declared.hops[-1], refined.ast), flip, scalar)
        if not two_hops:
            return found
        through = Query(
            table=declared.hops[0].table, alias=f"{RESERVED_PREFIX}{relationship}", where=found
        )
        return Exists("EXISTS", _subquery(declared.hops[0], through), flip)

    def _refuse_in_junction(self, what: str) -> None:
        if self.junction is not None:
            raise QueryError(
                f'relationship "{self.junction}" goes through a junction table, where {what} '
                "is not supported; query the destination table itself"
            )

    def _with(self, **changes: Any) -> QueryBuilder:
        return replace_dataclass(self, ast=msgspec.structs.replace(self.ast, **changes))


class Builder:
    """One attribute per table of the schema, each an unrestricted query of that table.

    Names that are no Python identifiers are reached by index: ``zql["order-line"]``.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def __getattr__(self, table: str) -> QueryBuilder:
        if table.startswith("__"):
            # Python probes for optional protocols (copy, pickle, ...) with hasattr.
            raise AttributeError(table)
        return self[table]

    def __getitem__(self, table: str) -> QueryBuilder:
        return QueryBuilder(self._schema, Query(table=self._schema.table(table).name))

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._schema.tables]


def create_builder(schema: Schema) -> Builder:
    return Builder(schema)


def to_server_names(query: Query | QueryBuilder, schema: Schema) -> Query:
    """The same query with the database's table and column names."""
    ast = query.ast if isinstance(query, QueryBuilder) else query
    table = schema.table(ast.table)
    column = table.server_column
    return msgspec.structs.replace(
        ast,
        table=table.server_name,
        where=None if ast.where is None else _server_condition(ast.where, ast.table, schema),
        related=ast.related and [_server_subquery(r, ast.table, schema) for r in ast.related],
        order_by=ast.order_by and [(column(name), way) for name, way in ast.order_by],
        start=ast.start
        and Start({column(n): v for n, v in ast.start.row.items()}, ast.start.exclusive),
    )


def _server_condition(condition: Condition, table: str, schema: Schema) -> Condition:
    match condition:
        case And(conditions):
            return And([_server_condition(c, table, schema) for c in conditions])
        case Or(conditions):
            return Or([_server_condition(c, table, schema) for c in conditions])
        case Exists(op, related, flip, scalar):
            return Exists(op, _server_subquery(related, table, schema), flip, scalar)
        case Simple(op, ColumnRef(name), right):
            return Simple(op, ColumnRef(schema.table(table).server_column(name)), right)
    return condition


def _server_subquery(related: CorrelatedSubquery, table: str, schema: Schema) -> CorrelatedSubquery:
    parent, child = schema.table(table), schema.table(related.subquery.table)
    correlation = Correlation(
        [parent.server_column(c) for c in related.correlation.parent_field],
        [child.server_column(c) for c in related.correlation.child_field],
    )
    return msgspec.structs.replace(
        related, correlation=correlation, subquery=to_server_names(related.subquery, schema)
    )


def _subquery(hop: Hop, query: Query, *, hidden: bool | None = None) -> CorrelatedSubquery:
    return CorrelatedSubquery(
        Correlation(list(hop.source), list(hop.dest)), query, hidden, system="client"
    )


def _check_columns(schema: Schema, table: str, condition: Condition) -> None:
    """Misspelt columns are reported where they are written, not where the query runs."""
    match condition:
        case And(conditions) | Or(conditions):
            for member in conditions:
                _check_columns(schema, table, member)
        case Simple(_, ColumnRef(name), _):
            schema.table(table).server_column(name)
        case _:
            pass
