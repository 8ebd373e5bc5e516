"""Applies the row changes of one upstream relation to one replica table.

Owns the statements that touch rows of user tables. Contract:

* a row keeps its rowid while it is updated, also when its key changes; rows are never written by
  INSERT OR REPLACE;
* rows that stand in the way of a unique index are deleted explicitly and logged as ``d`` before
  the change that displaced them; this happens only for values the replica cannot tell apart, or
  when upstream sends a change twice;
* an update that finds no row inserts one, a delete that finds none does nothing;
* every touched row is recorded in the change log under the version of the open transaction.

It opens and commits nothing: that is the writer's part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from zerocache.errors import ReplicaError, ResyncRequired
from zerocache.replica.change_log import ChangeLog
from zerocache.replica.layout import TableFacts, row_key
from zerocache.replica.refresh import RowWatch
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import equals_all, placeholders, quote, quote_all
from zerocache.replica.types import UNCHANGED, SQLiteValue, StoredRow


class RelationWriter:
    """Row changes of one relation, as tuples in the relation's column order.

    * ``columns`` are the relation's columns; they must be exactly those of the replica table.
    * ``key_columns`` are the ones an update or delete identifies its row by; None if upstream
      sends whole rows (identity FULL), in which case the best unique key of the table is used, or
      the whole row if there is none.
    * ``old`` tuples have the relation's width; only their key columns are looked at.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        log: ChangeLog,
        facts: TableFacts,
        columns: Sequence[str],
        key_columns: Sequence[str] | None,
    ) -> None:
        self.table = facts.table.wire_name
        self.columns = tuple(columns)
        _check_columns(self.table, facts, self.columns)
        self._cursor = connection.cursor()
        self._log = log
        self._quoted = quote(self.table)
        # What is known of a row that is deleted or leaves its key.
        self._known_of_old = frozenset(key_columns or self.columns)
        key = tuple(key_columns or ()) or row_key(facts)
        # Without any key, equal rows are interchangeable: each change touches one of them.
        self._keyless = key is None
        key = key if key is not None else self.columns
        self._key = tuple(map(self.columns.index, key))
        self._key_condition = self._condition(key)
        self._unique = [index.column_names for index in facts.indexes if index.enforced]
        self._insert_sql = self._insert_statement()
        self._delete_sql = (
            f"DELETE FROM {self._quoted} WHERE {self._key_condition} RETURNING _rowid_"  # noqa: S608
        )
        # Set while the rows of this table are being read again from upstream.
        self.watch: RowWatch | None = None
        # UPDATE statements by the positions they set.
        self._updates: dict[tuple[int, ...], str] = {}
        # Positions set when every value is present and the key stays: the usual update.
        self._all = tuple(range(len(self.columns)))
        self._all_but_key = tuple(at for at in self._all if at not in self._key)
        # Positions of columns besides the key that an index of upstream's has.
        indexed = {name for index in facts.indexes for name in index.column_names}
        self._indexed = tuple(at for at in self._all_but_key if self.columns[at] in indexed)
        looked_up = ", ".join(["_rowid_", *(quote(self.columns[at]) for at in self._indexed)])
        self._look_sql = f"SELECT {looked_up} FROM {self._quoted} WHERE {self._key_condition}"  # noqa: S608
        # What is set and how, by the positions that are not.
        self._narrow: dict[tuple[int, ...], tuple[tuple[int, ...], str]] = {}

    def insert(self, row: StoredRow) -> None:
        version = self._log.open_version()
        bindings = [None if value is UNCHANGED else value for value in row]
        bindings.append(version)
        try:
            self._cursor.execute(self._insert_sql, bindings)
        except apsw.ConstraintError:
            self._displace(dict(zip(self.columns, bindings, strict=False)), spared=None)
            self._cursor.execute(self._insert_sql, bindings)
        rowid = self._cursor.connection.last_insert_rowid()
        self._log.record(self.table, rowid, "s")
        if self.watch is not None:
            self.watch.written(rowid, complete=UNCHANGED not in row, fresh=True)

    def update(self, old: StoredRow | None, new: StoredRow) -> None:
        """Give the row that ``old`` (or else ``new``) identifies the values of ``new``."""
        version = self._log.open_version()
        if old is None and not self._keyless and self._update_found(new, version):
            return
        found = new if old is None else old
        positions = self._all_but_key if old is None and not self._keyless else self._all
        if UNCHANGED in new:
            positions = tuple(at for at in positions if new[at] is not UNCHANGED)
        statement = self._updates.get(positions) or self._update_statement(positions)
        bindings = [new[at] for at in positions]
        bindings.append(version)
        bindings += [found[at] for at in self._key]
        try:
            rowids = self._rowids(statement, bindings)
        except apsw.ConstraintError:
            self._make_room(found, new)
            rowids = self._rowids(statement, bindings)
        if not rowids:
            self.insert(new)
        for rowid in rowids:
            self._log.record(self.table, rowid, "s")
        if self.watch is not None:
            self._watch_update(old, new, rowids)

    def _update_found(self, new: StoredRow, version: str) -> bool:
        """Update the one row that has the key of ``new``; False if there is none, or several.

        Upstream sends whole rows, and SQLite writes the indexes of every column that an UPDATE
        names: looking up what indexed columns hold costs less than setting them to the same.
        """
        key = [new[at] for at in self._key]
        found: list[tuple[Any, ...]] = self._cursor.execute(self._look_sql, key).fetchall()
        if len(found) != 1:
            return False
        rowid, *values = found[0]
        # 1 and 1.0 are equal, but not the same bytes.
        spared = [
            at
            for at, value in zip(self._indexed, values, strict=True)
            if value == new[at] and type(value) is type(new[at])
        ]
        if UNCHANGED in new:
            spared += [at for at in self._all_but_key if new[at] is UNCHANGED]
        known = self._narrow.get(tuple(spared))
        positions, statement = known or self._narrow_statement(tuple(spared))
        bindings = [new[at] for at in positions]
        bindings += (version, rowid)
        try:
            self._cursor.execute(statement, bindings)
        except apsw.ConstraintError:
            self._make_room(new, new)
            self._cursor.execute(statement, bindings)
        self._log.record(self.table, rowid, "s")
        if self.watch is not None:
            self._watch_update(None, new, [rowid])
        return True

    def _narrow_statement(self, spared: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
        positions = tuple(at for at in self._all_but_key if at not in spared)
        names = [*(self.columns[at] for at in positions), VERSION_COLUMN]
        assignments = ", ".join(f"{quote(name)} = ?" for name in names)
        statement = f"UPDATE {self._quoted} SET {assignments} WHERE _rowid_ = ?"  # noqa: S608
        self._narrow[spared] = positions, statement
        return positions, statement

    def delete(self, old: StoredRow) -> None:
        bindings = [old[at] for at in self._key]
        for rowid in self._rowids(self._delete_sql, bindings):
            self._log.record(self.table, rowid, "d")
        if self.watch is not None:
            self.watch.deleted[self._watched_key(self.watch, old)] = self._log.open_version()

    def truncate(self) -> None:
        if self.watch is not None:
            self.watch.cancelled = True
        self._cursor.execute(f"DELETE FROM {self._quoted}")  # noqa: S608 - quoted
        self._log.record(self.table, 0, "t")

    def _watch_update(self, old: StoredRow | None, new: StoredRow, rowids: list[int]) -> None:
        watch = self.watch
        assert watch is not None
        for rowid in rowids:
            watch.written(rowid, complete=UNCHANGED not in new)
        if old is not None:
            before = self._watched_key(watch, old)
            if before != self._watched_key(watch, new):
                watch.deleted[before] = self._log.open_version()

    def _watched_key(self, watch: RowWatch, row: StoredRow) -> tuple[SQLiteValue, ...]:
        if not self._known_of_old.issuperset(watch.key):
            # A transaction from before the table got another identity: its key says nothing now.
            watch.cancelled = True
        values = (row[self.columns.index(name)] for name in watch.key)
        return tuple(None if value is UNCHANGED else value for value in values)

    def _make_room(self, found: StoredRow, new: StoredRow) -> None:
        """Remove the rows that an update of the row ``found`` identifies would collide with."""
        key = [found[at] for at in self._key]
        current = self._cursor.execute(
            f"SELECT _rowid_, {quote_all(self.columns)} FROM {self._quoted} "  # noqa: S608 - quoted
            f"WHERE {self._key_condition}",
            key,
        ).fetchone()
        if current is None:
            raise ReplicaError(
                f"an update of {self.table} violates a unique index although it found no row: "
                "the replica is damaged; delete it so that a new initial sync creates it"
            )
        merged = dict(zip(self.columns, current[1:], strict=True))
        for column, value in zip(self.columns, new, strict=True):
            if value is not UNCHANGED:
                merged[column] = value
        self._displace(merged, spared=current[0])

    def _displace(self, row: dict[str, SQLiteValue], spared: int | None) -> None:
        """Delete and log every row but ``spared`` that shares a unique key with ``row``."""
        for key in self._unique:
            values = [row[column] for column in key]
            if None in values:
                continue
            statement = (
                f"DELETE FROM {self._quoted} "  # noqa: S608 - quoted
                f"WHERE {equals_all(key)} AND _rowid_ IS NOT ? RETURNING _rowid_"
            )
            for rowid in self._rowids(statement, [*values, spared]):
                self._log.record(self.table, rowid, "d")

    def _rowids(self, statement: str, bindings: Sequence[Any]) -> list[int]:
        """Run a statement that ends with ``RETURNING _rowid_``."""
        return [rowid for (rowid,) in self._cursor.execute(statement, bindings)]

    def _condition(self, key: Iterable[str]) -> str:
        condition = equals_all(key)
        if not self._keyless:
            return condition
        return (
            f"_rowid_ = (SELECT _rowid_ FROM {self._quoted} "  # noqa: S608 - quoted
            f"WHERE {condition} LIMIT 1)"
        )

    def _insert_statement(self) -> str:
        columns = (*self.columns, VERSION_COLUMN)
        return (
            f"INSERT INTO {self._quoted} ({quote_all(columns)}) "  # noqa: S608 - quoted
            f"VALUES ({placeholders(len(columns))})"
        )

    def _update_statement(self, positions: tuple[int, ...]) -> str:
        """Columns that do not change are left out, so that their indexes are not rewritten."""
        names = [*(self.columns[at] for at in positions), VERSION_COLUMN]
        assignments = ", ".join(f"{quote(name)} = ?" for name in names)
        statement = (
            f"UPDATE {self._quoted} SET {assignments} "  # noqa: S608 - quoted
            f"WHERE {self._key_condition} RETURNING _rowid_"
        )
        self._updates[positions] = statement
        return statement


def _check_columns(table: str, facts: TableFacts, columns: tuple[str, ...]) -> None:
    expected = {column.name for column in facts.table.columns}
    if expected != set(columns) or len(columns) != len(expected):
        raise ResyncRequired(
            f"table {table} now has the columns {sorted(columns)}, the replica has "
            f"{sorted(expected)}: rows of another shape cannot be applied; a new initial sync is "
            "needed"
        )
