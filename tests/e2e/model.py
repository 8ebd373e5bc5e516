"""What the application's backend knows: schema, named queries, mutators, written with the SDK.

The counterpart of ``driver/app.mjs``, with the same names. It decides what clients see and what
their changes do; the client's half only predicts.
"""

from __future__ import annotations

from typing import Any

from zerocache.server import (
    ApplicationError,
    MutatorRegistry,
    QueryRegistry,
    Transaction,
    define_mutators,
    define_queries,
)
from zerocache.zql.builder import QueryBuilder, create_builder
from zerocache.zql.schema import (
    Schema,
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


def app_schema() -> Schema:
    tables = [
        table("team", {"id": string(), "name": string()}, primary_key="id", from_name="teams"),
        table(
            "person",
            {
                "id": string(),
                "name": string(),
                "teamID": string(optional=True, from_name="team_id"),
            },
            primary_key="id",
            from_name="people",
        ),
        table(
            "issue",
            {
                "id": string(),
                "title": string(),
                "open": boolean(),
                "rank": number(optional=True),
                "ownerID": string(optional=True, from_name="owner_id"),
                "created": number(),
                "meta": json(optional=True),
            },
            primary_key="id",
            from_name="issues",
        ),
        table(
            "comment",
            {
                "id": string(),
                "issueID": string(from_name="issue_id"),
                "body": string(),
                "likes": number(),
            },
            primary_key="id",
            from_name="comments",
        ),
        table("label", {"id": string(), "name": string()}, primary_key="id", from_name="labels"),
        table(
            "issueLabel",
            {"issueID": string(from_name="issue_id"), "labelID": string(from_name="label_id")},
            primary_key=("issueID", "labelID"),
            from_name="issue_labels",
        ),
        table("beat", {"id": string(), "n": number()}, primary_key="id"),
    ]
    return create_schema(
        tables,
        relationships={
            "team": {"people": many("person", source="id", dest="teamID")},
            "person": {
                "team": one("team", source="teamID", dest="id"),
                "issues": many("issue", source="id", dest="ownerID"),
            },
            "issue": {
                "owner": one("person", source="ownerID", dest="id"),
                "comments": many("comment", source="id", dest="issueID"),
                "labels": many(
                    "label",
                    source="id",
                    dest="id",
                    via=junction("issueLabel", "issueID", "labelID"),
                ),
            },
        },
    )


def app_queries(schema: Schema) -> QueryRegistry:
    zql = create_builder(schema)
    issue = zql.issue
    opened = issue.where("open", True)

    def forbidden(*, args: Any, ctx: Any) -> QueryBuilder:
        raise ApplicationError("issues.forbidden is not for you")

    return define_queries(
        {
            "beat": lambda args, ctx: zql.beat,
            "issues": {
                "all": lambda args, ctx: issue,
                "open": lambda args, ctx: opened,
                "byID": lambda args, ctx: issue.where("id", args["id"]).one(),
                "withComments": lambda args, ctx: opened.related("comments"),
                "withOwner": lambda args, ctx: opened.related("owner"),
                "withLatestComments": lambda args, ctx: issue.related(
                    "comments", lambda q: q.order_by("likes", "desc").limit(2)
                ),
                "withLabels": lambda args, ctx: opened.related("labels"),
                "commented": lambda args, ctx: issue.where_exists("comments"),
                "labelled": lambda args, ctx: issue.where_exists(
                    "labels", lambda q: q.where("name", args["name"])
                ),
                "uncommented": lambda args, ctx: issue.where(
                    lambda q: q.not_(q.exists("comments"))
                ),
                "top": lambda args, ctx: issue.order_by("rank", "desc").limit(args["limit"]),
                "after": lambda args, ctx: (
                    issue.order_by("rank", "asc")
                    .start(
                        {"rank": args["rank"], "id": args["id"]},
                        inclusive=args.get("inclusive", False),
                    )
                    .limit(args["limit"])
                ),
                "lively": lambda args, ctx: (
                    issue.where(
                        lambda q: q.or_(
                            q.cmp("rank", ">=", 60),
                            q.exists("comments", lambda c: c.where("likes", ">", 2)),
                        )
                    )
                    .order_by("title", "desc")
                    .limit(3)
                    .related("comments", lambda q: q.order_by("likes", "desc").limit(1))
                    .related("labels")
                ),
                "forbidden": forbidden,
            },
            "teams": {
                "withOpenIssues": lambda args, ctx: zql.team.where_exists(
                    "people", lambda q: q.where_exists("issues", lambda r: r.where("open", True))
                ),
                "tree": lambda args, ctx: zql.team.related("people", lambda q: q.related("issues")),
            },
        }
    )


def app_mutators() -> MutatorRegistry:
    return define_mutators(
        {
            "issue": {
                "create": _create,
                "update": _update,
                "delete": _delete,
                "append": _append,
                "rename": _rename,
            }
        }
    )


async def _create(*, tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.issue.insert(args)


async def _update(*, tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.issue.update(args)


async def _delete(*, tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.issue.delete(args)


async def _append(*, tx: Transaction, args: Any, ctx: Any) -> None:
    """Give the new issue the next rank, which only the database knows."""
    await tx.db_transaction.query("LOCK TABLE issues IN SHARE ROW EXCLUSIVE MODE")
    highest = await tx.db_transaction.query("SELECT coalesce(max(rank), 0) AS rank FROM issues")
    await tx.mutate.issue.insert({**args, "open": True, "rank": highest[0]["rank"] + 1})


async def _rename(*, tx: Transaction, args: Any, ctx: Any) -> None:
    if not args["title"]:
        raise ApplicationError("a title must not be empty", details={"field": "title"})
    await tx.mutate.issue.update(args)
