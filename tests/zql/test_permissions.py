"""Read rules: the corpus rules P1-P6 of zql.md §7.7 on the level of syntax trees."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerocache.errors import QueryError
from zerocache.zql.ast import And, Condition, Exists, Or, Query, Simple, parse_query
from zerocache.zql.permissions import (
    FALSE,
    TRUE,
    apply_read_permissions,
    bind_query,
    bind_static,
    unreadable_tables,
)


def simple(column: str, value: Any, op: str = "=") -> dict[str, Any]:
    right = {"type": "literal", "value": value}
    return {
        "type": "simple",
        "op": op,
        "left": {"type": "column", "name": column},
        "right": right,
    }


def static(column: str, field: Any, op: str = "=", anchor: str = "authData") -> dict[str, Any]:
    right = {"type": "static", "anchor": anchor, "field": field}
    return {**simple(column, None, op), "right": right}


def exists(
    table: str, parent: str, child: str, where: Any = None, system: str | None = "client"
) -> dict[str, Any]:
    subquery = {"table": table, "alias": f"zsubq_{table}"} | ({"where": where} if where else {})
    related = {
        "correlation": {"parentField": [parent], "childField": [child]},
        "subquery": subquery,
    } | ({"system": system} if system else {})
    return {"type": "correlatedSubquery", "op": "EXISTS", "related": related}


def related(table: str, parent: str, child: str) -> dict[str, Any]:
    correlation = {"parentField": [parent], "childField": [child]}
    return {
        "correlation": correlation,
        "subquery": {"table": table, "alias": table},
        "system": "client",
    }


def query(table: str, **members: Any) -> Query:
    return parse_query({"table": table, **members})


def where(condition: dict[str, Any]) -> Condition | None:
    return query("x", where=condition).where


ANYONE = [["allow", {"type": "and", "conditions": []}]]
SECRET = exists("secret", "id", "task", simple("level", 2), "permissions")
PERMISSIONS: dict[str, Any] = {
    "tables": {
        "task": {"row": {"select": [["allow", static("owner", "sub")], ["allow", SECRET]]}},
        "note": {"row": {"select": ANYONE, "insert": []}, "cell": {}},
        "person": {"row": {"select": ANYONE}},
        "tag": {"row": {"select": []}},
    }
}
U1 = {"sub": "u1"}
TASK_RULE = {"type": "or", "conditions": [simple("owner", "u1"), SECRET]}


def restricted(ast: Query, claims: dict[str, Any] | None = None) -> Query:
    return apply_read_permissions(ast, PERMISSIONS, U1 if claims is None else claims)


def test_p1_rules_are_ored_and_bound() -> None:
    assert restricted(query("task")) == query("task", where=TASK_RULE)


@pytest.mark.parametrize("claims", [{}, None])
def test_p2_without_a_token_claims_are_null(claims: dict[str, Any] | None) -> None:
    expected = {"type": "or", "conditions": [simple("owner", None), SECRET]}
    assert apply_read_permissions(query("task"), PERMISSIONS, claims) == query(
        "task", where=expected
    )


@pytest.mark.parametrize("table", ["tag", "account"])
def test_p3_p4_a_table_without_rules_yields_nothing(table: str) -> None:
    assert restricted(query(table, where=simple("id", 1))).where == FALSE


@pytest.mark.parametrize("system", ["client", "permissions", "test", None])
def test_p5_an_exists_of_the_client_is_filtered_whatever_it_claims_to_be(system: str) -> None:
    ast = query("note", where=exists("task", "task", "id", system=system))
    assert restricted(ast) == query("note", where=exists("task", "task", "id", TASK_RULE, system))


def test_p6_related_rows_are_filtered_and_the_parents_stay() -> None:
    ast = query("note", related=[related("task", "task", "id")])
    result = restricted(ast)
    assert result.where is None
    assert result.related is not None
    assert result.related[0].subquery == query("task", alias="task", where=TASK_RULE)


def test_the_example_of_the_specification() -> None:
    rank = simple("rank", 5, ">")
    result = restricted(query("task", where=rank, related=[related("tag", "id", "task")]))
    expected = {"type": "and", "conditions": [rank, TASK_RULE]}
    assert result.where == where(expected)
    assert result.related is not None
    assert result.related[0].subquery.where == FALSE


def test_an_exists_of_a_rule_is_not_filtered_again_and_never_synced() -> None:
    inner = exists("tag", "id", "id", system=None)
    rule = exists("secret", "id", "task", inner, system=None)
    permissions = {"tables": {"task": {"row": {"select": [["allow", rule]]}}}}
    result = apply_read_permissions(query("task"), permissions, {})
    marked = exists("tag", "id", "id", system="permissions")
    assert result.where == where(exists("secret", "id", "task", marked, "permissions"))


@pytest.mark.parametrize(
    "permissions",
    [
        None,
        {},
        {"tables": {}},
        {"tables": {"task": {}}},
        {"tables": {"task": {"row": {}}}},
        {"tables": {"task": {"row": {"select": None}}}},
    ],
)
def test_missing_levels_of_the_permissions_allow_nothing(permissions: Any) -> None:
    assert apply_read_permissions(query("task"), permissions, U1).where == FALSE


@pytest.mark.parametrize("select", [[["deny", TASK_RULE]], [["allow", {"type": "x"}]], [["allow"]]])
def test_rules_that_cannot_be_understood_are_an_error(select: Any) -> None:
    with pytest.raises(QueryError, match="'task'"):
        apply_read_permissions(query("task"), {"tables": {"task": {"row": {"select": select}}}}, U1)


def test_windows_and_orders_are_untouched() -> None:
    members = {
        "orderBy": [["rank", "desc"]],
        "limit": 3,
        "start": {"row": {"rank": 1}, "exclusive": True},
    }
    assert restricted(query("note", **members)) == query("note", **members)


def test_unreadable_tables_are_found_at_every_level() -> None:
    ast = query(
        "task",
        where=exists("account", "id", "id", exists("note", "id", "id")),
        related=[related("tag", "id", "task"), related("note", "id", "task")],
    )
    assert unreadable_tables(ast, PERMISSIONS) == {"account", "tag"}


# -- static parameters -------------------------------------------------------------------------


def bound(condition: dict[str, Any], claims: dict[str, Any]) -> Condition:
    parsed = where(condition)
    assert parsed is not None
    return bind_static(parsed, claims)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sub", "u1"),
        ("n", 1.5),
        ("yes", True),
        ("missing", None),
        (["org", "id"], 7),
        (["org", "no"], None),
        (["sub", "deep"], None),
        ([], None),
    ],
)
def test_claims_by_key_and_path(field: Any, value: Any) -> None:
    claims = {"sub": "u1", "n": 1.5, "yes": True, "org": {"id": 7}}
    if field == []:
        assert bound(static("c", field), claims) == FALSE  # all claims at once: an object
    else:
        assert bound(static("c", field), claims) == where(simple("c", value))


def test_pre_mutation_row_is_null_in_reads() -> None:
    result = bound(static("c", "id", anchor="preMutationRow"), {"id": 1})
    assert result == where(simple("c", None))


@pytest.mark.parametrize("op", ["IN", "NOT IN"])
def test_a_list_claim_binds_on_the_right_of_in(op: str) -> None:
    claims = {"teams": ["a", None, {"x": 1}, 2]}
    assert bound(static("c", "teams", op), claims) == where(simple("c", ["a", 2], op))


@pytest.mark.parametrize(
    ("op", "claim"),
    [
        ("IN", None),
        ("IN", "a"),
        ("IN", {"x": 1}),
        ("NOT IN", None),
        ("NOT IN", 3),
        ("=", [1]),
        ("!=", [1]),
        ("!=", {"x": 1}),
    ],
)
def test_claims_of_the_wrong_kind_make_the_condition_false(op: str, claim: Any) -> None:
    assert bound(static("c", "k", op), {"k": claim}) == FALSE


def test_a_static_value_may_stand_on_the_left() -> None:
    condition = {**simple("c", "admin"), "left": static("c", "role")["right"]}
    assert bound(condition, {"role": "admin"}) == where(
        {**condition, "left": {"type": "literal", "value": "admin"}}
    )
    assert bound(condition, {"role": ["admin"]}) == FALSE


def test_parameters_of_the_client_are_bound_at_all_levels() -> None:
    ast = query(
        "note",
        where=exists("task", "task", "id", static("owner", "sub")),
        related=[
            {
                **related("task", "task", "id"),
                "subquery": {"table": "task", "where": static("x", "sub")},
            }
        ],
    )
    result = bind_query(ast, U1)
    assert result.where == where(exists("task", "task", "id", simple("owner", "u1")))
    assert result.related is not None
    assert result.related[0].subquery.where == where(simple("x", "u1"))


# -- simplification ----------------------------------------------------------------------------

A, B = simple("a", 1), simple("b", 2)


def group(kind: str, *members: Any) -> dict[str, Any]:
    return {"type": kind, "conditions": list(members)}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (group("and", group("and", A), group("and", B)), group("and", A, B)),
        (group("or", group("or", group("or", A)), B), group("or", A, B)),
        (group("and", A), A),
        (group("and", A, group("or")), group("or")),
        (group("or", A, group("and")), group("and")),
        (group("or", group("or"), A), A),
        (group("and", group("and"), A), A),
        (group("or", group("and", A, group("or"))), group("or")),
        (group("or", group("or")), group("or")),
        (group("and", group("and")), group("and")),
    ],
)
def test_simplification_keeps_false_and_true_apart(condition: Any, expected: Any) -> None:
    assert bound(condition, {}) == where(expected)


def evaluate(condition: Condition, truth: dict[str, bool]) -> bool:
    if isinstance(condition, And):
        return all(evaluate(c, truth) for c in condition.conditions)
    if isinstance(condition, Or):
        return any(evaluate(c, truth) for c in condition.conditions)
    assert isinstance(condition, Simple)
    return truth[condition.left.name]  # type: ignore[union-attr]


trees = st.recursive(
    st.sampled_from([A, B, group("and"), group("or")]),
    lambda inner: st.builds(
        lambda kind, members: group(kind, *members),
        st.sampled_from(["and", "or"]),
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


@given(trees, st.booleans(), st.booleans())
def test_simplification_keeps_the_meaning(tree: Any, a: bool, b: bool) -> None:
    original = where(tree)
    assert original is not None
    simplified = bind_static(original, {})
    truth = {"a": a, "b": b}
    assert evaluate(simplified, truth) == evaluate(original, truth)
    if isinstance(simplified, And | Or) and simplified not in (TRUE, FALSE):
        assert not any(isinstance(m, type(simplified)) for m in simplified.conditions)
        assert TRUE not in simplified.conditions
        assert FALSE not in simplified.conditions


def test_exists_over_nothing_stays_an_exists() -> None:
    result = restricted(query("note", where=exists("tag", "id", "id")))
    assert isinstance(result.where, Exists)
    assert result.where.related.subquery.where == FALSE
