"""What clients may see of the demo's tables: names, types and relationships.

The counterpart of ``createSchema`` in the page's ``model.js``. Owns the mapping from the names of
``demo_schema.sql`` to the names of the clients. Invariant: both sides declare the same tables,
columns and types; zerocache refuses clients that disagree with the database.
"""

from __future__ import annotations

from zerocache.zql.schema import (
    Schema,
    boolean,
    create_schema,
    junction,
    many,
    number,
    one,
    string,
    table,
)


def demo_schema() -> Schema:
    return create_schema(
        [
            table(
                "user",
                {"id": string(), "name": string(), "color": string()},
                primary_key="id",
            ),
            table(
                "issue",
                {
                    "id": string(),
                    "title": string(),
                    "description": string(),
                    "open": boolean(),
                    "priority": string(),
                    "creatorID": string(from_name="creator_id"),
                    "assigneeID": string(optional=True, from_name="assignee_id"),
                    "created": number(from_name="created_at"),
                    "modified": number(from_name="modified_at"),
                },
                primary_key="id",
            ),
            table(
                "comment",
                {
                    "id": string(),
                    "issueID": string(from_name="issue_id"),
                    "authorID": string(from_name="author_id"),
                    "body": string(),
                    "created": number(from_name="created_at"),
                },
                primary_key="id",
            ),
            table(
                "label",
                {"id": string(), "name": string(), "color": string()},
                primary_key="id",
            ),
            table(
                "issueLabel",
                {
                    "issueID": string(from_name="issue_id"),
                    "labelID": string(from_name="label_id"),
                },
                primary_key=("issueID", "labelID"),
                from_name="issue_label",
            ),
        ],
        relationships={
            "issue": {
                "creator": one("user", source="creatorID", dest="id"),
                "assignee": one("user", source="assigneeID", dest="id"),
                "comments": many("comment", source="id", dest="issueID"),
                "labels": many(
                    "label",
                    source="id",
                    via=junction("issueLabel", "issueID", "labelID"),
                    dest="id",
                ),
            },
            "comment": {"author": one("user", source="authorID", dest="id")},
        },
    )
