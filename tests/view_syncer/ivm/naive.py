"""ZQL by the letter of zql.md §2-4, over rows as dicts: the oracle of the engine's corpus.

Owns the plain reading of the specification, as slow as it comes, and shares no code with what it
judges. ``result`` and ``may`` are the sets of §4.3; what a client must be able to find true with
the rows it got is ``unexplained``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from zerocache.zql.ast import (
    And,
    ColumnRef,
    Condition,
    CorrelatedSubquery,
    Exists,
    LiteralRef,
    Or,
    Query,
    Simple,
    Start,
)

Row: TypeAlias = Mapping[str, Any]
Identity: TypeAlias = tuple[str, tuple[Any, ...]]


class Naive:
    """Answers for one state of the database. ``keys``: the row key of each table."""

    def __init__(
        self, rows: Mapping[str, Iterable[Row]], keys: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._rows = {table: list(several) for table, several in rows.items()}
        self._keys = keys

    def identity(self, table: str, row: Row) -> Identity:
        return table, tuple(row[c] for c in self._keys[table])

    def result(self, query: Query) -> set[Identity]:
        """Root and related rows: what must be synced whatever the witnesses."""
        return {self.identity(node.table, row) for node, row in self._emitted(query, None, None)}

    def may(self, query: Query) -> set[Identity]:
        """Result rows and every witness of an emitted row."""
        found: set[Identity] = set()
        for node, row in self._emitted(query, None, None):
            found.add(self.identity(node.table, row))
            found.update(self._witnesses(node.where, row))
        return found

    def unexplained(self, query: Query, synced: set[Identity]) -> set[Identity]:
        """Result rows that a client holding only ``synced`` would not find to match."""
        return {
            self.identity(node.table, row)
            for node, row in self._emitted(query, None, None)
            if node.where is not None and not self._holds(node.where, row, synced)
        }

    def _emitted(
        self, query: Query, hop: CorrelatedSubquery | None, parent: Row | None
    ) -> Iterator[tuple[Query, Row]]:
        for row in self.window(query, hop, parent):
            yield query, row
            for related in {r.subquery.alias: r for r in query.related or ()}.values():
                if related.system != "permissions":
                    yield from self._emitted(related.subquery, related, row)

    def window(
        self, query: Query, hop: CorrelatedSubquery | None = None, parent: Row | None = None
    ) -> list[Row]:
        """The rows of one node under one parent: scan in order, start, where, limit."""
        rows = list(self._rows[query.table])
        if hop is not None and parent is not None:
            rows = [row for row in rows if _correlated(hop, parent, row)]
        order = self._order(query)
        for column, direction in reversed(order):
            rows.sort(key=lambda row: _sort_key(row[column]), reverse=direction == "desc")
        if query.start is not None:
            rows = [row for row in rows if _after(query.start, order, row)]
        if query.where is not None:
            rows = [row for row in rows if self._holds(query.where, row, None)]
        return rows if query.limit is None else rows[: query.limit]

    def _order(self, query: Query) -> list[tuple[str, str]]:
        order: list[tuple[str, str]] = []
        for column, direction in (
            *(query.order_by or ()),
            *((c, "asc") for c in self._keys[query.table]),
        ):
            if column not in (c for c, _ in order):
                order.append((column, direction))
        return order

    def _holds(self, condition: Condition, row: Row, synced: set[Identity] | None) -> bool:
        """``synced``: as the client finds it; None: as it is."""
        match condition:
            case And(members):
                return all(self._holds(m, row, synced) for m in members)
            case Or(members):
                return any(self._holds(m, row, synced) for m in members)
            case Exists(op, hop):
                # The client has neither rows behind permissions nor NOT EXISTS.
                local = None if op == "NOT EXISTS" or hop.system == "permissions" else synced
                return any(self._children(hop, row, local)) == (op == "EXISTS")
            case Simple(op, left, right):
                assert isinstance(right, LiteralRef)
                if isinstance(left, ColumnRef):
                    return compare(row[left.name], op, right.value)
                assert isinstance(left, LiteralRef)
                return compare(left.value, op, right.value)

    def _children(
        self, hop: CorrelatedSubquery, parent: Row, synced: set[Identity] | None
    ) -> Iterator[Row]:
        node = hop.subquery
        if node.limit == 0:
            return
        for row in self._rows[node.table]:
            if (
                _correlated(hop, parent, row)
                and (synced is None or self.identity(node.table, row) in synced)
                and (node.start is None or _after(node.start, self._order(node), row))
                and (node.where is None or self._holds(node.where, row, synced))
            ):
                yield row

    def _witnesses(self, condition: Condition | None, row: Row) -> Iterator[Identity]:
        if isinstance(condition, (And, Or)):
            for member in condition.conditions:
                yield from self._witnesses(member, row)
        elif isinstance(condition, Exists) and condition.related.system != "permissions":
            node = condition.related.subquery
            for child in self._children(condition.related, row, None):
                yield self.identity(node.table, child)
                yield from self._witnesses(node.where, child)


def _correlated(hop: CorrelatedSubquery, parent: Row, child: Row) -> bool:
    pairs = zip(hop.correlation.parent_field, hop.correlation.child_field, strict=True)
    return all(compare(parent[p], "=", child[c]) for p, c in pairs)


def _after(start: Start, order: list[tuple[str, str]], row: Row) -> bool:
    for column, direction in order:
        mine, bound = _sort_key(row[column]), _sort_key(start.row.get(column))
        if mine != bound:
            return (mine > bound) == (direction == "asc")
    return not start.exclusive


def _sort_key(value: Any) -> tuple[Any, ...]:
    return (0,) if value is None else (1, value)


def _same(left: Any, right: Any) -> bool:
    for kind in (bool, str, (int, float)):
        if isinstance(left, kind) or isinstance(right, kind):
            return isinstance(left, kind) and isinstance(right, kind) and bool(left == right)
    return False


def compare(left: Any, op: str, right: Any) -> bool:
    """The truth table of zql.md §2.2."""
    if op == "IS NOT":
        return not compare(left, "IS", right)
    if op == "IS" and (left is None or right is None):
        return left is None and right is None
    if left is None or right is None:
        return False
    if op.startswith("NOT "):
        return not compare(left, op.removeprefix("NOT "), right)
    match op:
        case "=" | "IS":
            return _same(left, right)
        case "!=":
            return not _same(left, right)
        case "IN":
            return any(_same(left, member) for member in right)
        case "LIKE":
            return isinstance(left, str) and isinstance(right, str) and like(left, right)
        case "ILIKE":
            both = isinstance(left, str) and isinstance(right, str)
            return both and like(left.lower(), right.lower())
    comparable = _same(left, left) and _same(right, right)
    kinds = {bool if isinstance(v, bool) else str if isinstance(v, str) else int
             for v in (left, right)}  # fmt: skip
    if not comparable or len(kinds) != 1:
        return False
    below, equal = bool(left < right), bool(left == right)
    return {"<": below, "<=": below or equal, ">": not (below or equal), ">=": not below}[op]


def like(text: str, pattern: str) -> bool:
    """LIKE (zql.md §2.3) one character at a time."""
    if not pattern:
        return not text
    first, rest = pattern[0], pattern[1:]
    if first == "%":
        return any(like(text[i:], rest) for i in range(len(text) + 1))
    if not text:
        return False
    if first == "_":
        return like(text[1:], rest)
    if first == "\\":
        first, rest = rest[0], rest[1:]
    return text[0] == first and like(text[1:], rest)
