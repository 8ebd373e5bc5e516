"""The read permissions of the model checker: who may see what changes while clients look.

Owns the random rules, the statement that deploys them (any subset of a transaction's statements is
again one) and what they make of a query, told by itself and not by the server's own rewriting.
``beat`` stays visible to all, or no client could be asked what it shows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import msgspec

from tests.fuzz import model_world as world
from zerocache.zql import ast

Rules = Mapping[str, ast.Condition]
"""By table; of one that is not here nothing may be seen."""

_ALL = ast.And([])
_NONE = ast.Or([])
_DEPLOY = "DEPLOY "
EVERYTHING: Rules = dict.fromkeys(world.COLUMNS, _ALL)


def change(seed: str) -> list[str]:
    """One transaction that deploys other rules, mostly with changes of rows beside it."""
    choose = random.Random(seed)
    changes = [[deploying(_rules(choose))]]
    for _ in range(choose.choice([0, 1, 3])):
        changes.insert(choose.randrange(len(changes) + 1), world.small(choose))
    return [statement for change in changes for statement in change]


def _rules(choose: random.Random) -> Rules:
    """Most tables are open most of the time: queries that yield nothing find no mistakes."""
    rules = dict(EVERYTHING)
    for table in ("node", "item", "link", "pair"):
        kind = choose.random()
        if kind < 0.1:
            del rules[table]
        elif kind < 0.3:
            rules[table] = world.simple(choose, table)
        elif kind < 0.4:
            rules[table] = ast.Or([world.simple(choose, table), world.simple(choose, table)])
        elif kind < 0.5:
            rules[table] = _through_a_neighbour(choose, table)
    return rules


def _through_a_neighbour(choose: random.Random, table: str) -> ast.Condition:
    """The row is visible if some other row is there, which is itself not shown for it."""
    mine, other, theirs = choose.choice(world.RELATIONS[table])
    query = ast.Query(table=other, alias="rule", where=world.simple(choose, other))
    hop = ast.CorrelatedSubquery(ast.Correlation(mine, theirs), query, system="permissions")
    return ast.Exists(choose.choice(["EXISTS", "EXISTS", "NOT EXISTS"]), hop)


# -- as statements -------------------------------------------------------------------------------


def deploying(rules: Rules) -> str:
    """What :func:`deployed_by` knows again."""
    tables = {table: {"row": {"select": [["allow", rule]]}} for table, rule in rules.items()}
    return _DEPLOY + msgspec.json.encode({"tables": tables}).decode()


def deployed_by(statement: str) -> str | None:
    """The text of the permissions that a statement deploys, if that is what it does."""
    return statement.removeprefix(_DEPLOY) if statement.startswith(_DEPLOY) else None


def read(permissions: Any) -> Rules:
    """The rules of the permissions row, as text or as a value."""
    value = json.loads(permissions) if isinstance(permissions, str) else permissions
    rules: dict[str, ast.Condition] = {}
    for table, entry in value["tables"].items():
        ((_, rule),) = entry["row"]["select"]
        rules[table] = msgspec.convert(rule, ast.Condition)
    return rules


# -- what they make of a query -------------------------------------------------------------------


def restricted(query: ast.Query, rules: Rules) -> ast.Query:
    """``query`` of what may be seen; a client's EXISTS finds no row that may not be."""
    rule = rules.get(query.table, _NONE)
    asked = [] if query.where is None else [_seen(query.where, rules)]
    related = [_hop(hop, rules) for hop in query.related or ()]
    return msgspec.structs.replace(query, where=ast.And([*asked, rule]), related=related or None)


def _hop(hop: ast.CorrelatedSubquery, rules: Rules) -> ast.CorrelatedSubquery:
    return msgspec.structs.replace(hop, subquery=restricted(hop.subquery, rules))


def _seen(condition: ast.Condition, rules: Rules) -> ast.Condition:
    if isinstance(condition, ast.And | ast.Or):
        members = [_seen(member, rules) for member in condition.conditions]
        return msgspec.structs.replace(condition, conditions=members)
    if isinstance(condition, ast.Exists):
        return msgspec.structs.replace(condition, related=_hop(condition.related, rules))
    return condition
