"""Remembers, in the replica, which tables still lack rows or values that no stream will bring.

Owns the table ``_zero.backfills``: one row per table whose backfill is not complete. It is written
in the transaction of the schema change that made the backfill necessary and survives restarts,
which begin the backfill again. Tables and columns are named by oid and ``attnum``, so renames leave
it alone. Readers hide what is listed here (:func:`hides`), as if it were not published yet.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import apsw
import msgspec

from zerocache.replica.layout import TableFacts
from zerocache.replica.sql import quote

BACKFILLS = quote("_zero.backfills")


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    """``whole``: nobody may see the table. ``columns``: positions nobody may see. With neither, the
    table is shown, although some of its rows may be outdated."""

    oid: int
    whole: bool = False
    columns: tuple[int, ...] = ()

    def hidden_columns(self, facts: TableFacts) -> frozenset[str]:
        """Names of the columns hidden inside a table that is shown."""
        return frozenset(c.name for c in facts.table.columns if c.position in self.columns)

    def joined(self, *, whole: bool, columns: Collection[int]) -> Pending:
        return Pending(
            oid=self.oid,
            whole=self.whole or whole,
            columns=tuple(sorted({*self.columns, *columns})),
        )


def load_pending(connection: apsw.Connection) -> dict[int, Pending]:
    """Every backfill that is not complete, by the table's oid."""
    if not _exists(connection):
        return {}
    return {
        oid: Pending(
            oid=oid,
            whole=bool(whole),
            columns=msgspec.json.decode(columns, type=tuple[int, ...]),
        )
        for oid, whole, columns in connection.execute(f"SELECT * FROM {BACKFILLS}")  # noqa: S608
    }


def save_pending(connection: apsw.Connection, pending: Pending) -> None:
    # Not part of layout.py's tables: replicas made before there were backfills lack it.
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {BACKFILLS} (oid INTEGER PRIMARY KEY, "
        "whole INTEGER NOT NULL, columns TEXT NOT NULL)"
    )
    connection.execute(
        f"INSERT OR REPLACE INTO {BACKFILLS} VALUES (?, ?, ?)",  # noqa: S608 - a constant
        (pending.oid, int(pending.whole), msgspec.json.encode(pending.columns).decode()),
    )


def forget_pending(connection: apsw.Connection, oid: int) -> None:
    if _exists(connection):
        connection.execute(f"DELETE FROM {BACKFILLS} WHERE oid = ?", (oid,))  # noqa: S608


def hidden_columns(facts: TableFacts, pending: Mapping[int, Pending]) -> frozenset[str]:
    """Names of the columns of ``facts`` that wait for a backfill."""
    entry = pending.get(facts.table.oid)
    return entry.hidden_columns(facts) if entry is not None else frozenset()


def _exists(connection: apsw.Connection) -> bool:
    found = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE name = '_zero.backfills'"
    ).fetchone()
    return found is not None
