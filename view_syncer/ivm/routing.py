"""Which instances a changed row may concern, found by value.

For every level of every plan there is a dictionary from the values a row of that level must have
(the equality terms of a root, the correlation of a child) to the pipelines that want rows with
them. A change looks up its old and its new image; the cost depends on the plans that read the
table and on the pipelines that match, never on how many pipelines or client groups there are.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import apsw
import msgspec

from view_syncer.ivm.changes import Batch, TableChanges
from view_syncer.ivm.levels import encode_partitions
from view_syncer.ivm.pipeline import Pipeline, Touch
from view_syncer.ivm.plan import Climb, Level, Partition, Plan, partition_of
from zerocache.replica.schema import ReplicaSchema

Touched: TypeAlias = dict[Pipeline, Touch]


@dataclass(slots=True)
class _LevelRoutes:
    """Pipelines by the value at the level's route columns; ``everyone`` if it has none."""

    level: Level
    columns: tuple[str, ...]
    by_value: dict[Partition, set[Pipeline]] = field(default_factory=dict)
    everyone: set[Pipeline] = field(default_factory=set)

    def pipelines(self) -> set[Pipeline]:
        return self.everyone.union(*self.by_value.values())

    def add(self, value: Partition, pipeline: Pipeline) -> None:
        self.by_value.setdefault(value, set()).add(pipeline)

    def discard(self, value: Partition, pipeline: Pipeline) -> None:
        pipelines = self.by_value.get(value)
        if pipelines is not None:
            pipelines.discard(pipeline)
            if not pipelines:
                del self.by_value[value]


class Router:
    """Routing dictionaries of all live pipelines.

    * :meth:`add` before a pipeline hydrates, :meth:`remove` after it was released;
    * :meth:`on_support` keeps the child levels' values current (the pipelines call it).
    """

    def __init__(self, schema: ReplicaSchema) -> None:
        self._schema = schema
        self._plans: dict[Plan, dict[int, _LevelRoutes]] = {}
        self._counts: dict[Plan, int] = {}
        self._by_table: dict[str, list[_LevelRoutes]] = {}
        self._climbs: dict[str, list[tuple[_LevelRoutes, Climb]]] = {}
        self._readers: dict[str, set[Pipeline]] = {}
        self._watched: dict[str, tuple[str, ...]] | None = None

    def add(self, pipeline: Pipeline) -> None:
        plan = pipeline.plan
        if plan not in self._plans:
            self._add_plan(plan)
        self._counts[plan] = self._counts.get(plan, 0) + 1
        root = self._plans[plan][0]
        for value in _root_values(root.level, pipeline):
            root.add(value, pipeline)
        if not root.columns:
            root.everyone.add(pipeline)
        for table in plan.tables:
            self._readers.setdefault(table, set()).add(pipeline)

    def remove(self, pipeline: Pipeline) -> None:
        plan = pipeline.plan
        root = self._plans[plan][0]
        for value in _root_values(root.level, pipeline):
            root.discard(value, pipeline)
        root.everyone.discard(pipeline)
        for table in plan.tables:
            self._readers[table].discard(pipeline)
        self._counts[plan] -= 1
        if not self._counts[plan]:
            self._remove_plan(plan)

    def forget(self, pipeline: Pipeline) -> None:
        """:meth:`remove` for one that does not know any more what it reported."""
        for routes in self._plans[pipeline.plan].values():
            for value in list(routes.by_value):
                routes.discard(value, pipeline)
        self.remove(pipeline)

    def on_support(
        self,
        pipeline: Pipeline,
        level: int,
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> None:
        routes = self._plans[pipeline.plan][level]
        for value in gained:
            routes.add(value, pipeline)
        for value in lost:
            routes.discard(value, pipeline)

    def readers(self, table: str) -> Iterable[Pipeline]:
        """Every pipeline that reads ``table``, be it only inside an EXISTS."""
        return self._readers.get(table, ())

    def watched(self) -> Mapping[str, Sequence[str]]:
        """Columns of each table whose images a batch must hold."""
        if self._watched is None:
            columns: dict[str, set[str]] = {}
            for table, levels in self._by_table.items():
                wanted = columns.setdefault(table, set())
                for routes in levels:
                    wanted |= routes.level.relevant | set(routes.columns)
            for table, climbs in self._climbs.items():
                wanted = columns.setdefault(table, set())
                for _, climb in climbs:
                    wanted |= climb.relevant
            self._watched = {t: tuple(sorted(c)) for t, c in columns.items()}
        return self._watched

    def route(
        self,
        batch: Batch,
        new: apsw.Connection,
        refused: dict[Pipeline, apsw.SQLError] | None = None,
    ) -> Touched:
        """The pipelines a batch concerns, with the rows each must look at. Those for which SQLite
        does not take the statement that tells are put into ``refused``; without it the error is
        raised."""
        touched: Touched = {}
        for table, changes in batch.tables.items():
            rowids = changes.rowids()
            for routes in self._by_table.get(table, ()):
                _route_rows(routes, changes, rowids, touched)
            for routes, climb in self._climbs.get(table, ()):
                try:
                    self._route_climb(routes, climb, changes, new, touched)
                except apsw.SQLError as error:
                    if refused is None:
                        raise
                    refused.update(dict.fromkeys(routes.pipelines(), error))
        return touched

    def _route_climb(
        self,
        routes: _LevelRoutes,
        climb: Climb,
        changes: TableChanges,
        new: apsw.Connection,
        touched: Touched,
    ) -> None:
        positions = tuple(changes.columns[c] for c in climb.columns)
        values: set[Partition] = set()
        for rowid in changes.rowids():
            if not changes.differs(rowid, climb.relevant):
                continue
            for image in (changes.old.get(rowid), changes.new.get(rowid)):
                value = None if image is None else partition_of(image, positions)
                if value is not None:
                    values.add(value)
        if not values:
            return
        index = routes.level.index
        all_columns = tuple(range(1, 1 + len(climb.route_columns)))
        for row in new.execute(climb.sql, {"parts": encode_partitions(values)}):
            if routes.everyone:
                _touch(touched, routes.everyone, index, row[0])
            elif all_columns:
                value = partition_of(row, all_columns)
                if value is not None:
                    _touch(touched, routes.by_value.get(value, ()), index, row[0])

    def _add_plan(self, plan: Plan) -> None:
        levels: dict[int, _LevelRoutes] = {}
        for level in plan.levels:
            routes = _LevelRoutes(level, level.correlation or level.route.columns)
            levels[level.index] = routes
            self._by_table.setdefault(level.table, []).append(routes)
            for climb in level.climbs:
                self._climbs.setdefault(climb.table, []).append((routes, climb))
        self._plans[plan] = levels
        self._watched = None

    def _remove_plan(self, plan: Plan) -> None:
        del self._counts[plan]
        for routes in self._plans.pop(plan).values():
            self._by_table[routes.level.table].remove(routes)
            if not self._by_table[routes.level.table]:
                del self._by_table[routes.level.table]
            for climb in routes.level.climbs:
                self._climbs[climb.table].remove((routes, climb))
                if not self._climbs[climb.table]:
                    del self._climbs[climb.table]
        self._watched = None


def _root_values(root: Level, pipeline: Pipeline) -> list[Partition]:
    route = root.route
    if not route.columns:
        return []
    values = [pipeline.params[name] for name in route.params]
    if route.in_list:
        assert isinstance(values[0], str)
        return list(dict.fromkeys(msgspec.json.decode(values[0])))
    value = partition_of(values, tuple(range(len(values))))
    assert value is not None  # equality with NULL was folded to FALSE when the shape was made
    return [value]


def _touch(touched: Touched, pipelines: Iterable[Pipeline], level: int, rowid: int) -> None:
    for pipeline in pipelines:
        touched.setdefault(pipeline, Touch()).evaluate.setdefault(level, set()).add(rowid)


def _route_rows(
    routes: _LevelRoutes, changes: TableChanges, rowids: set[int], touched: Touched
) -> None:
    if not routes.everyone and not routes.by_value:
        return
    level = routes.level
    # A plain edit of other columns cannot move the row; members only need its new content.
    moved = {r for r in rowids if changes.differs(r, level.relevant)}
    for pipeline in routes.everyone:
        touch = touched.setdefault(pipeline, Touch())
        touch.content.setdefault(level.table, set()).update(rowids)
        if moved:
            touch.evaluate.setdefault(level.index, set()).update(moved)
    if not routes.by_value:
        return
    positions = tuple(changes.columns[c] for c in routes.columns)
    for images in (changes.old, changes.new):
        for rowid, image in images.items():
            value = partition_of(image, positions)
            if value is None:
                continue
            for pipeline in routes.by_value.get(value, ()):
                touch = touched.setdefault(pipeline, Touch())
                touch.content.setdefault(level.table, set()).add(rowid)
                if rowid in moved:
                    touch.evaluate.setdefault(level.index, set()).add(rowid)
