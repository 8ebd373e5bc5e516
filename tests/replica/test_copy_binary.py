"""Which tables are copied in binary form. That the values are right: test_one_rule.py."""

from __future__ import annotations

import psycopg
import pytest

from zerocache.postgres.introspection import read_published_schema
from zerocache.replica.copy_binary import plan_of
from zerocache.replica.published import PublishedTable


@pytest.fixture
def published(database: str) -> dict[str, PublishedTable]:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in (
            "CREATE TYPE mood AS ENUM ('sad', 'glad')",
            "CREATE DOMAIN amount AS int",
            # A type of somebody's own that is called like one of PostgreSQL's.
            "CREATE SCHEMA other CREATE TABLE x (a int)",
            "CREATE DOMAIN other.int8 AS text",
            "CREATE TABLE mixed (id uuid, n int, at timestamptz, mood mood, doc jsonb, who text)",
            "CREATE TABLE strings (id text, name varchar(10))",
            "CREATE TABLE with_array (id int, n int[])",
            "CREATE TABLE with_domain (id int, n amount)",
            "CREATE TABLE with_namesake (id int, n other.int8)",
            "CREATE TABLE with_address (id int, n inet)",
            "CREATE TABLE with_moods (id int, n mood[])",
            "CREATE PUBLICATION pub FOR ALL TABLES",
        ):
            connection.execute(statement)
        tables = read_published_schema(connection, ["pub"]).tables
    return {table.name: table for table in tables}


def test_binary_where_it_is_exact(published: dict[str, PublishedTable]) -> None:
    plan = plan_of(published["mixed"])
    assert plan is not None
    assert {column.name: column.cast for column in plan.columns} == {
        "id": True, "n": False, "at": False, "mood": True, "doc": True, "who": False
    }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["strings", "with_array", "with_domain", "with_namesake", "with_address", "with_moods"],
)
def test_text_elsewhere(published: dict[str, PublishedTable], name: str) -> None:
    assert plan_of(published[name]) is None
