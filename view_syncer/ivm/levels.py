"""The rows of one level of one pipeline, and how a batch of changes moves them.

Invariant: after :meth:`update`, a level's members are exactly those a fresh hydration of the same
level under the same supported partitions would find. Levels read SQLite at the new snapshot only;
what was before they know from their own members.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, TypeAlias

import apsw
import msgspec

from view_syncer.ivm.plan import Level, Partition, partition_of
from view_syncer.ivm.window import Entry, Window, key_length, make_entries, make_entry
from zerocache.errors import QueryError
from zerocache.zql.shape import SqlValue

Values: TypeAlias = tuple[Any, ...]
Params: TypeAlias = Mapping[str, SqlValue]

_CHUNK_ROWS = 10_000
_ONE_STEP_ROWS = 1_000
"""Up to so many rows are fetched in one step."""

ROOT_PARTITION: Partition = ""
"""The one partition of a root level."""


@dataclass(slots=True)
class LevelDelta:
    """What a batch did to a level: what it kept of the rows. A row whose kept values changed
    while it stayed is in both, with the old and the new ones."""

    entered: dict[int, Values] = field(default_factory=dict)
    left: dict[int, Values] = field(default_factory=dict)


class LevelState(Protocol):
    level: Level
    members: dict[int, Values]
    support: dict[Partition, int]
    offset: int
    max_rows: int

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None: ...

    def update(
        self,
        db: apsw.Connection,
        candidates: Collection[int],
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> LevelDelta: ...


def level_state(level: Level, params: Params, max_rows: int = 0) -> LevelState:
    """``max_rows``: beyond this many members hydrating fails with :class:`QueryError`."""
    kind = PlainLevel if level.limit is None else WindowLevel
    return kind(level, params, max_rows)


def rowid_array(rowids: Iterable[int]) -> Any:
    """``rowids`` in the form the table function ``carray`` takes."""
    return apsw.carray(array("q", rowids))


def encode_partitions(partitions: Collection[Partition]) -> str:
    return msgspec.json.encode(list(partitions)).decode()


_decode_rows = msgspec.json.Decoder(list[tuple[str | int | float | None, ...]]).decode


def fetch_in_one_step(db: apsw.Connection, sql: str, inputs: Params) -> list[Values] | None:
    """What ``sql`` yields in one row; None if some value has no exact form in JSON, or if somebody
    counts the rows of this connection."""
    if db.row_trace is not None:
        return None
    try:
        ((text,),) = db.execute(sql, inputs)
        return _decode_rows(text)
    except (apsw.SQLError, apsw.TooBigError, msgspec.DecodeError):
        # Whoever goes through the rows one by one gets them, or is told what is wrong.
        return None


class _Base:
    def __init__(self, level: Level, params: Params, max_rows: int = 0) -> None:
        self.level = level
        self.params = params
        # 0 is no limit, and what the owner sets once the level is hydrated: an advance must not
        # fail for everybody because one query grew.
        self.max_rows = max_rows
        self.members: dict[int, Values] = {}
        # Where in a row's values its selected columns begin.
        self.offset = 0
        self._correlation = level.correlation_positions
        # How many parent members stand behind each partition; for a root its only partition.
        self.support: dict[Partition, int] = {ROOT_PARTITION: 1} if level.parent is None else {}

    def _partition(self, values: Values) -> Partition | None:
        if self.level.parent is None:
            return ROOT_PARTITION
        return partition_of(values, self._correlation)

    def _values(self, row: tuple[Any, ...]) -> Values:
        """What is kept of a selected row (rowid first)."""
        return row[1:]

    def _fetch(self, db: apsw.Connection, sql: str, **inputs: Any) -> Iterable[tuple[Any, ...]]:
        return db.execute(sql, {**self.params, **inputs})

    def _check_size(self, rows: int) -> None:
        if self.max_rows and rows > self.max_rows:
            raise QueryError(
                f"the query needs more than {self.max_rows} rows of table "
                f"{self.level.table!r}; give it a limit or a filter, or raise "
                "ZEROCACHE_MAX_ROWS_PER_QUERY"
            )

    def _candidates(
        self, db: apsw.Connection, rowids: Collection[int]
    ) -> dict[int, tuple[Partition, Values]]:
        """Those of ``rowids`` that satisfy the filter and lie in a supported partition."""
        found: dict[int, tuple[Partition, Values]] = {}
        if not rowids:
            return found
        if len(rowids) == 1:
            (rowid,) = rowids
            rows = self._fetch(db, self.level.sql_candidate, row=rowid)
        else:
            rows = self._fetch(db, self.level.sql_candidates, rows=rowid_array(rowids))
        for row in rows:
            values = self._values(row)
            partition = self._partition(values)
            if partition is not None and partition in self.support:
                found[row[0]] = (partition, values)
        return found


class PlainLevel(_Base):
    """A level without limit: every matching row of every supported partition is a member."""

    def __init__(self, level: Level, params: Params, max_rows: int = 0) -> None:
        super().__init__(level, params, max_rows)
        # Rows by partition, so that a partition can leave without a query. Not for roots.
        self._by_partition: dict[Partition, set[int]] = {}

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None:
        if self.level.parent is None:
            for chunk in self._chunks(db, partitions):
                self.members.update((row[0], row[1:]) for row in chunk)
            return
        members, by_partition = self.members, self._by_partition
        for chunk in self._chunks(db, partitions):
            for row in chunk:
                rowid, values = row[0], row[1:]
                members[rowid] = values
                partition = partition_of(values, self._correlation)
                assert partition is not None
                rows = by_partition.get(partition)
                if rows is None:
                    by_partition[partition] = {rowid}
                else:
                    rows.add(rowid)

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
        for chunk in self._chunks(db, gained) if gained else ():
            for rowid, *kept in chunk:
                if rowid not in self.members:
                    values = delta.entered[rowid] = tuple(kept)
                    self._add(rowid, values)
        return delta

    def _chunks(
        self, db: apsw.Connection, partitions: Collection[Partition]
    ) -> Iterable[list[tuple[Any, ...]]]:
        inputs: dict[str, Any] = dict(self.params)
        if self.level.parent is not None:
            if not partitions:
                return
            inputs["parts"] = encode_partitions(partitions)
        few = self._few(db, inputs, partitions)
        if few is not None:
            self._check_size(len(self.members) + len(few))
            yield few
            return
        cursor = db.execute(self.level.sql_all, inputs)
        count = len(self.members)
        # In chunks, so that a query without a limit is stopped before it fills the memory.
        while chunk := list(islice(cursor, _CHUNK_ROWS)):
            count += len(chunk)
            self._check_size(count)
            yield chunk

    def _few(
        self, db: apsw.Connection, inputs: Params, partitions: Collection[Partition]
    ) -> list[Values] | None:
        """All rows, if they are few children. Those of a root may take long to be found; to find
        out in vain that they are many must not."""
        if self.level.parent is None or len(partitions) > _ONE_STEP_ROWS:
            return None
        inputs = {**inputs, "limit": _ONE_STEP_ROWS + 1}
        rows = fetch_in_one_step(db, self.level.sql_first, inputs)
        return None if rows is None or len(rows) > _ONE_STEP_ROWS else rows

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
    """A level with a limit per partition (windows of a query, witnesses of an EXISTS).

    Values are window entries: the correlation and link columns stand at their end.
    """

    def __init__(self, level: Level, params: Params, max_rows: int = 0) -> None:
        super().__init__(level, params, max_rows)
        assert level.limit is not None
        self._limit = level.limit
        self._order = level.order_positions
        self._kept = level.value_columns
        self.offset = key_length(self._order)
        self._correlation = tuple(p + self.offset for p in level.correlation_positions)
        self._windows: dict[Partition, Window] = {}
        # Rows known to a window but not visible.
        self._reserve: dict[int, Values] = {}

    def hydrate(self, db: apsw.Connection, partitions: Collection[Partition]) -> None:
        self._load(db, partitions)
        for partition in partitions:
            self._show(self._windows[partition].visible())

    def update(
        self,
        db: apsw.Connection,
        candidates: Collection[int],
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> LevelDelta:
        delta = LevelDelta()
        for partition in lost:
            self._lose(partition, delta)
        found = self._candidates(db, candidates)
        touched = self._refile(candidates, found, delta)
        for partition, (old_last, inserted) in touched.items():
            window = self._windows[partition]
            if window.needs_refetch():
                self._refetch(db, partition, delta)
            else:
                self._shift(window, old_last, inserted, delta)
        if gained:
            self._load(db, gained)
            for partition in gained:
                self._enter(self._windows[partition].visible(), delta)
        return delta

    def _values(self, row: tuple[Any, ...]) -> Values:
        return make_entry(row, self._order, self._kept)

    # -- one batch ------------------------------------------------------------------------------

    def _refile(
        self,
        candidates: Collection[int],
        found: Mapping[int, tuple[Partition, Values]],
        delta: LevelDelta,
    ) -> dict[Partition, tuple[Entry | None, list[Entry]]]:
        """Take every candidate out of its window and put those that still belong in again.

        Returns, per touched window, the last visible entry it had before and what was put in.
        """
        touched: dict[Partition, tuple[Entry | None, list[Entry]]] = {}
        for rowid in candidates:
            old = self.members.pop(rowid, None)
            if old is not None:
                delta.left[rowid] = old
            else:
                old = self._reserve.pop(rowid, None)
            if old is not None:
                partition = self._partition(old)
                assert partition is not None
                window = self._windows[partition]
                touched.setdefault(partition, (window.last_visible(), []))
                window.remove(old)
        for rowid, (partition, values) in found.items():
            target = self._windows.get(partition)
            if target is None:
                continue  # a partition gained by this very batch: fetched as a whole
            _, inserted = touched.setdefault(partition, (target.last_visible(), []))
            if target.insert(values):
                self._reserve[rowid] = values
                inserted.append(values)
        return touched

    def _shift(
        self,
        window: Window,
        old_last: Entry | None,
        inserted: Iterable[Entry],
        delta: LevelDelta,
    ) -> None:
        """Rows between the old and the new end of the visible part change sides; of those put in
        by this batch the ones before the new end are visible."""
        new_last = window.last_visible()
        self._enter([e for e in inserted if new_last is None or e < new_last], delta)
        if old_last is not None and (new_last is None or old_last < new_last):
            self._enter(window.between(old_last, new_last), delta)
        elif new_last is not None and (old_last is None or new_last < old_last):
            for entry in window.between(new_last, old_last):
                self._hide(entry, delta)
        for dropped in window.trim():
            self._reserve.pop(dropped[self.offset - 1], None)

    def _refetch(self, db: apsw.Connection, partition: Partition, delta: LevelDelta) -> None:
        successor = self._windows[partition].successor()
        self._lose(partition, delta)
        self._load(db, [partition], successor)
        self._enter(successor.visible(), delta)

    def _lose(self, partition: Partition, delta: LevelDelta) -> None:
        window = self._windows.pop(partition, None)
        for entry in () if window is None else window.entries:
            rowid = entry[self.offset - 1]
            old = self.members.pop(rowid, None)
            if old is None:
                self._reserve.pop(rowid, None)
            else:
                delta.left.setdefault(rowid, old)

    def _enter(self, entries: Iterable[Entry], delta: LevelDelta) -> None:
        for entry in entries:
            rowid = entry[self.offset - 1]
            if rowid in self.members:
                continue
            if delta.left.get(rowid) == entry:
                del delta.left[rowid]  # it was only taken out to be looked at
            else:
                delta.entered[rowid] = entry
            self.members[rowid] = entry
            self._reserve.pop(rowid, None)

    def _hide(self, entry: Entry, delta: LevelDelta) -> None:
        rowid = entry[self.offset - 1]
        old = self.members.pop(rowid, None)
        if old is not None:
            delta.left[rowid] = old
            self._reserve[rowid] = old

    # -- loading --------------------------------------------------------------------------------

    def _load(
        self,
        db: apsw.Connection,
        partitions: Collection[Partition],
        window: Window | None = None,
    ) -> None:
        """Fetch the beginning of each partition; its visible rows are still to be shown.
        ``window`` is what to fill if it is a single one."""
        if not partitions:
            return
        sample = window or self._window()
        entries: dict[Partition, list[Entry]] = {p: [] for p in partitions}
        visible = len(self.members)
        rows = iter(self._beginnings(db, partitions, sample.capacity))
        # In chunks, so that a query with a large limit is stopped before it fills the memory.
        while chunk := make_entries(list(islice(rows, _CHUNK_ROWS)), self._order, self._kept):
            self._distribute(chunk, entries)
            self._check_size(visible + sum(min(len(e), self._limit) for e in entries.values()))
        for partition, found in entries.items():
            found.sort()
            target = self._windows[partition] = window or self._window()
            target.load(found)
            for entry in found[self._limit :]:
                self._reserve[entry[self.offset - 1]] = entry

    def _distribute(self, chunk: list[Entry], entries: dict[Partition, list[Entry]]) -> None:
        if len(entries) == 1:
            (only,) = entries.values()
            only.extend(chunk)
            return
        for entry in chunk:
            partition = self._partition(entry)
            assert partition is not None
            entries[partition].append(entry)

    def _window(self) -> Window:
        return Window(self._limit, self.offset, self.level.reserve)

    def _show(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            self.members[entry[self.offset - 1]] = entry

    def _beginnings(
        self, db: apsw.Connection, partitions: Collection[Partition], limit: int
    ) -> Iterable[tuple[Any, ...]]:
        level = self.level
        inputs: dict[str, Any] = {**self.params, "limit": limit}
        if len(partitions) > 1:
            inputs["parts"] = encode_partitions(partitions)
        elif level.parent is not None:
            (partition,) = partitions
            values = partition if isinstance(partition, tuple) else (partition,)
            inputs.update((f"c{i}", v) for i, v in enumerate(values))
        several = len(partitions) > 1
        if limit * len(partitions) <= _ONE_STEP_ROWS:
            sql = level.sql_windows_in_one_row if several else level.sql_window_in_one_row
            rows = fetch_in_one_step(db, sql, inputs)
            if rows is not None:
                return rows
        return db.execute(level.sql_windows if several else level.sql_window, inputs)
