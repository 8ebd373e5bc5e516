"""``tx.mutate.<table>.<verb>``: one statement per call (api-and-auth.md §7.4).

Owns the SQL of insert, upsert, update and delete and the conversion of client values to column
types. It opens no connection. Invariants: every value is a parameter bound as text and cast to
its column's type; ``None`` is SQL NULL, an absent key leaves the column alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from psycopg import sql

from zerocache.errors import SdkError
from zerocache.zql import ast
from zerocache.zql.postgres import Statement
from zerocache.zql.postgres_filter import FilterCompiler, Parameters
from zerocache.zql.postgres_types import PostgresColumn, PostgresTable, needs_nesting
from zerocache.zql.schema import Column, Table

Verb = Literal["insert", "upsert", "update", "delete"]
Row = Mapping[str, Any]

_TARGET = "target"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def statement(verb: Verb, table: Table, server: PostgresTable, row: Row) -> Statement | None:
    """The statement for ``verb``, or None if there is nothing to do."""
    for name, value in row.items():
        _check_value(table, name, value)
    writer = _Writer(table, server)
    query: sql.Composable | None
    if verb in ("insert", "upsert"):
        query = writer.insert(row, overwrite=verb == "upsert")
    else:
        _check_key(verb, table, row)
        query = writer.update(row) if verb == "update" else writer.delete(row)
    return None if query is None else Statement(query.as_string(), writer.parameters.values)


class _Writer:
    def __init__(self, table: Table, server: PostgresTable) -> None:
        self._table = table
        self._server = server
        self.parameters = Parameters()

    def insert(self, row: Row, *, overwrite: bool) -> sql.Composable:
        key = _identifiers([self._table.server_column(name) for name in self._table.primary_key])
        changed = [self._table.server_column(n) for n in self._others(row)] if overwrite else []
        return sql.SQL("INSERT INTO {table} {values} ON CONFLICT ({key}) {action}").format(
            table=self._server.identifier,
            values=self._values(row),
            key=key,
            action=_overwrite(changed) if changed else sql.SQL("DO NOTHING"),
        )

    def _values(self, row: Row) -> sql.Composable:
        if not row:
            return sql.SQL("DEFAULT VALUES")
        return sql.SQL("({}) VALUES ({})").format(
            _identifiers([self._table.server_column(name) for name in row]),
            sql.SQL(", ").join(self._value(name, value) for name, value in row.items()),
        )

    def update(self, row: Row) -> sql.Composable | None:
        changes = [
            sql.SQL("{} = {}").format(
                sql.Identifier(self._table.server_column(name)), self._value(name, row[name])
            )
            for name in self._others(row)
        ]
        if not changes:
            return None
        return sql.SQL("UPDATE {} AS {} SET {} WHERE {}").format(
            self._server.identifier,
            sql.Identifier(_TARGET),
            sql.SQL(", ").join(changes),
            self._key_matches(row),
        )

    def delete(self, row: Row) -> sql.Composable:
        return sql.SQL("DELETE FROM {} AS {} WHERE {}").format(
            self._server.identifier, sql.Identifier(_TARGET), self._key_matches(row)
        )

    def _others(self, row: Row) -> list[str]:
        return [name for name in row if name not in self._table.primary_key]

    def _key_matches(self, row: Row) -> sql.Composable:
        """Compares as queries do, so that a too long or too big key finds nothing."""
        compiler = FilterCompiler({self._server.name: self._server}, parameters=self.parameters)
        tests: list[ast.Condition] = [
            ast.Simple(
                "=", ast.ColumnRef(self._table.server_column(name)), ast.LiteralRef(row[name])
            )
            for name in self._table.primary_key
        ]
        return compiler.condition(ast.And(tests), self._server, _TARGET)

    def _value(self, name: str, value: Any) -> sql.Composable:
        column = self._server.column(self._table.server_column(name))
        return _bind(self.parameters, self._server, column, value)


def _overwrite(columns: Sequence[str]) -> sql.Composable:
    return sql.SQL("DO UPDATE SET {}").format(
        sql.SQL(", ").join(
            sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in columns
        )
    )


def _identifiers(names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(name) for name in names)


def _bind(
    parameters: Parameters, table: PostgresTable, column: PostgresColumn, value: Any
) -> sql.Composable:
    if value is None:
        return sql.SQL("NULL")
    if column.is_array:
        return _bind_array(parameters, table, column, value)
    if column.client_type == "json":
        return parameters.bind(json.dumps(value), column.cast)
    if column.client_type == "number":
        return _bind_number(parameters, column, value)
    return parameters.bind(_text(value), column.cast)


def _bind_number(parameters: Parameters, column: PostgresColumn, value: float) -> sql.Composable:
    if column.pg_type in ("date", "timestamp", "timestamptz"):
        moment = sql.SQL("to_timestamp({} / 1000)").format(parameters.bind(repr(value), "float8"))
        if column.pg_type != "timestamptz":
            moment = sql.SQL("({} AT TIME ZONE 'UTC')").format(moment)
        return sql.SQL("{}::{}").format(moment, sql.SQL(column.cast))
    if column.pg_type in ("time", "timetz"):
        of_day = sql.SQL("({} * interval '1 millisecond')::time").format(
            parameters.bind(repr(value), "float8")
        )
        if column.pg_type == "timetz":
            # Clients see times in UTC, so that is what they write.
            of_day = sql.SQL("({}::text || '+00')").format(of_day)
        return sql.SQL("{}::{}").format(of_day, sql.SQL(column.cast))
    return parameters.bind(_text(value), column.cast)


def _bind_array(
    parameters: Parameters, table: PostgresTable, column: PostgresColumn, value: Any
) -> sql.Composable:
    """By way of the table's row type, which Postgres can fill from JSON of any depth."""
    if needs_nesting(column):
        value = _map_elements(value, lambda ms: _time_text(ms, column.pg_type))
    row = parameters.bind(json.dumps({column.name: value}), "json")
    return sql.SQL("(json_populate_record(NULL::{}, {})).{}").format(
        table.identifier, row, sql.Identifier(column.name)
    )


def _map_elements(value: Any, convert: Any) -> Any:
    if isinstance(value, list):
        return [_map_elements(element, convert) for element in value]
    return None if value is None else convert(value)


def _time_text(milliseconds: float, pg_type: str) -> str:
    moment = _EPOCH + timedelta(milliseconds=milliseconds)
    return moment.timetz().isoformat() if pg_type in ("time", "timetz") else moment.isoformat()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**63:
        # 3.0 is the number 3, but "3.0" is no integer to Postgres.
        return str(int(value))
    return value if isinstance(value, str) else repr(value)


def _check_value(table: Table, name: str, value: Any) -> None:
    column: Column | None = table.columns.get(name)
    if column is None:
        raise SdkError(
            f'column "{name}" is not part of table "{table.name}"; '
            f"declare it in the schema or use one of: {', '.join(table.columns)}"
        )
    if value is None or column.type == "json":
        return
    expected = {"string": str, "number": int | float, "boolean": bool}[column.type]
    # A bool is an int to Python but no number to a client.
    fits = isinstance(value, expected) and (column.type == "boolean" or not isinstance(value, bool))
    if not fits:
        raise SdkError(
            f'column "{name}" of table "{table.name}" is a {column.type}, '
            f"got a {type(value).__name__}; convert the value first"
        )


def _check_key(verb: str, table: Table, row: Row) -> None:
    missing = [name for name in table.primary_key if row.get(name) is None]
    if missing:
        raise SdkError(
            f'{verb} on table "{table.name}" lacks {", ".join(missing)}; '
            "the whole primary key is needed to find the row"
        )
