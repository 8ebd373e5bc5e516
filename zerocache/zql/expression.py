"""Conditions as a query author writes them: comparison, and, or, not.

Owns the algebra over condition nodes. It never looks at a schema and never evaluates. Invariant:
there is no NOT node; :func:`not_` pushes negation down to the leaves, and applying it twice gives
back the condition it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar, get_args

from zerocache.errors import QueryError
from zerocache.zql.ast import (
    And,
    ColumnRef,
    Condition,
    Exists,
    LiteralRef,
    LiteralValue,
    Or,
    Simple,
    SimpleOperator,
)

TRUE = And([])
FALSE = Or([])

_MISSING: Any = object()

_NEGATED: dict[SimpleOperator, SimpleOperator] = {
    "=": "!=",
    "!=": "=",
    "<": ">=",
    ">=": "<",
    ">": "<=",
    "<=": ">",
    "IN": "NOT IN",
    "NOT IN": "IN",
    "LIKE": "NOT LIKE",
    "NOT LIKE": "LIKE",
    "ILIKE": "NOT ILIKE",
    "NOT ILIKE": "ILIKE",
    "IS": "IS NOT",
    "IS NOT": "IS",
}
_OPERATORS = frozenset(get_args(SimpleOperator))

SubQuery = TypeVar("SubQuery")


def cmp(column: str, op_or_value: Any, value: Any = _MISSING) -> Simple:
    """``cmp("open", True)`` or ``cmp("rank", ">", 3)``."""
    if value is _MISSING:
        return Simple("=", ColumnRef(column), LiteralRef(literal(op_or_value)))
    return Simple(_operator(op_or_value, value), ColumnRef(column), LiteralRef(literal(value)))


def cmp_lit(left: Any, op: str, right: Any) -> Simple:
    """Compare two values that are known already, such as a claim of the token."""
    return Simple(_operator(op, right), LiteralRef(literal(left)), LiteralRef(literal(right)))


def and_(*conditions: Condition) -> Condition:
    """True when all are; of nothing, true."""
    kept = [c for c in conditions if c != TRUE]
    if FALSE in kept:
        return FALSE
    return kept[0] if len(kept) == 1 else And(kept)


def or_(*conditions: Condition) -> Condition:
    """True when any is; of nothing, false."""
    kept = [c for c in conditions if c != FALSE]
    if TRUE in kept:
        return TRUE
    return kept[0] if len(kept) == 1 else Or(kept)


def not_(condition: Condition) -> Condition:
    """The opposite, by De Morgan and by the opposite operator of each leaf.

    Not the logical complement for nulls: both ``x = 1`` and ``x != 1`` are false for a null.
    """
    match condition:
        case And(conditions):
            return Or([not_(c) for c in conditions])
        case Or(conditions):
            return And([not_(c) for c in conditions])
        case Exists(op, related, flip, scalar):
            return Exists("NOT EXISTS" if op == "EXISTS" else "EXISTS", related, flip, scalar)
        case Simple(op, left, right):
            return Simple(_NEGATED[op], left, right)


def simplify(condition: Condition) -> Condition:
    """Same meaning with groups of one unwrapped and groups of one kind joined, at every depth."""
    if not isinstance(condition, And | Or):
        return condition
    if len(condition.conditions) == 1:
        return simplify(condition.conditions[0])
    members: list[Condition] = []
    for member in map(simplify, condition.conditions):
        if isinstance(member, And | Or) and type(member) is type(condition):
            members.extend(member.conditions)
        else:
            members.append(member)
    if isinstance(condition, And):
        return FALSE if FALSE in members else And(members)
    return TRUE if TRUE in members else Or(members)


def literal(value: Any) -> LiteralValue:
    """``value`` as it may stand in a query; :class:`QueryError` for anything else."""
    if isinstance(value, list | tuple | set | frozenset):
        members = [literal(v) for v in value]
        if any(isinstance(v, list) or v is None for v in members):
            raise QueryError(
                f"{value!r} is not usable in a query: a list may hold strings, numbers and "
                "booleans only; compare with IS to match null"
            )
        return members  # type: ignore[return-value]  # the check above leaves scalars only
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise QueryError(
        f"a {type(value).__name__} is not usable in a query: values are strings, numbers, "
        "booleans, None or a list of them; convert it first (dates to epoch milliseconds)"
    )


def _operator(op: Any, value: Any) -> SimpleOperator:
    if op not in _OPERATORS:
        raise QueryError(f"operator {op!r} does not exist; use one of: {', '.join(_NEGATED)}")
    if op in ("IN", "NOT IN") and not isinstance(value, list | tuple | set | frozenset):
        raise QueryError(f"{op} needs a list on its right, got {value!r}; use = for one value")
    known: SimpleOperator = op
    return known


class ExistsFactory(Protocol):
    def __call__(
        self,
        relationship: str,
        refine: Callable[[Any], Any] | None = None,
        *,
        flip: bool | None = None,
        scalar: bool | None = None,
    ) -> Condition: ...


class ExpressionBuilder:
    """What ``where(lambda q: ...)`` gets: the functions of this module plus ``exists``."""

    def __init__(self, exists: ExistsFactory) -> None:
        self.exists = exists

    @staticmethod
    def cmp(column: str, op_or_value: Any, value: Any = _MISSING) -> Condition:
        return cmp(column, op_or_value, value)

    @staticmethod
    def cmp_lit(left: Any, op: str, right: Any) -> Condition:
        return cmp_lit(left, op, right)

    @staticmethod
    def and_(*conditions: Condition) -> Condition:
        return and_(*conditions)

    @staticmethod
    def or_(*conditions: Condition) -> Condition:
        return or_(*conditions)

    @staticmethod
    def not_(condition: Condition) -> Condition:
        return not_(condition)


ConditionFactory: TypeAlias = Callable[[ExpressionBuilder], Condition]


def conjunction(conditions: Sequence[Condition]) -> Condition:
    """The single ``where`` of a query that several ``where`` calls built up."""
    return simplify(and_(*conditions))
