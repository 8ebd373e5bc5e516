"""The demo's mutators: what a change really does, decided on the server, in one transaction.

The counterpart of ``mutators`` in the page's ``model.js``, which only predicts. Owns the
validation of arguments, which come from strangers. Invariant: a mutator that raises changes
nothing; the client is told why and takes its prediction back.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import msgspec

from zerocache.dev.arguments import checked
from zerocache.server import (
    ApplicationError,
    MutatorRegistry,
    Transaction,
    define_mutator,
    define_mutators,
)
from zerocache.zql.builder import create_builder
from zerocache.zql.schema import Schema

Priority = Literal["low", "medium", "high"]


class CreateIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    title: str
    description: str
    priority: Priority
    creatorID: str


class UpdateIssue(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    id: str
    title: str | msgspec.UnsetType = msgspec.UNSET
    open: bool | msgspec.UnsetType = msgspec.UNSET
    priority: Priority | msgspec.UnsetType = msgspec.UNSET
    assigneeID: str | msgspec.UnsetType | None = msgspec.UNSET


class ById(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str


class SetLabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    issueID: str
    labelID: str
    on: bool


class AddComment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    issueID: str
    authorID: str
    body: str


def demo_mutators(schema: Schema) -> MutatorRegistry:
    zql = create_builder(schema)

    async def shout(*, tx: Transaction, args: ById, ctx: object) -> None:
        issue = await tx.run(zql.issue.where("id", args.id).one())
        title = issue["title"] if issue else args.id
        raise ApplicationError(
            f"{title} may not be shouted; this team speaks softly.",
            details={"rule": "no-shouting", "issue": args.id},
        )

    return define_mutators(
        {
            "issues": {
                "create": define_mutator(checked(CreateIssue), create_issue),
                "update": define_mutator(checked(UpdateIssue), update_issue),
                "delete": define_mutator(checked(ById), delete_issue),
                "setLabel": define_mutator(checked(SetLabel), set_label),
                "shout": define_mutator(checked(ById), shout),
            },
            "comments": {
                "add": define_mutator(checked(AddComment), add_comment),
                "delete": define_mutator(checked(ById), delete_comment),
            },
        }
    )


async def create_issue(*, tx: Transaction, args: CreateIssue, ctx: object) -> None:
    # The client's clock is a guess; the database sets both times.
    await tx.mutate.issue.insert({**_given(args), "title": _checked_title(args.title)})


async def update_issue(*, tx: Transaction, args: UpdateIssue, ctx: object) -> None:
    if args.title is not msgspec.UNSET:
        _checked_title(args.title)
    await tx.mutate.issue.update(_given(args))


async def delete_issue(*, tx: Transaction, args: ById, ctx: object) -> None:
    # Foreign keys take comments and labels along.
    await tx.mutate.issue.delete({"id": args.id})


async def set_label(*, tx: Transaction, args: SetLabel, ctx: object) -> None:
    key = {"issueID": args.issueID, "labelID": args.labelID}
    if args.on:
        await tx.mutate.issueLabel.insert(key)
    else:
        await tx.mutate.issueLabel.delete(key)


async def add_comment(*, tx: Transaction, args: AddComment, ctx: object) -> None:
    if not args.body.strip():
        raise ApplicationError("A comment needs a text.")
    await tx.mutate.comment.insert(_given(args))
    # A trigger puts the database's time in its place.
    await tx.mutate.issue.update({"id": args.issueID, "modified": time.time() * 1000})


async def delete_comment(*, tx: Transaction, args: ById, ctx: object) -> None:
    await tx.mutate.comment.delete({"id": args.id})


def _checked_title(title: str) -> str:
    if not title.strip():
        raise ApplicationError("An issue needs a title.", details={"field": "title"})
    return title


def _given(args: msgspec.Struct) -> dict[str, Any]:
    """The fields the client sent; an absent one stays as it is in the database."""
    values: dict[str, Any] = msgspec.to_builtins(args)
    return values
