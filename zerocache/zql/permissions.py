"""Read rules compiled into queries that clients wrote themselves (zql.md §5).

Owns the rewriting of an AST; decides nothing about which queries need it (named and internal ones
do not) and evaluates nothing. It must fail closed: what a rule does not clearly allow is FALSE.

Invariant: after :func:`apply_read_permissions` every node that can yield or reveal a row of a
table, EXISTS subqueries of the client included, is filtered by that table's rules, and no static
parameter is left anywhere. FALSE is ``or[]`` and TRUE ``and[]``; unlike the normal form that is
hashed, nothing here ever turns one into the other or into "no filter".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from zerocache.errors import QueryError
from zerocache.zql.ast import (
    And,
    Condition,
    CorrelatedSubquery,
    Exists,
    LiteralRef,
    LiteralValue,
    Or,
    Query,
    Simple,
    StaticRef,
)

TRUE: Final = And([])
FALSE: Final = Or([])

Permissions: TypeAlias = Mapping[str, Any]
Claims: TypeAlias = Mapping[str, Any]

_Rules: TypeAlias = list[tuple[Literal["allow"], Condition]]


class _RowRules(msgspec.Struct, frozen=True):
    """Rules for writing sit beside ``select`` and do not matter here."""

    select: _Rules | None = None


class _TableRules(msgspec.Struct, frozen=True):
    row: _RowRules | None = None


def apply_read_permissions(
    query: Query, permissions: Permissions | None, claims: Claims | None
) -> Query:
    """``query`` restricted to what ``permissions`` let the bearer of ``claims`` read.

    ``permissions`` is the parsed JSON of the app's permissions row (None: nothing deployed, so
    nothing is readable); ``claims`` the payload of a verified JWT (None or {} without one).
    """
    return bind_query(_restrict(query, permissions), claims)


def unreadable_tables(query: Query, permissions: Permissions | None) -> set[str]:
    """Tables of ``query`` without any read rule: worth a warning, since they yield no rows."""
    return {node.table for node in _nodes(query) if not _rules(node.table, permissions)}


# -- rules -------------------------------------------------------------------------------------


def _rules(table: str, permissions: Permissions | None) -> list[Condition]:
    tables = (permissions or {}).get("tables")
    entry = tables.get(table) if isinstance(tables, Mapping) else None
    if entry is None:
        return []
    try:
        rules = msgspec.convert(entry, _TableRules)
    except msgspec.ValidationError as error:
        raise QueryError(
            f"the read permissions of table {table!r} cannot be understood ({error}), so none of "
            "its rows may be sent: deploy permissions made by a supported release"
        ) from error
    if rules.row is None or rules.row.select is None:
        return []
    return [_own(condition) for _action, condition in rules.row.select]


def _own(condition: Condition) -> Condition:
    """Mark every EXISTS of a rule as one whose rows never leave the server."""
    if isinstance(condition, And | Or):
        return replace(condition, conditions=[_own(c) for c in condition.conditions])
    if isinstance(condition, Exists):
        inner = condition.related.subquery
        if inner.where is not None:
            inner = replace(inner, where=_own(inner.where))
        return replace(
            condition, related=replace(condition.related, subquery=inner, system="permissions")
        )
    return condition


def _restrict(query: Query, permissions: Permissions | None) -> Query:
    allowed = Or(_rules(query.table, permissions))
    where = allowed if query.where is None else And([_inside(query.where, permissions), allowed])
    related = query.related and [_restrict_hop(hop, permissions) for hop in query.related]
    return replace(query, where=where, related=related)


def _restrict_hop(hop: CorrelatedSubquery, permissions: Permissions | None) -> CorrelatedSubquery:
    return replace(hop, subquery=_restrict(hop.subquery, permissions))


def _inside(condition: Condition, permissions: Permissions | None) -> Condition:
    """A client's EXISTS would tell whether an unreadable row is there; whatever ``system`` it
    claims to be of, it is the client's."""
    if isinstance(condition, And | Or):
        return replace(
            condition, conditions=[_inside(c, permissions) for c in condition.conditions]
        )
    if isinstance(condition, Exists):
        return replace(condition, related=_restrict_hop(condition.related, permissions))
    return condition


# -- static parameters -------------------------------------------------------------------------


def bind_query(query: Query, claims: Claims | None) -> Query:
    """Replace static parameters in the filters of all levels, and simplify these filters."""
    where = query.where and bind_static(query.where, claims)
    related = query.related and [
        replace(hop, subquery=bind_query(hop.subquery, claims)) for hop in query.related
    ]
    return replace(query, where=None if where == TRUE else where, related=related)


def bind_static(condition: Condition, claims: Claims | None) -> Condition:
    """``condition`` without static parameters, simplified."""
    if isinstance(condition, Simple):
        return _bind_simple(condition, claims or {})
    if isinstance(condition, Exists):
        related = condition.related
        bound = replace(related, subquery=bind_query(related.subquery, claims))
        return replace(condition, related=bound)
    members = [bind_static(member, claims) for member in condition.conditions]
    return _group(type(condition), members)


def _bind_simple(condition: Simple, claims: Claims) -> Condition:
    bound = condition
    if isinstance(bound.left, StaticRef):
        left = _value(bound.left, claims)
        if left is None or isinstance(left.value, list):
            return FALSE
        bound = replace(bound, left=left)
    if isinstance(bound.right, StaticRef):
        right = _value(bound.right, claims)
        if right is None or isinstance(right.value, list) != (bound.op in ("IN", "NOT IN")):
            return FALSE
        bound = replace(bound, right=right)
    return bound


def _value(ref: StaticRef, claims: Claims) -> LiteralRef | None:
    """The claim as a literal; None if it is of a kind no column can be compared with.

    Reads have no row before the mutation, so ``preMutationRow`` is null.
    """
    value: Any = claims if ref.anchor == "authData" else None
    for key in [ref.field] if isinstance(ref.field, str) else ref.field:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, list | tuple):
        # No column equals a null, an object or an array, so these members match nothing.
        scalars: LiteralValue = [v for v in value if isinstance(v, str | int | float)]
        return LiteralRef(scalars)
    if value is None or isinstance(value, str | int | float):
        return LiteralRef(value)
    return None


def _group(kind: type[And] | type[Or], members: list[Condition]) -> Condition:
    """Splice groups of the same kind, let FALSE (in and) or TRUE (in or) decide, unwrap one."""
    decisive: Condition = FALSE if kind is And else TRUE
    spliced: list[Condition] = []
    for member in members:
        if member == decisive:
            return decisive
        spliced.extend(member.conditions if isinstance(member, kind) else [member])
    return spliced[0] if len(spliced) == 1 else kind(spliced)


# -- walking -----------------------------------------------------------------------------------


def _nodes(query: Query) -> Iterator[Query]:
    yield query
    for hop in query.related or ():
        yield from _nodes(hop.subquery)
    if query.where is not None:
        yield from _nodes_of(query.where)


def _nodes_of(condition: Condition) -> Iterator[Query]:
    if isinstance(condition, And | Or):
        for member in condition.conditions:
            yield from _nodes_of(member)
    elif isinstance(condition, Exists):
        yield from _nodes(condition.related.subquery)


__all__ = [
    "FALSE",
    "TRUE",
    "Claims",
    "Permissions",
    "apply_read_permissions",
    "bind_query",
    "bind_static",
    "unreadable_tables",
]
