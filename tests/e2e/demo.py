"""The demo application with a node that can be killed under it.

What ``zerocache dev`` starts, taken apart: the test cluster instead of the embedded PostgreSQL, and
a node of its own, so that the database and the page survive the node. Owns PostgreSQL's own
answers to the page's queries.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from aiohttp import web

from tests.conftest import PostgresCluster
from tests.e2e.javascript import cache_folder
from tests.e2e.lines import Row
from tests.e2e.node import Node
from tests.e2e.serving import HttpThread
from zerocache.dev.client_packages import fetch_packages
from zerocache.dev.demo_api import create_demo_api
from zerocache.dev.seed import seed
from zerocache.dev.site import DemoSite

# An issue as a row of the page's list, and all columns of one as the client stores it.
_FUNCTIONS = """
CREATE FUNCTION listed(i issue) RETURNS jsonb STABLE LANGUAGE sql AS $$
  SELECT jsonb_build_object('id', i.id, 'title', i.title, 'open', i.open, 'labels', (
    SELECT coalesce(jsonb_agg(l.name ORDER BY l.id), '[]')
    FROM issue_label il JOIN label l ON l.id = il.label_id WHERE il.issue_id = i.id)) $$;
CREATE FUNCTION stored(i issue) RETURNS jsonb STABLE LANGUAGE sql AS $$
  SELECT jsonb_build_object('id', i.id, 'title', i.title, 'description', i.description,
    'open', i.open, 'priority', i.priority, 'creatorID', i.creator_id,
    'assigneeID', i.assignee_id, 'created', extract(epoch FROM i.created_at) * 1000,
    'modified', extract(epoch FROM i.modified_at) * 1000) $$;
"""
OPEN = """
SELECT jsonb_agg(listed(i) ORDER BY modified_at DESC, id)
FROM (SELECT * FROM issue WHERE open ORDER BY modified_at DESC, id LIMIT 50) i
"""
OPEN_100 = """
SELECT jsonb_agg(listed(i) ORDER BY modified_at DESC, id)
FROM (SELECT * FROM issue WHERE open ORDER BY modified_at DESC, id LIMIT 100) i
"""
OPEN_BY_CREATION = """
SELECT jsonb_agg(listed(i) ORDER BY created_at DESC, id)
FROM (SELECT * FROM issue WHERE open ORDER BY created_at DESC, id LIMIT 50) i
"""
CLOSED_BUGS = """
SELECT jsonb_agg(listed(i) ORDER BY modified_at DESC, id)
FROM (SELECT * FROM issue WHERE NOT open AND id IN (
    SELECT issue_id FROM issue_label JOIN label ON label.id = label_id WHERE name = 'bug'
  ) ORDER BY modified_at DESC, id LIMIT 50) i
"""
UNCOMMENTED = """
SELECT jsonb_agg(listed(i) ORDER BY created_at DESC, id)
FROM (SELECT * FROM issue WHERE NOT EXISTS (SELECT FROM comment WHERE issue_id = issue.id)
  ORDER BY created_at DESC, id LIMIT 50) i
"""
# Every issue the open list needs, as the client stores it.
STORED = """
SELECT jsonb_agg(stored(i) ORDER BY id)
FROM (SELECT * FROM issue WHERE open ORDER BY modified_at DESC, id LIMIT 50) i
"""


@dataclass
class Demo:
    node: Node
    page_url: str
    database: psycopg.Connection[Any]

    def sql(self, statement: str, *params: Any) -> None:
        self.database.execute(statement.encode(), params or None)

    def answer(self, query: str, *params: Any) -> Any:
        row = self.database.execute(query.encode(), params or None).fetchone()
        assert row is not None
        return row[0]

    def issues(self, query: str) -> list[Row]:
        found: list[Row] = self.answer(query) or []
        return found


@contextmanager
def running_demo(postgres: PostgresCluster, directory: Path) -> Iterator[Demo]:
    name = postgres.create_database()
    url = postgres.url_of(name)
    asyncio.run(_fill(url))
    node = Node(directory, url, f"demo_{uuid.uuid4().hex[:8]}", api="")

    async def application() -> web.Application:
        packages = asyncio.create_task(fetch_packages(cache_folder() / "demo-npm"))
        app = create_demo_api(url)
        DemoSite(packages, node.port).add_routes(app)
        return app

    http = HttpThread(application)
    http.start()
    node.api = f"{http.url}/api"
    try:
        node.start()
        with psycopg.connect(url, autocommit=True) as database:
            yield Demo(node, http.url, database)
    finally:
        node.kill9()
        http.stop()
        postgres.drop_database(name)


async def _fill(url: str) -> None:
    await seed(url)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as database:
        await database.execute(_FUNCTIONS.encode())
