"""A pipeline: one query instance, the rows it needs on the client, and their maintenance.

Shared by every client group that asks the same. Invariant, and test oracle: after every
:meth:`Pipeline.apply`, the row set equals that of a fresh hydration at the same snapshot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import apsw

from view_syncer.ivm.changes import Batch
from view_syncer.ivm.digest import Digest
from view_syncer.ivm.levels import LevelDelta, LevelState, level_state, rowid_array
from view_syncer.ivm.plan import Partition, Plan, partition_of
from zerocache.protocol.versions import Watermark
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import quote
from zerocache.zql.shape import Instance

SupportListener = Callable[["Pipeline", int, Collection[Partition], Collection[Partition]], None]
"""Called with (pipeline, level, gained, lost) whenever a level's supported partitions change."""


@dataclass(slots=True)
class TableDelta:
    """Net effect on one table's rows, as sets of rowids that do not overlap.

    ``entered``: now needed, was not. ``left``: was needed, is not (or no longer exists).
    ``edited``: needed before and after, content may differ.
    """

    entered: set[int] = field(default_factory=set)
    left: set[int] = field(default_factory=set)
    edited: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.entered or self.left or self.edited)


Delta = dict[str, TableDelta]


@dataclass(slots=True)
class Touch:
    """What of a batch concerns one pipeline.

    ``evaluate``: per level the rows whose membership may have changed, by their own change or
    through an EXISTS. ``content``: per table every changed row that some level may hold.
    """

    evaluate: dict[int, set[int]] = field(default_factory=dict)
    content: dict[str, set[int]] = field(default_factory=dict)

    def size(self) -> int:
        return sum(map(len, self.evaluate.values())) + sum(map(len, self.content.values()))


_FIRST_GUESS_ROW_S = 5e-6
_MEASURED_FROM_ROWS = 16
"""Smaller batches say more about fixed costs than about rows."""


def _nobody(_: Pipeline, __: int, ___: Collection[Partition], ____: Collection[Partition]) -> None:
    """Listener of a pipeline that no router knows."""


class Pipeline:
    """One query instance over one replica.

    * The owner calls :meth:`hydrate` once, on any thread, then :meth:`attach`, then :meth:`apply`
      for every batch that touches it, in order, each with the newer snapshot of that batch.
    * ``touch`` of :meth:`apply` must include every changed row that satisfies the route of a
      level before or after, and every row an EXISTS change may have affected.
    """

    def __init__(self, plan: Plan, instance: Instance, *, max_rows: int = 0) -> None:
        self.plan = plan
        self.instance = instance
        self.params = dict(instance.params)
        self._max_rows = max_rows
        self._on_support: SupportListener = _nobody
        self.levels: list[LevelState] = self._empty_levels()
        # Measured costs, from which the owner chooses between advancing and recomputing.
        self.hydration_s = 0.0
        self._row_s = _FIRST_GUESS_ROW_S
        # How long its advances took, for whoever inspects it; None before the first.
        self.advances_ms: Digest | None = None

    def attach(self, on_support: SupportListener) -> None:
        """Report the supported partitions, those there are already and every later change."""
        self._on_support = on_support
        for state in self.levels:
            if state.level.parent is not None:
                on_support(self, state.level.index, state.support.keys(), ())

    def release(self) -> None:
        """Withdraw every supported partition from the listener, and forget it."""
        for state in self.levels:
            if state.level.parent is not None:
                self._on_support(self, state.level.index, (), state.support.keys())
        self._on_support = _nobody

    def rehydrate_is_cheaper(self, touch: Touch, min_rows: int, margin: float) -> bool:
        rows = touch.size()
        return rows >= min_rows and rows * self._row_s > margin * self.hydration_s

    def holds(self, table: str, rowid: int) -> bool:
        return any(
            rowid in self.levels[level.index].members
            for level in self.plan.levels_of_table.get(table, ())
        )

    def held_of(self, table: str, rowids: set[int]) -> set[int]:
        """Those of ``rowids`` that :meth:`holds` is true of."""
        found: set[int] = set()
        for level in self.plan.levels_of_table.get(table, ()):
            found |= self.levels[level.index].members.keys() & rowids
        return found

    def rows(self) -> dict[str, set[int]]:
        """The row set: rowids by table."""
        found: dict[str, set[int]] = {}
        for state in self.levels:
            found.setdefault(state.level.table, set()).update(state.members)
        return found

    def size(self) -> int:
        """About :meth:`row_count`, at once: rows of several levels count several times."""
        return sum(len(state.members) for state in self.levels)

    def row_count(self) -> int:
        return sum(len(rows) for rows in self.rows().values())

    def hydrate(self, db: apsw.Connection) -> None:
        start = time.perf_counter()
        for state in self.levels:
            state.hydrate(db, state.support.keys())
            self._support_children(state, LevelDelta(entered=state.members), {}, {})
        self._lift_limit()
        self.hydration_s = time.perf_counter() - start

    def _lift_limit(self) -> None:
        self._max_rows = 0
        for state in self.levels:
            state.max_rows = 0

    def apply(self, db: apsw.Connection, touch: Touch, batch: Batch) -> Delta:
        """Advance by one batch."""
        start = time.perf_counter()
        gained: dict[int, list[Partition]] = {}
        lost: dict[int, list[Partition]] = {}
        deltas: list[LevelDelta] = []
        for state in self.levels:
            index = state.level.index
            candidates = touch.evaluate.get(index, ())
            up, down = gained.get(index, ()), lost.get(index, ())
            if up or down:
                self._on_support(self, index, up, down)
            if candidates or up or down:
                delta = state.update(db, candidates, up, down)
                self._support_children(state, delta, gained, lost)
            else:
                delta = LevelDelta()
            deltas.append(delta)
        result = self._net(deltas, touch, batch)
        self._measure(time.perf_counter() - start, touch.size())
        return result

    def note_advance(self, milliseconds: float) -> None:
        """The owner took so long to bring it one batch further."""
        if self.advances_ms is None:
            self.advances_ms = Digest()
        self.advances_ms.add(milliseconds)

    def _measure(self, seconds: float, rows: int) -> None:
        if rows >= _MEASURED_FROM_ROWS:
            self._row_s += (seconds / rows - self._row_s) / 4

    def rehydrate(self, db: apsw.Connection, old_version: Watermark) -> Delta:
        """Recompute everything at ``db`` and report the difference: always correct, and cheaper
        than :meth:`apply` when much of the row set changed."""
        before = self.rows()
        listener = self._on_support
        self.release()
        self.levels = self._empty_levels()
        self.hydrate(db)
        self.attach(listener)
        after = self.rows()
        result: Delta = {}
        for table in before.keys() | after.keys():
            old, new = before.get(table, set()), after.get(table, set())
            delta = TableDelta(
                new - old, old - new, changed_since(db, table, old & new, old_version)
            )
            if delta:
                result[table] = delta
        return result

    def _empty_levels(self) -> list[LevelState]:
        return [level_state(lv, self.params, self._max_rows) for lv in self.plan.levels]

    def _support_children(
        self,
        state: LevelState,
        delta: LevelDelta,
        gained: dict[int, list[Partition]],
        lost: dict[int, list[Partition]],
    ) -> None:
        for link in state.level.links:
            support = self.levels[link.child].support
            positions = tuple(p + state.offset for p in link.positions)
            net: dict[Partition, int] = {}
            for values in delta.entered.values():
                partition = partition_of(values, positions)
                if partition is not None:
                    net[partition] = net.get(partition, 0) + 1
            for values in delta.left.values():
                partition = partition_of(values, positions)
                if partition is not None:
                    net[partition] = net.get(partition, 0) - 1
            for partition, change in net.items():
                if not change:
                    continue
                count = support.get(partition, 0)
                if count + change:
                    support[partition] = count + change
                else:
                    del support[partition]
                    lost.setdefault(link.child, []).append(partition)
                if not count:
                    gained.setdefault(link.child, []).append(partition)

    def _net(
        self,
        deltas: list[LevelDelta],
        touch: Touch,
        batch: Batch,
    ) -> Delta:
        result: Delta = {}
        for table, levels in self.plan.levels_of_table.items():
            entered: set[int] = set()
            left: set[int] = set()
            for level in levels:
                entered |= deltas[level.index].entered.keys()
                left |= deltas[level.index].left.keys()
            gone = {r for r in left if not self.holds(table, r)}
            fresh = {r for r in entered - left if not self._held_before(table, r, deltas)}
            changes = batch.tables.get(table)
            edited: set[int] = set()
            if changes is not None:
                changed = changes.rowids()
                edited = {
                    r
                    for r in touch.content.get(table, set()) | entered
                    if r in changed and r not in fresh and r not in gone and self.holds(table, r)
                }
            delta = TableDelta(fresh, gone, edited)
            if delta:
                result[table] = delta
        return result

    def _held_before(self, table: str, rowid: int, deltas: list[LevelDelta]) -> bool:
        """For a row that entered somewhere and left nowhere: was it a member elsewhere already?"""
        return any(
            rowid in self.levels[level.index].members and rowid not in deltas[level.index].entered
            for level in self.plan.levels_of_table[table]
        )


def changed_since(
    db: apsw.Connection, table: str, rowids: Iterable[int], version: Watermark
) -> set[int]:
    """Those of ``rowids`` written after ``version``."""
    sql = (
        f"SELECT _rowid_ FROM {quote(table)} "  # noqa: S608 (quoted identifiers only)
        f"WHERE _rowid_ IN (SELECT value FROM carray(?)) AND {quote(VERSION_COLUMN)} > ?"
    )
    rows = list(rowids)
    if not rows:
        return set()
    return {row[0] for row in db.execute(sql, (rowid_array(rows), version))}
