"""The test cluster itself."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import PostgresCluster, postgres_bin, postgres_version


def test_the_cluster_can_replicate_logically(postgres: PostgresCluster) -> None:
    assert postgres.psql("SHOW wal_level") == [("logical",)]


def test_every_test_gets_an_empty_database(database: str, app_id: str) -> None:
    with psycopg.connect(database) as connection:
        tables = connection.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'")
        assert tables.fetchall() == []
    assert app_id.startswith("app_")


def test_the_server_has_the_version_asked_for(postgres: PostgresCluster) -> None:
    major = postgres.psql("SELECT current_setting('server_version_num')::int / 10000")
    assert major == [(int(postgres_version().rpartition(":")[2]),)]


@pytest.mark.parametrize("version", ["14", "18.1", "", "docker"])
def test_other_versions_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_POSTGRES", version)
    with pytest.raises(RuntimeError, match="is none of 15, 16, 17, 18"):
        postgres_bin()
