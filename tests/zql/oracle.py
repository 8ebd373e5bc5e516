"""Asks Postgres which rows a query syncs: the truth other engines are compared with.

    tables = read_tables(connection)
    assert engine_rows == synced(connection, query, tables)

Owns no semantics; those are ``zerocache.zql.postgres``'s. Queries are in server names.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from zerocache.zql.ast import Query
from zerocache.zql.postgres import Statement, synced_rows
from zerocache.zql.postgres_types import (
    CATALOG_QUERY,
    PostgresTable,
    PostgresTables,
    tables_from_catalog,
)

SyncedRows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]


def read_tables(connection: psycopg.Connection[Any]) -> dict[str, PostgresTable]:
    """Every table of the database as the replica sees it (domain columns are hidden)."""
    return tables_from_catalog(fetch(connection, Statement(CATALOG_QUERY, [])), domains=False)


def fetch(connection: psycopg.Connection[Any], statement: Statement) -> list[dict[str, Any]]:
    with psycopg.RawCursor(connection, row_factory=dict_row) as cursor:
        return cursor.execute(statement.text, statement.params or None).fetchall()


def synced(connection: psycopg.Connection[Any], query: Query, tables: PostgresTables) -> SyncedRows:
    """Table -> key values (in the order of its ``primary_key``) -> row, as clients see values."""
    found: SyncedRows = {}
    for level in synced_rows(query, tables):
        rows = found.setdefault(level.table, {})
        for row in fetch(connection, level.statement):
            rows[tuple(row[name] for name in level.key)] = row
    return found
