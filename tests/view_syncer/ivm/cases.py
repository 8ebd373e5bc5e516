"""The notation of the differential-test corpus (zql.md §7), and its seed.

Owns the small language the corpus is written in: queries (``q``, ``c``, ``ex`` …), rows by their
ids (``t1``, ``t1-g1``, ``eu2``), commits (``"t1.rank:=40, del n1"``) and effects
(``"+t4 -t1"``). Decides nothing about what is right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from tests.view_syncer.ivm.replica import Change, Key, Model, Row, Table
from zerocache.zql import ast

TABLES: dict[str, Table] = {
    "person": Table({"id": "text", "name": "text", "boss": "text"}, ("id",)),
    "task": Table(
        {"id": "text", "owner": "text", "reviewer": "text", "rank": "float8", "title": "text"},
        ("id",),
    ),
    "note": Table({"id": "text", "task": "text", "author": "text", "body": "text"}, ("id",)),
    "tag": Table({"id": "text", "label": "text"}, ("id",)),
    "task_tag": Table({"task": "text", "tag": "text"}, ("task", "tag")),
    "account": Table({"region": "text", "no": "int4", "name": "text"}, ("region", "no")),
    "invoice": Table({"id": "text", "region": "text", "no": "int4", "amount": "int4"}, ("id",)),
    "secret": Table({"id": "text", "task": "text", "level": "int4"}, ("id",)),
}
SEED = """
u1(Ann,null) u2(Bo,u1) u3(Cy,u1) u4(Di,u2)
t1(u1,u2,10,a) t2(u2,u1,20,b) t3(null,u1,null,c) t4(u1,null,30,d) t5(u3,u3,20,e)
n1(t1,u1,x) n2(t1,u2,y) n3(t2,u1,x) n4(t2,u3,z) n5(t5,u1,x)
g1(red) g2(blue) t1-g1() t1-g2() t2-g1() t5-g2()
eu1(Acme) eu2(Bolt) us1(Core)
i1(eu,1,100) i2(eu,2,50) i3(us,1,70) i4(eu,null,10)
s1(t1,1) s2(t2,2)
"""

_PREFIXES = {"u": "person", "t": "task", "n": "note", "g": "tag", "i": "invoice", "s": "secret"}


@dataclass(frozen=True)
class Case:
    """``initial`` and the effects list rows; a ``w`` among them allows further witnesses.

    ``queries`` run together in one client group; each commit is (changes, effects).
    """

    queries: list[ast.Query]
    initial: str
    commits: list[tuple[str, str]]


# -- rows --------------------------------------------------------------------------------------


def locate(name: str) -> tuple[str, Key]:
    """The table and key of the row the corpus calls ``name``."""
    if "-" in name:
        return "task_tag", tuple(name.split("-"))
    if match := re.fullmatch(r"(eu|us)(\d)", name):
        return "account", (match[1], int(match[2]))
    return _PREFIXES[name[0]], (name,)


def label(table: str, key: Key) -> str:
    """What the corpus calls a row; inverse of :func:`locate`."""
    return ("-" if table == "task_tag" else "").join(map(str, key))


def seed_rows() -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {name: [] for name in TABLES}
    for text in SEED.split():
        table, row = _row(text)
        rows[table].append(row)
    return rows


def _row(text: str) -> tuple[str, Row]:
    """``n8(t3,u1,q)``: the columns beside the key in order, the missing ones null."""
    match = re.fullmatch(r"([^(]+)(?:\((.*)\))?", text)
    assert match is not None, text
    table, key = locate(match[1])
    facts = TABLES[table]
    row: Row = dict.fromkeys(facts.columns) | dict(zip(facts.key, key, strict=True))
    others = [c for c in facts.columns if c not in facts.key]
    for column, value in zip(others, (match[2] or "").split(","), strict=False):
        row[column] = _value(facts, column, value)
    return table, row


def _value(facts: Table, column: str, text: str) -> Any:
    if text in ("", "null"):
        return None
    return text if facts.columns[column] == "text" else float(text)


def changes(text: str, model: Model) -> list[Change]:
    """The changes of one commit, given the rows before it."""
    now = Model(TABLES, {n: list(rows.values()) for n, rows in model.rows.items()})
    found: list[Change] = []
    for part in text.split(", "):
        change = _change(part, now)
        assert now.accept(change), part
        found.append(change)
    return found


def _change(text: str, now: Model) -> Change:
    verb, _, rest = text.partition(" ")
    if verb == "truncate":
        return Change("truncate", rest)
    if verb == "ins":
        table, row = _row(rest)
        return Change("put", table, row)
    if verb == "del":
        table, key = locate(rest)
        return Change("delete", table, None, key)
    if "=>" in text:
        before, _, after = text.partition("=>")
        (table, key), (_, target) = locate(before), locate(after)
        renamed = dict(zip(TABLES[table].key, target, strict=True))
        return Change("move", table, {**now.rows[table][key], **renamed}, key)
    target_, _, value = text.partition(":=")
    name, _, column = target_.partition(".")
    table, key = locate(name)
    edited = {column: _value(TABLES[table], column, value)}
    return Change("move", table, {**now.rows[table][key], **edited}, key)


# -- queries -----------------------------------------------------------------------------------

_OBVIOUS = {"note": "id=task", "task_tag": "id=task", "tag": "tag=id", "secret": "id=task",
            "invoice": "region+no=region+no", "task": "task=id"}  # fmt: skip
_ARROWS: dict[str, ast.Direction] = {"↑": "asc", "↓": "desc"}


def q(
    table: str,
    where: ast.Condition | None = None,
    *,
    order: str = "",
    limit: int | None = None,
    rel: list[ast.CorrelatedSubquery] | None = None,
    after: dict[str, Any] | None = None,
    at: dict[str, Any] | None = None,
) -> ast.Query:
    """``order="owner↑ rank↓"``; ``after`` and ``at`` are exclusive and inclusive starts."""
    start = ast.Start(after, True) if after else ast.Start(at, False) if at else None
    return ast.Query(
        table=table,
        where=where,
        related=rel,
        limit=limit,
        order_by=[(part[:-1], _ARROWS[part[-1]]) for part in order.split()] or None,
        start=start,
    )


def c(column: str, op: ast.SimpleOperator, value: Any) -> ast.Condition:
    return ast.Simple(op, ast.ColumnRef(column), ast.LiteralRef(value))


def all_of(*conditions: ast.Condition) -> ast.Condition:
    return ast.And(list(conditions))


def any_of(*conditions: ast.Condition) -> ast.Condition:
    return ast.Or(list(conditions))


def rel(table: str, on: str = "", alias: str = "", **parts: Any) -> ast.CorrelatedSubquery:
    """A related query; ``on``: ``"parent=child"``, several columns joined by ``+``."""
    parents, _, children = (on or _OBVIOUS[table]).partition("=")
    query = q(table, **parts)
    return ast.CorrelatedSubquery(
        ast.Correlation(parents.split("+"), children.split("+")),
        ast.Query(
            table=table,
            alias=alias or f"{table}_{on}",
            where=query.where,
            related=query.related,
            limit=query.limit,
            order_by=query.order_by,
            start=query.start,
        ),
        system="client",
    )


def ex(
    table: str,
    where: ast.Condition | None = None,
    on: str = "",
    *,
    limit: int | None = None,
    flip: bool | None = None,
    scalar: bool | None = None,
) -> ast.Exists:
    return ast.Exists("EXISTS", rel(table, on, where=where, limit=limit), flip, scalar)


def nex(
    table: str,
    where: ast.Condition | None = None,
    on: str = "",
    *,
    limit: int | None = None,
    scalar: bool | None = None,
) -> ast.Exists:
    return ast.Exists("NOT EXISTS", rel(table, on, where=where, limit=limit), None, scalar)
