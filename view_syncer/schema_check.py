"""Does the replica have what a client declares (sync-protocol.md §6)?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from view_syncer.ivm.encode import ClientTables, SyncedTable
from zerocache.errors import ClientFacingError
from zerocache.protocol.client_schema import ClientSchema, ClientTable
from zerocache.replica.schema import VERSION_COLUMN, ReplicaSchema, ReplicaTable


def client_tables(client: ClientSchema) -> ClientTables:
    """What the encoders need of a client schema. The columns of a key are sent even if they are
    not declared: a row that is put must be recognizable as the one that is deleted later."""
    tables = {
        name: SyncedTable(
            name, tuple(sorted({*table.columns, *table.primary_key})), tuple(table.primary_key)
        )
        for name, table in client.tables.items()
    }
    return ClientTables(client.digest(), tables)


class ClientSchemas:
    """What is known of the schemas seen last: most client groups declare the same."""

    def __init__(self, internal_schemas: Collection[str] = (), most: int = 64) -> None:
        self._internal_schemas = internal_schemas
        self._most = most
        self._tables: dict[bytes, ClientTables] = {}
        # The replica's schema that was last found to have all that the client's declares.
        self._fits: dict[bytes, ReplicaSchema] = {}

    def tables(self, client: ClientSchema) -> ClientTables:
        """:func:`client_tables`, made once."""
        name = client.canonical()
        found = self._tables.get(name)
        if found is None:
            self._make_room(self._tables)
            found = self._tables[name] = client_tables(client)
        return found

    def check(self, client: ClientSchema, replica: ReplicaSchema) -> None:
        """:func:`check_client_schema`, of the same two once."""
        name = client.canonical()
        if self._fits.get(name) is not replica:
            check_client_schema(client, replica, self._internal_schemas)
            self._make_room(self._fits)
            self._fits[name] = replica

    def _make_room(self, known: dict[bytes, Any]) -> None:
        if len(known) >= self._most:
            del known[next(iter(known))]


def check_client_schema(
    client: ClientSchema, replica: ReplicaSchema, internal_schemas: Collection[str]
) -> None:
    """Raise ``SchemaVersionNotSupported`` with every problem at once, missing tables first."""
    served = {
        name: table
        for name, table in replica.items()
        if name.partition(".")[0] not in internal_schemas or "." not in name
    }
    if not served:
        raise ClientFacingError(
            "Internal",
            "The server replicates no tables. Check that the publication of the upstream database "
            "has some (ZERO_APP_PUBLICATIONS), then restart the server.",
        )
    missing: list[str] = []
    other: list[str] = []
    for name in sorted(client.tables):
        table = served.get(name)
        if table is None:
            missing.append(_unknown_table(name, served))
        else:
            other.extend(_table_problems(name, client.tables[name], table))
    if missing or other:
        raise ClientFacingError("SchemaVersionNotSupported", "\n".join([*missing, *other]))


def _unknown_table(name: str, served: Collection[str]) -> str:
    text = (
        f'The "{name}" table does not exist or is not one of the replicated tables: '
        + ", ".join(f'"{t}"' for t in sorted(served))
        + "."
    )
    if "." in name:
        text += " Tables outside the public schema must be in a publication listed in"
        text += " ZERO_APP_PUBLICATIONS."
    return text


def _table_problems(name: str, client: ClientTable, table: ReplicaTable) -> Iterator[str]:
    if not table.keys:
        hidden = sorted(
            f'"{c.name}" ({c.upstream_type})'
            for c in table.columns.values()
            if c.client_type is None and c.not_null
        )
        reason = "has no primary key or unique index over NOT NULL columns"
        if hidden:
            reason += f" of types that can be synced (unsupported: {', '.join(hidden)})"
        yield f'The "{name}" table {reason}, so its rows cannot be synced.'
        return
    for column_name in sorted(client.columns):
        declared = client.columns[column_name].type
        column = table.columns.get(column_name)
        if column is None:
            known = ", ".join(f'"{c}"' for c in sorted(table.columns) if c != VERSION_COLUMN)
            yield (
                f'The "{name}"."{column_name}" column does not exist or is not one of the '
                f"replicated columns: {known}."
            )
        elif column.client_type is None:
            yield (
                f'The "{name}"."{column_name}" column cannot be synced because its type '
                f'"{column.upstream_type}" is not supported.'
            )
        elif declared != column.client_type:
            yield (
                f'The "{name}"."{column_name}" column\'s type "{declared}" does not match the '
                f'upstream type "{column.client_type}" ({column.upstream_type}).'
            )
    key = tuple(sorted(client.primary_key))
    if key not in table.keys:
        keys = " or ".join(f"({', '.join(k)})" for k in table.keys)
        yield (
            f'The "{name}" table\'s primary key ({", ".join(client.primary_key)}) is not one of '
            f"its unique keys over NOT NULL columns: {keys}."
        )
