"""The demo's backend over HTTP, as zerocache calls it, on a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from zerocache.dev.demo_api import create_demo_api
from zerocache.dev.seed import seed

_SHARD_TABLES = """
    CREATE SCHEMA app_0;
    CREATE TABLE app_0.clients ("clientGroupID" text, "clientID" text, "lastMutationID" bigint,
        "userID" text, PRIMARY KEY ("clientGroupID", "clientID"));
    CREATE TABLE app_0.mutations ("clientGroupID" text, "clientID" text, "mutationID" bigint,
        result json, PRIMARY KEY ("clientGroupID", "clientID", "mutationID"));
"""


@dataclass
class Demo:
    """A client of the API that counts its mutations like a browser does."""

    http: TestClient[web.Request, web.Application]
    database: str
    sent: int = field(default=0)

    async def query(self, name: str, *args: Any) -> dict[str, Any]:
        request = ["transform", [{"id": "h1", "name": name, "args": args}]]
        answer = await (await self.http.post("/api/query", json=request)).json()
        assert answer["kind"] == "QueryResponse"
        (query,) = answer["queries"]
        assert isinstance(query, dict)
        return query

    async def mutate(self, name: str, args: Any) -> Any:
        self.sent += 1
        mutation = {"type": "custom", "id": self.sent, "clientID": "c", "name": name}
        body = {
            "clientGroupID": "g",
            "pushVersion": 1,
            "requestID": "r",
            "timestamp": 1,
            "mutations": [{**mutation, "args": [args], "timestamp": 1}],
        }
        answer = await self.http.post("/api/mutate?schema=app_0&appID=app", json=body)
        (mutated,) = (await answer.json())["mutations"]
        return mutated["result"]

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.database, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()


@pytest.fixture
async def demo(database: str) -> AsyncIterator[Demo]:
    await seed(database)
    async with await psycopg.AsyncConnection.connect(database) as connection:
        await connection.execute(_SHARD_TABLES.encode())
    async with TestClient(TestServer(create_demo_api(database))) as client:
        yield Demo(client, database)


def new_issue(**changes: Any) -> dict[str, Any]:
    issue = {"id": "new", "title": "T", "description": "", "priority": "low", "creatorID": "u1"}
    return {**issue, **changes}


async def test_list_query_comes_in_server_names_with_every_filter(demo: Demo) -> None:
    args = {"limit": 5, "open": True, "label": "l1", "assignee": "u2", "search": "50%_"}
    ast = (await demo.query("issues.list", args))["ast"]
    assert ast["table"] == "issue"
    assert ast["limit"] == 5
    assert ast["orderBy"] == [["modified_at", "desc"]]
    where = str(ast["where"])
    assert "assignee_id" in where
    assert "issue_label" in where
    assert r"%50\\%\\_%" in where
    assert "assigneeID" not in str(ast)


async def test_uncommented_query_is_a_not_exists(demo: Demo) -> None:
    ast = (await demo.query("issues.uncommented", {"limit": 5}))["ast"]
    assert ast["where"]["op"] == "NOT EXISTS"
    assert ast["where"]["related"]["subquery"]["table"] == "comment"


async def test_detail_query_brings_everything_around_an_issue(demo: Demo) -> None:
    ast = (await demo.query("issues.detail", {"id": "i1"}))["ast"]
    aliases = {related["subquery"]["alias"] for related in ast["related"]}
    assert aliases == {"labels", "creator", "assignee", "comments"}


@pytest.mark.parametrize("name", ["users.all", "labels.all"])
async def test_lookup_queries_take_no_arguments(demo: Demo, name: str) -> None:
    assert (await demo.query(name))["ast"]["orderBy"] == [["name", "asc"]]


@pytest.mark.parametrize("args", [{}, {"limit": 0}, {"limit": 5000}, {"limit": 5, "sort": "id"}])
async def test_bad_arguments_are_an_error_of_that_query(demo: Demo, args: object) -> None:
    assert (await demo.query("issues.list", args))["error"] == "app"


async def test_created_issue_gets_the_databases_times(demo: Demo) -> None:
    assert await demo.mutate("issues.create", new_issue()) == {}
    fresh = "SELECT open, now() - created_at < interval '1 minute' FROM issue WHERE id = 'new'"
    assert demo.rows(fresh) == [(True, True)]


async def test_update_changes_only_what_was_sent(demo: Demo) -> None:
    await demo.mutate("issues.create", new_issue(title="Before"))
    await demo.mutate("issues.update", {"id": "new", "assigneeID": "u2"})
    await demo.mutate("issues.update", {"id": "new", "open": False, "title": "After"})
    row = "SELECT title, open, assignee_id FROM issue WHERE id = 'new'"
    assert demo.rows(row) == [("After", False, "u2")]
    await demo.mutate("issues.update", {"id": "new", "assigneeID": None})
    assert demo.rows(row) == [("After", False, None)]


async def test_label_is_switched_on_and_off(demo: Demo) -> None:
    await demo.mutate("issues.create", new_issue())
    labels = "SELECT label_id FROM issue_label WHERE issue_id = 'new'"
    key = {"issueID": "new", "labelID": "l2"}
    for _ in range(2):
        await demo.mutate("issues.setLabel", {**key, "on": True})
    assert demo.rows(labels) == [("l2",)]
    await demo.mutate("issues.setLabel", {**key, "on": False})
    assert demo.rows(labels) == []


async def test_comment_touches_its_issue_and_goes_with_it(demo: Demo) -> None:
    comment = {"id": "k", "issueID": "i7", "authorID": "u1", "body": "Hello"}
    assert await demo.mutate("comments.add", comment) == {}
    assert demo.rows("SELECT id FROM issue ORDER BY modified_at DESC LIMIT 1") == [("i7",)]
    await demo.mutate("comments.delete", {"id": "k"})
    assert demo.rows("SELECT count(*) FROM comment WHERE id = 'k'") == [(0,)]
    await demo.mutate("issues.delete", {"id": "i7"})
    assert demo.rows("SELECT count(*) FROM comment WHERE issue_id = 'i7'") == [(0,)]


async def test_refused_change_is_recorded_and_changes_nothing(demo: Demo) -> None:
    before = demo.rows("SELECT title, modified_at FROM issue WHERE id = 'i3'")
    result = await demo.mutate("issues.shout", {"id": "i3"})
    assert result["error"] == "app"
    assert before[0][0] in result["message"]
    assert result["details"] == {"rule": "no-shouting", "issue": "i3"}
    assert demo.rows("SELECT title, modified_at FROM issue WHERE id = 'i3'") == before
    assert demo.rows('SELECT "mutationID", result FROM app_0.mutations') == [(1, result)]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("issues.create", new_issue(title="  ")),
        ("issues.create", new_issue(creatorID="nobody")),
        ("issues.update", {"id": "i1", "title": ""}),
        ("issues.update", {"id": "i1", "createdAt": 1}),
        ("comments.add", {"id": "k", "issueID": "i1", "authorID": "u1", "body": " "}),
    ],
)
async def test_bad_changes_are_refused_and_the_next_one_works(
    demo: Demo, name: str, args: Any
) -> None:
    assert (await demo.mutate(name, args))["error"] == "app"
    assert await demo.mutate("issues.delete", {"id": "i9"}) == {}
