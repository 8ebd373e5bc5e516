"""What is replicated but never shown to clients, and why.

Owns the one definition that the log and ``/statz`` both use: columns whose type has no client type,
and tables that no unique key over shown, NOT NULL columns identifies. It judges a schema by itself;
what is hidden for a while, until a backfill has ended, is pending.py's affair. It holds no state.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from zerocache.replica.layout import TableFacts, synced_keys
from zerocache.replica.types import client_type, stored_type_name


class Hidden(msgspec.Struct, frozen=True):
    """``columns``: type by ``table.column``; ``tables``: names of tables hidden as a whole."""

    columns: dict[str, str] = {}
    tables: tuple[str, ...] = ()


def hidden_from_clients(tables: Iterable[TableFacts]) -> Hidden:
    """What of ``tables`` no client will ever see as they are."""
    columns: dict[str, str] = {}
    without_key = []
    for facts in tables:
        name = facts.table.wire_name
        for column in facts.table.columns:
            stored = stored_type_name(column)
            if client_type(stored, column.is_enum, column.is_array) is None:
                columns[f"{name}.{column.name}"] = column.type_name
        if not synced_keys(facts):
            without_key.append(name)
    return Hidden(columns, tuple(without_key))
