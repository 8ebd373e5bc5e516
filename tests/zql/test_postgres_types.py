"""Reading the catalog: names, types, keys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg

from tests.zql.oracle import fetch, read_tables
from zerocache.zql.postgres import Statement
from zerocache.zql.postgres_types import (
    CATALOG_QUERY,
    PostgresColumn,
    nest_array,
    tables_from_catalog,
)

DDL = """
CREATE SCHEMA "Bill";
CREATE TYPE mood AS ENUM ('a');
CREATE DOMAIN word AS varchar(5);
CREATE DOMAIN short_word AS word;
CREATE TABLE "Bill".invoice (
    z int NOT NULL, a int NOT NULL, id int NOT NULL, w short_word, m mood[], p point,
    loose int UNIQUE, PRIMARY KEY (z, a), UNIQUE (id)
);
CREATE TABLE two (b int NOT NULL, a int NOT NULL, c int NOT NULL, UNIQUE (b, c), UNIQUE (c, a));
CREATE TABLE keyless (
    a int UNIQUE, b int NOT NULL, w word NOT NULL UNIQUE, d int NOT NULL UNIQUE DEFERRABLE
);
CREATE UNIQUE INDEX ON keyless (b) WHERE b > 0;
CREATE UNIQUE INDEX ON keyless ((b + 1));
"""


def test_catalog_of_a_database(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(DDL.encode())
        tables = read_tables(connection)
        rows = fetch(connection, Statement(CATALOG_QUERY, []))
    check_tables(tables)
    with_domains = tables_from_catalog(rows)["Bill.invoice"].columns["w"]
    assert (with_domains.client_type, with_domains.pg_type) == ("string", "varchar")


def check_tables(tables: Any) -> None:
    assert set(tables) == {"Bill.invoice", "two", "keyless"}
    invoice = tables["Bill.invoice"]
    assert invoice.primary_key == ("id",)
    types = {name: column.client_type for name, column in invoice.columns.items()}
    numbers = dict.fromkeys(["z", "a", "id", "loose"], "number")
    assert types == {**numbers, "w": None, "m": "json", "p": None}
    assert invoice.columns["w"].cast == "public.short_word"
    assert invoice.columns["m"].is_enum
    assert invoice.columns["m"].is_array
    assert tables["two"].primary_key == ("a", "c")
    assert tables["keyless"].primary_key == ()


def test_loose_collations_do_not_decide_equality() -> None:
    """Postgres may call 'a' and 'A' equal in such a column; queries do not."""
    text = PostgresColumn("t", "string", "text", "pg_catalog.text")
    assert text.compares_as_stored
    assert not replace(text, is_deterministic=False).compares_as_stored


def test_flat_arrays_nest_again() -> None:
    assert nest_array(None) is None
    assert nest_array({"dims": None, "flat": None}) == []
    assert nest_array({"dims": [3], "flat": [1, 2, 3]}) == [1, 2, 3]
    assert nest_array({"dims": [2, 1, 2], "flat": [1, 2, 3, 4]}) == [[[1, 2]], [[3, 4]]]
