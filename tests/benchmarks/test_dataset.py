"""The data set in a real database."""

from __future__ import annotations

import psycopg

from benchmarks import dataset

_ALL_ROWS = """
    SELECT md5(string_agg(i::text, '' ORDER BY i.id)) FROM (SELECT * FROM issues) i
"""


def test_it_has_the_announced_sizes_and_the_columns_of_the_client_schema(database: str) -> None:
    sizes = dataset.load(database, 0.01)
    schema = dataset.client_schema()
    total = 0
    with psycopg.connect(database) as connection:
        for table, declared in schema.tables.items():
            name = psycopg.sql.Identifier(table)
            cursor = connection.execute(psycopg.sql.SQL("SELECT * FROM {}").format(name))
            assert {column.name for column in cursor.description or ()} == set(declared.columns)
            total += len(cursor.fetchall())
    assert total == sizes.total
    assert dataset.size_mb(database) > 0


def test_it_is_the_same_every_time(database: str) -> None:
    digests = []
    for _ in range(2):
        dataset.load(database, 0.01)
        with psycopg.connect(database) as connection:
            digests.append(connection.execute(_ALL_ROWS).fetchone())
            for table in dataset.client_schema().tables:
                name = psycopg.sql.Identifier(table)
                connection.execute(psycopg.sql.SQL("DROP TABLE {}").format(name))
    assert digests[0] == digests[1]


def test_full_scale_has_607_thousand_rows() -> None:
    assert dataset.Sizes.at(1.0).total == 607_000
