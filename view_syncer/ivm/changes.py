"""What changed between two snapshots of the replica.

A batch holds, for every changed row of the tables somebody watches, the watched columns before
(from the older snapshot) and after (from the newer). Rows are identified by rowid; a rowid whose
key columns differ between the images is a row that was re-keyed, or a new row that inherited the
rowid of a deleted one: for a client both are "delete the old key, put the new one".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import apsw

from view_syncer.ivm.levels import rowid_array
from zerocache.protocol.versions import Watermark
from zerocache.replica.sql import quote
from zerocache.zql.shape import SqlValue

Image: TypeAlias = tuple[SqlValue, ...]


@dataclass(slots=True)
class TableChanges:
    """Images are tuples in the order of ``columns``; a rowid absent from one side did not exist
    there. Rows absent from both came and went within the batch and are left out."""

    columns: Mapping[str, int]
    old: dict[int, Image]
    new: dict[int, Image]

    def rowids(self) -> set[int]:
        return self.old.keys() | self.new.keys()

    def differs(self, rowid: int, columns: Iterable[str]) -> bool:
        """Whether the row appeared, vanished, or changed in one of ``columns``."""
        old, new = self.old.get(rowid), self.new.get(rowid)
        if old is None or new is None:
            return True
        return any(old[self.columns[c]] != new[self.columns[c]] for c in columns)


@dataclass(slots=True)
class Batch:
    """All changes after ``old_version`` up to ``new_version``.

    ``truncated`` tables have no row images; what reads them must be recomputed: any row may have
    changed, or too many did. ``reset`` means the schema changed: nothing can be kept.
    """

    old_version: Watermark
    new_version: Watermark
    tables: dict[str, TableChanges] = field(default_factory=dict)
    truncated: set[str] = field(default_factory=set)
    reset: bool = False

    def __bool__(self) -> bool:
        return bool(self.tables or self.truncated or self.reset)


class Snapshot(Protocol):
    """A connection with an open read transaction, and where in history it stands."""

    @property
    def db(self) -> apsw.Connection: ...
    @property
    def version(self) -> Watermark: ...
    @property
    def log_pos(self) -> int: ...
    @property
    def log_floor(self) -> int: ...


MAX_IMAGES = 100_000
"""Changed rows of one table of which images are made; they are all in memory at once."""


def read_batch(
    old: Snapshot,
    new: Snapshot,
    watched: Mapping[str, Sequence[str]],
    recompute: Callable[[str, int], bool] = lambda _table, _rows: False,
) -> Batch:
    """The changes between two snapshots to the tables in ``watched`` (table -> columns).

    ``recompute`` is asked whether what reads a table is better recomputed, given how many of its
    rows changed; with more than MAX_IMAGES of them it is not asked.
    """
    batch = Batch(old.version, new.version)
    if new.log_floor > old.log_pos:
        # The log no longer reaches back, so any row of any table may have changed.
        batch.reset = _shapes(old.db) != _shapes(new.db)
        batch.truncated.update(() if batch.reset else watched)
        return batch
    rows: dict[str, set[int]] = {}
    entries = new.db.execute(
        'SELECT "table", row, op FROM "_zero.changeLog" WHERE pos > ? AND pos <= ?',
        (old.log_pos, new.log_pos),
    )
    for table, rowid, op in entries:
        if op == "r":
            batch.reset = True
        elif table not in watched or table in batch.truncated:
            continue
        elif op == "t" or len(rows.setdefault(table, set())) >= MAX_IMAGES:
            batch.truncated.add(table)
            rows.pop(table, None)
        else:
            rows[table].add(rowid)
    if batch.reset:
        return batch
    for table, rowids in rows.items():
        if recompute(table, len(rowids)):
            batch.truncated.add(table)
            continue
        columns = watched[table]
        before = _images(old.db, table, columns, rowids)
        after = _images(new.db, table, columns, rowids)
        positions = {name: i for i, name in enumerate(columns)}
        batch.tables[table] = TableChanges(positions, before, after)
    return batch


def _shapes(db: apsw.Connection) -> list[tuple[Any, ...]]:
    """The metadata of all tables: whatever changes a table's shape changes these."""
    tables = db.execute('SELECT * FROM "_zero.tableMetadata" ORDER BY table_name').fetchall()
    return (
        tables
        + db.execute(
            'SELECT * FROM "_zero.column_metadata" ORDER BY table_name, column_name'
        ).fetchall()
    )


def _images(
    db: apsw.Connection, table: str, columns: Sequence[str], rowids: Collection[int]
) -> dict[int, Image]:
    selected = "".join(f", {quote(c)}" for c in columns)
    given, value = "IN (SELECT value FROM carray(?))", rowid_array(rowids)
    if len(rowids) == 1:
        given, (value,) = "= ?", rowids  # much faster than a list of one
    sql = (
        f"SELECT _rowid_{selected} FROM {quote(table)} "  # noqa: S608 (quoted identifiers only)
        f"WHERE _rowid_ {given}"
    )
    rows: Iterable[tuple[Any, ...]] = db.execute(sql, (value,))
    return {row[0]: row[1:] for row in rows}
