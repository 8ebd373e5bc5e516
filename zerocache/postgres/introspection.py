"""Reads from the catalogue what a set of publications publishes.

Owns the two catalogue queries (``tables.sql``, ``indexes.sql``) and how their rows become the
structs of :mod:`zerocache.replica.published`. It never changes anything and judges nothing:
whether the schema can be replicated is decided in :mod:`zerocache.postgres.validation`.
Invariant: within one REPEATABLE READ transaction the result describes that snapshot, except for
type and constraint texts, which PostgreSQL always prints from its current catalogue.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any, LiteralString

import msgspec
import psycopg

from zerocache.replica.published import PublishedIndex, PublishedSchema, PublishedTable

FIRST_WITH_GENERATED_COLUMNS = 180_000
_SET_PATH = "SELECT set_config('search_path', %s, false)"


def load_sql(name: str) -> LiteralString:
    """The text of an ``.sql`` file of this package, which is code and not input."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def read_published_schema(
    connection: psycopg.Connection[Any], publications: Sequence[str]
) -> PublishedSchema:
    """The tables and indexes in ``publications``, columns in ``attnum`` order."""
    parameters = {
        "publications": list(publications),
        # Only PostgreSQL 18 and later can publish them; 15 lists them nevertheless.
        "skip_generated": connection.info.server_version < FIRST_WITH_GENERATED_COLUMNS,
    }
    # Expressions are printed relative to the search path; the triggers' functions use this one.
    path = connection.execute("SELECT current_setting('search_path')").fetchone()
    connection.execute(_SET_PATH, ["pg_catalog, pg_temp"])
    tables = connection.execute(load_sql("tables.sql"), parameters).fetchall()
    indexes = connection.execute(load_sql("indexes.sql"), parameters).fetchall()
    connection.execute(_SET_PATH, path)
    return PublishedSchema(
        tables=tuple(msgspec.json.decode(text, type=PublishedTable) for (text,) in tables),
        indexes=tuple(msgspec.json.decode(text, type=PublishedIndex) for (text,) in indexes),
    )
