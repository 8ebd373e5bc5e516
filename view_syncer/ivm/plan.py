"""Plans: what the engine needs to know about a shape, worked out once per shape.

A plan is the shape's tree flattened into *levels* (root, every ``related``, every synced EXISTS),
parents before children, each with the statements that compute its rows and the facts that route
a changed row to it. Plans hold no rows and no parameters, so every instance of a shape shares one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import NamedTuple

from zerocache.replica.schema import ReplicaSchema
from zerocache.zql import sqlite
from zerocache.zql.shape import (
    WITNESS_LIMIT,
    ExistsFilter,
    Filter,
    Junction,
    LevelKind,
    Node,
    SqlValue,
    Term,
    filter_columns,
    shape_tables,
    walk_exists,
)

WINDOW_RESERVE = 20
"""Rows kept beyond a window's limit, so that a delete inside it refills without a query."""

COSTLY_WINDOW_RESERVE = 100
"""The same where no index leads to the beginning of the window, so that a query reads it all."""


@dataclass(frozen=True, eq=False)
class Climb:
    """How a changed row inside an EXISTS of a level leads to the level's rows.

    ``columns`` of the changed row are the correlation values to start from; only a change of one
    of ``relevant`` can alter the truth of the EXISTS.
    """

    table: str
    columns: tuple[str, ...]
    relevant: frozenset[str]
    node: Node
    path: tuple[ExistsFilter, ...]
    route_columns: tuple[str, ...]

    @cached_property
    def sql(self) -> str:
        """Inputs ``:parts``; yields rowid and the level's route columns."""
        return sqlite.climb(self.node, self.path, self.route_columns)


@dataclass(frozen=True)
class Link:
    """From a level to a child level: where the parent's half of the correlation stands among the
    parent's selected columns."""

    child: int
    positions: tuple[int, ...]


class OrderColumn(NamedTuple):
    """One column of an order, as a position in a level's selected rows (rowid first)."""

    position: int
    descending: bool


@dataclass(frozen=True)
class Route:
    """By which values a changed row finds the instances it may concern.

    ``params[i]`` names the parameter ``columns[i]`` must equal; without columns every instance
    is concerned. ``in_param`` marks a single column restricted by an IN list instead.
    """

    columns: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    in_list: bool = False


@dataclass(frozen=True, eq=False)
class Level:
    """One node of the query tree.

    ``columns`` are selected after the rowid, in this order: the correlation towards the parent,
    the parents' halves of the children's correlations, and for windows the order columns.
    """

    index: int
    kind: LevelKind
    parent: int | None
    node: Node
    correlation: tuple[str, ...]
    columns: tuple[str, ...]
    links: tuple[Link, ...]
    value_columns: int
    limit: int | None
    reserve: int
    order_positions: tuple[OrderColumn, ...]
    route: Route
    indexed: bool

    @property
    def table(self) -> str:
        return self.node.table

    @cached_property
    def correlation_positions(self) -> tuple[int, ...]:
        return tuple(self.columns.index(c) for c in self.correlation)

    @cached_property
    def relevant(self) -> frozenset[str]:
        """Columns whose change can move a row into, out of or within this level."""
        columns = filter_columns(self.node.where) | set(self.columns)
        if self.node.cursor is not None:
            columns |= {name for name, _ in self.node.order}
        return frozenset(columns)

    @cached_property
    def sql_candidates(self) -> str:
        """Inputs ``:rows`` (carray of rowids)."""
        return sqlite.candidate_rows(self.node, self.columns)

    @cached_property
    def sql_candidate(self) -> str:
        """Inputs ``:row`` (rowid)."""
        return sqlite.candidate_row(self.node, self.columns)

    @cached_property
    def sql_all(self) -> str:
        """Inputs ``:parts`` unless this is the root."""
        return sqlite.all_rows(self.node, self.columns, self.correlation)

    @cached_property
    def sql_first(self) -> str:
        """In one row; inputs ``:limit``, and ``:parts`` unless this is the root."""
        return sqlite.all_rows(self.node, self.columns, self.correlation, one_row=True)

    @cached_property
    def sql_window(self) -> str:
        """Inputs ``:limit`` and the partition's values ``:c0`` …."""
        return sqlite.window_rows(self.node, self.columns, self.correlation)

    @cached_property
    def sql_window_in_one_row(self) -> str:
        return sqlite.window_rows(self.node, self.columns, self.correlation, one_row=True)

    @cached_property
    def sql_windows(self) -> str:
        """Inputs ``:limit`` and ``:parts``."""
        return sqlite.window_rows_of_partitions(
            self.node, self.columns, self.correlation, indexed=self.indexed
        )

    @cached_property
    def sql_windows_in_one_row(self) -> str:
        return sqlite.window_rows_of_partitions(
            self.node, self.columns, self.correlation, indexed=self.indexed, one_row=True
        )

    @cached_property
    def climbs(self) -> tuple[Climb, ...]:
        route = self.correlation or self.route.columns
        return tuple(_climbs(self.node, self.node.where, (), route))


@dataclass(frozen=True, eq=False)
class Plan:
    shape: Node
    levels: tuple[Level, ...]

    @cached_property
    def tables(self) -> frozenset[str]:
        """Every table that is read, whether its rows are synced or only tested."""
        return frozenset(shape_tables(self.shape))

    @cached_property
    def levels_of_table(self) -> Mapping[str, tuple[Level, ...]]:
        found: dict[str, tuple[Level, ...]] = {}
        for level in self.levels:
            found[level.table] = (*found.get(level.table, ()), level)
        return found


def make_plan(shape: Node, schema: ReplicaSchema) -> Plan:
    builder = _Builder(schema)
    builder.add(shape, "root", None, ())
    return Plan(shape, tuple(level for level in builder.levels if level is not None))


@dataclass(frozen=True, slots=True)
class _Child:
    kind: LevelKind
    node: Node
    parent_columns: tuple[str, ...]
    child_columns: tuple[str, ...]


class _Builder:
    def __init__(self, schema: ReplicaSchema) -> None:
        self._schema = schema
        self.levels: list[Level | None] = []

    def add(
        self, node: Node, kind: LevelKind, parent: int | None, correlation: tuple[str, ...]
    ) -> int:
        index = len(self.levels)
        self.levels.append(None)
        limit = node.limit
        if kind == "witness":
            limit = WITNESS_LIMIT
            node = self._ordered_by_key(node)
        columns = list(dict.fromkeys(correlation))
        links = []
        for child in _children(node):
            for name in child.parent_columns:
                if name not in columns:
                    columns.append(name)
            positions = tuple(columns.index(c) for c in child.parent_columns)
            links.append(
                Link(self.add(child.node, child.kind, index, child.child_columns), positions)
            )
        value_columns = len(columns)
        order: list[OrderColumn] = []
        if limit is not None:
            for name, direction in node.order:
                if name not in columns:
                    columns.append(name)
                order.append(OrderColumn(1 + columns.index(name), direction == "desc"))
        self.levels[index] = Level(
            index=index,
            kind=kind,
            parent=parent,
            node=node,
            correlation=correlation,
            columns=tuple(columns),
            links=tuple(links),
            value_columns=value_columns,
            limit=limit,
            reserve=min(self._reserve(node, correlation), max(1, limit or 0)),
            order_positions=tuple(order),
            route=Route() if correlation else _root_route(node.where),
            indexed=self._indexed(node.table, correlation),
        )
        return index

    def _ordered_by_key(self, node: Node) -> Node:
        """Witnesses are the rows with the lowest replica keys: the same choice on every node and
        after every restart."""
        if node.order:
            return node
        key = self._schema[node.table].keys[0]
        order = tuple((column, "asc") for column in key)
        return Node(node.table, node.where, order, None, node.cursor, ())  # type: ignore[arg-type]

    def _indexes(self, table: str) -> Iterator[tuple[str, ...]]:
        yield from self._schema[table].indexes
        yield from self._schema[table].keys

    def _indexed(self, table: str, correlation: Sequence[str]) -> bool:
        return any(index[0] in correlation for index in self._indexes(table) if index)

    def _ordered(self, node: Node, correlation: Sequence[str]) -> bool:
        """Whether an index walks the rows of one partition in order."""
        fixed = {*correlation, *_equal_terms(node.where)}
        first = next((name for name, _ in node.order if name not in fixed), None)
        for index in self._indexes(node.table):
            prefix = tuple(takewhile(fixed.__contains__, index))
            walks = first is None or index[len(prefix) :][:1] == (first,)
            if walks and set(correlation) <= set(prefix):
                return True
        return False

    def _reserve(self, node: Node, correlation: Sequence[str]) -> int:
        """A partition is taken for small where an index finds it; what remains must be found in
        order."""
        small = bool(correlation) and self._indexed(node.table, correlation)
        cheap = small or self._ordered(node, correlation)
        return WINDOW_RESERVE if cheap else COSTLY_WINDOW_RESERVE


def _children(node: Node) -> Iterator[_Child]:
    for exists in walk_exists(node.where):
        # Rows behind NOT EXISTS are never needed: the client cannot evaluate it (zql.md §3.5).
        if exists.synced and not exists.negated:
            yield _Child("witness", exists.node, exists.parent_columns, exists.child_columns)
    for related in node.related:
        yield _Child("related", related.node, related.parent_columns, related.child_columns)


def _terms(where: Filter) -> Sequence[Filter]:
    return where.members if isinstance(where, Junction) and where.all else (where,)


def _equal_terms(where: Filter) -> dict[str, str]:
    """Columns that must equal a parameter, and its name."""
    return {
        t.column: t.param
        for t in _terms(where)
        if isinstance(t, Term) and t.op == "=" and not t.is_json and t.param
    }


def _root_route(where: Filter) -> Route:
    equal = _equal_terms(where)
    if equal:
        return Route(tuple(equal), tuple(equal.values()))
    for term in _terms(where):
        if isinstance(term, Term) and term.op == "IN" and not term.is_json and term.param:
            return Route((term.column,), (term.param,), in_list=True)
    return Route()


def _climbs(
    node: Node, where: Filter, path: tuple[ExistsFilter, ...], route: tuple[str, ...]
) -> Iterator[Climb]:
    for exists in walk_exists(where):
        here = (*path, exists)
        child = exists.node
        relevant = filter_columns(child.where) | set(exists.child_columns)
        if child.cursor is not None:
            relevant |= {name for name, _ in child.order}
        yield Climb(child.table, exists.child_columns, frozenset(relevant), node, here, route)
        yield from _climbs(node, child.where, here, route)


def partition_of(values: Sequence[SqlValue], positions: tuple[int, ...]) -> Partition | None:
    """The correlation value at ``positions``; None if any part is NULL, which never matches."""
    if len(positions) == 1:
        return values[positions[0]]
    parts = tuple(values[p] for p in positions)
    return None if None in parts else parts


Partition = str | int | float | tuple[SqlValue, ...]
