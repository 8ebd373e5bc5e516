"""Which indexes a plan would be glad of: SQLite's own query plans, read and judged.

A pure function of a plan and a snapshot: it runs nothing but EXPLAIN QUERY PLAN and bounded
counts, and the same snapshot gives the same advice. It asks nobody for anything and builds nothing.

A statement has a problem where it reads a large table from end to end, builds an index of its own
for one run, or sorts many rows to keep a few. The remedy is read off the statement itself: columns
compared for equality first (constants, then correlations and lists), then the order, or else one
range. Filters that no index serves (OR, LIKE, JSON members) are left to be checked row by row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import apsw
import sqlglot
from sqlglot import exp

from view_syncer.ivm.plan import Plan
from zerocache.replica.auto_index import (
    ExistingIndex,
    IndexColumn,
    IndexWish,
    count_rows,
    indexes_of,
    statistics,
    without_redundant,
)
from zerocache.replica.planner_statistics import ASSUMED_ROWS
from zerocache.zql.shape import SqlValue

SCAN_ROWS = 10_000
"""A table with fewer rows is read from end to end faster than anybody notices (about 1 ms)."""
SORT_ROWS = 1_000
"""So many rows under one key of an index make sorting them worth avoiding."""
MAX_COLUMNS = 6

Problem = Literal["scan", "temporary index", "sort"]

_ALIASED = re.compile(r'"((?:[^"]|"")+)" AS (t\d+)\b')
_PARAMETER = re.compile(r":([a-z]\w*)")
_LOOP = re.compile(r"(SCAN|SEARCH) (\S+)(.*)", re.DOTALL)
_INDEX = re.compile(r"USING (?:COVERING )?INDEX (.+?)(?: \((.*)\))?$", re.DOTALL)
_FULL_SORT = "USE TEMP B-TREE FOR ORDER BY"


@dataclass(frozen=True, slots=True)
class PlanLine:
    """One line of a query plan. ``table`` is set for a loop over a replica table."""

    id: int
    parent: int
    detail: str
    alias: str = ""
    table: str = ""

    @property
    def full_scan(self) -> bool:
        return bool(self.table) and self.detail.startswith("SCAN ")

    @property
    def automatic(self) -> bool:
        return bool(self.table) and " AUTOMATIC " in self.detail

    @property
    def index(self) -> str | None:
        """The replica's index this loop uses."""
        found = None if not self.table or self.automatic else _INDEX.search(self.detail)
        return None if found is None else found[1]

    @property
    def index_columns(self) -> int:
        """How many leading columns of :attr:`index` are compared for equality."""
        found = _INDEX.search(self.detail)
        terms = "" if found is None else found[2] or ""
        return 0 if terms.startswith("ANY(") else terms.count("=?")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement the engine runs for one level of a plan."""

    level: int
    purpose: str
    sql: str


@dataclass(frozen=True, slots=True)
class Explained:
    statement: Statement
    lines: tuple[PlanLine, ...]

    @property
    def indexes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(line.index for line in self.lines if line.index))


@dataclass(frozen=True, slots=True)
class Advice:
    """``wish`` would help the statement ``sql``; its table has about ``rows`` rows."""

    wish: IndexWish
    problem: Problem
    rows: int
    sql: str


@dataclass(frozen=True, slots=True)
class Examination:
    statements: tuple[Explained, ...]
    advice: tuple[Advice, ...]

    def used(self, db: apsw.Connection) -> list[ExistingIndex]:
        """The indexes the statements use."""
        names = {name for s in self.statements for name in s.indexes}
        tables = {line.table for s in self.statements for line in s.lines if line.index}
        return [i for table in sorted(tables) for i in indexes_of(db, table) if i.name in names]


def statements_of(plan: Plan) -> Iterator[Statement]:
    """Everything the engine may run for ``plan``."""
    for level in plan.levels:
        if level.limit is None:
            yield Statement(level.index, "all rows", level.sql_all)
        else:
            yield Statement(level.index, "window", level.sql_window)
            if level.parent is not None:
                yield Statement(level.index, "windows", level.sql_windows)
        yield Statement(level.index, "changed rows", level.sql_candidates)
        for climb in level.climbs:
            yield Statement(level.index, f"rows reached from {climb.table}", climb.sql)


def explain(db: apsw.Connection, sql: str, params: Mapping[str, SqlValue]) -> tuple[PlanLine, ...]:
    """SQLite's plan for ``sql``, without running it."""
    tables = {alias: name.replace('""', '"') for name, alias in _ALIASED.findall(sql)}
    # Inputs that only a run has are NULL; the planner looks at values where it has statistics.
    values = {name: params.get(name) for name in _PARAMETER.findall(sql)}
    lines = []
    # Only a statement that runs notices that the schema changed; EXPLAIN would show the old plan.
    db.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchall()
    for number, parent, _, detail in db.execute(
        f"EXPLAIN QUERY PLAN {sql}", values, can_cache=False
    ):
        loop = _LOOP.match(detail)
        alias = loop[2] if loop and loop[2] in tables else ""
        lines.append(PlanLine(number, parent, detail, alias, tables.get(alias, "")))
    return tuple(lines)


def examine(
    plan: Plan,
    db: apsw.Connection,
    params: Mapping[str, SqlValue],
    *,
    scan_rows: int = SCAN_ROWS,
    sort_rows: int = SORT_ROWS,
) -> Examination:
    """Explain every statement of ``plan`` and say which indexes are missing."""
    facts = _Facts(db, scan_rows)
    explained = []
    found: dict[IndexWish, Advice] = {}
    for statement in statements_of(plan):
        lines = explain(db, statement.sql, params)
        explained.append(Explained(statement, lines))
        for line, problem in _problems(lines, facts, sort_rows):
            wish = wish_of(statement.sql, line.alias)
            if wish is None or any(i.serves(wish) for i in facts.indexes(line.table)):
                continue
            rows = facts.rows(line.table)
            found.setdefault(wish, Advice(wish, problem, rows, statement.sql))
    advice = tuple(found[wish] for wish in without_redundant(found))
    return Examination(tuple(explained), advice)


@dataclass(slots=True)
class _Facts:
    """What is known of tables, asked once each."""

    db: apsw.Connection
    scan_rows: int
    _rows: dict[str, int] = field(default_factory=dict)
    _indexes: dict[str, list[ExistingIndex]] = field(default_factory=dict)

    def rows(self, table: str) -> int:
        """Exact below the threshold; above it, the larger of threshold and statistics."""
        if table not in self._rows:
            # The statistics never call a table smaller than ASSUMED_ROWS: up to there, count.
            enough = max(self.scan_rows, ASSUMED_ROWS + 1)
            rows = count_rows(self.db, table, enough)
            if rows >= enough:
                known = statistics(self.db, table).values()
                rows = max([rows, *(figures[0] for figures in known if figures)])
            self._rows[table] = rows
        return self._rows[table]

    def is_large(self, table: str) -> bool:
        return self.rows(table) >= self.scan_rows

    def rows_per_key(self, line: PlanLine) -> int:
        """Average rows the loop finds in its index; 0 if that is not known."""
        figures = statistics(self.db, line.table).get(line.index, ())
        count = line.index_columns
        return figures[count] if 0 < count < len(figures) else 0

    def indexes(self, table: str) -> list[ExistingIndex]:
        if table not in self._indexes:
            self._indexes[table] = indexes_of(self.db, table)
        return self._indexes[table]


def _problems(
    lines: Iterable[PlanLine], facts: _Facts, sort_rows: int
) -> Iterator[tuple[PlanLine, Problem]]:
    lines = tuple(lines)
    # A sort belongs to the loops beside it. "FOR LAST TERM OF ORDER BY" sorts only ties.
    sorted_at = {line.parent for line in lines if line.detail == _FULL_SORT}
    for line in lines:
        if not line.table or not facts.is_large(line.table):
            continue
        if line.automatic:
            yield line, "temporary index"
        elif line.full_scan:
            yield line, "scan"
        elif line.parent in sorted_at and facts.rows_per_key(line) >= sort_rows:
            yield line, "sort"


def wish_of(sql: str, alias: str) -> IndexWish | None:
    """The index that would serve the loop over ``alias``; None if none would."""
    select = _select_of(sqlglot.parse_one(sql, dialect="sqlite"), alias)
    if select is None:
        return None
    table, node = select
    equal: dict[str, None] = {}
    listed: dict[str, None] = {}
    ranges: list[str] = []
    for condition in _conjuncts(node.args.get("where")):
        match condition:
            case exp.EQ() | exp.Is():
                equal.update(dict.fromkeys(_compared(condition, alias)))
            case exp.In():
                listed.update(dict.fromkeys(_members(condition.this, alias)))
            case exp.GT() | exp.GTE() | exp.LT() | exp.LTE():
                ranges.extend(_compared(condition, alias))
    fixed = tuple(dict.fromkeys([*equal, *listed]))
    order = tuple(c for c in _order(node, alias) if c[0] not in fixed)
    if not order:
        order = tuple((name, False) for name in ranges[:1] if name not in fixed)
    fixed = fixed[:MAX_COLUMNS]
    order = order[: MAX_COLUMNS - len(fixed)]
    if order and order[0][1]:
        # Read backwards it is the same order; one spelling, so that wishes can be compared.
        order = tuple((name, not descending) for name, descending in order)
    return IndexWish(table, fixed, order) if fixed or order else None


def _select_of(tree: exp.Expr, alias: str) -> tuple[str, exp.Select] | None:
    for table in tree.find_all(exp.Table):
        if table.alias == alias and table.name:
            select = table.find_ancestor(exp.Select)
            return None if select is None else (table.name, select)
    return None


def _conjuncts(node: exp.Expression | None) -> Iterator[exp.Expression]:
    match node:
        case None:
            return
        case exp.Where() | exp.Paren():
            yield from _conjuncts(node.this)
        case exp.And():
            yield from _conjuncts(node.this)
            yield from _conjuncts(node.expression)
        case _:
            yield node


def _compared(condition: exp.Expression, alias: str) -> Iterator[str]:
    """The column of ``alias`` that is compared with something that is not of its row."""
    sides = (condition.this, condition.expression)
    for mine, other in (sides, sides[::-1]):
        of_same_row = any(c.table == alias for c in other.find_all(exp.Column))
        if not of_same_row:
            yield from _members(mine, alias)


def _members(left: exp.Expression, alias: str) -> list[str]:
    """``left`` as columns of ``alias``: one, or a tuple of them. Rowids need no index."""
    columns = left.expressions if isinstance(left, exp.Tuple) else [left]
    return [
        c.name for c in columns if isinstance(c, exp.Column) and c.table == alias and c.this.quoted
    ]


def _order(node: exp.Select, alias: str) -> Iterator[IndexColumn]:
    """The order of the statement, or that of its ranking."""
    order = node.args.get("order")
    for window in () if order else node.find_all(exp.Window):
        if window.find_ancestor(exp.Select) is node:
            order = window.args.get("order")
    for term in order.expressions if order else ():
        for name in _members(term.this, alias):
            yield name, bool(term.args.get("desc"))
