"""The published schema as the catalogue tells it."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from zerocache.postgres.introspection import read_published_schema
from zerocache.replica.published import PublishedColumn, PublishedSchema, PublishedTable

Introspect = Callable[..., PublishedSchema]


@pytest.fixture
def introspect(database: str) -> Introspect:
    """Runs a script in one transaction and reads what the publication ``p`` then has."""

    def run(script: str, publications: tuple[str, ...] = ("p",)) -> PublishedSchema:
        with psycopg.connect(database) as connection:
            connection.execute(script.encode())
            return read_published_schema(connection, publications)

    return run


@pytest.fixture
def server_version(database: str) -> int:
    with psycopg.connect(database) as connection:
        return connection.info.server_version // 10_000


def _table(schema: PublishedSchema, name: str = "t") -> PublishedTable:
    return next(table for table in schema.tables if table.name == name)


def _column(schema: PublishedSchema, name: str) -> PublishedColumn:
    return next(column for column in _table(schema).columns if column.name == name)


def test_columns_in_attnum_order_with_their_types(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TYPE mood AS ENUM ('a'); CREATE DOMAIN d AS int[];"
        "CREATE TABLE t (z int PRIMARY KEY, gone int, v varchar(10) NOT NULL DEFAULT 'x', m mood,"
        " ms mood[][], na name, po point, vec int2vector, dom d, nu numeric(5, 2));"
        "ALTER TABLE t DROP COLUMN gone; ALTER TABLE t ADD COLUMN a text;"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    columns = _table(schema).columns
    assert [(c.name, c.position) for c in columns] == [
        ("z", 1), ("v", 3), ("m", 4), ("ms", 5), ("na", 6), ("po", 7), ("vec", 8), ("dom", 9),
        ("nu", 10), ("a", 11),
    ]  # fmt: skip
    v = _column(schema, "v")
    assert (v.type_name, v.max_length, v.not_null) == ("varchar", 10, True)
    assert v.default == "'x'::character varying"
    assert _column(schema, "m").is_enum
    ms = _column(schema, "ms")
    assert (ms.type_name, ms.is_array, ms.is_enum, ms.type_kind) == ("mood[][]", True, True, "e")
    # They have elements or the category of arrays, but their text is not that of an array.
    assert not any(_column(schema, name).is_array for name in ("na", "po", "vec", "dom"))
    assert _column(schema, "dom").type_kind == "d"


def test_array_columns_made_by_create_table_as(introspect: Introspect) -> None:
    schema = introspect("CREATE TABLE t AS SELECT ARRAY[1] AS a; CREATE PUBLICATION p FOR TABLE t")
    assert _column(schema, "a").type_name == "int4[]"


def test_generated_columns_only_where_published(
    introspect: Introspect, server_version: int
) -> None:
    schema = introspect(
        "CREATE TABLE t (a int PRIMARY KEY, g int GENERATED ALWAYS AS (a + 1) STORED,"
        " i int GENERATED ALWAYS AS IDENTITY); CREATE INDEX ON t (g);"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    assert [column.name for column in _table(schema).columns] == ["a", "i"]
    assert [index.name for index in schema.indexes] == ["t_pkey"]
    if server_version < 18:
        return
    published = introspect(
        "CREATE PUBLICATION q FOR TABLE t WITH (publish_generated_columns = stored)", ("q",)
    )
    assert [column.name for column in _table(published).columns] == ["a", "g", "i"]
    assert len(published.indexes) == 2


def test_not_null_that_was_never_checked_is_no_promise(
    introspect: Introspect, server_version: int
) -> None:
    # Before version 18 the only way to promise it without a look is a CHECK constraint.
    promise = "NOT NULL a" if server_version >= 18 else "CHECK (a IS NOT NULL)"
    schema = introspect(
        f"CREATE TABLE t (a int); ALTER TABLE t ADD CONSTRAINT n {promise} NOT VALID;"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    assert not _column(schema, "a").not_null


def test_indexes_that_the_replica_may_have(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (a int PRIMARY KEY, b int, c text, d int, j jsonb, EXCLUDE (b WITH =),"
        " CONSTRAINT late UNIQUE (d) DEFERRABLE);"
        "CREATE INDEX with_include ON t (b DESC, c) INCLUDE (d);"
        "CREATE INDEX expression ON t (lower(c)); CREATE INDEX partial ON t (b) WHERE d > 0;"
        "CREATE INDEX inverted ON t USING gin (j);"
        "CREATE PUBLICATION p FOR TABLE t"
    )
    indexes = {index.name: index for index in schema.indexes}
    assert set(indexes) == {"t_pkey", "late", "with_include"}
    assert indexes["with_include"].columns == (("b", "DESC"), ("c", "ASC"))
    assert indexes["t_pkey"].enforced
    assert indexes["late"].unique
    assert not indexes["late"].enforced


def test_unique_index_that_a_foreign_key_refers_to_is_kept(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL UNIQUE);"
        "CREATE TABLE u (b int REFERENCES t (b)); CREATE PUBLICATION p FOR TABLE t"
    )
    assert {index.name for index in schema.indexes} == {"t_pkey", "t_b_key"}


def test_column_lists_hide_keys_and_indexes(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (a int, b int, c int, PRIMARY KEY (a, b)); CREATE INDEX ON t (c);"
        "CREATE PUBLICATION p FOR TABLE t (a, c)"
    )
    assert [column.name for column in _table(schema).columns] == ["a", "c"]
    assert _table(schema).primary_key == ()
    assert [index.column_names for index in schema.indexes] == [("c",)]


def test_primary_key_is_in_index_order(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (a int, b int, PRIMARY KEY (b, a)); CREATE PUBLICATION p FOR TABLE t"
    )
    assert _table(schema).primary_key == ("b", "a")


def test_row_filters_of_several_publications(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (id int PRIMARY KEY);"
        "CREATE PUBLICATION p FOR TABLE t WHERE (id % 2 = 0);"
        "CREATE PUBLICATION q FOR TABLE t WHERE (id > 1000); CREATE PUBLICATION r FOR TABLE t",
        ("p", "q"),
    )
    assert _table(schema).row_filter == "(((id % 2) = 0)) OR ((id > 1000))"
    assert _table(introspect("SELECT 1", ("p", "r"))).row_filter is None


def test_partition_roots_or_leaves(introspect: Introspect) -> None:
    schema = introspect(
        "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY HASH (id);"
        "CREATE TABLE leaf PARTITION OF t FOR VALUES WITH (MODULUS 1, REMAINDER 0);"
        "CREATE PUBLICATION p FOR TABLE t WITH (publish_via_partition_root = true);"
        "CREATE PUBLICATION q FOR TABLE t"
    )
    assert [table.name for table in schema.tables] == ["t"]
    assert [index.name for index in schema.indexes] == ["t_pkey"]
    assert [table.name for table in introspect("SELECT 1", ("q",)).tables] == ["leaf"]


def test_names_that_need_quotes(introspect: Introspect) -> None:
    schema = introspect(
        'CREATE SCHEMA "Odd"; CREATE TABLE "Odd"."select" ("a.b" int PRIMARY KEY, "Mixed" int);'
        'CREATE PUBLICATION p FOR TABLE "Odd"."select"'
    )
    assert schema.tables[0].wire_name == "Odd.select"
    assert [column.name for column in schema.tables[0].columns] == ["a.b", "Mixed"]
