"""Random scenarios: schemas, rows, queries and changes, all from one seed.

Owns what is probable. Values come from small domains so that keys meet, ties occur and windows
overflow; every decision goes through one ``random.Random``, so a seed is a scenario.
"""

from __future__ import annotations

import random
from typing import Any, get_args

import msgspec

from tests.fuzz.scenario import Asked, Declared, Scenario
from tests.view_syncer.ivm.replica import Change, Model, Row, Table
from zerocache.zql import ast

KINDS = {"text": "string", "int4": "number", "float8": "number", "bool": "boolean", "jsonb": "json"}
_TEXTS = ["a", "b", "c", "B", "ab", "é", "😀", "", "a%", "É\n", "�", "x*[?]", "'\"", "\\"]
_FLOATS = [0.0, 1.0, 1.5, -2.0, 2.0, 0.1 + 0.2, 1e300, -1e-7, 3.0, 123456.789]
_JSONS = ["a", 1, True, [1, 2], {"a": 1}, 1.5, [], "B", False, 0, ["a"]]
_DOMAINS: dict[str, list[Any]] = {"text": _TEXTS, "float8": _FLOATS, "jsonb": _JSONS}
_PATTERNS = ["a%", "%b", "_", "A%", "%", "a_", "\\%", "É", "%\\%", "x*[_]", "", "%\n", "_%_"]
_ORDERED = ["=", "=", "!=", "!=", "<", ">", "<=", ">=", "IS", "IS NOT", "IS NOT"]
_SIMPLE = set(get_args(ast.SimpleOperator))


class Generator:
    """Makes one world (tables and clients), and any number of scenarios in it."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.width = self.random.choice([2, 3, 5, 8, 30])
        self.tables = {f"t{i}": self._table() for i in range(self.random.randint(1, 4))}
        self.clients = (
            {n: Declared(tuple(t.columns), row_key(t)) for n, t in self.tables.items()},
            self._other_client(),
        )

    def scenario(self) -> Scenario:
        choose = self.random
        rows = {
            name: tuple(self._row(t) for _ in range(choose.choice([0, 3, 8, 20, 60])))
            for name, t in self.tables.items()
        }
        model = Model(self.tables, rows)
        steps = tuple(self._step(model) for _ in range(choose.randint(1, 6)))
        queries = tuple(self._asked(len(steps)) for _ in range(choose.randint(1, 5)))
        if choose.random() < 0.3:
            queries += (self._variant(queries[0]),)
        return Scenario(self.tables, self.clients, rows, queries, steps, choose.random() < 0.15)

    # -- schema ----------------------------------------------------------------------------------

    def _table(self) -> Table:
        choose = self.random
        key_kinds = choose.choice(
            [["text"], ["int4"], ["text"], ["text", "int4"], ["int4", "int4"], ["bool", "float8"]]
        )
        kinds = [choose.choice(["text", "int4", "text", "int4", "float8", "bool", "jsonb"])
                 for _ in range(choose.randint(0, 5))]  # fmt: skip
        columns = {f"k{i}": kind for i, kind in enumerate(key_kinds)}
        columns |= {f"c{i}": kind for i, kind in enumerate(kinds)}
        plain = [c for c, kind in columns.items() if kind != "jsonb"]
        not_null = tuple(c for c in columns if c[0] == "c" and choose.random() < 0.25)
        unique = []
        if choose.random() < 0.25:
            unique.append(tuple(choose.sample(plain, choose.randint(1, min(2, len(plain))))))
        indexes = [
            tuple(choose.sample(plain, choose.randint(1, min(2, len(plain)))))
            for _ in range(choose.choice([0, 0, 1, 2]))
        ]
        order = list(columns)
        choose.shuffle(order)
        return Table(
            {c: columns[c] for c in order},
            tuple(f"k{i}" for i in range(len(key_kinds))),
            not_null,
            tuple(unique),
            tuple(indexes),
        )

    def _other_client(self) -> dict[str, Declared]:
        """A client with other keys, fewer columns, perhaps without a table."""
        found: dict[str, Declared] = {}
        for name, table in self.tables.items():
            if self.random.random() < 0.2 and found:
                continue
            keys = [table.key, *(u for u in table.unique if set(u) <= table.required)]
            key = self.random.choice(keys)
            columns = [c for c in table.columns if c in key or self.random.random() < 0.7]
            found[name] = Declared(tuple(columns), tuple(sorted(key)))
        return found

    # -- rows and changes ------------------------------------------------------------------------

    def _value(self, kind: str) -> Any:
        choose = self.random
        if kind == "int4":
            return choose.randint(0, self.width)
        if kind == "bool":
            return choose.random() < 0.5
        domain = _DOMAINS[kind]
        if kind == "text" and self.width > len(_TEXTS):
            return f"v{choose.randint(0, self.width)}"
        return choose.choice(domain[: max(2, self.width)])

    def _cell(self, table: Table, column: str) -> Any:
        if column not in table.required and self.random.random() < 0.2:
            return None
        return self._value(table.columns[column])

    def _row(self, table: Table) -> Row:
        return {c: self._cell(table, c) for c in table.columns}

    def _step(self, model: Model) -> tuple[tuple[Change, ...], ...]:
        size = self.random.choice([1, 1, 2, 3, 8, 20, 200])
        transactions: list[tuple[Change, ...]] = []
        for _ in range(self.random.choice([1, 1, 1, 2, 5])):
            changes: list[Change] = []
            while len(changes) < size:
                changes += [c for c in self._changes(model) if model.accept(c)] or [
                    Change("put", "", None)
                ]
            transactions.append(tuple(c for c in changes if c.table))
        return tuple(transactions)

    def _changes(self, model: Model) -> list[Change]:
        """One change, or a few that belong together."""
        choose = self.random
        name = choose.choice(sorted(self.tables))
        table, rows = self.tables[name], model.rows[name]
        fresh = self._row(table)
        if not rows or choose.random() < 0.25:
            put = Change("put", name, fresh)
            vanish = Change("delete", name, None, table.key_of(fresh))
            return [put, vanish] if choose.random() < 0.1 else [put]
        key = choose.choice(sorted(rows, key=repr))
        old = rows[key]
        column = choose.choice(list(table.columns))
        edited = {**old, column: self._cell(table, column)}
        delete = Change("delete", name, None, key)
        match choose.choice(["edit"] * 8 + ["delete"] * 4 + ["move", "again", "reuse", "back"] * 2
                            + ["truncate"] * (choose.random() < 0.1)):  # fmt: skip
            case "edit":
                return [Change("move", name, edited, key)]
            case "delete":
                return [delete]
            case "move":
                return [Change("move", name, fresh, key)]
            case "again":
                return [delete, Change("put", name, edited if column not in table.key else old)]
            case "reuse":
                return [delete, Change("put", name, fresh)]
            case "back":
                there = Change("move", name, fresh, key)
                return [there, Change("move", name, old, table.key_of(fresh))]
        return [Change("truncate", name)]

    # -- queries ---------------------------------------------------------------------------------

    def _asked(self, steps: int) -> Asked:
        choose = self.random
        since = choose.choice([0, 0, 0, choose.randint(0, steps - 1)])
        until = choose.choice([1_000_000, 1_000_000, choose.randint(since, steps)])
        client, beside = choose.choice([0, 0, 1]), choose.random() < 0.5
        name = choose.choice(sorted(self.tables))
        query = self._query(name, choose.choice([0, 1, 1, 2, 2, 3, 4]))
        return Asked(query, client, since, until, beside)

    def _variant(self, asked: Asked) -> Asked:
        """The same query again, or the same shape with another client's key."""
        return msgspec.structs.replace(asked, client=self.random.choice([0, 1]))

    def _query(self, name: str, depth: int, alias: str | None = None) -> ast.Query:
        choose = self.random
        table = self.tables[name]
        columns = list(table.columns)
        order: list[tuple[str, ast.Direction]] = [
            (c, choose.choice(["asc", "desc"]))
            for c in choose.sample(columns, choose.choice([0, 0, 1, min(2, len(columns))]))
            if table.columns[c] != "jsonb"
        ]
        related = []
        for number in range(choose.choice([0, 1, 1, 2]) if depth > 0 else 0):
            hop = self._hop(name)
            if hop is not None:
                child, correlation = hop
                node = self._query(child, depth - 1, f"r{min(number, choose.randint(0, 3))}")
                related.append(ast.CorrelatedSubquery(correlation, node))
        return ast.Query(
            table=name,
            alias=alias,
            where=self._condition(name, depth) if choose.random() < 0.45 else None,
            related=related or None,
            limit=choose.choice([None] * 6 + [0, 1, 2, 3, 5, 7, 30]),
            order_by=order or None,
            start=self._start(table, order) if choose.random() < 0.15 else None,
        )

    def _start(self, table: Table, order: list[tuple[str, ast.Direction]]) -> ast.Start:
        row = {c: v for c, v in self._row(table).items() if table.columns[c] != "jsonb"}
        if self.random.random() < 0.3:
            row = {c: v for c, v in row.items() if self.random.random() < 0.7}
        return ast.Start(row, self.random.random() < 0.5)

    def _hop(self, name: str) -> tuple[str, ast.Correlation] | None:
        """A random child table with one or two pairs of columns of one type."""
        choose = self.random
        child = choose.choice(sorted(self.tables))
        pairs = [
            (mine, other)
            for mine, kind in self.tables[name].columns.items()
            for other, other_kind in self.tables[child].columns.items()
            if KINDS[kind] == KINDS[other_kind] != "json"
        ]
        if not pairs:
            return None
        chosen = choose.sample(pairs, min(len(pairs), choose.choice([1, 1, 1, 2])))
        return child, ast.Correlation([p for p, _ in chosen], [c for _, c in chosen])

    def _condition(self, name: str, depth: int) -> ast.Condition:
        choose = self.random
        kind = choose.choice(
            ["simple"] * 4 + (["exists"] * 3 + ["and", "or", "or"] if depth > 0 else [])
        )
        if kind == "exists":
            hop = self._hop(name)
            if hop is not None:
                return self._exists(hop, depth)
        if kind in ("and", "or"):
            members = [
                self._condition(name, depth - 1) for _ in range(choose.choice([0, 1, 2, 2, 3]))
            ]
            return ast.And(members) if kind == "and" else ast.Or(members)
        return self._simple(name)

    def _exists(self, hop: tuple[str, ast.Correlation], depth: int) -> ast.Condition:
        choose = self.random
        child, correlation = hop
        where = self._condition(child, depth - 1) if choose.random() < 0.7 else None
        start = self._start(self.tables[child], []) if choose.random() < 0.05 else None
        limit = choose.choice([None, None, None, None, 0, 1])
        subquery = ast.Query(table=child, alias="e", where=where, limit=limit, start=start)
        system: Any = choose.choice(["client", "client", "client", None, "permissions"])
        return ast.Exists(
            choose.choice(["EXISTS", "EXISTS", "NOT EXISTS"]),
            ast.CorrelatedSubquery(correlation, subquery, system=system),
            flip=choose.choice([None, True]),
        )

    def _simple(self, name: str) -> ast.Condition:
        choose = self.random
        columns = self.tables[name].columns
        column = choose.choice(list(columns))
        kind = columns[column]
        if kind == "jsonb":
            null_test: ast.SimpleOperator = choose.choice(["IS", "IS NOT"])
            return ast.Simple(null_test, ast.ColumnRef(column), ast.LiteralRef(None))
        ops = [*_ORDERED, "IN", "NOT IN"]
        if kind == "text":
            ops += ["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]
        op = choose.choice(ops)
        value: Any = None
        other = choose.choice(["text", "int4", "bool"]) if choose.random() < 0.05 else kind
        if op in ("IN", "NOT IN"):
            value = [self._value(kind) for _ in range(choose.choice([0, 1, 2, 3]))]
        elif op.endswith("LIKE"):
            value = choose.choice(_PATTERNS)
        elif choose.random() < 0.9:
            value = self._value(other)
        assert op in _SIMPLE
        left: ast.ValueRef = ast.ColumnRef(column)
        if choose.random() < 0.03 and not isinstance(value, list):
            left = ast.LiteralRef(self._value(kind))
        return ast.Simple(op, left, ast.LiteralRef(value))  # type: ignore[arg-type]


def row_key(table: Table) -> tuple[str, ...]:
    """The replica's own row key: fewest columns, then by name (zql.md §1.4)."""
    keys = [table.key, *(u for u in table.unique if set(u) <= table.required)]
    return min((tuple(sorted(k)) for k in keys), key=lambda k: (len(k), k))
