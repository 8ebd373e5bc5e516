"""What a schema refuses, and how names map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from zerocache.errors import QueryError
from zerocache.zql.schema import (
    Hop,
    boolean,
    create_schema,
    json,
    junction,
    many,
    number,
    one,
    string,
    table,
)

user = table("user", {"id": string(), "data": json(optional=True)}, primary_key="id")
issue = table(
    "issue",
    {
        "id": number(),
        "open": boolean(from_name="is_open"),
        "owner": string(optional=True),
    },
    primary_key=["id"],
    from_name="app.issues",
)
both = table("issueUser", {"issue": number(), "user": string()}, primary_key=["issue", "user"])


def test_names_default_to_the_clients() -> None:
    assert user.server_name == "user"
    assert issue.server_name == "app.issues"
    assert [issue.server_column(c) for c in issue.columns] == ["id", "is_open", "owner"]
    assert both.primary_key == ("issue", "user")


def test_relationships_have_one_hop_or_two() -> None:
    assert one("user", source="owner", dest="id").hops == (Hop(("owner",), "user", ("id",)),)
    through = many("user", source="id", dest="id", via=junction("issueUser", "issue", "user"))
    assert through.hops == (
        Hop(("id",), "issueUser", ("issue",)),
        Hop(("user",), "user", ("id",)),
    )
    assert through.dest_table == "user"


def with_relationship(name: str, relationship: Any) -> Callable[[], Any]:
    return lambda: create_schema([user, issue, both], {"issue": {name: relationship}})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: table("t", {"a": string()}, primary_key="b"), 'names column "b"'),
        (lambda: table("t", {"a": string(optional=True)}, primary_key="a"), "is optional"),
        (lambda: create_schema([user, user]), "declared twice"),
        (lambda: create_schema([user], {"issue": {"x": one("user", source="a", dest="id")}}),
         'table "issue"'),
        (with_relationship("owner", one("user", source="owner", dest="id")), "name of a column"),
        (with_relationship("zsubq_x", one("user", source="owner", dest="id")), "reserved"),
        (with_relationship("x", one("user", source="missing", dest="id")), 'column "missing"'),
        (with_relationship("x", one("user", source="owner", dest="missing")), 'column "missing"'),
        (with_relationship("x", one("gone", source="owner", dest="id")), 'table "gone"'),
        (with_relationship("x", one("user", source=["id", "owner"], dest="id")), "same number"),
        (with_relationship("x", one("user", source=[], dest=[])), "at least one"),
        (
            with_relationship(
                "x", many("user", source="id", dest="id", via=junction("issueUser", "no", "user"))
            ),
            'column "no"',
        ),
    ],
)  # fmt: skip
def test_inconsistent_schemas_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        build()


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    schema = create_schema([user, issue])
    with pytest.raises(QueryError, match="use one of: user, issue"):
        schema.table("x")
    with pytest.raises(QueryError, match=r"use one of: \(none\)"):
        schema.relationship("user", "x")
