"""Does the declared schema fit the database? (api-and-auth.md §7.6)

Owns the comparison and its report. It opens no connection. Invariant: a report names every
problem there is, so that one deployment fixes all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zerocache.server.errors import SchemaMismatchError
from zerocache.zql.postgres_filter import LOWER_COLLATIONS
from zerocache.zql.postgres_types import PostgresTables
from zerocache.zql.schema import Schema

COLLATION_QUERY = (
    "SELECT collname::text AS name FROM pg_catalog.pg_collation "
    "WHERE collnamespace = 'pg_catalog'::regnamespace AND collencoding IN "
    "(-1, (SELECT encoding FROM pg_catalog.pg_database WHERE datname = current_database()))"
)


@dataclass(frozen=True, slots=True)
class ServerSchema:
    """What compiling for one database needs: its tables, and a collation that knows Unicode."""

    tables: PostgresTables
    lower_collation: str


def best_lower_collation(rows: list[dict[str, Any]]) -> str:
    """The collation for ILIKE among the rows of :data:`COLLATION_QUERY`."""
    available = {row["name"] for row in rows}
    return next((name for name in LOWER_COLLATIONS if name in available), "default")


def check_schema(schema: Schema, tables: PostgresTables) -> None:
    """:class:`SchemaMismatchError` with every missing table, missing column and wrong type."""
    problems = list(_problems(schema, tables))
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise SchemaMismatchError(
            f"the declared schema does not fit the database:{lines}\n"
            "Change the schema in the code, or migrate the database."
        )


def _problems(schema: Schema, tables: PostgresTables) -> Iterator[str]:
    for table in schema.tables.values():
        found = tables.get(table.server_name)
        if found is None:
            yield f'table "{table.server_name}" does not exist'
            continue
        for name, declared in table.columns.items():
            server_name = table.server_column(name)
            column = found.columns.get(server_name)
            where = f'column "{server_name}" of table "{table.server_name}"'
            if column is None:
                yield f"{where} does not exist"
            elif column.client_type is None:
                yield f"{where} has type {column.pg_type}, which clients cannot see"
            elif column.client_type != declared.type:
                kind = f"an array of {column.pg_type}" if column.is_array else column.pg_type
                yield f"{where} is {kind}: declare it {column.client_type}, not {declared.type}"
