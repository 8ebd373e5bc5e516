"""Ordered windows: the first N rows of a partition, maintained without re-running the query.

A window knows the true first rows of its partition down to ``bound``: the N visible ones plus a
hidden reserve. Rows beyond the bound are of no interest, so a change there is a no-op; a delete
inside is refilled from the reserve; only when the reserve runs dry must the owner refetch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from view_syncer.ivm.plan import WINDOW_RESERVE
from zerocache.zql.shape import SqlValue

SortKey: TypeAlias = tuple[Any, ...]
Entry: TypeAlias = tuple[SortKey, int]


class Descending:
    """A string that sorts in reverse."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __lt__(self, other: Descending) -> bool:
        return other.text < self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Descending) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)


def sort_key(values: Sequence[SqlValue], order: Sequence[tuple[int, bool]]) -> SortKey:
    """Comparable key of a row under ``order`` (position, descending): NULL before numbers before
    strings, strings by code point, as SQLite and zql.md §2.4 order them."""
    parts: list[Any] = []
    for position, descending in order:
        value = values[position]
        if value is None:
            parts.append((2,) if descending else (0,))
        elif isinstance(value, str):
            parts.append((0, Descending(value)) if descending else (2, value))
        else:
            parts.append((1, -value if descending else value))
    return tuple(parts)


class Window:
    """The known beginning of one partition.

    * ``entries`` are sorted and hold every row of the partition up to ``bound``;
    * ``bound`` None means the partition is known completely;
    * the visible rows are the first ``limit`` entries.
    """

    __slots__ = ("bound", "entries", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.entries: list[Entry] = []
        self.bound: SortKey | None = None

    @property
    def reserve(self) -> int:
        return min(WINDOW_RESERVE, max(1, self.limit))

    @property
    def capacity(self) -> int:
        return self.limit + self.reserve

    def load(self, entries: Sequence[Entry]) -> None:
        """Replace the content by a fetch of at most :attr:`capacity` rows in order."""
        self.entries = list(entries)
        self.bound = self.entries[-1][0] if len(entries) >= self.capacity else None

    def visible(self) -> set[int]:
        return {rowid for _, rowid in self.entries[: self.limit]}

    def remove(self, key: SortKey, rowid: int) -> None:
        index = bisect_left(self.entries, (key, rowid))
        if index >= len(self.entries) or self.entries[index][1] != rowid:
            raise AssertionError(f"row {rowid} is not in the window it was filed under")
        del self.entries[index]

    def insert(self, key: SortKey, rowid: int) -> bool:
        """Add a row; False if it lies beyond the bound and is therefore not kept."""
        if self.bound is not None and self.bound < key:
            return False
        insort(self.entries, (key, rowid))
        return True

    def trim(self) -> Iterable[Entry]:
        """Drop what exceeds twice the reserve; yields the dropped entries."""
        if len(self.entries) <= self.capacity + self.reserve:
            return ()
        dropped = self.entries[self.capacity :]
        del self.entries[self.capacity :]
        self.bound = self.entries[-1][0]
        return dropped

    def needs_refetch(self) -> bool:
        return self.bound is not None and len(self.entries) < self.limit
