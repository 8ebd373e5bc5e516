"""A small world for engine tests: tables, random rows, random queries, random changes.

Everything is drawn by hypothesis, so a failure shrinks to a small query and a few changes. The
same changes go to a replica (through the real writer) and, on request, to a real PostgreSQL.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from hypothesis import strategies as st

from tests.replica.tables import CONFIG, column, index, table
from zerocache.protocol.versions import lexi_encode
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.published import PublishedSchema, PublishedTable
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql import ast

Row = dict[str, Any]
Key = tuple[Any, ...]

_KINDS = {"text": "S", "int4": "N", "float8": "N", "bool": "B"}
DEFINITIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "node": (
        {"id": "text", "x": "int4", "y": "text", "b": "bool", "f": "float8", "ref": "text"},
        ("id",),
    ),
    "item": ({"id": "int4", "node": "text", "k": "int4", "s": "text"}, ("id",)),
    "link": ({"l": "text", "r": "int4"}, ("l", "r")),
    "pair": ({"p": "text", "q": "int4", "v": "text"}, ("p", "q")),
}
RELATIONS: dict[str, list[tuple[tuple[str, ...], str, tuple[str, ...]]]] = {
    "node": [
        (("id",), "item", ("node",)),
        (("ref",), "node", ("id",)),
        (("id",), "node", ("ref",)),
        (("id",), "link", ("l",)),
        (("y", "x"), "pair", ("p", "q")),
    ],
    "item": [
        (("node",), "node", ("id",)),
        (("id",), "link", ("r",)),
        (("s", "k"), "pair", ("p", "q")),
        (("k",), "item", ("k",)),
    ],
    "link": [(("l",), "node", ("id",)), (("r",), "item", ("id",))],
    "pair": [(("p", "q"), "item", ("s", "k")), (("p",), "node", ("y",))],
}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "text": st.sampled_from(["a", "b", "c", "B", "ab", "é", "😀"]),
    "int4": st.integers(0, 4),
    "float8": st.sampled_from([0.0, 1.0, 1.5, -2.0]),
    "bool": st.booleans(),
}
INDEXED: dict[str, list[tuple[str, ...]]] = {
    "item": [("node",)],
    "link": [("r",)],
    "node": [("x", "id")],
}


def published() -> PublishedSchema:
    tables: list[PublishedTable] = []
    indexes = []
    for name, (columns, key) in DEFINITIONS.items():
        definition = table(
            name,
            [
                column(c, i, kind, type_category=_KINDS[kind], not_null=c in key)
                for i, (c, kind) in enumerate(columns.items(), 1)
            ],
            primary_key=key,
        )
        tables.append(definition)
        indexes.append(index(definition, *key, unique=True, is_primary=True))
        indexes.extend(index(definition, *extra) for extra in INDEXED.get(name, ()))
    return PublishedSchema(tables=tuple(tables), indexes=tuple(indexes))


def rows_of(name: str) -> st.SearchStrategy[Row]:
    columns, key = DEFINITIONS[name]
    return st.fixed_dictionaries(
        {c: VALUES[kind] if c in key else st.none() | VALUES[kind] for c, kind in columns.items()}
    )


def key_of(name: str, row: Row) -> Key:
    return tuple(row[c] for c in DEFINITIONS[name][1])


@dataclass(frozen=True)
class Change:
    """``put`` inserts or replaces by key, ``rekey`` moves the ``pick``-th row to a new image,
    ``delete`` removes the ``pick``-th row, ``truncate`` empties the table."""

    op: str
    table: str
    row: Row | None = None
    pick: int = 0


TABLES = st.sampled_from(sorted(DEFINITIONS))


@st.composite
def changes(draw: st.DrawFn) -> Change:
    name = draw(TABLES)
    op = draw(st.sampled_from(["put"] * 5 + ["rekey"] * 2 + ["delete"] * 3 + ["truncate"]))
    row = draw(rows_of(name)) if op in ("put", "rekey") else None
    return Change(op, name, row, draw(st.integers(0, 7)))


batches = st.lists(changes(), min_size=1, max_size=8)
seeds = st.fixed_dictionaries({n: st.lists(rows_of(n), max_size=8) for n in DEFINITIONS})


class World:
    """The rows themselves, and the replica that holds them."""

    def __init__(self, path: Path, seed: dict[str, list[Row]]) -> None:
        self.path = path
        self.rows: dict[str, dict[Key, Row]] = {n: {} for n in DEFINITIONS}
        for name, rows in seed.items():
            for row in rows:
                self.rows[name][key_of(name, row)] = row
        with BulkLoader(path, CONFIG, published()) as loader:
            for name, by_key in self.rows.items():
                columns = DEFINITIONS[name][0]
                loader.insert_rows(
                    name, [tuple(_stored(r[c]) for c in columns) for r in by_key.values()]
                )
            loader.finish()
        self.writer = ReplicaWriter(path)
        self._watermarks = itertools.count(100)

    def apply(self, transactions: Iterable[list[Change]]) -> None:
        """Each list is one upstream transaction; all of them one commit."""
        for batch in transactions:
            self.writer.begin_transaction(lexi_encode(next(self._watermarks)))
            for change in batch:
                self._apply(change)
            self.writer.end_transaction()
        self.writer.commit()

    def _apply(self, change: Change) -> None:
        rows = self.rows[change.table]
        if change.op == "truncate":
            self.writer.truncate([change.table])
            rows.clear()
        elif change.op == "put":
            self._put(change)
        elif rows:
            key = sorted(rows)[change.pick % len(rows)]
            old = rows.pop(key)
            if change.op == "delete":
                self.writer.delete(change.table, _key_values(change.table, old))
            else:
                assert change.row is not None
                if key_of(change.table, change.row) in rows:
                    rows[key] = old  # the new key is taken: upstream would have refused
                    return
                new = change.row
                rows[key_of(change.table, new)] = new
                self.writer.update(change.table, _key_values(change.table, old), _stored_row(new))

    def _put(self, change: Change) -> None:
        assert change.row is not None
        rows = self.rows[change.table]
        key = key_of(change.table, change.row)
        if key in rows:
            self.writer.update(change.table, None, _stored_row(change.row))
        else:
            self.writer.insert(change.table, _stored_row(change.row))
        rows[key] = change.row

    def close(self) -> None:
        self.writer.close()


def _stored(value: Any) -> Any:
    return int(value) if isinstance(value, bool) else value


def _stored_row(row: Row) -> Row:
    return {c: _stored(v) for c, v in row.items()}


def _key_values(name: str, row: Row) -> Row:
    return {c: _stored(row[c]) for c in DEFINITIONS[name][1]}


# -- queries -----------------------------------------------------------------------------------

_DIRECTIONS: list[ast.Direction] = ["asc", "desc"]
_ORDERED: list[ast.SimpleOperator] = ["=", "!=", "<", ">", "<=", ">=", "IS", "IS NOT"]


@st.composite
def simple_conditions(draw: st.DrawFn, name: str) -> ast.Condition:
    columns = DEFINITIONS[name][0]
    column_name = draw(st.sampled_from(sorted(columns)))
    kind = columns[column_name]
    ops = [*_ORDERED, "IN", "NOT IN"]
    if kind == "text":
        ops += ["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"]
    op = draw(st.sampled_from(ops))
    value: Any
    if op in ("IN", "NOT IN"):
        value = draw(st.lists(VALUES[kind], max_size=3))
    elif op.endswith("LIKE"):
        value = draw(st.sampled_from(["a%", "%b", "_", "A%", "%", "a_", "\\%", "É"]))
    else:
        value = draw(st.none() | VALUES[kind])
    return ast.Simple(op, ast.ColumnRef(column_name), ast.LiteralRef(value))


@st.composite
def exists_conditions(draw: st.DrawFn, name: str, depth: int) -> ast.Condition:
    parents, child, children = draw(st.sampled_from(RELATIONS[name]))
    subquery = ast.Query(
        table=child,
        alias="e",
        where=draw(st.none() | conditions(child, depth - 1)),
        limit=draw(st.sampled_from([None, None, None, 0, 1])),
    )
    related = ast.CorrelatedSubquery(
        ast.Correlation(list(parents), list(children)),
        subquery,
        system=draw(st.sampled_from(["client", "client", "permissions"])),
    )
    return ast.Exists(draw(st.sampled_from(["EXISTS", "EXISTS", "NOT EXISTS"])), related)


def conditions(name: str, depth: int) -> st.SearchStrategy[ast.Condition]:
    leaf = simple_conditions(name)
    if depth <= 0:
        return leaf
    deeper = st.deferred(lambda: conditions(name, depth - 1))
    return (
        leaf
        | exists_conditions(name, depth)
        | st.builds(ast.And, st.lists(deeper, max_size=3))
        | st.builds(ast.Or, st.lists(deeper, max_size=3))
    )


@st.composite
def queries(draw: st.DrawFn, name: str | None = None, depth: int = 2) -> ast.Query:
    name = name or draw(TABLES)
    columns = DEFINITIONS[name][0]
    order = draw(
        st.none()
        | st.lists(
            st.tuples(st.sampled_from(sorted(columns)), st.sampled_from(_DIRECTIONS)),
            max_size=2,
            unique_by=lambda part: part[0],
        )
    )
    start = None
    if draw(st.integers(0, 4)) == 0:
        start = ast.Start(draw(rows_of(name)), draw(st.booleans()))
    related = []
    if depth > 0:
        for i, relation in enumerate(draw(st.lists(st.sampled_from(RELATIONS[name]), max_size=2))):
            parents, child, children = relation
            related.append(
                ast.CorrelatedSubquery(
                    ast.Correlation(list(parents), list(children)),
                    msgspec.structs.replace(draw(queries(child, depth - 1)), alias=f"r{i}"),
                )
            )
    return ast.Query(
        table=name,
        where=draw(st.none() | conditions(name, depth)),
        related=related or None,
        limit=draw(st.sampled_from([None, None, 0, 1, 2, 3])),
        order_by=order,
        start=start,
    )


# -- PostgreSQL ----------------------------------------------------------------------------------


def create_upstream(connection: psycopg.Connection) -> None:
    for name, (columns, key) in DEFINITIONS.items():
        body = ", ".join(f"{c} {kind}" for c, kind in columns.items())
        connection.execute(f"CREATE TABLE {name} ({body}, PRIMARY KEY ({', '.join(key)}))")


def copy_upstream(connection: psycopg.Connection, world: World) -> None:
    """Make PostgreSQL hold exactly the world's rows."""
    for name, rows in world.rows.items():
        connection.execute(f"DELETE FROM {name}")  # noqa: S608 (own names)
        columns = DEFINITIONS[name][0]
        if rows:
            marks = ", ".join(["%s"] * len(columns))
            connection.cursor().executemany(
                f"INSERT INTO {name} VALUES ({marks})",  # noqa: S608 (own names)
                [tuple(r[c] for c in columns) for r in rows.values()],
            )
