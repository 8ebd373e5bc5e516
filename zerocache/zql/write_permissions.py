"""Write rules as conditions on one row (api-and-auth.md §5.3).

Owns the choice of the rules that apply to a CRUD operation. It must fail closed: a table without
rules for an action allows nothing. Reading has its own module, :mod:`zerocache.zql.permissions`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec.structs import replace

from zerocache.errors import QueryError
from zerocache.zql.ast import (
    And,
    Condition,
    Exists,
    LiteralRef,
    LiteralValue,
    Or,
    Simple,
    StaticRef,
    ValueRef,
)
from zerocache.zql.permissions import Claims, Permissions, bind_static

Action: TypeAlias = Literal["insert", "preMutation", "postMutation", "delete"]
"""``preMutation`` and ``postMutation`` are an update's, before and after it."""

_Rules: TypeAlias = list[tuple[Literal["allow"], Condition]]


class _UpdateRules(msgspec.Struct, frozen=True, rename="camel"):
    pre_mutation: _Rules | None = None
    post_mutation: _Rules | None = None


class _AssetRules(msgspec.Struct, frozen=True):
    insert: _Rules | None = None
    update: _UpdateRules | None = None
    delete: _Rules | None = None

    def of(self, action: Action) -> _Rules | None:
        match action:
            case "insert":
                return self.insert
            case "delete":
                return self.delete
            case "preMutation":
                return None if self.update is None else self.update.pre_mutation
            case "postMutation":
                return None if self.update is None else self.update.post_mutation


class _TableRules(msgspec.Struct, frozen=True):
    row: _AssetRules | None = None
    cell: dict[str, _AssetRules] | None = None


def write_condition(
    permissions: Permissions | None, table: str, action: Action, columns: Iterable[str]
) -> Condition:
    """What must hold of the row for ``action`` to be allowed; ``columns`` are those it writes.

    Static parameters are still in it: see :func:`before_columns` and :func:`bind_write`.
    """
    rules = _table_rules(permissions, table)
    row = None if rules.row is None else rules.row.of(action)
    cells = rules.cell or {}
    of_cells = [cells[name].of(action) for name in sorted(set(columns) & cells.keys())]
    return And([_any(row), *(_any(cell) for cell in of_cells if cell is not None)])


def before_columns(condition: Condition) -> set[str]:
    """The columns of the row before the mutation that ``condition`` refers to."""
    found: set[str] = set()

    def look(ref: ValueRef) -> ValueRef:
        if isinstance(ref, StaticRef) and ref.anchor == "preMutationRow":
            found.add(_column(ref))
        return ref

    _map_refs(condition, look)
    return found


def bind_write(
    condition: Condition, claims: Claims | None, before: Mapping[str, LiteralValue]
) -> Condition:
    """``condition`` without static parameters; ``before`` has all of :func:`before_columns`."""

    def bind(ref: ValueRef) -> ValueRef:
        if isinstance(ref, StaticRef) and ref.anchor == "preMutationRow":
            return LiteralRef(before[_column(ref)])
        return ref

    return bind_static(_map_refs(condition, bind), claims)


def _any(rules: _Rules | None) -> Condition:
    return Or([condition for _action, condition in rules or ()])


def _table_rules(permissions: Permissions | None, table: str) -> _TableRules:
    tables = (permissions or {}).get("tables")
    entry: Any = tables.get(table) if isinstance(tables, Mapping) else None
    try:
        return msgspec.convert(entry or {}, _TableRules)
    except msgspec.ValidationError as error:
        raise QueryError(
            f"the permissions of table {table!r} cannot be understood ({error}), so nobody may "
            "write to it: deploy permissions made by a supported release"
        ) from error


def _column(ref: StaticRef) -> str:
    return ref.field if isinstance(ref.field, str) else ref.field[0]


def _map_refs(condition: Condition, change: Callable[[ValueRef], ValueRef]) -> Condition:
    if isinstance(condition, Simple):
        return replace(condition, left=change(condition.left), right=change(condition.right))
    if isinstance(condition, Exists):
        inner = condition.related.subquery
        if inner.where is None:
            return condition
        inner = replace(inner, where=_map_refs(inner.where, change))
        return replace(condition, related=replace(condition.related, subquery=inner))
    return replace(condition, conditions=list(_mapped(condition, change)))


def _mapped(condition: And | Or, change: Callable[[ValueRef], ValueRef]) -> Iterator[Condition]:
    return (_map_refs(member, change) for member in condition.conditions)
