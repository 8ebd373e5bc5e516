"""Shapes: a query with its literals lifted out and its names and types resolved.

``where owner = 7`` and ``where owner = 9`` are two *instances* of one *shape*. A shape is an
immutable tree (:class:`Node`) that can be compared and hashed; an instance is a shape plus the
values of its parameters in the form SQLite stores them. Two instances with equal shape and equal
parameters mean the same: nothing is dropped on the way that could change the answer (in
particular FALSE stays FALSE, zql.md §1.5), so they may share one pipeline.

Lifting also applies the type rules of zql.md §2.1-2.3 once and for all: a comparison between
different types becomes a constant or a null test, so that no SQL engine gets to coerce anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from zerocache.errors import QueryError
from zerocache.zql import ast
from zerocache.zql.like import glob_pattern, like_matches

SqlValue: TypeAlias = str | int | float | None
ValueKind: TypeAlias = Literal["string", "number", "boolean", "json"]
LevelKind: TypeAlias = Literal["root", "related", "witness"]

WITNESS_LIMIT = 3
"""Witnesses kept per parent and EXISTS: one would do, but an optimistic local delete of the only
one would make its parent flicker out of the client's view (zql.md §4.3)."""


MAX_LIMIT = 2**53 - 1
MAX_PARAMETERS = 30_000
"""SQLite takes 32,766 in one statement; the engine adds some of its own."""


class ColumnInfo(Protocol):
    @property
    def client_type(self) -> ValueKind | None: ...
    @property
    def not_null(self) -> bool: ...


class TableInfo(Protocol):
    @property
    def columns(self) -> Mapping[str, ColumnInfo]: ...
    @property
    def keys(self) -> tuple[tuple[str, ...], ...]: ...


Tables: TypeAlias = Mapping[str, TableInfo]
RowKeys: TypeAlias = Mapping[str, tuple[str, ...]]
"""Primary key per table as the client declared it; completes orders (zql.md §1.4)."""


class Const(msgspec.Struct, frozen=True):
    value: bool


class Term(msgspec.Struct, frozen=True):
    """``column op parameter``; the parameter's type equals the column's. ``param`` is None for
    the tests that take none (``NULL``, ``NOT NULL``)."""

    column: str
    op: Literal[
        "=", "!=", "<", ">", "<=", ">=", "NULL", "NOT NULL",
        "IN", "NOT IN", "GLOB", "NOT GLOB", "IGLOB", "NOT IGLOB", "IS NOT",
    ]  # fmt: skip
    kind: ValueKind
    is_json: bool = False
    param: str | None = None


class Junction(msgspec.Struct, frozen=True):
    """AND (``all=True``) or OR of at least two members."""

    all: bool
    members: tuple[Filter, ...]


class ExistsFilter(msgspec.Struct, frozen=True):
    negated: bool
    synced: bool
    """False under ``system: permissions``: such rows are never sent (zql.md §4.2)."""
    parent_columns: tuple[str, ...]
    child_columns: tuple[str, ...]
    node: Node


Filter: TypeAlias = Const | Term | Junction | ExistsFilter


class Cursor(msgspec.Struct, frozen=True):
    """Start bound: per order column the parameter's name, or None for a null bound."""

    params: tuple[str | None, ...]
    exclusive: bool


class Related(msgspec.Struct, frozen=True):
    parent_columns: tuple[str, ...]
    child_columns: tuple[str, ...]
    node: Node


# Shapes are looked up several times for every query that starts.
class Node(msgspec.Struct, frozen=True, cache_hash=True):
    table: str
    where: Filter
    order: tuple[tuple[str, ast.Direction], ...]
    limit: int | None
    cursor: Cursor | None
    related: tuple[Related, ...]


class Instance(msgspec.Struct, frozen=True):
    """One query, ready to run: what it asks (``shape``) and with which values (``params``)."""

    shape: Node
    params: tuple[tuple[str, SqlValue], ...]


@lru_cache(maxsize=1024)
def shape_text(shape: Node) -> str:
    """All of a shape as text, the same in every process that runs this version of the code."""
    return repr(shape)


TRUE = Const(True)
FALSE = Const(False)


def lift(query: ast.Query, tables: Tables, row_keys: RowKeys) -> Instance:
    """Resolve ``query`` against ``tables``; :class:`QueryError` names what does not fit."""
    lifter = _Lifter(tables, row_keys)
    shape = lifter.node(query)
    return Instance(shape, tuple(lifter.params.items()))


def walk_exists(condition: Filter) -> Iterator[ExistsFilter]:
    """Every EXISTS of a filter, in order, not descending into subqueries."""
    if isinstance(condition, ExistsFilter):
        yield condition
    elif isinstance(condition, Junction):
        for member in condition.members:
            yield from walk_exists(member)


def filter_columns(condition: Filter) -> set[str]:
    """Columns of the filtered row that decide the filter (EXISTS: its correlation columns)."""
    if isinstance(condition, Term):
        return {condition.column}
    if isinstance(condition, ExistsFilter):
        return set(condition.parent_columns)
    if isinstance(condition, Junction):
        return set().union(*(filter_columns(m) for m in condition.members))
    return set()


def shape_tables(node: Node) -> set[str]:
    """Every table the shape reads, EXISTS subqueries included."""
    found = {node.table}
    for exists in walk_exists(node.where):
        found |= shape_tables(exists.node)
    for related in node.related:
        found |= shape_tables(related.node)
    return found


def junction(all_of: bool, members: Iterable[Filter]) -> Filter:
    """AND/OR with constants folded; the empty AND is TRUE, the empty OR is FALSE."""
    kept: list[Filter] = []
    for member in members:
        if isinstance(member, Const):
            if member.value != all_of:
                return member
        elif isinstance(member, Junction) and member.all == all_of:
            kept.extend(member.members)
        else:
            kept.append(member)
    if not kept:
        return Const(all_of)
    return kept[0] if len(kept) == 1 else Junction(all_of, tuple(kept))


class _Lifter:
    def __init__(self, tables: Tables, row_keys: RowKeys) -> None:
        self._tables = tables
        self._row_keys = row_keys
        self.params: dict[str, SqlValue] = {}

    def node(self, query: ast.Query, *, witness: bool = False) -> Node:
        table = self._table(query.table)
        _check_limit(query)
        where = TRUE if query.where is None else self.filter(query.where, query.table)
        order = self._order(query)
        cursor = None if query.start is None else self._cursor(query.start, order, table)
        if witness:
            # Inside EXISTS order, limit and related say nothing about truth (zql.md §3.1).
            order = tuple((c, d) for c, d in order) if cursor else ()
            return Node(query.table, where, order, None, cursor, ())
        last_by_alias = {r.subquery.alias: r for r in query.related or ()}
        related = tuple(
            lifted
            for r in last_by_alias.values()
            if r.system != "permissions" and (lifted := self._related(r, query.table)) is not None
        )
        return Node(query.table, where, order, query.limit, cursor, related)

    def filter(self, condition: ast.Condition, table: str) -> Filter:
        match condition:
            case ast.And(conditions):
                return junction(True, [self.filter(c, table) for c in conditions])
            case ast.Or(conditions):
                return junction(False, [self.filter(c, table) for c in conditions])
            case ast.Exists():
                return self._exists(condition, table)
            case ast.Simple():
                return self._simple(condition, table)

    def _table(self, name: str) -> TableInfo:
        table = self._tables.get(name)
        if table is None:
            raise QueryError(
                f"table {name!r} is not replicated; replicated tables: "
                f"{', '.join(sorted(self._tables)) or 'none'}"
            )
        if not table.keys:
            raise QueryError(
                f"table {name!r} has no primary key or unique index over NOT NULL columns, "
                "so its rows cannot be synced; add one"
            )
        return table

    def _column(self, table: str, name: str) -> ColumnInfo:
        columns = self._table(table).columns
        column = columns.get(name)
        if column is None or column.client_type is None:
            known = ", ".join(sorted(n for n, c in columns.items() if c.client_type))
            problem = "does not exist" if column is None else "has a type that is not synced"
            raise QueryError(
                f"column {name!r} of table {table!r} {problem}; synced columns: {known}"
            )
        return column

    def _order(self, query: ast.Query) -> tuple[tuple[str, ast.Direction], ...]:
        order: list[tuple[str, ast.Direction]] = []
        for column, direction in query.order_by or ():
            self._column(query.table, column)
            if column not in (c for c, _ in order):
                order.append((column, direction))
        key = self._row_keys.get(query.table) or self._table(query.table).keys[0]
        mentioned = {column for column, _ in order}
        order.extend((column, "asc") for column in key if column not in mentioned)
        for column in key:
            self._column(query.table, column)
        return tuple(order)

    def _cursor(
        self, start: ast.Start, order: Sequence[tuple[str, ast.Direction]], table: TableInfo
    ) -> Cursor:
        params: list[str | None] = []
        for column, _ in order:
            value = start.row.get(column)
            if isinstance(value, (list, dict)):
                value = msgspec.json.encode(value).decode()
            params.append(None if value is None else self._param(_stored(value)))
        return Cursor(tuple(params), start.exclusive)

    def _correlation(
        self, correlation: ast.Correlation, parent: str, child: str
    ) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The paired columns; None if some pair has different types and so can never match."""
        parents, children = correlation.parent_field, correlation.child_field
        if len(parents) != len(children) or not parents:
            raise QueryError(
                f"correlation of {child!r} pairs {len(parents)} columns with {len(children)}; "
                "both sides need the same number, at least one"
            )
        for left, right in zip(parents, children, strict=True):
            types = {
                self._column(parent, left).client_type,
                self._column(child, right).client_type,
            }
            if len(types) > 1 or "json" in types:
                return None
        return tuple(parents), tuple(children)

    def _related(self, related: ast.CorrelatedSubquery, parent: str) -> Related | None:
        node = self.node(related.subquery)
        columns = self._correlation(related.correlation, parent, node.table)
        if columns is None or node.limit == 0:
            return None
        return Related(columns[0], columns[1], node)

    def _exists(self, condition: ast.Exists, table: str) -> Filter:
        related = condition.related
        negated = condition.op == "NOT EXISTS"
        node = self.node(related.subquery, witness=True)
        columns = self._correlation(related.correlation, table, node.table)
        if columns is None or related.subquery.limit == 0 or node.where == FALSE:
            return Const(negated)
        synced = related.system != "permissions"
        return ExistsFilter(negated, synced, columns[0], columns[1], node)

    def _simple(self, condition: ast.Simple, table: str) -> Filter:
        value = condition.right.value if isinstance(condition.right, ast.LiteralRef) else None
        op = condition.op
        if op in ("IN", "NOT IN"):
            if value is not None and not isinstance(value, list):
                raise QueryError(f"{op} on table {table!r} needs an array, got {value!r}")
        elif isinstance(value, list):
            raise QueryError(f"{op} on table {table!r} cannot compare with an array")
        if isinstance(condition.left, ast.ColumnRef):
            return self._column_term(table, condition.left.name, op, value)
        left = condition.left.value if isinstance(condition.left, ast.LiteralRef) else None
        return Const(compare(left, op, value))

    def _column_term(
        self, table: str, name: str, op: ast.SimpleOperator, value: ast.LiteralValue
    ) -> Filter:
        column = self._column(table, name)
        column_kind = column.client_type
        assert column_kind is not None
        is_json = column_kind == "json"
        null_test = Term(name, "NULL", column_kind, is_json)
        not_null = Term(name, "NOT NULL", column_kind, is_json)
        if value is None:
            if op == "IS":
                return null_test
            return not_null if op == "IS NOT" else FALSE
        if isinstance(value, list):
            return self._list_term(name, column_kind, op, value)
        kind = _kind(value)
        same = is_json or kind == column_kind
        match op:
            case "=" | "IS":
                return Term(name, "=", kind, is_json, self._value(value)) if same else FALSE
            case "!=":
                return Term(name, "!=", kind, is_json, self._value(value)) if same else not_null
            case "IS NOT":
                return Term(name, "IS NOT", kind, is_json, self._value(value)) if same else TRUE
            case "<" | ">" | "<=" | ">=":
                return Term(name, op, kind, is_json, self._value(value)) if same else FALSE
            case "LIKE" | "NOT LIKE" | "ILIKE" | "NOT ILIKE":
                return self._like(name, column_kind, op, value)
            case "IN" | "NOT IN":
                raise AssertionError("lists are handled above")

    def _list_term(self, name: str, column_kind: ValueKind, op: str, values: list[Any]) -> Filter:
        if column_kind == "json":
            # One scalar kind at a time; a json column holds any of them.
            kinds: tuple[ValueKind, ...] = ("string", "number", "boolean")
        else:
            kinds = (column_kind,)
        terms: list[Filter] = []
        for kind in kinds:
            fitting = [_stored(v) for v in values if _kind(v) == kind]
            if not fitting:
                continue
            param = self._param(msgspec.json.encode(fitting).decode())
            member: Literal["IN", "NOT IN"] = "IN" if op == "IN" else "NOT IN"
            terms.append(Term(name, member, kind, column_kind == "json", param))
        if op == "IN":
            return junction(False, terms)
        not_null = Term(name, "NOT NULL", column_kind, column_kind == "json")
        return junction(True, [not_null, *terms])

    def _like(
        self, name: str, column_kind: ValueKind, op: str, pattern: ast.LiteralValue
    ) -> Filter:
        negated = op.startswith("NOT ")
        is_json = column_kind == "json"
        fits = isinstance(pattern, str) and (column_kind == "string" or is_json)
        if not isinstance(pattern, str) or not fits or "\x00" in pattern:
            # No text of Postgres has a NUL, and SQLite would end the pattern there.
            return Term(name, "NOT NULL", column_kind, is_json) if negated else FALSE
        folded = op.endswith("ILIKE")
        glob = glob_pattern(pattern.lower() if folded else pattern)
        kind: Literal["GLOB", "NOT GLOB", "IGLOB", "NOT IGLOB"]
        if folded:
            kind = "NOT IGLOB" if negated else "IGLOB"
        else:
            kind = "NOT GLOB" if negated else "GLOB"
        return Term(name, kind, "string", is_json, self._param(glob))

    def _value(self, value: ast.LiteralValue) -> str:
        return self._param(_stored(value))

    def _param(self, value: SqlValue) -> str:
        if len(self.params) >= MAX_PARAMETERS:
            raise QueryError(
                f"the query has more than {MAX_PARAMETERS} literals; compare with a list (IN) "
                "instead of one by one"
            )
        name = f"p{len(self.params)}"
        self.params[name] = value
        return name


def _check_limit(query: ast.Query) -> None:
    limit = query.limit
    if limit is None or 0 <= limit <= MAX_LIMIT:
        return
    problem = "is negative; use 0 or more" if limit < 0 else f"is above {MAX_LIMIT}; leave it out"
    # A number of any length may have been sent, even one that Python refuses to write down.
    shown = str(limit) if limit.bit_length() <= 64 else f"of {limit.bit_length()} bits"
    raise QueryError(f"limit {shown} on table {query.table!r} {problem}")


def _kind(value: Any) -> ValueKind:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, str):
        return "string"
    return "number"


def _stored(value: Any) -> SqlValue:
    """A literal as the replica stores it: booleans are 0 and 1."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return _as_float(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise QueryError(f"{value!r} is not a literal: use a string, number, boolean or null")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise QueryError(
            f"a literal of {value.bit_length()} bits is larger than any number of a client"
        ) from error


def compare(left: Any, op: str, right: Any) -> bool:
    """Evaluate a condition between two literals (zql.md §2.2)."""
    if op in ("IS", "IS NOT"):
        same = (
            left is None and right is None
            if left is None or right is None
            else _kind(left) == _kind(right) and left == right
        )
        return same == (op == "IS")
    if left is None or right is None:
        return False
    if op in ("IN", "NOT IN"):
        member = any(_kind(left) == _kind(v) and left == v for v in right)
        return member == (op == "IN")
    same_kind = _kind(left) == _kind(right)
    match op:
        case "=":
            return bool(same_kind and left == right)
        case "!=":
            return not (same_kind and left == right)
        case "<":
            return bool(same_kind and left < right)
        case ">":
            return bool(same_kind and left > right)
        case "<=":
            return bool(same_kind and left <= right)
        case ">=":
            return bool(same_kind and left >= right)
    return _like_literal(left, op, right)


def _like_literal(left: Any, op: str, right: Any) -> bool:
    negated = op.startswith("NOT ")
    if not isinstance(left, str) or not isinstance(right, str):
        return negated
    if op.endswith("ILIKE"):
        left, right = left.lower(), right.lower()
    return like_matches(left, right) != negated
