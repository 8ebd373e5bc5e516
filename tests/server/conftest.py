"""A database with zerocache's tables and an application's, and the application's schema."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from zerocache.server import PsycopgConnection, ZQLDatabase
from zerocache.zql.builder import create_builder
from zerocache.zql.schema import create_schema, many, number, string, table

UPSTREAM = """
CREATE SCHEMA "zero_0";
CREATE TABLE "zero_0".clients ("clientGroupID" text, "clientID" text,
    "lastMutationID" bigint NOT NULL, "userID" text, PRIMARY KEY ("clientGroupID", "clientID"));
CREATE TABLE "zero_0".mutations ("clientGroupID" text, "clientID" text, "mutationID" bigint,
    "result" json NOT NULL, PRIMARY KEY ("clientGroupID", "clientID", "mutationID"));
CREATE TABLE issue (id text PRIMARY KEY, title text NOT NULL, rank int);
CREATE TABLE comment (id text PRIMARY KEY, issue_id text REFERENCES issue
    DEFERRABLE INITIALLY DEFERRED, body text);
"""

schema = create_schema(
    [
        table(
            "issue",
            {"id": string(), "title": string(), "rank": number(optional=True)},
            primary_key="id",
        ),
        table(
            "comment",
            {
                "id": string(),
                "issueID": string(optional=True, from_name="issue_id"),
                "body": string(optional=True),
            },
            primary_key="id",
        ),
    ],
    relationships={"issue": {"comments": many("comment", source="id", dest="issueID")}},
)
zql = create_builder(schema)
PARAMS = {"schema": "zero_0", "appID": "zero"}


def push(*mutations: tuple[int, str, Any], client: str = "c1", **extra: Any) -> dict[str, Any]:
    """A push body of ``(id, name, argument)``."""
    return {
        "clientGroupID": "g1",
        "pushVersion": 1,
        "requestID": "r1",
        "timestamp": 1,
        "mutations": [
            {
                "type": "custom",
                "id": id,
                "clientID": client,
                "name": name,
                "args": [argument],
                "timestamp": 1,
            }
            for id, name, argument in mutations
        ],
        **extra,
    }


class Upstream:
    """Looks at the database beside the code under test."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self.connection = connection

    def all(self, text: str) -> list[Any]:
        return self.connection.execute(text.encode()).fetchall()

    def column(self, text: str) -> list[Any]:
        return [row[0] for row in self.all(text)]

    @property
    def last_mutation_id(self) -> int:
        ids = self.column('SELECT "lastMutationID" FROM zero_0.clients')
        return ids[0] if ids else 0

    @property
    def results(self) -> dict[int, Any]:
        rows = self.all('SELECT "mutationID", result FROM zero_0.mutations')
        return {row[0]: row[1] for row in rows}


@pytest.fixture
def upstream(database: str) -> Iterator[Upstream]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(UPSTREAM.encode())
        yield Upstream(connection)


@pytest.fixture
async def db(database: str, upstream: Upstream) -> AsyncIterator[ZQLDatabase]:
    connection = PsycopgConnection(database, max_size=2)
    yield ZQLDatabase(connection, schema)
    await connection.close()
