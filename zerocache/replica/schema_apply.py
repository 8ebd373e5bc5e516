"""Carries out planned schema changes inside the writer's open transaction.

Owns the ALTER statements and what goes with them: metadata, indexes, the list of pending backfills,
entries ``r`` of the change log. Everything happens in the SQLite transaction that also holds the
rows of the same upstream transaction, before and after. Invariant: afterwards the replica's
internal tables describe exactly the tables it has; ``r`` is logged if, and only if, what readers
can see of a table changed its shape, and then ``minRowVersion`` rises too. An engine that reads
``r`` starts over from the new schema, so nothing else has to look at ``minRowVersion``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import apsw

from zerocache.replica import auto_index
from zerocache.replica.change_log import ChangeLog
from zerocache.replica.index_build import build_index
from zerocache.replica.layout import (
    COLUMN_METADATA,
    TABLE_METADATA,
    TableFacts,
    create_table,
    load_tables,
    save_table,
)
from zerocache.replica.pending import Pending, forget_pending, load_pending, save_pending
from zerocache.replica.published import PublishedIndex, wire_name
from zerocache.replica.reader import load_schema
from zerocache.replica.schema_change import (
    AddColumn,
    AlterTable,
    Change,
    CreateTable,
    DropTable,
    IndexShape,
    index_changes,
    renames,
)
from zerocache.replica.sql import literal, quote
from zerocache.replica.types import SQLiteValue

Shape: TypeAlias = tuple[object, ...]


def apply_changes(connection: apsw.Connection, log: ChangeLog, changes: Sequence[Change]) -> None:
    before = shapes(connection)
    drops = [change for change in changes if isinstance(change, DropTable)]
    alterations = [change for change in changes if isinstance(change, AlterTable)]
    creations = [change for change in changes if isinstance(change, CreateTable)]
    known = load_tables(connection)
    for drop in drops:
        _drop_table(connection, known[drop.table])
    _rename_tables(connection, alterations)
    for alteration in alterations:
        _alter(connection, alteration)
    for creation in creations:
        create_table(connection, creation.facts)
        if creation.backfill:
            save_pending(connection, Pending(oid=creation.facts.table.oid, whole=True))
    changed = [change.new for change in alterations] + [change.facts for change in creations]
    build_indexes(connection, changed)
    announce(connection, log, before)


def announce(connection: apsw.Connection, log: ChangeLog, before: Mapping[str, Shape]) -> None:
    """Log ``r`` for every table that readers see differently than ``before`` (:func:`shapes`)."""
    now = shapes(connection)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            connection.execute(
                f"UPDATE {TABLE_METADATA} SET minRowVersion = ? "  # noqa: S608 - a constant
                "WHERE table_name = ?",
                (log.open_version(), name),
            )
            log.record(name, 0, "r")


def shapes(connection: apsw.Connection) -> dict[str, Shape]:
    """What readers see of each table, except for its version, and whose name each name is: two
    tables (or columns) that swap theirs look the same otherwise."""
    facts = load_tables(connection)
    return {
        name: (
            facts[name].table.oid,
            [(c.name, c.position) for c in facts[name].table.columns if c.name in table.columns],
            tuple(table.columns.items()),
            table.keys,
            set(table.indexes),
        )
        for name, table in load_schema(connection).items()
    }


def build_indexes(connection: apsw.Connection, tables: Sequence[TableFacts]) -> None:
    """Create the indexes that ``tables`` should have and do not."""
    pending = load_pending(connection)
    for facts in tables:
        wanted = _wanted(facts, pending)
        _, missing = index_changes(_present(connection, facts.table.wire_name), wanted)
        for shape in missing:
            build_index(connection, wanted[shape])


def _drop_table(connection: apsw.Connection, facts: TableFacts) -> None:
    name = facts.table.wire_name
    _drop_auto_indexes(connection, name)
    connection.execute(f"DROP TABLE {quote(name)}")
    _forget_metadata(connection, name)
    forget_pending(connection, facts.table.oid)


def _forget_metadata(connection: apsw.Connection, name: str) -> None:
    for table in (COLUMN_METADATA, TABLE_METADATA):
        connection.execute(f"DELETE FROM {table} WHERE table_name = ?", (name,))  # noqa: S608


def _rename_tables(connection: apsw.Connection, alterations: Sequence[AlterTable]) -> None:
    pairs = [(change.old.table.wire_name, change.new.table.wire_name) for change in alterations]
    moved = [(old, new) for old, new in pairs if old != new]
    for old, _ in moved:
        _drop_auto_indexes(connection, old)
        _forget_metadata(connection, old)
    taken = [
        str(name) for (name,) in connection.execute("SELECT name FROM sqlite_schema").fetchall()
    ]
    for old, new in renames(moved, taken):
        connection.execute(f"ALTER TABLE {quote(old)} RENAME TO {quote(new)}")


def _alter(connection: apsw.Connection, change: AlterTable) -> None:
    """Bring columns, metadata and surplus indexes of one table up to date."""
    facts, table = change.new, quote(change.new.table.wire_name)
    name = facts.table.wire_name
    if change.dropped or change.renamed or change.stale:
        _drop_auto_indexes(connection, name)
    _note_pending(connection, change)
    # Indexes first: SQLite refuses to drop a column that one uses.
    detours = _rename_columns(connection, change)
    surplus, _ = index_changes(_present(connection, name), _wanted(facts, load_pending(connection)))
    for index in surplus:
        connection.execute(f"DROP INDEX {quote(index.name)}")
    for column in change.dropped:
        dropped = quote(detours.get(column, column))
        connection.execute(f"ALTER TABLE {table} DROP COLUMN {dropped}")
    for addition in change.added:
        _add_column(connection, table, addition)
    (kept,) = connection.execute(
        f"SELECT max(minRowVersion) FROM {TABLE_METADATA} WHERE table_name = ?",  # noqa: S608
        (name,),
    ).fetchone() or (None,)
    save_table(connection, facts, kept or "00")


def _rename_columns(connection: apsw.Connection, change: AlterTable) -> dict[str, str]:
    """Rename; returns what columns that are to be dropped are called until then."""
    if not change.renamed:
        return {}
    table = quote(change.new.table.wire_name)
    # A dropped column must not keep the name another one takes.
    taken = [column.name for column in change.old.table.columns]
    new_names = {new.lower() for _, new in change.renamed}
    detours = {
        name: f"_zero.dropped.{at}"
        for at, name in enumerate(change.dropped)
        if name.lower() in new_names
    }
    for old, new in [*detours.items(), *renames(change.renamed, taken)]:
        connection.execute(f"ALTER TABLE {table} RENAME COLUMN {quote(old)} TO {quote(new)}")
    return detours


def _note_pending(connection: apsw.Connection, change: AlterTable) -> None:
    if not change.hidden and not change.refresh:
        return
    oid = change.new.table.oid
    before = load_pending(connection).get(oid, Pending(oid=oid))
    save_pending(connection, before.joined(whole=False, columns=change.hidden))


def _add_column(connection: apsw.Connection, table: str, addition: AddColumn) -> None:
    # A default costs no rewrite of the rows; later ones always bring their own value.
    default = "" if addition.value is None else f" DEFAULT {_literal(addition.value)}"
    connection.execute(f"ALTER TABLE {table} ADD COLUMN {quote(addition.column.name)}{default}")


def _literal(value: SQLiteValue) -> str:
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, bytes):
        return f"x'{value.hex()}'"
    return f"({value!r})"


def _drop_auto_indexes(connection: apsw.Connection, table: str) -> None:
    """The engine asks again for those it misses; their names speak of columns as they were."""
    for index in auto_index.indexes_of(connection, table):
        if index.automatic:
            auto_index.drop_auto_index(connection, index.name)


def _present(connection: apsw.Connection, table: str) -> list[IndexShape]:
    return [
        IndexShape(index.name, index.table, index.unique, index.columns)
        for index in auto_index.indexes_of(connection, table)
        if not index.automatic
    ]


def _wanted(facts: TableFacts, pending: Mapping[int, Pending]) -> dict[IndexShape, PublishedIndex]:
    """Upstream's indexes, without those over values that are not there yet."""
    entry = pending.get(facts.table.oid)
    hidden = entry.hidden_columns(facts) if entry is not None and not entry.whole else frozenset()
    return {
        IndexShape(
            wire_name(index.schema, index.name),
            facts.table.wire_name,
            index.enforced,
            tuple((column, direction == "DESC") for column, direction in index.columns),
        ): index
        for index in facts.indexes
        if hidden.isdisjoint(index.column_names)
    }
