"""The rows of one level of one pipeline, and how a batch of changes moves them.

Invariant: after :meth:`update`, a level's members are exactly those a fresh hydration of the same
level under the same supported partitions would find. Levels read SQLite at the new snapshot only;
what was before they know from their own members.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import apsw
import msgspec

from view_syncer.ivm.plan import Level, Partition, partition_of
from view_syncer.ivm.window import SortKey, Window, sort_key
from zerocache.zql.shape import SqlValue

Values: TypeAlias = tuple[SqlValue, ...]
Params: TypeAlias = Mapping[str, SqlValue]

ROOT_PARTITION: Partition = ""
"""The one partition of a root level."""


@dataclass(slots=True)
class LevelDelta:
    """What a batch did to a level: values are the rows' selected columns. A row whose selected
    columns changed while it stayed is in both, with its old and its new values."""

    entered: dict[int, Values] = field(default_factory=dict)
    left: dict[int, Values] = field(default_factory=dict)


class LevelState(Protocol):
    level: Level
    members: dict[int, Values]
    support: dict[Partition, int]

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None: ...

    def update(
        self,
        db: apsw.Connection,
        candidates: Collection[int],
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> LevelDelta: ...


def level_state(level: Level, params: Params) -> LevelState:
    return PlainLevel(level, params) if level.limit is None else WindowLevel(level, params)


def rowid_array(rowids: Iterable[int]) -> Any:
    """``rowids`` in the form the table function ``carray`` takes."""
    return apsw.carray(array("q", rowids))


def encode_partitions(partitions: Collection[Partition]) -> str:
    return msgspec.json.encode(list(partitions)).decode()


class _Base:
    def __init__(self, level: Level, params: Params) -> None:
        self.level = level
        self.params = params
        self.members: dict[int, Values] = {}
        # How many parent members stand behind each partition; for a root its only partition.
        self.support: dict[Partition, int] = {ROOT_PARTITION: 1} if level.parent is None else {}

    def _partition(self, values: Values) -> Partition | None:
        if self.level.parent is None:
            return ROOT_PARTITION
        return partition_of(values, self.level.correlation_positions)

    def _fetch(self, db: apsw.Connection, sql: str, **inputs: Any) -> list[tuple[Any, ...]]:
        return db.execute(sql, {**self.params, **inputs}).fetchall()

    def _candidates(
        self, db: apsw.Connection, rowids: Collection[int]
    ) -> dict[int, tuple[Partition, Values]]:
        """Those of ``rowids`` that satisfy the filter and lie in a supported partition."""
        found: dict[int, tuple[Partition, Values]] = {}
        if not rowids:
            return found
        for row in self._fetch(db, self.level.sql_candidates, rows=rowid_array(rowids)):
            values = row[1:]
            partition = self._partition(values)
            if partition is not None and partition in self.support:
                found[row[0]] = (partition, values)
        return found


class PlainLevel(_Base):
    """A level without limit: every matching row of every supported partition is a member."""

    def __init__(self, level: Level, params: Params) -> None:
        super().__init__(level, params)
        # Rows by partition, so that a partition can leave without a query. Not for roots.
        self._by_partition: dict[Partition, set[int]] = {}

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None:
        for rowid, values in self._rows_of(db, partitions):
            self._add(rowid, values)

    def update(
        self,
        db: apsw.Connection,
        candidates: Collection[int],
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> LevelDelta:
        delta = LevelDelta()
        for partition in lost:
            for rowid in self._by_partition.pop(partition, ()):
                delta.left[rowid] = self.members.pop(rowid)
        found = self._candidates(db, candidates)
        for rowid in candidates:
            entry = found.get(rowid)
            old = self.members.get(rowid)
            if entry is None:
                if old is not None:
                    self._remove(rowid, old)
                    delta.left[rowid] = old
            elif old != entry[1]:
                if old is not None:
                    self._remove(rowid, old)
                    delta.left[rowid] = old
                self._add(rowid, entry[1])
                delta.entered[rowid] = entry[1]
        if gained:
            for rowid, values in self._rows_of(db, gained):
                if rowid not in self.members:
                    self._add(rowid, values)
                    delta.entered[rowid] = values
        return delta

    def _rows_of(
        self, db: apsw.Connection, partitions: Collection[Partition]
    ) -> Iterable[tuple[int, Values]]:
        if self.level.parent is None:
            rows = self._fetch(db, self.level.sql_all)
        elif partitions:
            rows = self._fetch(db, self.level.sql_all, parts=encode_partitions(partitions))
        else:
            return
        for row in rows:
            yield row[0], row[1:]

    def _add(self, rowid: int, values: Values) -> None:
        self.members[rowid] = values
        if self.level.parent is not None:
            partition = self._partition(values)
            assert partition is not None
            self._by_partition.setdefault(partition, set()).add(rowid)

    def _remove(self, rowid: int, values: Values) -> None:
        del self.members[rowid]
        if self.level.parent is not None:
            partition = self._partition(values)
            assert partition is not None
            rows = self._by_partition[partition]
            rows.discard(rowid)
            if not rows:
                del self._by_partition[partition]


class WindowLevel(_Base):
    """A level with a limit per partition (windows of a query, witnesses of an EXISTS)."""

    def __init__(self, level: Level, params: Params) -> None:
        super().__init__(level, params)
        assert level.limit is not None
        self._limit = level.limit
        self._windows: dict[Partition, Window] = {}
        # Every row some window knows, visible or reserve: where it is filed, and its values.
        self._filed: dict[int, tuple[Partition, SortKey, Values]] = {}

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None:
        self._load(db, partitions)
        for partition in partitions:
            for rowid in self._windows[partition].visible():
                self.members[rowid] = self._filed[rowid][2]

    def update(
        self,
        db: apsw.Connection,
        candidates: Collection[int],
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> LevelDelta:
        before: dict[Partition, set[int]] = {}
        found = self._candidates(db, candidates)
        touched: set[Partition] = set()
        for rowid in candidates:
            filed = self._filed.get(rowid)
            if filed is not None:
                touched.add(filed[0])
            if rowid in found:
                touched.add(found[rowid][0])
        touched.update(lost)
        touched.intersection_update(self._windows)
        old_values: dict[int, Values] = {}
        for partition in touched:
            before[partition] = self._windows[partition].visible()
            for rowid in before[partition]:
                old_values[rowid] = self._filed[rowid][2]
        for partition in gained:
            before.setdefault(partition, set())
        for partition in lost:
            self._drop(partition)
        self._refile(candidates, found)
        stale = [p for p in touched if p in self._windows and self._settle(p)]
        self._load(db, [*gained, *stale])
        return self._difference(before, old_values)

    def _refile(
        self,
        candidates: Collection[int],
        found: Mapping[int, tuple[Partition, Values]],
    ) -> None:
        for rowid in candidates:
            filed = self._filed.pop(rowid, None)
            if filed is not None:
                self._windows[filed[0]].remove(filed[1], rowid)
        for rowid, (partition, values) in found.items():
            window = self._windows.get(partition)
            if window is None:
                continue  # a partition gained by this very batch: fetched as a whole
            key = sort_key(values, self.level.order_positions)
            if window.insert(key, rowid):
                self._filed[rowid] = (partition, key, values)

    def _settle(self, partition: Partition) -> bool:
        """Trim a changed window; True if it must be fetched again."""
        window = self._windows[partition]
        for _, rowid in window.trim():
            del self._filed[rowid]
        return window.needs_refetch()

    def _drop(self, partition: Partition) -> None:
        window = self._windows.pop(partition, None)
        if window is not None:
            for _, rowid in window.entries:
                del self._filed[rowid]

    def _load(
        self, db: apsw.Connection, partitions: Sequence[Partition] | Collection[Partition]
    ) -> None:
        """Fetch the beginning of each partition from the database."""
        if not partitions:
            return
        entries: dict[Partition, list[tuple[SortKey, int]]] = {}
        for partition in partitions:
            self._drop(partition)
            self._windows[partition] = Window(self._limit)
            entries[partition] = []
        for row in self._beginnings(db, partitions):
            values = row[1:]
            partition_ = self._partition(values)
            assert partition_ is not None
            key = sort_key(values, self.level.order_positions)
            entries[partition_].append((key, row[0]))
            self._filed[row[0]] = (partition_, key, values)
        for partition, rows in entries.items():
            rows.sort()
            self._windows[partition].load(rows)

    def _beginnings(
        self, db: apsw.Connection, partitions: Collection[Partition]
    ) -> list[tuple[Any, ...]]:
        limit = next(iter(self._windows.values())).capacity if self._windows else 0
        if len(partitions) > 1:
            parts = encode_partitions(partitions)
            return self._fetch(db, self.level.sql_windows, parts=parts, limit=limit)
        (partition,) = partitions
        values: tuple[SqlValue, ...] = ()
        if self.level.parent is not None:
            values = partition if isinstance(partition, tuple) else (partition,)
        inputs = {f"c{i}": v for i, v in enumerate(values)}
        return self._fetch(db, self.level.sql_window, limit=limit, **inputs)

    def _difference(
        self, before: Mapping[Partition, set[int]], old_values: Mapping[int, Values]
    ) -> LevelDelta:
        delta = LevelDelta()
        after: dict[int, Values] = {}
        for partition in before:
            window = self._windows.get(partition)
            if window is not None:
                for rowid in window.visible():
                    after[rowid] = self._filed[rowid][2]
        for rowid, values in old_values.items():
            if after.get(rowid) != values:
                delta.left[rowid] = values
                del self.members[rowid]
        for rowid, values in after.items():
            if rowid not in self.members:
                delta.entered[rowid] = values
                self.members[rowid] = values
        return delta
