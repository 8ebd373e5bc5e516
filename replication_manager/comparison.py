"""Compares the rows of one table of the replica with those of an upstream snapshot.

Owns what counts as a difference, and which differences a change under way may explain. It reads
one snapshot of the replica and takes upstream's rows in whatever order they come; memory grows by
one bit per row (by one number per distinct row, if the table has no key). It never judges twice:
whether an explainable difference persists is verify.py's affair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, Protocol, TypeAlias

import apsw

from zerocache.replica.auto_index import highest_rowid
from zerocache.replica.layout import TableFacts, row_key
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import equals_all, quote, quote_all
from zerocache.replica.types import SQLiteValue

Row: TypeAlias = Sequence[SQLiteValue]
Kind: TypeAlias = Literal["missing", "extra", "different"]


@dataclass(frozen=True, slots=True)
class Difference:
    """``missing`` and ``extra`` are said of the replica; ``columns`` differ, if both have the row.

    A table without a key has rows, but no key: ``count`` equal rows are missing or extra, and a
    digest tells them from others.
    ``values`` are (column, upstream's, replica's); they are row contents.
    """

    table: str
    kind: Kind
    key: tuple[tuple[str, SQLiteValue], ...]
    values: tuple[tuple[str, SQLiteValue, SQLiteValue], ...] = field(default=(), compare=False)
    count: int = field(default=1, compare=False)
    # What happened upstream since its snapshot was taken may explain it.
    is_explainable: bool = field(default=False, compare=False)


class TableComparison(Protocol):
    """``add`` upstream's rows, in the order of the table's columns; then ask for the rest."""

    def add(self, rows: Iterable[Row]) -> Iterator[Difference]: ...

    def finish(self) -> Iterator[Difference]: ...


def compare_table(connection: apsw.Connection, facts: TableFacts, since: str) -> TableComparison:
    """``since``: the version from which on the replica's snapshot may be ahead of upstream's."""
    key = row_key(facts)
    if key is None:
        return _KeylessComparison(connection, facts, since)
    return _KeyedComparison(connection, facts, key, since)


def _is_same(ours: SQLiteValue, theirs: SQLiteValue) -> bool:
    return type(ours) is type(theirs) and ours == theirs


class _KeyedComparison:
    """Looks each upstream row up by its key, and then for rows that were not looked up."""

    def __init__(
        self, connection: apsw.Connection, facts: TableFacts, key: Sequence[str], since: str
    ) -> None:
        self._connection = connection
        self._table = facts.table.wire_name
        self._columns = [column.name for column in facts.table.columns]
        self._key = key
        self._key_at = [self._columns.index(name) for name in key]
        self._since = since
        self._changed = _changed_since(connection, self._table, since)
        self._find = (
            f"SELECT _rowid_, {VERSION_COLUMN}, {quote_all(self._columns)} "  # noqa: S608 - quoted
            f"FROM {quote(self._table)} WHERE {equals_all(key)}"
        )
        # One bit per rowid: set once the row was found upstream.
        self._found = bytearray(highest_rowid(connection, self._table) // 8 + 1)

    def add(self, rows: Iterable[Row]) -> Iterator[Difference]:
        cursor = self._connection.cursor()
        for theirs in rows:
            found = cursor.execute(self._find, [theirs[at] for at in self._key_at]).fetchone()
            if found is None:
                yield Difference(
                    self._table,
                    "missing",
                    self._key_of(theirs),
                    tuple((n, v, None) for n, v in zip(self._columns, theirs, strict=True)),
                    is_explainable=self._changed,
                )
                continue
            rowid, version, *ours = found
            self._found[rowid >> 3] |= 1 << (rowid & 7)
            if not all(map(_is_same, ours, theirs)):
                yield Difference(
                    self._table,
                    "different",
                    self._key_of(theirs),
                    tuple(
                        (name, upstream, replica)
                        for name, upstream, replica in zip(self._columns, theirs, ours, strict=True)
                        if not _is_same(upstream, replica)
                    ),
                    is_explainable=str(version) >= self._since,
                )

    def finish(self) -> Iterator[Difference]:
        found = self._found
        for rowid, *ours in self._connection.execute(
            f"SELECT _rowid_, {quote_all(self._columns)} "  # noqa: S608 - quoted
            # What was written later is not upstream's to compare.
            f"FROM {quote(self._table)} WHERE {VERSION_COLUMN} < ?",
            (self._since,),
        ):
            if not found[rowid >> 3] & 1 << (rowid & 7):
                yield Difference(
                    self._table,
                    "extra",
                    self._key_of(ours),
                    tuple((n, None, v) for n, v in zip(self._columns, ours, strict=True)),
                )

    def _key_of(self, row: Row) -> tuple[tuple[str, SQLiteValue], ...]:
        return tuple((name, row[at]) for name, at in zip(self._key, self._key_at, strict=True))


class _KeylessComparison:
    """Counts equal rows on both sides."""

    def __init__(self, connection: apsw.Connection, facts: TableFacts, since: str) -> None:
        self._connection = connection
        self._table = facts.table.wire_name
        self._columns = [column.name for column in facts.table.columns]
        self._since = since
        self._changed = _changed_since(connection, self._table, since)
        # Upstream's rows minus the replica's; types are told apart.
        self._surplus: Counter[tuple[tuple[str, SQLiteValue], ...]] = Counter()

    def add(self, rows: Iterable[Row]) -> Iterator[Difference]:
        self._surplus.update(map(_typed, rows))
        return iter(())

    def finish(self) -> Iterator[Difference]:
        select = f"SELECT {quote_all(self._columns)} FROM {quote(self._table)} "  # noqa: S608
        fresh = Counter(
            map(
                _typed,
                self._connection.execute(f"{select} WHERE {VERSION_COLUMN} >= ?", (self._since,)),
            )
        )
        self._surplus.subtract(map(_typed, self._connection.execute(select)))
        for row, surplus in self._surplus.items():
            # As many as were written later are not upstream's to compare.
            if surplus > 0 or surplus + fresh[row] < 0:
                yield Difference(
                    self._table,
                    "missing" if surplus > 0 else "extra",
                    (("digest", _digest(row)),),
                    tuple(
                        (name, value if surplus > 0 else None, None if surplus > 0 else value)
                        for name, (_, value) in zip(self._columns, row, strict=True)
                    ),
                    surplus if surplus > 0 else -(surplus + fresh[row]),
                    surplus > 0 and self._changed,
                )


def _typed(row: Row) -> tuple[tuple[str, SQLiteValue], ...]:
    return tuple((type(value).__name__, value) for value in row)


def _digest(row: object) -> str:
    return blake2b(repr(row).encode(), digest_size=8).hexdigest()


def _changed_since(connection: apsw.Connection, table: str, since: str) -> bool:
    """Whether any row of ``table`` was written or deleted under ``since`` or a later version."""
    rows = connection.execute(
        'SELECT 1 FROM "_zero.changeLog" WHERE version >= ? AND "table" = ? LIMIT 1',
        (since, table),
    )
    return rows.fetchone() is not None
