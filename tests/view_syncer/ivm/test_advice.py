"""Advice on a real replica: what SQLite says about the engine's own statements."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from tests.replica.tables import build_replica, column, index, table
from view_syncer.analysis import tables_of_replica
from view_syncer.ivm.advice import Examination, examine, explain, wish_of
from view_syncer.ivm.encode import register_functions
from view_syncer.ivm.engine import Engine
from view_syncer.ivm.plan import make_plan
from zerocache.replica.auto_index import IndexWish
from zerocache.replica.published import PublishedSchema
from zerocache.replica.reader import load_schema, open_replica
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql import ast
from zerocache.zql.shape import lift

ISSUES, COMMENTS = 3_000, 6_000
_TYPES = {"id": "int4", "owner": "text", "open": "bool", "modified": "int4", "title": "text"}
ISSUE = table(
    "issue",
    [
        column(name, i, kind, not_null=name == "id", type_category=category)
        for i, ((name, kind), category) in enumerate(zip(_TYPES.items(), "NSBNS", strict=True), 1)
    ],
    primary_key=("id",),
)
COMMENT = table(
    "comment",
    [
        column("id", 1, "int4", not_null=True, type_category="N"),
        column("issue", 2, "int4", type_category="N"),
        column("created", 3, "int4", type_category="N"),
        column("author", 4, "text"),
    ],
    primary_key=("id",),
)
LABEL = table("label", [column("name", 1, not_null=True)], primary_key=("name",))
SCHEMA = PublishedSchema(
    tables=(ISSUE, COMMENT, LABEL),
    indexes=(
        index(ISSUE, "id", unique=True, is_primary=True),
        index(ISSUE, "owner"),
        index(COMMENT, "id", unique=True, is_primary=True),
        index(LABEL, "name", unique=True, is_primary=True),
    ),
)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    issues = [(i, f"u{i % 2}", i % 2, i * 7 % 1_000, f"t{i}") for i in range(ISSUES)]
    comments = [(i, i % ISSUES, i, f"u{i % 9}") for i in range(COMMENTS)]
    path = tmp_path_factory.mktemp("advice") / "replica.db"
    build_replica(path, {"issue": issues, "comment": comments, "label": [("a",), ("b",)]}, SCHEMA)
    ReplicaWriter(path).close()  # gives SQLite its statistics, as the replication process does
    return path


@pytest.fixture
def db(replica: Path) -> Iterator[apsw.Connection]:
    connection = open_replica(replica)
    register_functions(connection)
    yield connection
    connection.close()


def examined(db: apsw.Connection, query: ast.Query, scan_rows: int = 2_000) -> Examination:
    schema = load_schema(db)
    instance = lift(query, schema, {})
    params = dict(instance.params)
    return examine(make_plan(instance.shape, schema), db, params, scan_rows=scan_rows)


def wishes(db: apsw.Connection, query: ast.Query, scan_rows: int = 2_000) -> set[str]:
    return {str(advice.wish) for advice in examined(db, query, scan_rows).advice}


def equals(name: str, value: ast.LiteralValue) -> ast.Simple:
    return ast.Simple("=", ast.ColumnRef(name), ast.LiteralRef(value))


def comments(**facts: object) -> ast.CorrelatedSubquery:
    return ast.CorrelatedSubquery(
        ast.Correlation(["id"], ["issue"]),
        ast.Query(table="comment", alias="comments", **facts),  # type: ignore[arg-type]
    )


def test_a_scan_for_an_equality_wants_an_index(db: apsw.Connection) -> None:
    result = examined(db, ast.Query(table="issue", where=equals("title", "t5")))
    (advice,) = result.advice
    assert advice.wish == IndexWish("issue", ("title",))
    assert (advice.problem, advice.rows) == ("scan", ISSUES)
    assert "SELECT" in advice.sql


def test_small_tables_are_left_alone(db: apsw.Connection) -> None:
    query = ast.Query(table="issue", where=equals("title", "t5"))
    assert wishes(db, query, scan_rows=ISSUES + 1) == set()


def test_what_an_index_serves_is_left_alone(db: apsw.Connection) -> None:
    result = examined(db, ast.Query(table="issue", where=equals("owner", "u1")))
    assert result.advice == ()
    assert [i.name for i in result.used(db)] == ["issue_owner"]


def test_a_page_wants_its_order_after_what_is_equal(db: apsw.Connection) -> None:
    query = ast.Query(
        table="issue",
        where=ast.And([equals("open", True), ast.Simple(">", *_above("modified", 5))]),
        order_by=[("modified", "desc")],
        limit=10,
    )
    # Read backwards: modified descending, then id ascending.
    assert wishes(db, query) == {"issue (open, modified, id DESC)"}


def test_an_order_alone_is_worth_an_index_only_with_a_limit(db: apsw.Connection) -> None:
    order: list[tuple[str, ast.Direction]] = [("modified", "asc")]
    assert wishes(db, ast.Query(table="issue", order_by=order)) == set()
    assert wishes(db, ast.Query(table="issue", order_by=order, limit=5)) == {"issue (modified, id)"}


def test_sorting_many_rows_of_one_key_wants_the_order_in_the_index(db: apsw.Connection) -> None:
    query = ast.Query(
        table="issue", where=equals("owner", "u1"), order_by=[("modified", "asc")], limit=5
    )
    (advice,) = examined(db, query).advice
    assert str(advice.wish) == "issue (owner, modified, id)"
    assert advice.problem == "sort"


def test_a_range_is_used_where_there_is_no_order(db: apsw.Connection) -> None:
    query = ast.Query(table="issue", where=ast.Simple(">", *_above("modified", 900)))
    assert wishes(db, query) == {"issue (modified)"}


def test_no_index_helps_a_whole_table_or_a_pattern(db: apsw.Connection) -> None:
    like = ast.Simple("LIKE", ast.ColumnRef("title"), ast.LiteralRef("%5"))
    either = ast.Or([equals("title", "t1"), equals("open", True)])
    for where in (None, like, either):
        result = examined(db, ast.Query(table="issue", where=where))
        assert result.advice == ()
        assert any(line.full_scan for s in result.statements for line in s.lines)


def test_related_rows_want_an_index_on_their_correlation(db: apsw.Connection) -> None:
    query = ast.Query(table="issue", where=equals("id", 1), related=[comments()])
    assert wishes(db, query) == {"comment (issue)"}


def test_windows_of_related_rows_want_their_order_too(db: apsw.Connection) -> None:
    window = comments(order_by=[("created", "desc")], limit=3)
    query = ast.Query(table="issue", where=equals("id", 1), related=[window])
    assert wishes(db, query) == {"comment (issue, created, id DESC)"}


def test_an_exists_wants_an_index_on_its_correlation(db: apsw.Connection) -> None:
    exists = ast.Exists("EXISTS", comments(where=equals("author", "u3")))
    found = wishes(db, ast.Query(table="issue", where=exists))
    assert any(wish.startswith("comment (issue") or "issue" in wish for wish in found), found
    assert all(wish.startswith("comment") for wish in found)


def test_lists_count_as_equality(db: apsw.Connection) -> None:
    titles = ast.Simple("IN", ast.ColumnRef("title"), ast.LiteralRef(["t1", "t2"]))
    assert wishes(db, ast.Query(table="issue", where=titles)) == {"issue (title)"}


def test_the_index_that_was_advised_ends_the_advice(tmp_path: Path, replica: Path) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(replica.read_bytes())
    query = ast.Query(
        table="issue",
        where=equals("open", True),
        order_by=[("modified", "desc")],
        limit=10,
        related=[comments(order_by=[("created", "desc")], limit=3)],
    )
    db = open_replica(copy)
    register_functions(db)
    db.execute("BEGIN")
    before = examined(db, query)
    db.execute("COMMIT")
    assert len(before.advice) == 2
    writer = ReplicaWriter(copy)
    for advice in before.advice:
        writer.create_auto_index(advice.wish, lambda: False)
    writer.close()
    db.execute("BEGIN")
    after = examined(db, query)
    assert after.advice == ()
    assert {i.name for i in after.used(db)} >= {advice.wish.name for advice in before.advice}
    windows = [s for s in after.statements if s.statement.purpose == "windows"]
    assert windows
    assert "row_number" not in windows[0].statement.sql.lower()
    db.close()


def test_a_new_plan_of_a_running_engine_knows_an_index_that_came_later(
    tmp_path: Path, replica: Path
) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(replica.read_bytes())

    def page(limit: int) -> ast.Query:
        return ast.Query(table="issue", related=[comments(limit=limit)])

    engine = Engine(copy)
    client = tables_of_replica(engine.schema)
    before = engine.subscribe(page(1), client).pipeline
    assert engine.take_new_plans() == [before]
    wish = IndexWish("comment", ("issue",), (("id", False),))
    writer = ReplicaWriter(copy)
    writer.create_auto_index(wish, lambda: False)
    assert engine.advance() is None  # no version, but a new snapshot
    after = engine.subscribe(page(2), client).pipeline
    assert [p.plan.levels[1].indexed for p in (before, after)] == [False, True]
    assert wish.name in [i.name for i in engine.examine(after).used(engine.db)]
    assert engine.take_new_plans() == [after]
    assert set(engine.pipeline_of_each_plan()) == {before, after}
    writer.close()
    engine.close()


def test_advice_is_the_same_every_time(db: apsw.Connection) -> None:
    query = ast.Query(
        table="issue",
        where=ast.Exists("EXISTS", comments()),
        related=[comments(order_by=[("created", "asc")], limit=2)],
    )
    assert examined(db, query) == examined(db, query)


def test_explain_names_the_table_behind_an_alias(db: apsw.Connection) -> None:
    (line,) = explain(db, 'SELECT t0._rowid_ FROM "issue" AS t0 WHERE t0."title" = :p0', {})
    assert (line.table, line.alias, line.full_scan, line.index) == ("issue", "t0", True, None)


def test_names_with_quotes_are_read_back() -> None:
    sql = 'SELECT t0._rowid_ FROM "a""b" AS t0 WHERE t0."c""d" = :p0'
    assert wish_of(sql, "t0") == IndexWish('a"b', ('c"d',))


def _above(name: str, value: int) -> tuple[ast.ColumnRef, ast.LiteralRef]:
    return ast.ColumnRef(name), ast.LiteralRef(value)
