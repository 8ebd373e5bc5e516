"""Cuts a failing scenario down: remove or simplify a part, keep it if it still fails, repeat.

Owns the list of possible cuts. The failure may change its message on the way, which is fine: any
failure is worth a look, and the small one is easier.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from msgspec.structs import replace

from tests.fuzz.scenario import Scenario
from zerocache.zql import ast


def shrink(scenario: Scenario, fails: Callable[[Scenario], bool], seconds: float) -> Scenario:
    """The smallest failing scenario found within ``seconds``."""
    deadline = time.monotonic() + seconds
    improved = True
    while improved:
        improved = False
        for smaller in _cuts(scenario):
            if time.monotonic() > deadline:
                return scenario
            if fails(smaller):
                scenario = smaller
                improved = True
                break
    return scenario


def _cuts(scenario: Scenario) -> Iterator[Scenario]:
    for queries in _without(scenario.queries, least=1):
        yield replace(scenario, queries=queries)
    for steps in _without(scenario.steps):
        yield replace(scenario, steps=steps)
    for i, step in enumerate(scenario.steps):
        if len(step) > 1:
            joined = (tuple(c for transaction in step for c in transaction),)
            yield replace(scenario, steps=_put(scenario.steps, i, joined))
        for j, transaction in enumerate(step):
            for changes in _without(transaction):
                steps = _put(scenario.steps, i, _put(step, j, changes))
                yield replace(scenario, steps=steps)
    for name, rows in scenario.rows.items():
        for fewer in _without(rows):
            yield replace(scenario, rows={**scenario.rows, name: fewer})
    for i, asked in enumerate(scenario.queries):
        for query in _simpler(asked.query):
            yield replace(scenario, queries=_put(scenario.queries, i, replace(asked, query=query)))
        for plain in (replace(asked, since=0), replace(asked, beside=False)):
            if plain != asked:
                yield replace(scenario, queries=_put(scenario.queries, i, plain))
    for name, table in scenario.tables.items():
        for bare in (replace(table, indexes=()), replace(table, unique=())):
            if bare != table:
                yield replace(scenario, tables={**scenario.tables, name: bare})
    if scenario.rehydrate_early:
        yield replace(scenario, rehydrate_early=False)


def _put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def _without(items: tuple[Any, ...], least: int = 0) -> Iterator[tuple[Any, ...]]:
    """Without large pieces first, then without single items."""
    size = len(items)
    while size >= 1:
        for start in range(0, len(items), size):
            rest = items[:start] + items[start + size :]
            if len(rest) >= least and len(rest) < len(items):
                yield rest
        size //= 2


def _simpler(query: ast.Query) -> Iterator[ast.Query]:
    if query.where is not None:
        yield replace(query, where=None)
        for where in _simpler_condition(query.where):
            yield replace(query, where=where)
    related = tuple(query.related or ())
    for fewer in _without(related):
        yield replace(query, related=list(fewer) or None)
    for i, hop in enumerate(related):
        for node in _simpler(hop.subquery):
            yield replace(query, related=list(_put(related, i, replace(hop, subquery=node))))
    for field in ("limit", "order_by", "start"):
        if getattr(query, field) is not None:
            yield replace(query, **{field: None})


def _simpler_condition(condition: ast.Condition) -> Iterator[ast.Condition]:
    if isinstance(condition, (ast.And, ast.Or)):
        members = tuple(condition.conditions)
        yield from members
        for fewer in _without(members):
            yield replace(condition, conditions=list(fewer))
        for i, member in enumerate(members):
            for simpler in _simpler_condition(member):
                yield replace(condition, conditions=list(_put(members, i, simpler)))
    elif isinstance(condition, ast.Exists):
        hop = condition.related
        for node in _simpler(hop.subquery):
            yield replace(condition, related=replace(hop, subquery=node))
        if condition.flip is not None:
            yield replace(condition, flip=None)
