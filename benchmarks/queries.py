"""The queries of the benchmarks, as ASTs over the data set.

``instance`` makes queries that differ in a literal only, so that a repetition is not answered
from what an earlier one left in the server.
"""

from __future__ import annotations

from typing import Any

from benchmarks import dataset
from benchmarks.protocol_client import DesiredQuery, ast_query

Ast = dict[str, Any]

_ISSUE_COMMENTS = {"parentField": ["id"], "childField": ["issue_id"]}


def simple(column: str, op: str, value: Any) -> Ast:
    return {
        "type": "simple",
        "op": op,
        "left": {"type": "column", "name": column},
        "right": {"type": "literal", "value": value},
    }


def _every_issue(instance: int) -> Ast:
    # On a column without an index, so that no planner is led away from the order's index.
    return simple("votes", ">=", -1 - instance)


def page(rows: int, instance: int) -> DesiredQuery:
    """The ``rows`` most recently modified issues: a flat ordered window."""
    return ast_query(
        {
            "table": "issues",
            "where": _every_issue(instance),
            "orderBy": [["modified", "desc"]],
            "limit": rows,
        }
    )


def tree(issues: int, instance: int) -> DesiredQuery:
    """Issues with their comments and, through the junction, their labels: two levels."""
    labels = {
        "system": "client",
        "correlation": {"parentField": ["label_id"], "childField": ["id"]},
        "subquery": {"table": "labels", "alias": "labels"},
    }
    return ast_query(
        {
            "table": "issues",
            "where": _every_issue(instance),
            "orderBy": [["modified", "desc"]],
            "limit": issues,
            "related": [
                {
                    "system": "client",
                    "correlation": _ISSUE_COMMENTS,
                    "subquery": {
                        "table": "comments",
                        "alias": "comments",
                        "orderBy": [["created", "asc"]],
                    },
                },
                {
                    "system": "client",
                    "hidden": True,
                    "correlation": _ISSUE_COMMENTS,
                    "subquery": {"table": "issue_labels", "alias": "labels", "related": [labels]},
                },
            ],
        }
    )


def project(number: int) -> list[DesiredQuery]:
    """Three queries that all hold every issue of one project (100 issues)."""
    where = simple("project", "=", dataset.project_id(number))
    positive = {"type": "and", "conditions": [where, simple("votes", ">=", 0)]}
    comments = {
        "system": "client",
        "correlation": _ISSUE_COMMENTS,
        "subquery": {"table": "comments", "alias": "comments"},
    }
    return [
        project_page(number),
        ast_query({"table": "issues", "where": positive}),
        ast_query({"table": "issues", "where": where, "limit": 100, "related": [comments]}),
    ]


def project_page(number: int) -> DesiredQuery:
    """All issues of one project as an ordered window."""
    return ast_query(
        {
            "table": "issues",
            "where": simple("project", "=", dataset.project_id(number)),
            "orderBy": [["modified", "desc"]],
            "limit": dataset.ISSUES_PER_PROJECT,
        }
    )


def one_issue(number: int) -> DesiredQuery:
    """One issue by its short id."""
    return ast_query({"table": "issues", "where": simple("short_id", "=", number)})
