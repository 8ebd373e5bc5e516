"""The demo's named queries: what a client may ask for, decided on the server.

The counterpart of ``queries`` in the page's ``model.js``; both sides use the same names and
arguments. Owns the validation of arguments, which come from strangers. Invariant: every list has
a limit.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from zerocache.dev.arguments import checked
from zerocache.server import QueryRegistry, define_queries, define_query
from zerocache.zql.builder import QueryBuilder, create_builder
from zerocache.zql.schema import Schema

Limit = Annotated[int, msgspec.Meta(ge=1, le=1000)]


class IssueList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit
    open: bool | None = None
    label: str | None = None
    assignee: str | None = None
    search: str = ""
    sort: Literal["modified", "created"] = "modified"


class Uncommented(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limit: Limit


class IssueDetail(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str


def demo_queries(schema: Schema) -> QueryRegistry:
    zql = create_builder(schema)

    def issue_list(*, args: IssueList, ctx: object) -> QueryBuilder:
        query = zql.issue
        if args.open is not None:
            query = query.where("open", args.open)
        if args.label is not None:
            query = query.where_exists("labels", lambda labels: labels.where("id", args.label))
        if args.assignee is not None:
            query = query.where("assigneeID", args.assignee)
        if args.search:
            query = query.where("title", "ILIKE", f"%{_escape_like(args.search)}%")
        return _listed(query).order_by(args.sort, "desc").limit(args.limit)

    def uncommented(*, args: Uncommented, ctx: object) -> QueryBuilder:
        query = zql.issue.where(lambda q: q.not_(q.exists("comments")))
        return _listed(query).order_by("created", "desc").limit(args.limit)

    def detail(*, args: IssueDetail, ctx: object) -> QueryBuilder:
        return (
            zql.issue.where("id", args.id)
            .related("labels")
            .related("creator")
            .related("assignee")
            .related("comments", lambda c: c.related("author").order_by("created", "asc"))
            .one()
        )

    return define_queries(
        {
            "users": {"all": define_query(lambda *, args, ctx: zql.user.order_by("name", "asc"))},
            "labels": {"all": define_query(lambda *, args, ctx: zql.label.order_by("name", "asc"))},
            "issues": {
                "list": define_query(checked(IssueList), issue_list),
                "uncommented": define_query(checked(Uncommented), uncommented),
                "detail": define_query(checked(IssueDetail), detail),
            },
        }
    )


def _listed(issues: QueryBuilder) -> QueryBuilder:
    """What a row of the list shows: labels, assignee and the newest comment."""
    return (
        issues.related("labels")
        .related("assignee")
        .related("comments", lambda comments: comments.order_by("created", "desc").limit(1))
    )


def _escape_like(text: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", text)
