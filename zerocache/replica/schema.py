"""What tables the replica has, as the engine and the protocol need to know them.

The replica's user tables are ordinary rowid tables whose columns are declared *without* a type,
so SQLite never coerces a stored value (zql.md §2.1 "affinity"); what a column means stands in
``_zero.column_metadata``. A row's rowid is its identity for the query engine: the writer keeps it
for as long as the row's replica key lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

ClientType: TypeAlias = Literal["string", "number", "boolean", "json"]
VERSION_COLUMN = "_0_version"


@dataclass(frozen=True, slots=True)
class ReplicaColumn:
    """One replicated column. ``client_type`` is None for types that are never synced."""

    name: str
    upstream_type: str
    client_type: ClientType | None
    not_null: bool = False
    is_enum: bool = False
    is_array: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaTable:
    """A replicated table under its wire name (``table``, or ``schema.table`` outside public).

    ``keys``: every unique key whose columns are all NOT NULL and synced, each sorted by column
    name; the first is the replica's own row key (fewest columns, then by name). A table with no
    keys is stored but never synced.
    """

    name: str
    columns: Mapping[str, ReplicaColumn]
    keys: tuple[tuple[str, ...], ...]
    min_row_version: str = "00"
    indexes: tuple[tuple[str, ...], ...] = field(default=())

    @property
    def synced_columns(self) -> dict[str, ReplicaColumn]:
        return {n: c for n, c in self.columns.items() if c.client_type is not None}


ReplicaSchema: TypeAlias = Mapping[str, ReplicaTable]
