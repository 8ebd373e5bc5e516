"""ZQL on Postgres: one statement per question, following the same semantics as the replica.

Owns two uses of the filter compiler: :func:`compile_run` returns the result tree of a query as
JSON (``tx.run`` of mutators), :func:`synced_rows` the rows that syncing a query must bring to a
client, level by level (the oracle of the engine's tests). It opens no connection. Invariant: the
statements read only; every value is a parameter.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

from psycopg import sql

from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.zql import ast
from zerocache.zql.builder import Format, QueryBuilder, to_server_names
from zerocache.zql.postgres_filter import (
    LOWER_COLLATIONS,
    TRUE,
    FilterCompiler,
    Order,
    join,
    order_by,
)
from zerocache.zql.postgres_types import PostgresTable, PostgresTables, needs_nesting, nest_array
from zerocache.zql.schema import Schema

_MAX_SAFE = 2**53 - 1
_Parent = tuple[ast.Correlation, PostgresTable, str]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with ``$n`` placeholders and their values (strings and lists of strings)."""

    text: str
    params: list[str | list[str]]


@dataclass(frozen=True, slots=True)
class SyncedLevel:
    """The rows one level of a query tree contributes.

    ``path``: the aliases from the root down, ``()`` for the root itself. Running ``statement``
    gives ``columns`` by name, one row per distinct ``key``, values as clients see them.
    """

    path: tuple[str, ...]
    table: str
    key: tuple[str, ...]
    columns: tuple[str, ...]
    statement: Statement


@dataclass(frozen=True, slots=True)
class RunStatement:
    """A query to run: one row with one column of JSON text, for ``decode`` to make a result of."""

    statement: Statement
    decode: Callable[[str], Any]


def window(
    compiler: FilterCompiler,
    query: ast.Query,
    table: PostgresTable,
    alias: str,
    parent: _Parent | None = None,
) -> sql.Composable:
    """``FROM … WHERE … ORDER BY … LIMIT …`` of one node, below ``parent`` if there is one."""
    parts = compiler.kept(query, table, alias)
    if parent is not None:
        correlation, parent_table, parent_alias = parent
        correlated = compiler.correlated(correlation, (parent_table, parent_alias), (table, alias))
        parts.insert(0, correlated)
    tail = order_by(compiler.order(query, table), alias)
    if query.limit is not None:
        limit = compiler.parameters.bind(str(query.limit), "int8")
        tail = tail + sql.SQL(" LIMIT {}").format(limit)
    return sql.SQL("FROM {} AS {} WHERE {}{}").format(
        table.identifier, sql.Identifier(alias), join(" AND ", parts, TRUE), tail
    )


def synced_rows(
    query: ast.Query, tables: PostgresTables, *, lower_collation: str = LOWER_COLLATIONS[0]
) -> list[SyncedLevel]:
    """One statement per level of ``query`` (server names): root and related, hidden ones included.

    These are the *result rows* of zql.md §4.3; EXISTS witnesses are not among them. Two levels
    may bring the same row.
    """
    levels = []
    for path in _paths(query):
        compiler = FilterCompiler(tables, lower_collation)
        levels.append(_level(compiler, path))
    return levels


def _paths(
    query: ast.Query, above: tuple[tuple[ast.Correlation | None, ast.Query], ...] = ()
) -> Iterator[tuple[tuple[ast.Correlation | None, ast.Query], ...]]:
    """Every node with its ancestors, root first."""
    here = above or ((None, query),)
    yield here
    for related in _related(query):
        yield from _paths(related.subquery, (*here, (related.correlation, related.subquery)))


def _related(query: ast.Query) -> list[ast.CorrelatedSubquery]:
    """The entries that are evaluated: of equal aliases the last; none of the permission system."""
    by_alias = {r.subquery.alias: r for r in query.related or ()}
    return [r for r in by_alias.values() if r.system != "permissions"]


def _level(
    compiler: FilterCompiler, path: tuple[tuple[ast.Correlation | None, ast.Query], ...]
) -> SyncedLevel:
    sources: list[sql.Composable] = []
    parent: tuple[PostgresTable, str] | None = None
    for correlation, query in path:
        table, alias = compiler.table(query.table), compiler.alias()
        below = None if parent is None or correlation is None else (correlation, *parent)
        rows = window(compiler, query, table, alias, below)
        sources.append(
            sql.SQL("LATERAL (SELECT {alias}.* {rows}) AS {alias}").format(
                alias=sql.Identifier(alias), rows=rows
            )
        )
        parent = table, alias
    assert parent is not None
    table, alias = parent
    columns = table.visible_columns
    # Equal keys need not be equal as text (numeric 1.0 and 1.00), but rows are then the same row.
    statement = sql.SQL("SELECT DISTINCT ON ({}) {} FROM {}").format(
        sql.SQL(", ").join(table.column(name).raw(alias) for name in table.primary_key),
        sql.SQL(", ").join(
            sql.SQL("{} AS {}").format(c.output(alias), sql.Identifier(c.name)) for c in columns
        ),
        sql.SQL(" CROSS JOIN ").join(sources),
    )
    return SyncedLevel(
        tuple(query.alias or "" for _, query in path[1:]),
        table.name,
        table.primary_key,
        tuple(c.name for c in columns),
        Statement(statement.as_string(), compiler.parameters.values),
    )


@dataclass(frozen=True, slots=True)
class _NodePlan:
    """How to read the JSON of one node: ``c0…`` are columns, ``r0…`` relationships."""

    columns: tuple[tuple[str, Callable[[Any], Any]], ...]
    relationships: tuple[tuple[str, _NodePlan], ...]
    key: tuple[str, ...]
    singular: bool
    through_junction: bool = False

    def read(self, rows: list[dict[str, Any]]) -> Any:
        result = [self._row(row) for row in rows]
        if self.through_junction:
            # Two junction rows may lead to one row; the order ends in the key: they are neighbours.
            result = [
                row
                for at, row in enumerate(result)
                if at == 0 or any(row[k] != result[at - 1][k] for k in self.key)
            ]
        if self.singular:
            return result[0] if result else None
        return result

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        found = {name: read(row[f"c{at}"]) for at, (name, read) in enumerate(self.columns)}
        for at, (name, plan) in enumerate(self.relationships):
            found[name] = plan.read(row[f"r{at}"])
        return found


def compile_run(
    query: QueryBuilder,
    schema: Schema,
    tables: PostgresTables,
    *,
    lower_collation: str = LOWER_COLLATIONS[0],
) -> RunStatement:
    """The whole result of ``query`` as one statement.

    ``tables`` are the database's (server names); orders are completed with the primary keys of
    ``schema``, in declared order.
    """
    compiler = _RunCompiler(schema, tables, lower_collation)
    server = to_server_names(query, schema)
    rows, plan = compiler.node(query.ast, server, query.format, None)
    text = sql.SQL("SELECT array_to_json({})::text AS result").format(rows).as_string()

    def decode(result: str) -> Any:
        return plan.read(cast("list[dict[str, Any]]", json.loads(result)))

    return RunStatement(Statement(text, compiler.filters.parameters.values), decode)


class _RunCompiler:
    """Walks a query in client and in server names at once: the latter to ask, the former to
    answer."""

    def __init__(self, schema: Schema, tables: PostgresTables, lower_collation: str) -> None:
        self._schema = schema
        keyed = {t.server_name: _declared_key(t.name, schema, tables) for t in
                 schema.tables.values() if t.server_name in tables}  # fmt: skip
        self.filters = FilterCompiler({**tables, **keyed}, lower_collation)

    def node(
        self, client: ast.Query, server: ast.Query, shape: Format, parent: _Parent | None
    ) -> tuple[sql.Composable, _NodePlan]:
        """An SQL array with one JSON object per row, and how to read it."""
        table, alias = self.filters.table(server.table), self.filters.alias()
        rows = window(self.filters, server, table, alias, parent)
        row, plan = self._row(client, server, shape, alias)
        return sql.SQL("ARRAY(SELECT {} {})").format(row, rows), plan

    def _row(
        self, client: ast.Query, server: ast.Query, shape: Format, alias: str
    ) -> tuple[sql.Composable, _NodePlan]:
        declared = self._schema.table(client.table)
        table = self.filters.table(server.table)
        outputs: list[sql.Composable] = []
        columns: list[tuple[str, Callable[[Any], Any]]] = []
        for name in declared.columns:
            column = table.column(declared.server_column(name))
            outputs.append(
                sql.SQL("{} AS {}").format(column.output(alias), sql.Identifier(f"c{len(columns)}"))
            )
            reader: Callable[[Any], Any] = nest_array if needs_nesting(column) else _as_is
            if column.is_integer:
                reader = _safe_integer(declared.name, name)
            columns.append((name, reader))
        plans: list[tuple[str, _NodePlan]] = []
        for at, name in _last_of_each_alias(client):
            child, plan = self._related(client, server, at, shape.relationships[name], alias)
            label = sql.Identifier(f"r{len(plans)}")
            outputs.append(sql.SQL("array_to_json({}) AS {}").format(child, label))
            plans.append((name, plan))
        row = sql.SQL("(SELECT row_to_json(r) FROM (SELECT {}) AS r)").format(
            sql.SQL(", ").join(outputs)
        )
        key = declared.primary_key
        return row, _NodePlan(tuple(columns), tuple(plans), key, shape.singular)

    def _related(
        self, client: ast.Query, server: ast.Query, at: int, shape: Format, alias: str
    ) -> tuple[sql.Composable, _NodePlan]:
        asked, entry = (client.related or [])[at], (server.related or [])[at]
        parent = entry.correlation, self.filters.table(server.table), alias
        if not asked.hidden:
            return self.node(asked.subquery, entry.subquery, shape, parent)
        return self._through_junction(asked.subquery, entry.subquery, shape, parent)

    def _through_junction(
        self, client: ast.Query, server: ast.Query, shape: Format, parent: _Parent
    ) -> tuple[sql.Composable, _NodePlan]:
        junction, junction_alias = self.filters.table(server.table), self.filters.alias()
        hop = _only(server.related)
        table, alias = self.filters.table(hop.subquery.table), self.filters.alias()
        near = window(self.filters, server, junction, junction_alias, parent)
        far = window(
            self.filters, hop.subquery, table, alias, (hop.correlation, junction, junction_alias)
        )
        row, plan = self._row(_only(client.related).subquery, hop.subquery, shape, alias)
        order: Order = self.filters.order(hop.subquery, table)
        rows = sql.SQL(
            "ARRAY(SELECT {row} FROM (SELECT {j}.* {near}) AS {j} "
            "CROSS JOIN LATERAL (SELECT {t}.* {far}) AS {t}{order})"
        ).format(
            row=row,
            j=sql.Identifier(junction_alias),
            near=near,
            t=sql.Identifier(alias),
            far=far,
            order=order_by(order, alias),
        )
        return rows, _NodePlan(plan.columns, plan.relationships, plan.key, shape.singular, True)


def _declared_key(name: str, schema: Schema, tables: PostgresTables) -> PostgresTable:
    declared = schema.table(name)
    found = tables[declared.server_name]
    key = tuple(declared.server_column(c) for c in declared.primary_key)
    return PostgresTable(found.name, found.columns, key)


def _last_of_each_alias(query: ast.Query) -> list[tuple[int, str]]:
    last = {r.subquery.alias or "": at for at, r in enumerate(query.related or ())}
    return [(at, alias) for alias, at in last.items()]


def _only(related: list[ast.CorrelatedSubquery] | None) -> ast.CorrelatedSubquery:
    if related is None or len(related) != 1:
        raise QueryError(
            f"a hidden relationship leads to {len(related or [])} others; "
            "it must lead to exactly one: build the query with create_builder"
        )
    return related[0]


def _as_is(value: Any) -> Any:
    return value


def _safe_integer(table: str, column: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if value is not None and abs(value) > _MAX_SAFE:
            raise UnsafeIntegerError(
                f'column "{column}" of table "{table}" holds {value}, beyond ±(2^53-1); '
                "JavaScript cannot represent it: store it as text or leave the column out"
            )
        return value

    return read
