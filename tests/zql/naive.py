"""ZQL evaluated the obvious way, over lists of dicts: a second opinion for the SQL compilers.

Owns the plain reading of zql.md §2-4 with no optimisation at all. Names are whatever the rows
use. Invariant: shares no code with what it judges, except the comparison of two literals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zerocache.zql.ast import (
    And,
    ColumnRef,
    Condition,
    CorrelatedSubquery,
    Correlation,
    Exists,
    LiteralRef,
    Or,
    Query,
    Simple,
)
from zerocache.zql.builder import Format
from zerocache.zql.shape import compare

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Naive:
    rows: Mapping[str, Sequence[Row]]
    keys: Mapping[str, Sequence[str]]

    def window(self, query: Query, correlation: Correlation | None = None,
               parent: Row | None = None) -> list[Row]:  # fmt: skip
        """The rows of one node, in order: scan, start, where, limit."""
        found = [
            row
            for row in self._ordered(query)
            if correlation is None or parent is None or _correlated(correlation, parent, row)
        ]
        found = [row for row in found if self._keeps(query, row)]
        return found if query.limit is None else found[: query.limit]

    def synced(self, query: Query) -> set[tuple[str, tuple[Any, ...]]]:
        """(table, key) of every result row, hidden ones included."""
        found: set[tuple[str, tuple[Any, ...]]] = set()
        self._collect(query, self.window(query), found)
        return found

    def tree(self, query: Query, shape: Format) -> Any:
        """The result as mutators see it."""
        return self._shaped(query, self.window(query), shape)

    def _collect(self, query: Query, rows: list[Row], found: set[Any]) -> None:
        for row in rows:
            found.add((query.table, tuple(row[c] for c in self.keys[query.table])))
            for related in _last_by_alias(query).values():
                children = self.window(related.subquery, related.correlation, row)
                self._collect(related.subquery, children, found)

    def _shaped(self, query: Query, rows: list[Row], shape: Format) -> Any:
        result = []
        for row in rows:
            shaped = dict(row)
            for alias, related in _last_by_alias(query).items():
                children = self.window(related.subquery, related.correlation, row)
                target = related.subquery
                if related.hidden:
                    children, target = self._beyond(related.subquery, children)
                shaped[alias] = self._shaped(target, children, shape.relationships[alias])
            result.append(shaped)
        if shape.singular:
            return result[0] if result else None
        return result

    def _beyond(self, junction: Query, rows: list[Row]) -> tuple[list[Row], Query]:
        """What the rows of a junction lead to, each once, in the order of the destination."""
        [hop] = junction.related or []
        reached = [r for row in rows for r in self.window(hop.subquery, hop.correlation, row)]
        return [r for r in self._ordered(hop.subquery) if r in reached], hop.subquery

    def _order(self, query: Query) -> list[tuple[str, str]]:
        order = dict(reversed(query.order_by or []))
        given = [(c, d) for c, d in query.order_by or [] if order.pop(c, None)]
        mentioned = {c for c, _ in given}
        return [*given, *((c, "asc") for c in self.keys[query.table] if c not in mentioned)]

    def _ordered(self, query: Query) -> list[Row]:
        rows = list(self.rows[query.table])
        for column, direction in reversed(self._order(query)):
            rows.sort(key=lambda r: _sort_key(r[column]), reverse=direction == "desc")
        return rows

    def _keeps(self, query: Query, row: Row) -> bool:
        if query.start is not None:
            position = self._compare(query, row, query.start.row)
            if position < 0 or (position == 0 and query.start.exclusive):
                return False
        return query.where is None or self.holds(query.where, row)

    def _compare(self, query: Query, row: Row, cursor: Row) -> int:
        for column, direction in self._order(query):
            mine, other = _sort_key(row[column]), _sort_key(cursor.get(column))
            if mine != other:
                return 1 if (mine > other) == (direction == "asc") else -1
        return 0

    def holds(self, condition: Condition, row: Row) -> bool:
        match condition:
            case And(members):
                return all(self.holds(member, row) for member in members)
            case Or(members):
                return any(self.holds(member, row) for member in members)
            case Simple(op, left, LiteralRef(value)):
                own = row[left.name] if isinstance(left, ColumnRef) else _literal(left)
                return compare(own, op, value)
            case Exists(op, related):
                return self._exists(related, row) == (op == "EXISTS")
        raise AssertionError(f"not a condition: {condition}")

    def _exists(self, related: CorrelatedSubquery, row: Row) -> bool:
        query = related.subquery
        return query.limit != 0 and any(
            _correlated(related.correlation, row, child) and self._keeps(query, child)
            for child in self.rows[query.table]
        )


def _literal(value: Any) -> Any:
    assert isinstance(value, LiteralRef)
    return value.value


def _correlated(correlation: Correlation, parent: Row, child: Row) -> bool:
    pairs = zip(correlation.parent_field, correlation.child_field, strict=True)
    return all(parent[p] is not None and parent[p] == child[c] for p, c in pairs)


def _last_by_alias(query: Query) -> dict[str, CorrelatedSubquery]:
    return {r.subquery.alias or "": r for r in query.related or []}


def _sort_key(value: Any) -> tuple[bool, Any]:
    return value is not None, 0 if value is None else value
