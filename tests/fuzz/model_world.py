"""What the model checker's database holds, what is written to it and what clients ask of it.

Owns the tables, the random transactions and the random queries. Every decision goes through one
``random.Random`` made from a text, so a text is a transaction or a query. Statements are total:
whatever the tables hold, each of them succeeds, so any subset of them is again a valid history.
"""

# ruff: noqa: S608 (every part of a statement is made here)
from __future__ import annotations

import random
from typing import Any

import msgspec

from benchmarks.sync_messages import ClientSchema, ColumnType, TableSchema
from zerocache.zql import ast
from zerocache.zql.shape import WITNESS_LIMIT

COLUMNS: dict[str, dict[str, ColumnType]] = {
    "node": {
        "id": "string", "x": "number", "y": "string", "b": "boolean", "f": "number",
        "ref": "string", "m": "json",
    },
    "item": {"id": "number", "code": "string", "node": "string", "k": "number", "s": "string"},
    "link": {"l": "string", "r": "number"},
    "pair": {"p": "string", "q": "number", "v": "string"},
    "beat": {"id": "number", "n": "number"},
}  # fmt: skip
KEYS = {"node": ["id"], "item": ["id"], "link": ["l", "r"], "pair": ["p", "q"], "beat": ["id"]}
ROW_KEYS = {**KEYS, "item": ["code"]}
"""The key by which the engine orders witnesses: fewest columns, then by name (zql.md §1.4)."""
_NULLABLE = {
    "node": {"x", "y", "b", "f", "ref"}, "item": {"node", "k", "s"}, "link": set(), "pair": {"v"},
}  # fmt: skip
RELATIONS: dict[str, list[tuple[list[str], str, list[str]]]] = {
    "node": [
        (["id"], "item", ["node"]),
        (["ref"], "node", ["id"]),
        (["id"], "node", ["ref"]),
        (["id"], "link", ["l"]),
        (["y", "x"], "pair", ["p", "q"]),
    ],
    "item": [
        (["node"], "node", ["id"]),
        (["id"], "link", ["r"]),
        (["s", "k"], "pair", ["p", "q"]),
        (["code"], "item", ["code"]),
    ],
    "link": [(["l"], "node", ["id"]), (["r"], "item", ["id"])],
    "pair": [(["p", "q"], "item", ["s", "k"]), (["p"], "node", ["y"])],
}
NODES, ITEMS, LINKS, PAIRS = 300, 3000, 1500, 400
XS, TEXTS = 12, 30
SCHEMA = """
CREATE TABLE node (id text PRIMARY KEY, x int, y text, b bool, f float8, ref text, m jsonb);
CREATE TABLE item (id int PRIMARY KEY, code text NOT NULL UNIQUE, node text, k int, s text);
CREATE TABLE link (l text, r int, PRIMARY KEY (l, r));
CREATE TABLE pair (p text, q int, v text, PRIMARY KEY (p, q));
CREATE TABLE beat (id int PRIMARY KEY, n int);
CREATE INDEX ON item (node);
CREATE INDEX ON item (s, k);
CREATE INDEX ON link (r);
CREATE INDEX ON node (ref);
CREATE INDEX ON node (y, x);
"""
SEED = f"""
SELECT setseed(0.5);
INSERT INTO node SELECT 'n' || i, random() * {XS}, 't' || (random() * {TEXTS})::int,
    random() < 0.5, (random() * 4)::int / 2.0, 'n' || (random() * {NODES})::int, to_jsonb(i % 3)
    FROM generate_series(0, {NODES} - 1) i;
INSERT INTO item SELECT i, 'c' || i, 'n' || (random() * {NODES})::int, random() * {XS},
    't' || (random() * {TEXTS})::int FROM generate_series(0, {ITEMS} - 1) i;
INSERT INTO link SELECT 'n' || (random() * {NODES})::int, random() * {ITEMS}
    FROM generate_series(1, {LINKS}) ON CONFLICT DO NOTHING;
INSERT INTO pair SELECT 't' || (random() * {TEXTS})::int, random() * {XS}, 'v' || i
    FROM generate_series(1, {PAIRS}) i ON CONFLICT DO NOTHING;
INSERT INTO beat VALUES (1, 0);
"""


def client_schema(variant: int) -> ClientSchema:
    """Variant 1 declares fewer tables and columns, and another key."""
    tables = {}
    for name, columns in COLUMNS.items():
        if variant == 1 and name == "pair":
            continue
        left_out = {"f", "m"} if variant == 1 else set()
        key = ["code"] if variant == 1 and name == "item" else KEYS[name]
        shown: dict[str, dict[str, ColumnType]] = {
            c: {"type": kind} for c, kind in columns.items() if c not in left_out
        }
        tables[name] = TableSchema(shown, key)
    return ClientSchema(tables)


# -- transactions --------------------------------------------------------------------------------


def transaction(seed: str) -> list[str]:
    """The statements of one random transaction; ``TRUNCATE`` is always alone."""
    choose = random.Random(seed)
    if choose.random() < 0.02:
        return [f"TRUNCATE {choose.choice(['link', 'pair', 'item'])}"]
    if choose.random() < 0.12:
        return [_bulk(choose)]
    return [s for _ in range(choose.choice([1, 1, 2, 4, 10])) for s in small(choose)]


def schema_change(seed: str) -> list[str]:
    """One change of the tables that no client's schema notices, with or without rows beside it.
    None converts values (USING): until they are copied, a poke shows the old ones."""
    choose = random.Random(seed)
    table, text = choose.choice(["node", "item", "link", "pair"]), _text(choose)
    index = f"extra_{choose.randrange(3)}"
    kind = choose.choice(["int", "bigint"])
    statement = choose.choice(
        [
            f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS extra int DEFAULT {choose.randrange(9)}",
            f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS more text",
            f"ALTER TABLE {table} DROP COLUMN IF EXISTS extra",
            f"ALTER TABLE {table} DROP COLUMN IF EXISTS more",
            f"ALTER TABLE item ALTER COLUMN k TYPE {kind}",
            f"ALTER TABLE pair ALTER COLUMN v SET DEFAULT {text}",
            "CREATE TABLE IF NOT EXISTS other (id int PRIMARY KEY, t text)",
            "DROP TABLE IF EXISTS other",
            f"CREATE INDEX IF NOT EXISTS {index} ON item (k, s)",
            f"DROP INDEX IF EXISTS {index}",
        ]
    )
    beside = [s for _ in range(choose.choice([0, 0, 2])) for s in small(choose)]
    return [*beside, statement] if choose.random() < 0.5 else [statement, *beside]


def wide(number: int) -> list[str]:
    """One of a series that sends much to whoever asks for nodes; the last leaves little behind."""
    size = 60_000 if number < 7 else 1
    return [f"UPDATE node SET m = to_jsonb(repeat('{number}', {size})) WHERE x < 5"]


def _node(choose: random.Random) -> str:
    return f"'n{choose.randrange(NODES + 20)}'"


def _text(choose: random.Random) -> str:
    return "NULL" if choose.random() < 0.1 else f"'t{choose.randrange(TEXTS)}'"


def small(choose: random.Random) -> list[str]:
    """A change of one row, or a few that belong together."""
    item, other = choose.randrange(ITEMS + 50), choose.randrange(ITEMS + 50)
    node, x, text = _node(choose), choose.randrange(XS), _text(choose)
    a_link = f"l = {node} AND r % 7 = {item % 7}"
    a_pair = f"p = 't{choose.randrange(TEXTS)}' AND q = {x}"
    insert_item = (
        f"INSERT INTO item VALUES ({item}, 'c{item}', {node}, {x}, {text}) ON CONFLICT DO NOTHING"
    )
    # The target may be taken, by id or by code.
    free = f"NOT EXISTS (SELECT FROM item WHERE id = {other} OR code = 'd{other}')"
    options = [
        [f"UPDATE item SET k = {x} WHERE id = {item}"],
        [f"UPDATE item SET s = {text}, node = {node} WHERE id = {item}"],
        [insert_item],
        [f"DELETE FROM item WHERE id = {item}"],
        [f"DELETE FROM item WHERE id = {item}", insert_item],
        [f"UPDATE item SET id = {other} WHERE id = {item} AND {free}"],
        [f"UPDATE item SET code = 'd{other}' WHERE id = {item} AND {free}"],
        [
            f"UPDATE item SET code = 'swap' WHERE code = 'c{item}'",
            f"UPDATE item SET code = 'c{item}' WHERE code = 'c{other}'",
            f"UPDATE item SET code = 'c{other}' WHERE code = 'swap'",
        ],
        [f"UPDATE node SET x = {x}, b = NOT b WHERE id = {node}"],
        [f"UPDATE node SET y = {text}, m = to_jsonb({x}) WHERE id = {node}"],
        [f"UPDATE node SET ref = {_node(choose)} WHERE id = {node}"],
        [f"DELETE FROM node WHERE id = {node}"],
        [
            f"INSERT INTO node VALUES ({node}, {x}, {text}, true, 0.5, {_node(choose)}, '[1]') "
            "ON CONFLICT (id) DO UPDATE SET x = excluded.x, y = excluded.y"
        ],
        [f"INSERT INTO link VALUES ({node}, {item}) ON CONFLICT DO NOTHING"],
        [f"DELETE FROM link WHERE {a_link}"],
        [f"INSERT INTO pair VALUES ('t{item % TEXTS}', {x}, {text}) ON CONFLICT DO NOTHING"],
        [f"UPDATE pair SET v = {text} WHERE {a_pair}"],
        [f"DELETE FROM pair WHERE {a_pair}"],
    ]
    return choose.choice(options)


def _bulk(choose: random.Random) -> str:
    """One statement that changes many rows."""
    x, text, low = choose.randrange(XS), _text(choose), choose.randrange(ITEMS)
    return choose.choice(
        [
            f"UPDATE item SET s = {text} WHERE k = {x}",
            f"UPDATE item SET k = (k + 1) % {XS} WHERE id BETWEEN {low} AND {low + 600}",
            f"DELETE FROM item WHERE id BETWEEN {low} AND {low + 300}",
            f"UPDATE item SET k = (k + {x}) % {XS}",
            f"INSERT INTO item SELECT i, 'c' || i, 'n' || i % {NODES}, i % {XS}, {text} "
            f"FROM generate_series(0, {ITEMS} - 1) i ON CONFLICT DO NOTHING",
            f"INSERT INTO item SELECT i, 'c' || i, 'n' || i % {NODES}, i % {XS}, {text} "
            f"FROM generate_series({low}, {low + 500}) i ON CONFLICT DO NOTHING",
            f"UPDATE node SET b = NOT b WHERE x = {x}",
            f"INSERT INTO link SELECT 'n' || i % {NODES}, i "
            f"FROM generate_series({low}, {low + 200}) i ON CONFLICT DO NOTHING",
            f"INSERT INTO pair SELECT 't' || i, {x}, {text} "
            f"FROM generate_series(0, {TEXTS} - 1) i ON CONFLICT DO NOTHING",
        ]
    )


# -- queries -------------------------------------------------------------------------------------


def query(seed: str) -> ast.Query:
    choose = random.Random(seed)
    table = choose.choice(["node", "item", "item", "item", "link", "pair"])
    return _query(choose, table, choose.choice([0, 1, 1, 2]), None, root=True)


def _query(
    choose: random.Random, table: str, depth: int, alias: str | None, *, root: bool = False
) -> ast.Query:
    columns = [c for c, kind in COLUMNS[table].items() if kind != "json"]
    order: list[tuple[str, ast.Direction]] = [
        (c, choose.choice(["asc", "desc"]))
        for c in choose.sample(columns, choose.choice([0, 0, 1, 2]))
    ]
    related = []
    for number in range(choose.choice([0, 1, 1, 2]) if depth else 0):
        mine, child, theirs = choose.choice(RELATIONS[table])
        node = _query(choose, child, depth - 1, f"r{number}")
        related.append(ast.CorrelatedSubquery(ast.Correlation(mine, theirs), node))
    start = None
    if order and choose.random() < 0.15:
        start = ast.Start({c: _value(choose, table, c) for c, _ in order}, choose.random() < 0.5)
    limits = [None, None, None, 5, 40, 300] if root else [None, None, None, 1, 3]
    return ast.Query(
        table=table,
        alias=alias,
        where=_condition(choose, table, depth) if choose.random() < 0.6 else None,
        related=related or None,
        limit=choose.choice(limits),
        order_by=order or None,
        start=start,
    )


def _value(choose: random.Random, table: str, column: str) -> Any:
    kind = COLUMNS[table][column]
    if kind == "boolean":
        return choose.random() < 0.5
    if kind == "number":
        if column in ("id", "r"):
            return choose.randrange(ITEMS)
        return choose.randrange(5) / 2 if column == "f" else choose.randrange(XS)
    if column in ("y", "s", "p", "v"):
        return f"t{choose.randrange(TEXTS)}"
    if column == "code":
        return f"c{choose.randrange(ITEMS)}"
    return f"n{choose.randrange(NODES)}"


def _condition(choose: random.Random, table: str, depth: int) -> ast.Condition:
    kind = choose.choice(["simple", "simple"] + (["exists"] * 3 + ["and", "or"]) * (depth > 0))
    if kind == "exists":
        mine, child, theirs = choose.choice(RELATIONS[table])
        where = _condition(choose, child, depth - 1) if choose.random() < 0.6 else None
        hop = ast.CorrelatedSubquery(
            ast.Correlation(mine, theirs),
            ast.Query(table=child, alias="e", where=where),
            system=choose.choice(["client", "client", "permissions"]),
        )
        return ast.Exists(choose.choice(["EXISTS", "EXISTS", "NOT EXISTS"]), hop)
    if kind in ("and", "or"):
        members = [_condition(choose, table, depth - 1) for _ in range(2)]
        return ast.And(members) if kind == "and" else ast.Or(members)
    return simple(choose, table)


def simple(choose: random.Random, table: str) -> ast.Condition:
    columns = [c for c, kind in COLUMNS[table].items() if kind != "json"]
    column = choose.choice(columns)
    value = _value(choose, table, column)
    op: Any = choose.choice(["=", "!=", "<", ">", "<=", ">=", "IS", "IS NOT", "IN", "NOT IN"])
    if op in ("IN", "NOT IN"):
        value = [value, _value(choose, table, column)]
    elif COLUMNS[table][column] == "string" and choose.random() < 0.3:
        op, value = choose.choice([("LIKE", "%1%"), ("NOT LIKE", "%2"), ("ILIKE", "T1_")])
    elif op in ("IS", "IS NOT") and column in _NULLABLE[table] and choose.random() < 0.5:
        value = None  # of a NOT NULL column it would be a constant, which needs no witnesses
    return ast.Simple(op, ast.ColumnRef(column), ast.LiteralRef(value))


def with_witnesses(query: ast.Query, *, witness: bool = False) -> ast.Query:
    """The query whose result rows are what is synced for ``query``: each synced EXISTS becomes a
    ``related`` of its first children by key."""
    related = [] if witness else [
        msgspec.structs.replace(r, subquery=with_witnesses(r.subquery)) for r in query.related or ()
    ]  # fmt: skip
    for number, condition in enumerate(_exists_of(query.where)):
        hop = condition.related
        if condition.op == "NOT EXISTS" or hop.system == "permissions":
            continue
        node = msgspec.structs.replace(hop.subquery, alias=f"w{number}", limit=WITNESS_LIMIT)
        node = with_witnesses(node, witness=True)
        related.append(ast.CorrelatedSubquery(hop.correlation, node))
    order = [(c, "asc") for c in ROW_KEYS[query.table]] if witness else query.order_by
    return msgspec.structs.replace(query, related=related or None, order_by=order)


def _exists_of(condition: ast.Condition | None) -> list[ast.Exists]:
    if isinstance(condition, ast.Exists):
        return [condition]
    if isinstance(condition, (ast.And, ast.Or)):
        return [e for c in condition.conditions for e in _exists_of(c)]
    return []
