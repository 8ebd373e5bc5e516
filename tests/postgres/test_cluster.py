"""The test cluster itself."""

from __future__ import annotations

import psycopg

from tests.conftest import PostgresCluster


def test_the_cluster_can_replicate_logically(postgres: PostgresCluster) -> None:
    assert postgres.psql("SHOW wal_level") == [("logical",)]


def test_every_test_gets_an_empty_database(database: str, app_id: str) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchall() == []
    assert app_id.startswith("app_")
