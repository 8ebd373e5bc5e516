"""Brings one table of the replica in line with a snapshot of upstream while the stream runs on.

Owns the merge of the two. The snapshot is of a position the stream has already passed, so whatever
the stream wrote *at or after that position* is newer and wins; all other rows are made what the
snapshot says. That includes what the stream wrote since the schema change and before the snapshot:
transactions that were under way while the schema changed end after the announcement, but their rows
may still be as the old schema had them. A row is *settled* once all its values are known to be
right: it came from the snapshot, or the stream brought the whole row after it. At the end rows that
are not settled are either gone upstream (deleted here), or were touched meanwhile by an update that
left out unchanged large values: those need another pass with a newer snapshot.

All of it is in memory, but for the versions in the rows: a restart begins a new pass, and needs
nothing of the old one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import apsw

from zerocache.replica.change_log import ChangeLog
from zerocache.replica.layout import TableFacts, identity_key, row_key
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import equals_all, placeholders, quote, quote_all
from zerocache.replica.types import SQLiteValue

# From the snapshot, or as good as that; written by the stream; whole, by the stream.
_SETTLED, _TOUCHED, _WHOLE = 1, 2, 4

Key = tuple[SQLiteValue, ...]


class RowWatch:
    """What the stream did to a table since a pass began. ``key``: the columns of tombstones."""

    def __init__(self, key: Sequence[str]) -> None:
        self.key = tuple(key)
        # By rowid. Rowids are dense, so this is a byte per row.
        self._flags = bytearray()
        # Keys of rows that were deleted, or left for another key, and the version of that.
        self.deleted: dict[Key, str] = {}
        # Set by a truncation and by schema changes that disturb: the pass must start over.
        self.cancelled = False

    def next_pass(self) -> None:
        """Whatever is settled stays so."""
        self._flags = self._flags.translate(bytes(flag & _SETTLED for flag in range(256)))
        self.deleted.clear()
        self.cancelled = False

    def written(self, rowid: int, *, complete: bool, fresh: bool = False) -> None:
        """The stream wrote a row; ``complete`` if it brought every value, ``fresh`` if the row is
        new (its rowid may have belonged to another one)."""
        before = 0 if fresh else self._flag(rowid)
        self._set(rowid, before | _TOUCHED | (_WHOLE if complete else 0))

    def is_settled(self, rowid: int, *, newer: bool) -> bool:
        """``newer``: the stream wrote it at or after the snapshot's position."""
        flag = self._flag(rowid)
        return bool(flag & _SETTLED) or (newer and bool(flag & _WHOLE))

    def is_touched(self, rowid: int, *, newer: bool) -> bool:
        return newer and bool(self._flag(rowid) & _TOUCHED)

    def settle(self, rowid: int) -> None:
        self._set(rowid, self._flag(rowid) | _SETTLED)

    def _flag(self, rowid: int) -> int:
        return self._flags[rowid] if rowid < len(self._flags) else 0

    def _set(self, rowid: int, flag: int) -> None:
        if rowid >= len(self._flags):
            self._flags.extend(bytes(rowid + 1 + rowid // 2 - len(self._flags)))
        self._flags[rowid] = flag


class TableRefresh:
    """Passes over one table. ``hidden``: columns that readers do not see, None if they see nothing
    of the table. Only what they see is worth a log entry and a new version: a reset shows the rest
    at the end.

    * :meth:`begin`, :meth:`apply` and :meth:`finish` run inside an open transaction of the writer;
    * the facts never change: after a schema change that disturbs it a new object is needed.
    """

    def __init__(
        self,
        connection: apsw.Connection,
        log: ChangeLog,
        facts: TableFacts,
        *,
        hidden: Collection[str] | None,
    ) -> None:
        self.facts = facts
        self._cursor = connection.cursor()
        self._log = log
        self._silent = hidden is None
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
            f"SELECT _rowid_, {quote_all([VERSION_COLUMN, *names])} "  # noqa: S608 - quoted
            f"FROM {self._quoted} WHERE {equals_all(self.watch.key)}"
        )
        self._insert = (
            f"INSERT INTO {self._quoted} "  # noqa: S608 - quoted
            f"({quote_all([*names, VERSION_COLUMN])}) VALUES ({placeholders(len(names) + 1)})"
        )
        self._shown = [at for at, name in enumerate(names) if name not in (hidden or ())]
        assignments = ", ".join(f"{quote(name)} = ?" for name in names)
        # Without and with a new version.
        self._update, self._update_seen = (
            f"UPDATE {self._quoted} SET {assignments}{version} WHERE _rowid_ = ?"  # noqa: S608
            for version in ("", f", {quote(VERSION_COLUMN)} = ?")
        )
        self._unique = [
            [names.index(name) for name in index.column_names]
            for index in facts.indexes
            if index.enforced
        ]
        self._names = names
        # The snapshot has what is older, the stream brings what is newer.
        self._position = ""

    def begin(self, position: str) -> None:
        """Before the first row of a pass; ``position``: the snapshot's, as a version."""
        self._position = position
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
                if watch.deleted.get(key, "") < self._position:
                    self._add(row)
                continue
            rowid, version, *stored = answer[0]
            if not self._is_kept(rowid, version):
                if not _same(stored, row):
                    self._change(rowid, stored, row)
                watch.settle(rowid)

    def finish(self) -> bool:
        """Delete what the snapshot does not have; False if another pass is needed."""
        if self._insert_only:
            return True
        complete = True
        gone = []
        for rowid, version in self._cursor.execute(
            f"SELECT _rowid_, {quote(VERSION_COLUMN)} FROM {self._quoted}"  # noqa: S608 - quoted
        ):
            newer = version >= self._position
            if self.watch.is_settled(rowid, newer=newer):
                self.watch.settle(rowid)
            elif self.watch.is_touched(rowid, newer=newer):
                complete = False
            else:
                gone.append(rowid)
        for rowid in gone:
            self._delete(rowid)
        return complete

    def _is_kept(self, rowid: int, version: str) -> bool:
        """Whether the snapshot has nothing to say about a row any more."""
        newer = version >= self._position
        return self.watch.is_settled(rowid, newer=newer) or self.watch.is_touched(
            rowid, newer=newer
        )

    def _add(self, row: Sequence[SQLiteValue]) -> None:
        bindings = [*row, self._log.open_version()]
        try:
            self._cursor.execute(self._insert, bindings)
        except apsw.ConstraintError:
            if not self._make_room(row, spared=None):
                return
            self._cursor.execute(self._insert, bindings)
        rowid = self._cursor.connection.last_insert_rowid()
        self.watch.settle(rowid)
        self._record(rowid, "s")

    def _change(
        self, rowid: int, stored: Sequence[SQLiteValue], row: Sequence[SQLiteValue]
    ) -> None:
        before, now = ([values[at] for at in self._shown] for values in (stored, row))
        seen = not self._silent and not _same(before, now)
        update, bindings = self._update, [*row, rowid]
        if seen:
            update, bindings = self._update_seen, [*row, self._log.open_version(), rowid]
        try:
            self._cursor.execute(update, bindings)
        except apsw.ConstraintError:
            if not self._make_room(row, spared=rowid):
                return
            self._cursor.execute(update, bindings)
        if seen:
            self._record(rowid, "s")

    def _make_room(self, row: Sequence[SQLiteValue], spared: int | None) -> bool:
        """Remove outdated rows that share a unique key with ``row``; False if a kept one does."""
        for positions in self._unique:
            values = [row[at] for at in positions]
            if None in values:
                continue
            condition = equals_all([self._names[at] for at in positions])
            others: list[Any] = self._cursor.execute(
                f"SELECT _rowid_, {quote(VERSION_COLUMN)} "  # noqa: S608 - quoted
                f"FROM {self._quoted} WHERE {condition} AND _rowid_ IS NOT ?",
                [*values, spared],
            ).fetchall()
            for other, version in others:
                if self._is_kept(other, version):
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
