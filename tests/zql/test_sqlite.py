"""Every statement form, run against small tables and compared with the plain reading of zql.md."""

from __future__ import annotations

import itertools
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import apsw
import msgspec
import pytest

from tests.view_syncer.ivm.naive import Naive, compare
from view_syncer.ivm.encode import register_functions
from zerocache.replica.planner_statistics import ASSUMED_ROWS
from zerocache.replica.schema import ReplicaColumn, ReplicaTable
from zerocache.replica.sql import quote, quote_all
from zerocache.zql import ast, sqlite
from zerocache.zql.shape import ExistsFilter, Instance, Node, lift, walk_exists

Row = dict[str, Any]
OPS: tuple[ast.SimpleOperator, ...] = get_args(ast.SimpleOperator)


class Database:
    """Tables whose rowids are 1, 2, … in the order given; columns have no declared type."""

    def __init__(self, **tables: tuple[dict[str, str], tuple[str, ...], list[Row]]) -> None:
        self.db = apsw.Connection(":memory:")
        register_functions(self.db)
        self.schema: dict[str, ReplicaTable] = {}
        self.rows = {name: rows for name, (_, _, rows) in tables.items()}
        for name, (columns, key, rows) in tables.items():
            facts = {c: ReplicaColumn(c, "?", kind) for c, kind in columns.items()}  # type: ignore[arg-type]
            self.schema[name] = ReplicaTable(name, facts, (key,))
            self.db.execute(f"CREATE TABLE {quote(name)} ({quote_all(columns)})")
            marks = ", ".join("?" * len(columns))
            for row in rows:
                values = [_stored(row[c], kind) for c, kind in columns.items()]
                self.db.execute(f"INSERT INTO {quote(name)} VALUES ({marks})", values)  # noqa: S608

    def lift(self, query: ast.Query) -> Instance:
        return lift(query, self.schema, {})

    def run(self, sql: str, params: Any, **inputs: Any) -> list[tuple[Any, ...]]:
        return self.db.execute(sql, {**dict(params), **inputs}).fetchall()

    def all(self, query: ast.Query) -> list[int]:
        lifted = self.lift(query)
        rows = self.run(sqlite.all_rows(lifted.shape, [], []), lifted.params)
        return sorted(row[0] for row in rows)

    def window(self, query: ast.Query) -> list[int]:
        lifted = self.lift(query)
        sql = sqlite.window_rows(lifted.shape, [], [])
        return [row[0] for row in self.run(sql, lifted.params, limit=100)]

    def naive(self, query: ast.Query) -> list[int]:
        rows = self.rows[query.table]
        keys = {name: table.keys[0] for name, table in self.schema.items()}
        return [rows.index(dict(r)) + 1 for r in Naive(self.rows, keys).window(query)]


def _stored(value: Any, kind: str) -> Any:
    if kind == "json" and value is not None and not isinstance(value, Verbatim):
        return msgspec.json.encode(value).decode()
    return value.text if isinstance(value, Verbatim) else value


class Verbatim:
    """JSON text as it stands."""

    def __init__(self, text: str) -> None:
        self.text = text


def cond(column: str, op: Any, value: Any) -> ast.Simple:
    return ast.Simple(op, ast.ColumnRef(column), ast.LiteralRef(value))


def exists(
    table: str, parents: Sequence[str], children: Sequence[str], where: Any = None
) -> ast.Exists:
    query = ast.Query(table=table, alias="e", where=where)
    correlation = ast.Correlation(list(parents), list(children))
    return ast.Exists("EXISTS", ast.CorrelatedSubquery(correlation, query))


# -- filters -----------------------------------------------------------------------------------

_VALUES: Mapping[str, list[Any]] = {
    "string": [None, "", "a", "A", "ab", "b", "é", "É", "a\nb", "a%", "10", "\ufffd", "😀", "[a]"],
    "number": [None, 0, 1, -1, 1.5, 10, 2**53 - 1, 1e300, 0.1 + 0.2],
    "boolean": [None, True, False],
    "json": [None, "a", "A", 1, 1.5, True, False, [1], {"a": 1}, "null", 0, "true"],
}
_LITERALS = [None, True, False, 0, 1, 1.5, 10, -1, "", "a", "A", "10", "😀", "1", "true",
             0.1 + 0.2]  # fmt: skip
_PATTERNS = ["%", "a%", "A", "_", "a_b", "\\%", "a\\%", "%b", "É", "[a]", "*", ""]


@pytest.fixture(scope="module", params=list(_VALUES))
def column(request: pytest.FixtureRequest) -> tuple[str, Database]:
    kind: str = request.param
    rows = [{"id": i, "v": value} for i, value in enumerate(_VALUES[kind])]
    return kind, Database(t=({"id": "number", "v": kind}, ("id",), rows))


@pytest.mark.parametrize("op", [op for op in OPS if op not in ("IN", "NOT IN")])
def test_comparisons_follow_the_truth_table(column: tuple[str, Database], op: Any) -> None:
    kind, database = column
    for literal in _PATTERNS if op.endswith("LIKE") else _LITERALS:
        query = ast.Query(table="t", where=cond("v", op, literal))
        expected = [i for i, v in enumerate(_VALUES[kind], 1) if compare(v, op, literal)]
        assert database.all(query) == expected, literal


@pytest.mark.parametrize("op", ["IN", "NOT IN"])
@pytest.mark.parametrize(
    "members", [[], ["a"], [1, 1.5], [True], ["a", 1, True, "É"], [0.1 + 0.2, 10], [False, 0]]
)
def test_lists_follow_the_truth_table(
    column: tuple[str, Database], op: Any, members: list[Any]
) -> None:
    kind, database = column
    expected = [i for i, v in enumerate(_VALUES[kind], 1) if compare(v, op, members)]
    assert database.all(ast.Query(table="t", where=cond("v", op, members))) == expected


def test_a_stored_json_null_counts_as_null_however_it_is_written() -> None:
    texts = ["null", " null ", "\nnull", '"null"', "[null]"]
    rows: list[Row] = [{"id": i, "j": Verbatim(text)} for i, text in enumerate(texts)]
    database = Database(t=({"id": "number", "j": "json"}, ("id",), rows))
    assert database.all(ast.Query(table="t", where=cond("j", "IS", None))) == [1, 2, 3]
    assert database.all(ast.Query(table="t", where=cond("j", "IS NOT", None))) == [4, 5]
    assert database.all(ast.Query(table="t", where=cond("j", "!=", "x"))) == [4, 5]
    assert database.all(ast.Query(table="t", where=cond("j", "NOT IN", ["x"]))) == [4, 5]


def test_json_nested_deeper_than_sqlite_parses_equals_nothing() -> None:
    deep = "[" * 3000 + "]" * 3000
    rows: list[Row] = [{"id": 1, "j": Verbatim(deep)}]
    database = Database(t=({"id": "number", "j": "json"}, ("id",), rows))
    for op, literal, found in (("=", "a", []), ("!=", "a", [1]), ("IS", None, []), ("<", 1, [])):
        assert database.all(ast.Query(table="t", where=cond("j", op, literal))) == found


def test_groups_nest_and_constants_hold() -> None:
    rows: list[Row] = [{"id": i, "n": i} for i in range(4)]
    database = Database(t=({"id": "number", "n": "number"}, ("id",), rows))
    low, high, odd = cond("n", "<", 1), cond("n", ">", 2), cond("n", "IN", [1, 3])
    for where in (
        ast.Or([low, high]),
        ast.And([ast.Or([low, high]), odd]),
        ast.Or([ast.And([high, odd]), low]),
        ast.Or([]),
        ast.And([]),
    ):
        query = ast.Query(table="t", where=where)
        assert database.all(query) == sorted(database.naive(query))


def test_names_are_quoted() -> None:
    name, columns = 'app.we"ird', {'k"1': "number", "select": "string", "Ünï": "boolean"}
    rows: list[Row] = [{'k"1': 1, "select": "x", "Ünï": True}]
    database = Database(**{name: (columns, ('k"1',), rows)})
    where = ast.And([cond("select", "=", "x"), cond("Ünï", "=", True),
                     exists(name, ['k"1'], ['k"1'])])  # fmt: skip
    query = ast.Query(table=name, where=where, order_by=[("Ünï", "desc")])
    assert database.window(query) == [1]


# -- EXISTS ------------------------------------------------------------------------------------

_PARENTS: list[Row] = [
    {"id": 1, "x": "a", "y": 1},
    {"id": 2, "x": "a", "y": None},
    {"id": 3, "x": None, "y": None},
    {"id": 4, "x": "b", "y": 2},
]
_CHILDREN: list[Row] = [
    {"id": 1, "p": "a", "q": 1, "v": 5},
    {"id": 2, "p": "a", "q": 2, "v": 6},
    {"id": 3, "p": None, "q": None, "v": 7},
    {"id": 4, "p": "b", "q": 1, "v": 8},
    {"id": 5, "p": "b", "q": 2, "v": None},
]


@pytest.fixture(scope="module")
def family() -> Database:
    return Database(
        parent=({"id": "number", "x": "string", "y": "number"}, ("id",), _PARENTS),
        child=(
            {"id": "number", "p": "string", "q": "number", "v": "number"}, ("id",), _CHILDREN,
        ),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("parents", "children"), [(["x"], ["p"]), (["y"], ["q"]), (["x", "y"], ["p", "q"])]
)
@pytest.mark.parametrize("op", ["EXISTS", "NOT EXISTS"])
@pytest.mark.parametrize("where", [None, cond("v", ">", 5), cond("v", "IS", None)])
def test_exists_joins_on_every_pair_and_never_on_null(
    family: Database, parents: list[str], children: list[str], op: Any, where: Any
) -> None:
    positive = exists("child", parents, children, where)
    query = ast.Query(table="parent", where=msgspec.structs.replace(positive, op=op))
    assert family.all(query) == sorted(family.naive(query))


def test_exists_nests_and_joins_a_table_with_itself(family: Database) -> None:
    inner = exists("child", ["q"], ["q"], cond("p", "=", "b"))
    deep = exists("child", ["x"], ["p"], ast.And([inner, exists("parent", ["p"], ["x"])]))
    query = ast.Query(table="parent", where=ast.And([deep, exists("parent", ["x"], ["x"])]))
    assert family.all(query) == sorted(family.naive(query))


def test_a_start_inside_exists_is_applied(family: Database) -> None:
    child = ast.Query(table="child", alias="e", start=ast.Start({"id": 2}, True))
    where = ast.Exists("EXISTS", ast.CorrelatedSubquery(ast.Correlation(["x"], ["p"]), child))
    assert family.all(ast.Query(table="parent", where=where)) == [4]


# -- orders and cursors ------------------------------------------------------------------------

_SORTED: list[Row] = [
    {"id": i, "s": s, "n": n}
    for i, (s, n) in enumerate(
        itertools.product([None, "a", "B", "\ufffd", "😀"], [None, 1, 2.5]), 1
    )
]


@pytest.fixture(scope="module")
def ordered() -> Database:
    return Database(t=({"id": "number", "s": "string", "n": "number"}, ("id",), _SORTED))


_ORDERS: list[list[tuple[str, ast.Direction]]] = [
    [],
    [("s", "asc")],
    [("s", "desc")],
    [("n", "desc"), ("s", "asc")],
    [("n", "asc"), ("s", "desc"), ("id", "desc")],
]


@pytest.mark.parametrize("order", _ORDERS)
def test_order_puts_null_first_and_compares_by_code_point(
    ordered: Database, order: list[tuple[str, ast.Direction]]
) -> None:
    query = ast.Query(table="t", order_by=order)
    assert ordered.window(query) == ordered.naive(query)


@pytest.mark.parametrize("order", _ORDERS)
@pytest.mark.parametrize("exclusive", [True, False])
def test_cursors_know_null_direction_and_missing_columns(
    ordered: Database, order: list[tuple[str, ast.Direction]], exclusive: bool
) -> None:
    cursors: list[Row] = [*_SORTED, {}, {"s": "B"}, {"n": 1}, {"n": 2, "s": "zz"}, {"id": 99}]
    for row in cursors:
        query = ast.Query(table="t", order_by=order, start=ast.Start(row, exclusive))
        assert ordered.window(query) == ordered.naive(query), row


# -- partitions --------------------------------------------------------------------------------


def _node(database: Database, **parts: Any) -> tuple[Node, Any]:
    lifted = database.lift(ast.Query(table="child", **parts))
    return lifted.shape, lifted.params


def _partitions(values: list[Any]) -> str:
    return msgspec.json.encode(values).decode()


def test_candidates_are_only_the_rows_asked_for(family: Database) -> None:
    node, params = _node(family, where=cond("v", ">", 5))
    sql = sqlite.candidate_rows(node, ["p", "v"])
    rows = family.run(sql, params, rows=apsw.carray(array("q", [1, 2, 5, 77])))
    assert rows == [(2, "a", 6)]
    sql = sqlite.candidate_row(node, ["p", "v"])
    assert [family.run(sql, params, row=row) for row in (1, 2, 77)] == [[], [(2, "a", 6)], []]


@pytest.mark.parametrize(
    ("correlation", "values", "expected"),
    [
        (["p"], ["a"], [1, 2]),
        (["p"], ["a", "b", "zz"], [1, 2, 4, 5]),
        (["q"], [2.0], [2, 5]),
        (["p", "q"], [["a", 2], ["b", 1], ["a", 9]], [2, 4]),
        (["p"], [], []),
    ],
)
def test_all_rows_of_partitions(
    family: Database, correlation: list[str], values: list[Any], expected: list[int]
) -> None:
    node, params = _node(family)
    sql = sqlite.all_rows(node, [], correlation)
    assert sorted(r[0] for r in family.run(sql, params, parts=_partitions(values))) == expected


def test_the_window_of_one_partition(family: Database) -> None:
    node, params = _node(family, order_by=[("v", "desc")])
    sql = sqlite.window_rows(node, ["v"], ["p"])
    assert family.run(sql, params, c0="a", limit=1) == [(2, 6)]
    sql = sqlite.window_rows(node, [], ["p", "q"])
    assert family.run(sql, params, c0="b", c1=2, limit=9) == [(5,)]


@pytest.mark.parametrize("where", [None, cond("v", "!=", 6)])
@pytest.mark.parametrize("limit", [1, 2, 9])
@pytest.mark.parametrize(
    ("correlation", "values"),
    [(["p"], ["a", "b", "zz"]), (["q"], [1, 2]), (["p", "q"], [["a", 1], ["b", 2]])],
)
def test_windows_of_partitions_do_not_depend_on_the_way_they_are_found(
    family: Database, where: Any, limit: int, correlation: list[str], values: list[Any]
) -> None:
    node, params = _node(family, where=where, order_by=[("v", "desc")])
    expected = set()
    for value in values:
        inputs = {f"c{i}": v for i, v in enumerate(value if isinstance(value, list) else [value])}
        one = sqlite.window_rows(node, ["p", "v"], correlation)
        expected |= set(family.run(one, params, limit=limit, **inputs))
    for indexed in (True, False):
        sql = sqlite.window_rows_of_partitions(node, ["p", "v"], correlation, indexed=indexed)
        found = family.run(sql, params, parts=_partitions(values), limit=limit)
        assert len(found) == len(expected)
        assert set(found) == expected


_STATISTICS = {
    "none": (),
    "a small table": (f"{ASSUMED_ROWS} 1", f"{ASSUMED_ROWS} 1", f"{ASSUMED_ROWS} 1 1"),
    "partitions as large as the table": ("90000 90000", "90000 1", "90000 90000 90000"),
}


@pytest.mark.parametrize("statistics", _STATISTICS.values(), ids=_STATISTICS.keys())
@pytest.mark.parametrize(
    ("indexes", "expected"),
    [(["p", "v"], "child_p (p=?)"), (["p", "v", "p, v"], "child_p_v (p=?)")],
)
def test_windows_of_partitions_are_walks_whatever_the_statistics_say(
    statistics: tuple[str, ...], indexes: list[str], expected: str
) -> None:
    rows: list[Row] = [{"id": 1, "p": "a", "v": 1}]
    database = Database(child=({"id": "number", "p": "string", "v": "number"}, ("id",), rows))
    names = {columns: "child_" + columns.replace(", ", "_") for columns in indexes}
    for columns, name in names.items():
        database.db.execute(f"CREATE INDEX {name} ON child ({columns})")
    database.db.execute("ANALYZE; DELETE FROM sqlite_stat1; DELETE FROM sqlite_stat4")
    for name, figures in zip(names.values(), statistics, strict=False):
        stat = (name, figures)
        database.db.execute("INSERT INTO sqlite_stat1 VALUES ('child', ?, ?)", stat)
    database.db.execute("ANALYZE sqlite_schema")
    node, params = _node(database, order_by=[("v", "asc")])
    sql = sqlite.window_rows_of_partitions(node, ["p"], ["p"], indexed=True)
    inputs = {**dict(params), "parts": '["a"]', "limit": 1}
    steps = [step[3] for step in database.db.execute(f"EXPLAIN QUERY PLAN {sql}", inputs)]
    scans = [step.split(" VIRTUAL")[0] for step in steps if step.startswith("SCAN")]
    assert scans == ["SCAN p", "SCAN j", "SCAN (subquery-1)"]
    searches = [step.split("USING ", 1)[1] for step in steps if step.startswith("SEARCH")]
    assert searches == [f"INDEX {expected}", "INTEGER PRIMARY KEY (rowid=?)"]


@pytest.mark.parametrize("number", [0.1 + 0.2, 1e300, 5e-324, 2**53 - 1, -1.5])
def test_numbers_survive_the_way_through_json(number: float) -> None:
    rows: list[Row] = [{"id": 1, "n": number}]
    database = Database(child=({"id": "number", "n": "number"}, ("id",), rows))
    node, params = _node(database)
    sql = sqlite.all_rows(node, ["n"], ["n"])
    assert database.run(sql, params, parts=_partitions([number])) == [(1, number)]


# -- climbing ----------------------------------------------------------------------------------


def _path(database: Database, where: ast.Condition) -> tuple[Node, tuple[ExistsFilter, ...]]:
    node = database.lift(ast.Query(table="parent", where=where)).shape
    path: list[ExistsFilter] = []
    here = node
    while found := list(walk_exists(here.where)):
        path.append(found[0])
        here = found[0].node
    return node, tuple(path)


def test_climbing_finds_the_parents_of_a_correlation_value(family: Database) -> None:
    node, path = _path(family, exists("child", ["x"], ["p"]))
    sql = sqlite.climb(node, path, ["x"])
    assert sorted(family.run(sql, {}, parts=_partitions(["a"]))) == [(1, "a"), (2, "a")]


def test_climbing_a_compound_correlation(family: Database) -> None:
    node, path = _path(family, exists("child", ["x", "y"], ["p", "q"]))
    sql = sqlite.climb(node, path, [])
    assert family.run(sql, {}, parts=_partitions([["a", 1], ["a", None]])) == [(1,)]


def test_climbing_two_steps_ignores_the_filters_on_the_way(family: Database) -> None:
    never = cond("v", "=", -1)
    inner = exists("child", ["q"], ["q"])
    where = exists("child", ["x"], ["p"], ast.And([inner, never]))
    node, path = _path(family, where)
    sql = sqlite.climb(node, path, [])
    assert sorted(family.run(sql, {}, parts=_partitions([2]))) == [(1,), (2,), (4,)]


def test_climbing_two_steps_over_a_compound_correlation(family: Database) -> None:
    where = exists("child", ["x", "y"], ["p", "q"], exists("child", ["v"], ["id"]))
    node, path = _path(family, where)
    sql = sqlite.climb(node, path, [])
    assert family.run(sql, {}, parts=_partitions([5])) == [(1,)]


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_rows_in_one_row_are_the_same_rows(family: Database, limit: int) -> None:
    node, params = _node(family, order_by=[("v", "desc")])
    made: list[tuple[Callable[..., str], dict[str, Any], dict[str, Any]]] = [
        (sqlite.window_rows, {}, {"c0": "a"}),
        (sqlite.window_rows_of_partitions, {"indexed": True}, {"parts": '["a","b"]'}),
        (sqlite.window_rows_of_partitions, {"indexed": False}, {"parts": '["a","b"]'}),
    ]
    for statement, options, inputs in made:
        apart, together = (
            family.run(
                statement(node, ["p", "v"], ["p"], one_row=one_row, **options),
                params,
                limit=limit,
                **inputs,
            )
            for one_row in (False, True)
        )
        ((text,),) = together
        assert [tuple(row) for row in json.loads(text)] == apart
    inputs = {"parts": '["a","b"]'}
    apart = family.run(sqlite.all_rows(node, ["p", "v"], ["p"]), params, **inputs)
    first = sqlite.all_rows(node, ["p", "v"], ["p"], one_row=True)
    ((text,),) = family.run(first, params, limit=limit, **inputs)
    assert [tuple(row) for row in json.loads(text)] == apart[:limit]


@pytest.mark.parametrize("junction", [ast.And, ast.Or])
def test_conditions_may_be_many(junction: type[ast.And] | type[ast.Or]) -> None:
    """SQLite bounds the depth of an expression, which for a chain is its length."""
    rows: list[Row] = [{"id": n, "n": n} for n in range(1, 6)]
    database = Database(t=({"id": "number", "n": "number"}, ("id",), rows))
    op: ast.SimpleOperator = "!=" if junction is ast.And else "="
    values = [3, 4, *range(100, 4000)]
    conditions: list[ast.Condition] = [
        ast.Simple(op, ast.ColumnRef("n"), ast.LiteralRef(value)) for value in values
    ]
    found = database.all(ast.Query(table="t", where=junction(conditions)))
    assert found == ([1, 2, 5] if junction is ast.And else [3, 4])
