"""The algebra of conditions: negation, simplification, literals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.errors import QueryError
from zerocache.zql.ast import And, ColumnRef, Condition, LiteralRef, Or, Simple
from zerocache.zql.expression import FALSE, TRUE, and_, cmp, cmp_lit, not_, or_, simplify
from zerocache.zql.shape import compare

values = st.integers(0, 2)
leaves = st.one_of(
    st.builds(cmp, st.sampled_from("ab"), st.sampled_from(["=", "!=", "<", ">=", "IS"]), values),
    st.builds(cmp, st.sampled_from("ab"), st.sampled_from(["IN", "NOT IN"]), st.lists(values)),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    leaves,
    lambda inner: (
        st.builds(And, st.lists(inner, max_size=3)) | st.builds(Or, st.lists(inner, max_size=3))
    ),
    max_leaves=8,
)
rows = st.fixed_dictionaries({"a": values, "b": values})


def holds(condition: Condition, row: dict[str, Any]) -> bool:
    match condition:
        case And(members):
            return all(holds(member, row) for member in members)
        case Or(members):
            return any(holds(member, row) for member in members)
        case Simple(op, ColumnRef(name), LiteralRef(value)):
            return compare(row[name], op, value)
    raise AssertionError(condition)


@given(conditions, rows)
def test_negation_is_the_opposite_where_nothing_is_null(
    condition: Condition, row: dict[str, Any]
) -> None:
    assert holds(not_(condition), row) != holds(condition, row)


@given(conditions)
def test_negating_twice_gives_the_condition_back(condition: Condition) -> None:
    assert not_(not_(condition)) == condition


@given(conditions, rows)
def test_simplifying_keeps_the_meaning(condition: Condition, row: dict[str, Any]) -> None:
    assert holds(simplify(condition), row) == holds(condition, row)


@given(conditions)
def test_simplified_groups_hold_no_group_of_their_kind(condition: Condition) -> None:
    def check(group: Condition) -> None:
        if isinstance(group, And | Or):
            assert not any(type(member) is type(group) for member in group.conditions)
            for member in group.conditions:
                check(member)

    check(simplify(condition))


@given(st.lists(conditions, max_size=3), rows)
def test_and_or_mean_all_and_any(members: list[Condition], row: dict[str, Any]) -> None:
    assert holds(and_(*members), row) == all(holds(m, row) for m in members)
    assert holds(or_(*members), row) == any(holds(m, row) for m in members)


def test_constants_swallow_and_vanish() -> None:
    one = cmp("a", 1)
    assert and_() == and_(TRUE) == TRUE
    assert or_() == or_(FALSE) == FALSE
    assert and_(one, FALSE) == FALSE
    assert or_(one, TRUE) == TRUE
    assert and_(one, TRUE) == or_(one, FALSE) == one


def test_null_matches_neither_side_of_a_negation() -> None:
    row = {"a": None}
    assert not holds(cmp("a", 1), row)
    assert not holds(not_(cmp("a", 1)), row)


def test_sets_and_tuples_become_lists() -> None:
    assert cmp("a", "IN", (1, 2)).right == LiteralRef([1, 2])
    assert cmp_lit("x", "IN", {"x"}).right == LiteralRef(["x"])


@pytest.mark.parametrize("value", [[None], [[1]], {"a": 1}, b"x"])
def test_values_that_cannot_travel_are_refused(value: Any) -> None:
    with pytest.raises(QueryError):
        cmp("a", "IN" if isinstance(value, list) else "=", value)
