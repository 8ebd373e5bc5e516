"""Which rows of one table a query node keeps, as Postgres conditions (zql.md §2-3).

Owns the translation of conditions, correlations, orders and cursors. It never assembles whole
statements and never pastes a value: every literal becomes a ``$n`` parameter bound as text and
cast, so that no driver's type guessing takes part.

Invariants: a condition is TRUE exactly where ZQL's is true, and NULL or FALSE elsewhere (there is
no NOT above it that could tell these apart); values of different types are never compared.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql

from zerocache.errors import QueryError
from zerocache.zql import ast
from zerocache.zql.postgres_types import (
    ClientType,
    PostgresColumn,
    PostgresTable,
    PostgresTables,
)
from zerocache.zql.shape import compare as compare_literals

TRUE = sql.SQL("TRUE")
FALSE = sql.SQL("FALSE")
Order = tuple[tuple[PostgresColumn, ast.Direction], ...]

_CANONICAL_UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
_INT8 = 2**63
_SQL_TYPES: Mapping[ClientType, str] = {"string": "text", "number": "float8", "boolean": "bool"}
_LIKE = frozenset({"LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"})
# Full Unicode lower case whatever the database's own locale; the first needs PostgreSQL 18.
LOWER_COLLATIONS = ("pg_unicode_fast", "und-x-icu", "pg_c_utf8")


@dataclass
class Parameters:
    """The values of one statement, in ``$n`` order; all strings or lists of strings."""

    values: list[str | list[str]] = field(default_factory=list)

    def bind(self, value: str | list[str], cast: str) -> sql.Composable:
        self.values.append(value)
        base = "text[]" if isinstance(value, list) else "text"
        return sql.SQL(f"${len(self.values)}::{base}::{cast}")


@dataclass
class FilterCompiler:
    """Compiles what rows at an alias must satisfy.

    Callers owe server names and bound static parameters; ``lower_collation`` must exist in the
    database if the query contains ILIKE.
    """

    tables: PostgresTables
    lower_collation: str = LOWER_COLLATIONS[0]
    parameters: Parameters = field(default_factory=Parameters)
    _aliases: int = 0

    def alias(self) -> str:
        self._aliases += 1
        return f"t{self._aliases}"

    def table(self, name: str) -> PostgresTable:
        table = self.tables.get(name)
        if table is None:
            known = ", ".join(sorted(self.tables)) or "none"
            raise QueryError(f'table "{name}" does not exist in the database; tables: {known}')
        if not table.primary_key:
            raise QueryError(
                f'table "{name}" has no unique key over NOT NULL columns, so its rows have no '
                "total order; add a primary key"
            )
        return table

    def condition(self, node: ast.Condition, table: PostgresTable, alias: str) -> sql.Composable:
        match node:
            case ast.And(conditions):
                return join(" AND ", [self.condition(c, table, alias) for c in conditions], TRUE)
            case ast.Or(conditions):
                return join(" OR ", [self.condition(c, table, alias) for c in conditions], FALSE)
            case ast.Exists():
                return self._exists(node, table, alias)
            case ast.Simple():
                return self._simple(node, table, alias)

    def correlated(
        self,
        correlation: ast.Correlation,
        parent: tuple[PostgresTable, str],
        child: tuple[PostgresTable, str],
    ) -> sql.Composable:
        pairs = zip(correlation.parent_field, correlation.child_field, strict=True)
        return join(
            " AND ",
            [
                _equal_columns(parent[0].column(p), parent[1], child[0].column(c), child[1])
                for p, c in pairs
            ],
            TRUE,
        )

    def order(self, query: ast.Query, table: PostgresTable) -> Order:
        """The order of ``query`` completed with the primary key; a repeated column says nothing."""
        order: dict[str, ast.Direction] = {}
        for name, direction in query.order_by or ():
            order.setdefault(name, direction)
        for name in table.primary_key:
            order.setdefault(name, "asc")
        return tuple((table.column(name), direction) for name, direction in order.items())

    def after(self, start: ast.Start, order: Order, alias: str) -> sql.Composable:
        """Rows behind the cursor: those that differ first in a later value, column by column."""
        equal: list[sql.Composable] = []
        branches: list[sql.Composable] = []
        for at, (column, direction) in enumerate(order, 1):
            value = start.row.get(column.name)
            later = self._later(column, direction, value, alias)
            branches.append(join(" AND ", [*equal, later], TRUE))
            # Not built where unused: Postgres cannot type a parameter no expression mentions.
            if at < len(order) or not start.exclusive:
                equal.append(self._same(column, value, alias))
        if not start.exclusive:
            branches.append(join(" AND ", equal, TRUE))
        return join(" OR ", branches, FALSE)

    def _later(
        self, column: PostgresColumn, direction: ast.Direction, value: Any, alias: str
    ) -> sql.Composable:
        own = comparable(column, alias)
        if value is None:
            return sql.SQL("({} IS NOT NULL)").format(own) if direction == "asc" else FALSE
        if not _fits_order(column, value):
            return FALSE
        bound = self._scalar(column, value)
        if direction == "asc":
            return sql.SQL("({} > {})").format(own, bound)
        return sql.SQL("({own} < {bound} OR {own} IS NULL)").format(own=own, bound=bound)

    def _same(self, column: PostgresColumn, value: Any, alias: str) -> sql.Composable:
        own = comparable(column, alias)
        if value is None:
            return sql.SQL("({} IS NULL)").format(own)
        if not _fits_order(column, value):
            return FALSE
        return sql.SQL("({} = {})").format(own, self._scalar(column, value))

    def _scalar(self, column: PostgresColumn, value: Any) -> sql.Composable:
        kind: ClientType = "string" if column.client_type == "json" else _kind(value)
        return self.parameters.bind(_text(value), _SQL_TYPES[kind])

    def _exists(self, node: ast.Exists, table: PostgresTable, alias: str) -> sql.Composable:
        negated = node.op == "NOT EXISTS"
        query = node.related.subquery
        if query.limit == 0:
            return TRUE if negated else FALSE
        child = self.table(query.table)
        child_alias = self.alias()
        parts = [
            self.correlated(node.related.correlation, (table, alias), (child, child_alias)),
            *self.kept(query, child, child_alias),
        ]
        return sql.SQL("{}EXISTS (SELECT FROM {} AS {} WHERE {})").format(
            sql.SQL("NOT " if negated else ""),
            child.identifier,
            sql.Identifier(child_alias),
            join(" AND ", parts, TRUE),
        )

    def kept(self, query: ast.Query, table: PostgresTable, alias: str) -> list[sql.Composable]:
        """Filter and cursor of ``query`` on the row at ``alias``."""
        parts = []
        if query.start is not None:
            parts.append(self.after(query.start, self.order(query, table), alias))
        if query.where is not None:
            parts.append(self.condition(query.where, table, alias))
        return parts

    def _simple(self, node: ast.Simple, table: PostgresTable, alias: str) -> sql.Composable:
        right = _bound(node.right)
        _check_operand(node.op, right)
        if not isinstance(node.left, ast.ColumnRef):
            return TRUE if compare_literals(_bound(node.left), node.op, right) else FALSE
        column = table.column(node.left.name)
        if node.op == "IS":
            return column.is_null(alias) if right is None else self._test(column, "=", right, alias)
        if node.op == "IS NOT":
            if right is None:
                return sql.SQL("NOT {}").format(column.is_null(alias))
            return sql.SQL("({}) IS NOT TRUE").format(self._test(column, "=", right, alias))
        if right is None:
            return FALSE
        positive = {"!=": "="}.get(node.op, node.op.removeprefix("NOT "))
        test = self._test(column, positive, right, alias)
        if positive == node.op:
            return test
        return sql.SQL("(NOT {} AND ({}) IS NOT TRUE)").format(column.is_null(alias), test)

    def _test(self, column: PostgresColumn, op: str, value: Any, alias: str) -> sql.Composable:
        """A comparison of the non-negated kind with a value that is not null."""
        if op == "IN":
            return self._member(column, value, alias)
        kind = _kind(value)
        if column.client_type not in (kind, "json"):
            return FALSE
        if "\0" in _text(value):
            return self._unstorable_text(column, op, value, alias)
        if op in _LIKE:
            return self._like(column, op, value, alias)
        if op == "=" and (plain := self._indexed_equality(column, value, alias)) is not None:
            return plain
        own = _typed(column, kind, alias)
        bound = self.parameters.bind(_text(value), _SQL_TYPES[kind])
        return sql.SQL("({} {} {})").format(own, sql.SQL(op), bound)

    def _indexed_equality(
        self, column: PostgresColumn, value: Any, alias: str
    ) -> sql.Composable | None:
        """``=`` in the column's own type where that means the same, for the sake of indexes."""
        if not column.compares_as_stored:
            return None
        cast = "text"
        if column.pg_type == "uuid":
            if not _CANONICAL_UUID.fullmatch(value):
                return FALSE
            cast = "uuid"
        elif column.is_integer:
            if value != value // 1 or not -_INT8 <= value < _INT8:
                return FALSE
            value, cast = int(value), "int8"
        elif column.pg_type == "bool":
            cast = "bool"
        bound = self.parameters.bind(_text(value), cast)
        return sql.SQL("({} = {})").format(column.raw(alias), bound)

    def _member(self, column: PostgresColumn, values: list[Any], alias: str) -> sql.Composable:
        tests: list[sql.Composable] = []
        kinds: tuple[ClientType, ...] = ("string", "number", "boolean")
        for kind in kinds:
            if column.client_type not in (kind, "json"):
                continue
            fitting = [t for v in values if _kind(v) == kind and "\0" not in (t := _text(v))]
            if not fitting:
                continue
            if column.compares_as_stored and column.pg_type in ("text", "varchar"):
                own = column.raw(alias)
            else:
                own = _typed(column, kind, alias)
            bound = self.parameters.bind(fitting, f"{_SQL_TYPES[kind]}[]")
            tests.append(sql.SQL("({} = ANY ({}))").format(own, bound))
        return join(" OR ", tests, FALSE)

    def _like(self, column: PostgresColumn, op: str, pattern: Any, alias: str) -> sql.Composable:
        if not isinstance(pattern, str):
            return FALSE
        _check_pattern(pattern)
        own = _typed(column, "string", alias)
        if op == "ILIKE":
            own = sql.SQL("(lower({} COLLATE {}) COLLATE {})").format(
                own, sql.Identifier(self.lower_collation), sql.Identifier("C")
            )
            pattern = pattern.lower()
        bound = self.parameters.bind(pattern, "text")
        return sql.SQL("({} LIKE {} ESCAPE '\\')").format(own, bound)

    def _unstorable_text(
        self, column: PostgresColumn, op: str, value: str, alias: str
    ) -> sql.Composable:
        """Postgres text holds no NUL; every stored text sorts as if against the part before it."""
        if op not in ("<", "<=", ">", ">="):
            return FALSE
        bound = self.parameters.bind(value.partition("\0")[0], "text")
        return sql.SQL("({} {} {})").format(
            _typed(column, "string", alias), sql.SQL("<=" if op[0] == "<" else ">"), bound
        )


def comparable(column: PostgresColumn, alias: str) -> sql.Composable:
    """The value of ``column`` as it sorts: text by code point, json by its text."""
    value = column.value(alias)
    if column.client_type in ("string", "json"):
        return sql.SQL('({} COLLATE "C")').format(value)
    return value


def order_by(order: Order, alias: str) -> sql.Composable:
    """ORDER BY with nulls below everything, left unsaid where there are none, for indexes' sake."""
    terms: list[sql.Composable] = []
    for column, direction in order:
        text = direction.upper()
        if not (column.not_null and column.compares_as_stored):
            text += " NULLS FIRST" if direction == "asc" else " NULLS LAST"
        terms.append(sql.SQL("{} {}").format(comparable(column, alias), sql.SQL(text)))
    return sql.SQL(" ORDER BY ") + sql.SQL(", ").join(terms)


def _typed(column: PostgresColumn, kind: ClientType, alias: str) -> sql.Composable:
    """The value of ``column`` to compare with a literal of ``kind``."""
    own = column.json_scalar(alias, kind) if column.client_type == "json" else column.value(alias)
    if kind == "string":
        return sql.SQL('(({})::text COLLATE "C")').format(own)
    return sql.SQL("({})").format(own)


def _equal_columns(
    left: PostgresColumn, left_alias: str, right: PostgresColumn, right_alias: str
) -> sql.Composable:
    if left.client_type != right.client_type or left.client_type == "json":
        return FALSE
    same = left.pg_type == right.pg_type or (left.is_integer and right.is_integer)
    if same and left.compares_as_stored and right.compares_as_stored:
        return sql.SQL("({} = {})").format(left.raw(left_alias), right.raw(right_alias))
    if left.client_type == "number":
        pair = [sql.SQL("{}::float8").format(left.value(left_alias)),
                sql.SQL("{}::float8").format(right.value(right_alias))]  # fmt: skip
        return sql.SQL("({} = {})").format(*pair)
    return sql.SQL("({} = {})").format(comparable(left, left_alias), comparable(right, right_alias))


def join(glue: str, parts: Sequence[sql.Composable], empty: sql.Composable) -> sql.Composable:
    if not parts:
        return empty
    return parts[0] if len(parts) == 1 else sql.SQL("({})").format(sql.SQL(glue).join(parts))


def _bound(value: ast.ValueRef) -> ast.LiteralValue:
    if isinstance(value, ast.LiteralRef):
        return value.value
    if isinstance(value, ast.StaticRef):
        raise QueryError(
            f"parameter {value.anchor}.{value.field} has no value here; "
            "bind static parameters before running a query"
        )
    raise QueryError(f'column "{value.name}" is on the right of a comparison; put it on the left')


def _check_operand(op: str, right: ast.LiteralValue) -> None:
    takes_list = op in ("IN", "NOT IN")
    if isinstance(right, list) != takes_list and right is not None:
        need = "needs a list" if takes_list else "cannot compare with a list"
        raise QueryError(f"{op} {need} on its right, got {right!r}")


def _check_pattern(pattern: str) -> None:
    trailing = len(pattern) - len(pattern.rstrip("\\"))
    if trailing % 2:
        raise QueryError(
            f"LIKE pattern {pattern!r} ends in an unescaped backslash; "
            "write two backslashes to match one"
        )


def _kind(value: Any) -> ClientType:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "number"


def _fits_order(column: PostgresColumn, value: Any) -> bool:
    if column.client_type == "json":
        return isinstance(value, str)
    return isinstance(value, str | int | float) and column.client_type == _kind(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)
