"""Lifting queries to shapes: what the types decide, what may share, what is refused."""

from __future__ import annotations

from typing import Any, get_args

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.view_syncer.ivm import naive
from zerocache.errors import QueryError
from zerocache.replica.schema import ReplicaColumn, ReplicaTable
from zerocache.zql import ast
from zerocache.zql.like import MAX_PATTERN_BYTES, glob_pattern
from zerocache.zql.shape import (
    FALSE,
    TRUE,
    Const,
    Cursor,
    ExistsFilter,
    Instance,
    Junction,
    Term,
    compare,
    filter_columns,
    junction,
    lift,
    shape_tables,
    walk_exists,
)


def _table(name: str, columns: dict[str, Any], *keys: tuple[str, ...]) -> ReplicaTable:
    return ReplicaTable(name, {c: ReplicaColumn(c, "?", kind) for c, kind in columns.items()}, keys)


TABLES = {
    "task": _table(
        "task",
        {"id": "string", "n": "number", "s": "string", "b": "boolean", "j": "json", "x": None},
        ("id",),
    ),
    "note": _table("note", {"a": "string", "t": "string", "n": "number"}, ("a", "t"), ("n", "t")),
    "log": _table("log", {"line": "string"}),
}
OPS: tuple[ast.SimpleOperator, ...] = get_args(ast.SimpleOperator)


def instance(where: ast.Condition | None = None, **parts: Any) -> Instance:
    return lift(ast.Query(table="task", where=where, **parts), TABLES, {})


def cond(column: str, op: Any, value: Any) -> ast.Simple:
    return ast.Simple(op, ast.ColumnRef(column), ast.LiteralRef(value))


def hop(
    table: str, parents: list[str], children: list[str], **parts: Any
) -> ast.CorrelatedSubquery:
    system = parts.pop("system", None)
    query = ast.Query(table=table, alias=parts.pop("alias", "r"), **parts)
    return ast.CorrelatedSubquery(ast.Correlation(parents, children), query, system=system)


def exists(related: ast.CorrelatedSubquery, *, negated: bool = False) -> ast.Exists:
    return ast.Exists("NOT EXISTS" if negated else "EXISTS", related)


NOTES = hop("note", ["id"], ["t"])


# -- the types decide --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "value"),
    [("s", 1), ("s", True), ("n", "1"), ("n", True), ("b", 1), ("b", "true"), ("b", 0)],
)
def test_values_of_another_type_are_unequal_and_unordered(column: str, value: Any) -> None:
    kind = TABLES["task"].columns[column].client_type
    assert kind is not None
    present = Term(column, "NOT NULL", kind)
    for op in ("=", "IS", "<", ">", "<=", ">="):
        assert instance(cond(column, op, value)).shape.where == FALSE
    assert instance(cond(column, "!=", value)).shape.where == present
    assert instance(cond(column, "IS NOT", value)).shape.where == TRUE
    assert instance(cond(column, "IN", [value])).shape.where == FALSE
    assert instance(cond(column, "NOT IN", [value])).shape.where == present


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("IS", "IS NOT")])
def test_null_on_the_right_matches_nothing(op: Any) -> None:
    assert instance(cond("s", op, None)).shape.where == FALSE


def test_is_null_and_is_not_null_become_null_tests() -> None:
    assert instance(cond("n", "IS", None)).shape.where == Term("n", "NULL", "number")
    assert instance(cond("n", "IS NOT", None)).shape.where == Term("n", "NOT NULL", "number")


def test_an_empty_list_keeps_the_null_rule() -> None:
    assert instance(cond("n", "IN", [])).shape.where == FALSE
    assert instance(cond("n", "NOT IN", [])).shape.where == Term("n", "NOT NULL", "number")


def test_members_of_another_type_leave_a_list() -> None:
    lifted = instance(cond("n", "IN", [1, "1", True, 2.5]))
    assert lifted.params == (("p0", "[1,2.5]"),)


def test_booleans_are_bound_as_stored() -> None:
    assert instance(cond("b", "=", True)).params == (("p0", 1),)


def test_an_integer_beyond_64_bits_is_bound_as_a_double() -> None:
    assert instance(cond("n", "<", 2**70)).params == (("p0", float(2**70)),)


def test_a_parameter_nobody_bound_is_null() -> None:
    static = ast.Simple("=", ast.ColumnRef("s"), ast.StaticRef("authData", "sub"))
    assert instance(static).shape.where == FALSE


@pytest.mark.parametrize("value", [1, True])
def test_like_with_a_pattern_that_is_no_string_cannot_match(value: Any) -> None:
    assert instance(cond("s", "LIKE", value)).shape.where == FALSE
    assert instance(cond("s", "NOT ILIKE", value)).shape.where == Term("s", "NOT NULL", "string")


def test_like_on_a_column_that_is_no_string_cannot_match() -> None:
    assert instance(cond("n", "LIKE", "%")).shape.where == FALSE
    assert instance(cond("n", "NOT LIKE", "%")).shape.where == Term("n", "NOT NULL", "number")


@pytest.mark.parametrize("parents", [["n"], ["j"], ["s", "b"]])
def test_a_correlation_of_different_types_never_matches(parents: list[str]) -> None:
    related = hop("note", parents, ["t", "n"][: len(parents)])
    assert instance(exists(related)).shape.where == FALSE
    assert instance(exists(related, negated=True)).shape.where == TRUE
    assert instance(related=[related]).shape.related == ()


def test_json_columns_do_not_correlate_with_each_other() -> None:
    related = hop("task", ["j"], ["j"])
    assert instance(exists(related)).shape.where == FALSE


# -- sharing -----------------------------------------------------------------------------------


def test_queries_that_differ_in_a_literal_share_the_shape_only() -> None:
    one, other = instance(cond("n", "=", 7)), instance(cond("n", "=", 9))
    assert one.shape == other.shape
    assert hash(one.shape) == hash(other.shape)
    assert one != other


def test_the_same_question_is_the_same_instance() -> None:
    where = ast.And([cond("n", ">", 1), exists(NOTES)])
    assert instance(where, limit=3) == instance(where, limit=3)
    assert instance(cond("n", "=", 1)) == instance(cond("n", "=", 1.0))


@pytest.mark.parametrize(
    "false",
    [
        ast.Or([]),
        ast.And([ast.Or([])]),
        ast.Or([ast.Or([]), ast.Or([])]),
        ast.And([ast.And([]), ast.Or([])]),
        ast.Simple("=", ast.LiteralRef(1), ast.LiteralRef(0)),
        cond("s", "IN", []),
        exists(hop("note", ["id"], ["t"], where=ast.Or([]))),
        exists(hop("note", ["id"], ["t"], limit=0)),
    ],
)
def test_what_matches_nothing_never_shares_with_what_matches_everything(
    false: ast.Condition,
) -> None:
    everything = [instance(), instance(ast.And([])), instance(ast.And([ast.And([])]))]
    assert instance(false).shape.where == FALSE
    assert instance(false) not in everything
    related_false = instance(related=[hop("task", ["id"], ["id"], where=false)])
    assert related_false != instance(related=[hop("task", ["id"], ["id"])])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (cond("n", "<", 1), cond("n", "<=", 1)),
        (cond("n", "=", 1), cond("n", "IS NOT", 1)),
        (cond("s", "LIKE", "a"), cond("s", "ILIKE", "a")),
        (exists(NOTES), exists(NOTES, negated=True)),
        (exists(NOTES), exists(hop("note", ["s"], ["t"]))),
        (exists(NOTES), exists(hop("note", ["id"], ["t"], system="permissions"))),
        (ast.And([cond("n", "=", 1), cond("s", "=", "a")]),
         ast.Or([cond("n", "=", 1), cond("s", "=", "a")])),
    ],
)  # fmt: skip
def test_different_questions_are_different_instances(
    one: ast.Condition, other: ast.Condition
) -> None:
    assert instance(one) != instance(other)


def test_hints_of_the_planner_do_not_hinder_sharing() -> None:
    plain, hinted = exists(NOTES), ast.Exists("EXISTS", NOTES, flip=True, scalar=True)
    assert instance(plain) == instance(hinted)


def test_a_client_with_another_key_gets_an_order_of_its_own() -> None:
    query = ast.Query(table="note", limit=1)
    one = lift(query, TABLES, {})
    other = lift(query, TABLES, {"note": ("n", "t")})
    assert one.shape.order == (("a", "asc"), ("t", "asc"))
    assert other.shape.order == (("n", "asc"), ("t", "asc"))
    assert one != other


# -- nodes -------------------------------------------------------------------------------------


def test_orders_are_completed_with_the_key_columns_not_mentioned() -> None:
    query = ast.Query(table="note", order_by=[("t", "desc"), ("n", "asc"), ("t", "asc")])
    assert lift(query, TABLES, {}).shape.order == (("t", "desc"), ("n", "asc"), ("a", "asc"))


def test_a_cursor_has_null_for_columns_it_does_not_mention() -> None:
    start = ast.Start({"n": 20, "ignored": 1}, True)
    lifted = instance(order_by=[("n", "asc")], start=start)
    assert lifted.shape.cursor == Cursor(("p0", None), True)
    assert lifted.params == (("p0", 20),)


def test_of_two_related_queries_with_one_alias_the_last_counts() -> None:
    lifted = instance(related=[hop("task", ["id"], ["id"]), NOTES])
    assert [r.node.table for r in lifted.shape.related] == ["note"]


def test_related_queries_that_bring_no_rows_to_the_client_are_dropped() -> None:
    behind = hop("note", ["id"], ["t"], system="permissions", alias="p")
    none = hop("note", ["id"], ["t"], limit=0, alias="z")
    assert instance(related=[behind, none]).shape.related == ()


def test_inside_exists_order_limit_and_related_say_nothing() -> None:
    busy = hop("note", ["id"], ["t"], limit=5, order_by=[("n", "desc")], related=[
        hop("task", ["t"], ["id"])])  # fmt: skip
    assert instance(exists(busy)) == instance(exists(NOTES))


def test_a_start_inside_exists_is_kept_with_its_order() -> None:
    start = ast.Start({"n": 1}, False)
    shape = instance(exists(hop("note", ["id"], ["t"], start=start))).shape
    [found] = walk_exists(shape.where)
    assert found.node.cursor is not None
    assert found.node.order == (("a", "asc"), ("t", "asc"))


def test_exists_of_the_permissions_are_not_synced() -> None:
    shape = instance(exists(hop("note", ["id"], ["t"], system="permissions"))).shape
    assert [e.synced for e in walk_exists(shape.where)] == [False]


# -- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        (ast.Query(table="nope"), "'nope' is not replicated; replicated tables: log, note, task"),
        (ast.Query(table="log"), "no primary key"),
        (ast.Query(table="task", limit=-1), "limit -1"),
        (ast.Query(table="task", limit=2**53), "limit 9007199254740992 on table 'task' is above"),
        (ast.Query(table="task", limit=10**5000), "is above"),
        (ast.Query(table="task", where=cond("n", "=", 10**400)), "larger than any number"),
        (
            ast.Query(
                table="task", order_by=[("n", "asc")], start=ast.Start({"n": -(10**400)}, True)
            ),
            "larger than any number",
        ),
        (
            ast.Query(table="task", where=cond("s", "LIKE", "a" * (MAX_PATTERN_BYTES + 1))),
            "more than 50000 bytes",
        ),
        (
            ast.Query(table="task", where=ast.Or([cond("n", "=", i) for i in range(30_001)])),
            "more than 30000 literals",
        ),
        (ast.Query(table="task", where=cond("zz", "=", 1)), "'zz' of table 'task' does not exist"),
        (ast.Query(table="task", where=cond("x", "=", 1)), "type that is not synced"),
        (ast.Query(table="task", order_by=[("zz", "asc")]), "'zz'"),
        (ast.Query(table="task", where=cond("s", "IN", "a")), "needs an array"),
        (ast.Query(table="task", where=cond("s", "=", ["a"])), "cannot compare with an array"),
        (ast.Query(table="task", where=cond("s", "LIKE", "a\\")), "unescaped backslash"),
        (ast.Query(table="task", related=[hop("note", ["id"], ["t", "a"])]), "pairs 1 columns"),
        (ast.Query(table="task", related=[hop("note", [], [])]), "at least one"),
        (ast.Query(table="task", where=exists(hop("nope", ["id"], ["t"]))), "'nope'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(query: ast.Query, complaint: str) -> None:
    with pytest.raises(QueryError, match=complaint):
        lift(query, TABLES, {})


# -- filters -----------------------------------------------------------------------------------


def test_junctions_fold_constants_and_splice_their_own_kind() -> None:
    a, b = Term("n", "NULL", "number"), Term("s", "NULL", "string")
    assert junction(True, []) == TRUE
    assert junction(False, []) == FALSE
    assert junction(True, [a, TRUE]) == a
    assert junction(True, [a, FALSE, b]) == FALSE
    assert junction(False, [a, TRUE]) == TRUE
    assert junction(True, [a, Junction(True, (b, a))]) == Junction(True, (a, b, a))
    assert junction(True, [a, Junction(False, (b, a))]) == Junction(
        True, (a, Junction(False, (b, a)))
    )


def test_filter_columns_are_those_that_decide() -> None:
    where = ast.Or([cond("n", ">", 1), ast.And([exists(NOTES), cond("j", "IS", None)])])
    assert filter_columns(instance(where).shape.where) == {"n", "id", "j"}
    assert filter_columns(Const(True)) == set()


def test_shape_tables_include_those_only_tested() -> None:
    inner = exists(hop("note", ["id"], ["t"], system="permissions"), negated=True)
    shape = instance(related=[hop("task", ["id"], ["id"], where=inner)]).shape
    assert shape_tables(shape) == {"task", "note"}


def test_walk_exists_stays_on_its_level() -> None:
    deep = exists(hop("note", ["id"], ["t"], where=exists(hop("task", ["t"], ["id"]))))
    shape = instance(ast.Or([deep, cond("n", "=", 1), exists(NOTES)])).shape
    found = list(walk_exists(shape.where))
    assert [e.node.table for e in found] == ["note", "note"]
    assert isinstance(found[0].node.where, ExistsFilter)


# -- LIKE and literals -------------------------------------------------------------------------

_CHARACTERS = st.sampled_from([*"aAbB*?[]^-!\\%_\n.(é", "É", "😀", "�", " "])
_TEXT = st.text(_CHARACTERS, max_size=6)
# A lone backslash at the end is no pattern.
_PATTERN = st.lists(_CHARACTERS.map(lambda c: c if c != "\\" else "\\\\") | _CHARACTERS.map(
    lambda c: "\\" + c), max_size=6).map("".join)  # fmt: skip
_database = apsw.Connection(":memory:")


@given(text=_TEXT, pattern=_PATTERN)
def test_a_glob_pattern_matches_what_the_like_pattern_does(text: str, pattern: str) -> None:
    [[found]] = _database.execute("SELECT ? GLOB ?", (text, glob_pattern(pattern)))
    assert bool(found) == naive.like(text, pattern)


def test_a_pattern_with_a_nul_matches_nothing() -> None:
    """SQLite ends patterns at a NUL, and no text of Postgres contains one."""
    assert instance(cond("s", "LIKE", "a\0%")).shape.where == FALSE
    assert instance(cond("s", "NOT ILIKE", "a\0")).shape.where == Term("s", "NOT NULL", "string")


_LITERALS = st.sampled_from([None, True, False, 0, 1, 1.0, -2.5, "", "a", "A", "1", "�", "😀"])


@given(left=_LITERALS, op=st.sampled_from(OPS), right=_LITERALS, members=st.lists(_LITERALS))
def test_conditions_between_literals_follow_the_truth_table(
    left: Any, op: str, right: Any, members: list[Any]
) -> None:
    value = [m for m in members if m is not None] if op in ("IN", "NOT IN") else right
    assert compare(left, op, value) == naive.compare(left, op, value)


@given(text=_TEXT, pattern=_PATTERN, op=st.sampled_from(["LIKE", "NOT LIKE", "ILIKE"]))
def test_like_between_literals_follows_the_same_rules(text: str, pattern: str, op: str) -> None:
    assert compare(text, op, pattern) == naive.compare(text, op, pattern)


@pytest.mark.parametrize("op", ["LIKE", "NOT LIKE", "ILIKE", "NOT ILIKE"])
def test_an_invalid_pattern_between_literals_is_refused(op: str) -> None:
    with pytest.raises(QueryError, match="unescaped backslash"):
        compare("a", op, "a\\")
