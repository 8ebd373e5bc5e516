"""The row operations of a CRUD mutation inside its transaction, each under its permissions.

Owns no transaction and commits nothing: whoever gets :class:`WriteDenied` or any other error rolls
back. Rules are judged by PostgreSQL on the row itself, found by the table's own primary key and
never by the one the client names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import AsyncConnection, AsyncRawCursor, sql

from zerocache.errors import QueryError
from zerocache.protocol.messages import CrudOp
from zerocache.server.crud import Verb, statement
from zerocache.server.schema_check import COLLATION_QUERY, best_lower_collation
from zerocache.zql import ast
from zerocache.zql.permissions import Claims, Permissions
from zerocache.zql.postgres import Statement
from zerocache.zql.postgres_filter import FilterCompiler
from zerocache.zql.postgres_types import CATALOG_QUERY, PostgresTable, tables_from_catalog
from zerocache.zql.schema import Column, Table
from zerocache.zql.write_permissions import Action, before_columns, bind_write, write_condition

_ROW = "target"


class WriteDenied(Exception):
    """The permissions do not allow it. Not a failure: the client sees its change undone."""


class WriteFailed(Exception):
    """It cannot be done; the message says why."""


class RowWriter:
    """See the module docstring; good for one transaction."""

    def __init__(
        self,
        db: AsyncConnection[Any],
        tables: Mapping[str, PostgresTable],
        collation: str,
        permissions: Permissions | None,
        claims: Claims,
    ) -> None:
        self._db = db
        self._tables = tables
        self._collation = collation
        self._permissions = permissions
        self._claims = claims

    @classmethod
    async def make(
        cls, db: AsyncConnection[Any], permissions: Permissions | None, claims: Claims
    ) -> RowWriter:
        tables = tables_from_catalog(await _rows(db, CATALOG_QUERY), domains=False)
        collation = best_lower_collation(await _rows(db, COLLATION_QUERY))
        return cls(db, tables, collation, permissions, claims)

    async def write(self, op: CrudOp) -> None:
        table = self._tables.get(op.table_name)
        if table is None or not table.primary_key:
            raise WriteFailed(f"the table {op.table_name!r} does not exist or has no primary key")
        verb: Verb = op.op
        if verb == "upsert":
            verb = "update" if await self._exists(table, op.value) else "insert"
        match verb:
            case "insert":
                await self._insert(table, op.value)
            case "update":
                await self._update(table, op.value)
            case _:
                await self._require(table, "delete", op.value, table.columns)
                await self._execute(verb, table, op.value)

    async def _insert(self, table: PostgresTable, row: Mapping[str, Any]) -> None:
        existed = await self._exists(table, row)
        await self._execute("insert", table, row)
        if not existed:
            await self._require(table, "insert", row, row)

    async def _update(self, table: PostgresTable, row: Mapping[str, Any]) -> None:
        written = [name for name in row if name not in table.primary_key]
        after = write_condition(self._permissions, table.name, "postMutation", written)
        before = await self._before(table, row, before_columns(after))
        await self._require(table, "preMutation", row, written)
        await self._execute("update", table, row)
        await self._judge(table, row, bind_write(after, self._claims, before))

    async def _require(
        self, table: PostgresTable, action: Action, row: Mapping[str, Any], columns: Any
    ) -> None:
        condition = write_condition(self._permissions, table.name, action, columns)
        before = await self._before(table, row, before_columns(condition))
        await self._judge(table, row, bind_write(condition, self._claims, before))

    async def _judge(
        self, table: PostgresTable, row: Mapping[str, Any], condition: ast.Condition
    ) -> None:
        compiler = self._compiler()
        allowed = compiler.condition(condition, table, _ROW)
        found = await self._select(compiler, table, row, sql.SQL("({}) AS it").format(allowed))
        if found is None:
            raise WriteFailed(f"there is no such row in {table.name!r}")
        if found["it"] is not True:
            raise WriteDenied

    async def _exists(self, table: PostgresTable, row: Mapping[str, Any]) -> bool:
        found = await self._select(self._compiler(), table, row, sql.SQL("1 AS it"))
        return found is not None

    async def _before(
        self, table: PostgresTable, row: Mapping[str, Any], names: set[str]
    ) -> dict[str, Any]:
        """The row's present values, as rules compare them."""
        if not names:
            return {}
        outputs = [
            sql.SQL("{} AS {}").format(table.column(name).value(_ROW), sql.Identifier(name))
            for name in sorted(names)
        ]
        found = await self._select(self._compiler(), table, row, sql.SQL(", ").join(outputs))
        if found is None:
            raise WriteFailed(f"there is no such row in {table.name!r}")
        return found

    async def _select(
        self,
        compiler: FilterCompiler,
        table: PostgresTable,
        row: Mapping[str, Any],
        outputs: sql.Composable,
    ) -> dict[str, Any] | None:
        missing = [name for name in table.primary_key if row.get(name) is None]
        if missing:
            raise WriteFailed(f"the row for {table.name!r} lacks {', '.join(missing)}")
        key = ast.And(
            [ast.Simple("=", ast.ColumnRef(n), ast.LiteralRef(row[n])) for n in table.primary_key]
        )
        query = sql.SQL("SELECT {} FROM {} AS {} WHERE {}").format(
            outputs,
            table.identifier,
            sql.Identifier(_ROW),
            compiler.condition(key, table, _ROW),
        )
        found = await _rows(self._db, query.as_string(), compiler.parameters.values)
        return found[0] if found else None

    def _compiler(self) -> FilterCompiler:
        return FilterCompiler(self._tables, self._collation)

    async def _execute(self, verb: Verb, table: PostgresTable, row: Mapping[str, Any]) -> None:
        built: Statement | None = statement(verb, _described(table, row), table, row)
        if built is not None:
            await _rows(self._db, built.text, built.params)


def _described(table: PostgresTable, row: Mapping[str, Any]) -> Table:
    """The table as the SDK's statements want it: by server names only."""
    columns = {}
    for name in {*row, *table.primary_key}:
        kind = table.column(name).client_type
        if kind is None:
            raise QueryError(f"the column {name!r} of {table.name!r} is of a type no client knows")
        columns[name] = Column(kind)
    return Table(table.name, columns, table.primary_key, table.name)


async def _rows(
    db: AsyncConnection[Any], text: str, params: list[str | list[str]] | None = None
) -> list[dict[str, Any]]:
    """By name; values are bound as text, so that no driver guesses types."""
    async with AsyncRawCursor(db) as cursor:
        await cursor.execute(text.encode(), params or None)
        if cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
