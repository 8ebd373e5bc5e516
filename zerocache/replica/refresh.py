"""Brings one table of the replica in line with a snapshot of upstream while the stream runs on.

Owns the merge of the two. The snapshot is of a moment the stream has already passed, so whatever
the stream wrote *since the watch began* is at least as new and wins; all other rows are made what
the snapshot says. A row is *good* once all its values are known to be right: it came from the
snapshot, or the stream brought the whole row. At the end rows that are not good are either gone
upstream (deleted here), or were touched meanwhile by an update that left out unchanged large
values: those need another pass with a newer snapshot.

All of it is in memory: a restart begins a new pass, and needs nothing of the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import apsw

from zerocache.replica.change_log import ChangeLog
from zerocache.replica.layout import TableFacts, identity_key, row_key
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import equals_all, placeholders, quote, quote_all
from zerocache.replica.types import SQLiteValue

_GOOD, _TOUCHED = 1, 2

Key = tuple[SQLiteValue, ...]


class RowWatch:
    """What the stream did to a table since a pass began. ``key``: the columns of tombstones."""

    def __init__(self, key: Sequence[str]) -> None:
        self.key = tuple(key)
        # By rowid: _GOOD, _TOUCHED. Rowids are dense, so this is a byte per row.
        self._flags = bytearray()
        # Keys of rows that were deleted, or left for another key.
        self.deleted: set[Key] = set()
        # Set by a truncation and by schema changes: the pass must start over.
        self.cancelled = False

    def next_pass(self) -> None:
        self._flags = self._flags.translate(bytes(flag & _GOOD for flag in range(256)))
        self.deleted.clear()
        self.cancelled = False

    def written(self, rowid: int, *, complete: bool, fresh: bool = False) -> None:
        """The stream wrote a row; ``complete`` if it brought every value, ``fresh`` if the row is
        new (its rowid may have belonged to another one)."""
        flag = _TOUCHED | (_GOOD if complete else 0 if fresh else self._flag(rowid))
        self._set(rowid, flag)

    def is_good(self, rowid: int) -> bool:
        return bool(self._flag(rowid) & _GOOD)

    def is_touched(self, rowid: int) -> bool:
        return bool(self._flag(rowid) & _TOUCHED)

    def mark_good(self, rowid: int) -> None:
        self._set(rowid, self._flag(rowid) | _GOOD)

    def _flag(self, rowid: int) -> int:
        return self._flags[rowid] if rowid < len(self._flags) else 0

    def _set(self, rowid: int, flag: int) -> None:
        if rowid >= len(self._flags):
            self._flags.extend(bytes(rowid + 1 + rowid // 2 - len(self._flags)))
        self._flags[rowid] = flag


class TableRefresh:
    """Passes over one table. ``silent``: what readers can see does not change, so rows get neither
    log entries nor a new version; a reset ends the backfill anyway.

    * :meth:`begin`, :meth:`apply` and :meth:`finish` run inside an open transaction of the writer;
    * the facts never change: after a schema change a new object is needed.
    """

    def __init__(
        self, connection: apsw.Connection, log: ChangeLog, facts: TableFacts, *, silent: bool
    ) -> None:
        self.facts = facts
        self._cursor = connection.cursor()
        self._log = log
        self._silent = silent
        key = identity_key(facts) or row_key(facts)
        # Without a key rows cannot be matched. If upstream has no way to change them either, there
        # are only inserts, whose versions say whether the snapshot has them.
        self._insert_only = key is None and facts.table.replica_identity == "d"
        self.is_possible = key is not None or self._insert_only
        names = [column.name for column in facts.table.columns]
        self.watch = RowWatch(key or ())
        self._table = facts.table.wire_name
        self._quoted = quote(self._table)
        self._key = [names.index(name) for name in self.watch.key]
        self._find = (
            f"SELECT _rowid_, {quote_all(names)} FROM {self._quoted} "  # noqa: S608 - quoted
            f"WHERE {equals_all(self.watch.key)}"
        )
        self._insert = (
            f"INSERT INTO {self._quoted} "  # noqa: S608 - quoted
            f"({quote_all([*names, VERSION_COLUMN])}) VALUES ({placeholders(len(names) + 1)})"
        )
        version = "" if silent else f", {quote(VERSION_COLUMN)} = ?"
        assignments = ", ".join(f"{quote(name)} = ?" for name in names)
        self._update = (
            f"UPDATE {self._quoted} SET {assignments}{version} "  # noqa: S608 - quoted
            "WHERE _rowid_ = ?"
        )
        self._unique = [
            [names.index(name) for name in index.column_names]
            for index in facts.indexes
            if index.enforced
        ]
        self._names = names

    def begin(self, position: str) -> None:
        """Before the first row of a pass; ``position``: the snapshot's, as a version."""
        if self._insert_only:
            older = self._cursor.execute(
                f"SELECT _rowid_ FROM {self._quoted} "  # noqa: S608 - quoted
                f"WHERE {quote(VERSION_COLUMN)} < ?",
                (position,),
            )
            for rowid in [row[0] for row in older]:
                self._delete(rowid)

    def apply(self, rows: Iterable[Sequence[SQLiteValue]]) -> None:
        """Merge rows of the snapshot, values in the order of the table's facts."""
        watch = self.watch
        for row in rows:
            if self._insert_only:
                self._add(row)
                continue
            key = tuple(row[at] for at in self._key)
            # All of the answer is read: a statement left open would block checkpoints.
            answer: list[Any] = self._cursor.execute(self._find, key).fetchall()
            if not answer:
                if key not in watch.deleted:
                    self._add(row)
                continue
            rowid, *stored = answer[0]
            if not watch.is_good(rowid) and not watch.is_touched(rowid):
                if not _same(stored, row):
                    self._change(rowid, row)
                watch.mark_good(rowid)

    def finish(self) -> bool:
        """Delete what the snapshot does not have; False if another pass is needed."""
        if self._insert_only:
            return True
        complete = True
        gone = []
        for (rowid,) in self._cursor.execute(f"SELECT _rowid_ FROM {self._quoted}"):  # noqa: S608
            if not self.watch.is_good(rowid):
                if self.watch.is_touched(rowid):
                    complete = False
                else:
                    gone.append(rowid)
        for rowid in gone:
            self._delete(rowid)
        return complete

    def _add(self, row: Sequence[SQLiteValue]) -> None:
        bindings = [*row, self._log.open_version()]
        try:
            self._cursor.execute(self._insert, bindings)
        except apsw.ConstraintError:
            if not self._make_room(row, spared=None):
                return
            self._cursor.execute(self._insert, bindings)
        rowid = self._cursor.connection.last_insert_rowid()
        self.watch.mark_good(rowid)
        self._record(rowid, "s")

    def _change(self, rowid: int, row: Sequence[SQLiteValue]) -> None:
        bindings = [*row] if self._silent else [*row, self._log.open_version()]
        try:
            self._cursor.execute(self._update, [*bindings, rowid])
        except apsw.ConstraintError:
            if not self._make_room(row, spared=rowid):
                return
            self._cursor.execute(self._update, [*bindings, rowid])
        self._record(rowid, "s")

    def _make_room(self, row: Sequence[SQLiteValue], spared: int | None) -> bool:
        """Remove outdated rows that share a unique key with ``row``; False if a good one does."""
        for positions in self._unique:
            values = [row[at] for at in positions]
            if None in values:
                continue
            condition = equals_all([self._names[at] for at in positions])
            others = self._cursor.execute(
                f"SELECT _rowid_ FROM {self._quoted} "  # noqa: S608 - quoted
                f"WHERE {condition} AND _rowid_ IS NOT ?",
                [*values, spared],
            ).fetchall()
            for other in (int(row[0]) for row in others if row[0] is not None):
                if self.watch.is_good(other) or self.watch.is_touched(other):
                    return False
                self._delete(other)
        return True

    def _delete(self, rowid: int) -> None:
        self._cursor.execute(f"DELETE FROM {self._quoted} WHERE _rowid_ = ?", (rowid,))  # noqa: S608
        self._record(rowid, "d")

    def _record(self, rowid: int, op: str) -> None:
        if not self._silent:
            self._log.record(self._table, rowid, "s" if op == "s" else "d")


def _same(stored: Sequence[SQLiteValue], row: Sequence[SQLiteValue]) -> bool:
    """Equal in value and in storage class: 1 and 1.0 are written differently on the wire."""
    return all(a == b and type(a) is type(b) for a, b in zip(stored, row, strict=True))
