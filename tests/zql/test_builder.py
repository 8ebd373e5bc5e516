"""The builder against the official one's trees (official.json), and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zerocache.errors import QueryError
from zerocache.zql.ast import Query, Simple, parse_query, to_json
from zerocache.zql.builder import Format, QueryBuilder, create_builder, to_server_names
from zerocache.zql.normal import builder_json, hash_of_query
from zerocache.zql.schema import create_schema, junction, many, number, one, string, table

OFFICIAL = json.loads((Path(__file__).parent / "official.json").read_text(encoding="utf-8"))

optional = string(optional=True)
schema = create_schema(
    [
        table("person", {"id": string(), "name": optional}, primary_key="id"),
        table(
            "task",
            {
                "id": string(),
                "owner": string(optional=True, from_name="owner_id"),
                "rank": number(optional=True, from_name="r"),
                "title": optional,
            },
            primary_key="id",
            from_name="app.tasks",
        ),
        table(
            "note",
            {"id": string(), "task": optional, "author": optional, "body": optional},
            primary_key="id",
        ),
        table("tag", {"id": string(), "label": optional}, primary_key="id"),
        table("task_tag", {"task": string(), "tag": string()}, primary_key=["task", "tag"]),
    ],
    relationships={
        "task": {
            "ownerRow": one("person", source="owner", dest="id"),
            "notes": many("note", source="id", dest="task"),
            "tags": many("tag", source="id", dest="id", via=junction("task_tag", "task", "tag")),
        },
        "note": {"authorRow": one("person", source="author", dest="id")},
    },
)
zql = create_builder(schema)
T = zql.task

QUERIES: dict[str, QueryBuilder] = {
    "all": T,
    "value": T.where("title", "a").where("rank", ">", 3),
    "group": T.where(
        lambda q: q.or_(
            q.and_(q.cmp("rank", ">", 1), q.cmp("rank", "<", 9)), q.cmp("title", "IN", ["b", "a"])
        )
    ),
    "exists": T.where_exists("notes"),
    "junction": T.where_exists("tags", lambda q: q.where("label", "red"), flip=True, scalar=True),
    "mixed": T.where(
        lambda q: q.or_(
            q.exists("tags"),
            q.and_(q.exists("notes"), q.cmp("title", "z")),
            q.cmp("rank", 2),
            q.cmp("owner", "IS", None),
        )
    ),
    "not": T.where(
        lambda q: q.not_(
            q.and_(q.cmp("rank", ">=", 1), q.or_(q.cmp("title", "LIKE", "a%"), q.exists("notes")))
        )
    ),
    "related": T.related("tags")
    .related(
        "notes",
        lambda q: q.where("body", "x").order_by("id", "desc").limit(2).related("authorRow"),
    )
    .related("ownerRow"),
    "cursor": T.order_by("rank", "desc")
    .order_by("title")
    .start({"rank": 1.5, "title": "é😀"}, inclusive=True)
    .limit(20),
    "one": T.where("id", "t1").one(),
    "never": T.where(lambda q: q.or_()),
    "always": T.where(lambda q: q.and_()),
    "neverAnd": T.where("title", "a").where(lambda q: q.or_()),
    "lit": T.where(lambda q: q.cmp_lit(1, "=", 0)),
    "nulls": T.where("owner", "IS NOT", None)
    .where("rank", "!=", 1e21)
    .where("rank", "<", -0.0000001),
    "deep": T.where(
        lambda q: q.or_(
            q.and_(
                q.cmp("rank", 1),
                q.or_(q.cmp("rank", 2), q.and_(q.cmp("rank", 3), q.cmp("rank", 4))),
            ),
            q.cmp("rank", 5),
        )
    ),
    "existsNested": T.where_exists(
        "notes",
        lambda n: n.where_exists("authorRow", lambda p: p.where("name", "Ann")).where(
            "body", "!=", "q"
        ),
    ),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_trees_are_those_of_the_official_builder(name: str) -> None:
    assert builder_json(QUERIES[name].ast) == OFFICIAL[name]["ast"]


@pytest.mark.parametrize("name", sorted(set(OFFICIAL) - {"not"}))
def test_hashes_are_those_of_the_official_builder(name: str) -> None:
    # A negated comparison is authored with another key order there, which its hash keeps.
    assert hash_of_query(QUERIES[name].ast) == OFFICIAL[name]["hash"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_trees_survive_the_wire(name: str) -> None:
    assert parse_query(to_json(QUERIES[name].ast)) == QUERIES[name].ast


def test_builders_are_immutable() -> None:
    before = T.ast
    T.where("title", "a").limit(3).related("notes").one()
    assert T.ast == before == Query("task")


def test_formats_follow_cardinality_and_one() -> None:
    query = T.related("ownerRow").related("tags").related("notes", lambda q: q.one()).one()
    assert query.format == Format(
        True, {"ownerRow": Format(True), "tags": Format(False), "notes": Format(True)}
    )


def test_server_names_reach_every_part() -> None:
    query = (
        T.where(
            lambda q: q.or_(q.cmp("rank", 1), q.exists("ownerRow", lambda p: p.where("id", "u")))
        )
        .order_by("rank")
        .start({"rank": 1})
        .related("ownerRow")
    )
    mapped = json.loads(to_json(to_server_names(query, schema)))
    assert mapped["table"] == "app.tasks"
    assert mapped["orderBy"] == [["r", "asc"]]
    assert mapped["start"]["row"] == {"r": 1}
    simple, exists = mapped["where"]["conditions"]
    assert simple["left"]["name"] == "r"
    assert exists["related"]["correlation"] == {"parentField": ["owner_id"], "childField": ["id"]}
    assert mapped["related"][0]["correlation"]["parentField"] == ["owner_id"]
    assert mapped["related"][0]["subquery"]["alias"] == "ownerRow"


def test_a_condition_may_be_passed_as_it_is() -> None:
    condition = T.where("rank", 1).ast.where
    assert isinstance(condition, Simple)
    assert T.where(condition).ast.where == condition


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: zql.missing, 'table "missing"'),
        (lambda: T.where("missing", 1), 'column "missing"'),
        (lambda: T.where("rank"), "compares with nothing"),
        (lambda: T.where("rank", "=>", 1), "operator '=>'"),
        (lambda: T.where("rank", "IN", 1), "needs a list"),
        (lambda: T.where("rank", "IN", [None]), "not usable"),
        (lambda: T.where("rank", object()), "not usable"),
        (lambda: T.related("missing"), 'relationship "missing"'),
        (lambda: T.related("zsubq_notes"), "reserved"),
        (lambda: T.where_exists("missing"), 'relationship "missing"'),
        (lambda: T.order_by("missing"), 'column "missing"'),
        (lambda: T.order_by("rank", "up"), "direction 'up'"),  # type: ignore[arg-type]
        (lambda: T.start({"missing": 1}), 'column "missing"'),
        (lambda: T.limit(-1), "limit -1"),
        (lambda: T.limit(1.5), "limit 1.5"),  # type: ignore[arg-type]
        (lambda: T.related("tags", lambda q: q.limit(1)), "junction"),
        (lambda: T.related("tags", lambda q: q.order_by("id")), "junction"),
        (lambda: T.where_exists("tags", lambda q: q.limit(1)), "junction"),
    ],
)
def test_meaningless_calls_are_refused_where_they_are_written(
    build: Callable[[], Any], message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        build()


def test_tables_are_listed_and_indexable() -> None:
    assert {"task", "person"} <= set(dir(zql))
    assert zql["task_tag"].ast == Query("task_tag")
    assert not hasattr(zql, "__deepcopy__")
