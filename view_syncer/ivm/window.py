"""Ordered windows: the first N rows of a partition, maintained without re-running the query.

A window knows the true first rows of its partition down to ``bound``: the N visible ones plus a
hidden reserve. Rows beyond the bound are of no interest, so a change there is a no-op; a delete
inside is refilled from the reserve; only when the reserve runs dry must the owner refetch.

A row is one tuple, its :data:`Entry`: the order values made comparable, the rowid, and whatever
the owner wants to keep of the row. Two entries of different rows differ in the rowid at the
latest; a *bound* ends in a value above everything right after it, so that a row is on the same side
of a bound whatever else is kept of it. Entries and bounds are only ever compared by ``<``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Sequence
from operator import neg
from typing import Any, TypeAlias

from view_syncer.ivm.plan import OrderColumn

MAX_RESERVE = 640

Entry: TypeAlias = tuple[Any, ...]
BEFORE_ALL: Entry = ()
"""Sorts before every entry."""


class _First:
    """Less than anything it is compared with but itself."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return other is not self

    def __gt__(self, other: object) -> bool:
        return False


class _Last:
    """Greater than anything it is compared with but itself."""

    __slots__ = ()

    def __lt__(self, other: object) -> bool:
        return False

    def __gt__(self, other: object) -> bool:
        return other is not self


_FIRST = _First()
_LAST = _Last()


_COMPLEMENT = bytes(range(255, -1, -1))


def reversed_text(text: str) -> bytes:
    """Sorts as ``text`` does in reverse. UTF-8 sorts by code point; the end of a text, which comes
    last in reverse, is above every complement, because no text of Postgres has a NUL."""
    return text.encode().translate(_COMPLEMENT) + b"\xff"


def make_entry(row: Sequence[Any], order: Sequence[OrderColumn], kept: int) -> Entry:
    """The entry of a selected row (rowid first) under ``order``: NULL before numbers before
    strings, strings by code point, as SQLite and zql.md §2.4 order them. The first ``kept``
    columns follow the rowid."""
    parts: list[Any] = []
    for position, descending in order:
        value = row[position]
        if value is None:
            parts.append(_LAST if descending else _FIRST)
        elif not descending:
            parts.append(value)
        else:
            parts.append(reversed_text(value) if isinstance(value, str) else -value)
    parts += row[: kept + 1]
    return tuple(parts)


def make_entries(
    rows: Sequence[Sequence[Any]], order: Sequence[OrderColumn], kept: int
) -> list[Entry]:
    """:func:`make_entry` of each, column by column: several times faster for many rows."""
    columns = list(zip(*rows, strict=True))
    parts: list[Iterable[Any]] = []
    for position, descending in order:
        made = _comparable(columns[position], descending) if columns else ()
        if made is None:
            return [make_entry(row, order, kept) for row in rows]
        parts.append(made)
    return list(zip(*parts, *columns[: kept + 1], strict=True))


def _comparable(column: Collection[Any], descending: bool) -> Iterable[Any] | None:
    """The values of an order column as parts of entries; None if they are not all of a kind."""
    kinds = set(map(type, column))
    if kinds <= {int, float}:
        return map(neg, column) if descending else column
    if kinds == {str}:
        return map(reversed_text, column) if descending else column
    return None


def key_length(order: Sequence[OrderColumn]) -> int:
    """How many parts of an entry come before what is kept of the row: the rowid is the last."""
    return len(order) + 1


class Window:
    """The known beginning of one partition.

    * ``entries`` are sorted and hold every row of the partition up to ``bound``;
    * ``bound`` None means the partition is known completely;
    * the visible rows are the first ``limit`` entries;
    * ``key_length`` counts the parts of an entry up to and including the rowid.
    """

    __slots__ = ("_key", "bound", "entries", "limit", "reserve")

    def __init__(self, limit: int, key_length: int, reserve: int) -> None:
        self.limit = limit
        self.reserve = reserve
        self._key = key_length
        self.entries: list[Entry] = []
        self.bound: Entry | None = None

    def successor(self) -> Window:
        """The window to fetch when this one ran dry: rows leave it faster than they come, so it
        gets four times the reserve and the next fetch is that much farther away."""
        reserve = min(4 * self.reserve, max(MAX_RESERVE, self.reserve))
        return Window(self.limit, self._key, reserve)

    @property
    def capacity(self) -> int:
        return self.limit + self.reserve

    def load(self, entries: list[Entry]) -> None:
        """Replace the content by a fetch of at most :attr:`capacity` rows in order."""
        self.entries = entries
        self.bound = self._bound(entries[-1]) if len(entries) >= self.capacity else None

    def _bound(self, entry: Entry) -> Entry:
        return (*entry[: self._key], _LAST)

    def visible(self) -> list[Entry]:
        return self.entries[: self.limit]

    def last_visible(self) -> Entry | None:
        """Bound of the visible part; None while there is room for more."""
        if self.limit == 0:
            return BEFORE_ALL
        if len(self.entries) < self.limit:
            return None
        return self._bound(self.entries[self.limit - 1])

    def between(self, low: Entry, high: Entry | None) -> list[Entry]:
        """Entries between two bounds (None: to the end)."""
        end = len(self.entries) if high is None else bisect_left(self.entries, high)
        return self.entries[bisect_left(self.entries, low) : end]

    def remove(self, entry: Entry) -> None:
        index = bisect_left(self.entries, entry)
        if index >= len(self.entries) or self.entries[index] is not entry:
            raise AssertionError("a row is not in the window it was filed under")
        del self.entries[index]

    def insert(self, entry: Entry) -> bool:
        """Add a row; False if it lies beyond the bound and is therefore not kept."""
        if self.bound is not None and self.bound < entry:
            return False
        insort(self.entries, entry)
        return True

    def trim(self) -> Sequence[Entry]:
        """Drop what exceeds twice the reserve; returns the dropped entries."""
        if len(self.entries) <= self.capacity + self.reserve:
            return ()
        dropped = self.entries[self.capacity :]
        del self.entries[self.capacity :]
        self.bound = self._bound(self.entries[-1])
        return dropped

    def needs_refetch(self) -> bool:
        return self.bound is not None and len(self.entries) < self.limit
