"""Fixtures of the replication tests: a process that is always ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster
from tests.replication_manager.harness import Replicator, make_config
from tests.replication_manager.proxy import Proxy

RunSql = Callable[[str], None]


@pytest.fixture
def run_sql(database: str) -> RunSql:
    """Runs statements upstream, in one transaction."""

    def run(script: str) -> None:
        with psycopg.connect(database) as connection:
            connection.execute(script.encode())

    return run


@pytest.fixture
def new_replicator(
    database: str, app_id: str, tmp_path: Path
) -> Iterator[Callable[..., Replicator]]:
    """Makes replicators of this test's database; keyword arguments are configuration."""
    made: list[Replicator] = []

    def make(*, url: str = database, app: Any = app_id, **options: Any) -> Replicator:
        directory = tmp_path / f"r{len(made)}"
        directory.mkdir()
        named = {"id": app} if isinstance(app, str) else app
        config = make_config(url, app_id, directory, app=named, **options)
        replicator = Replicator(config, directory)
        made.append(replicator)
        return replicator

    yield make
    for replicator in made:
        if replicator.process is not None:
            replicator.kill()


@pytest.fixture
def replicator(new_replicator: Callable[..., Replicator]) -> Replicator:
    return new_replicator()


@pytest.fixture
def proxy(postgres: PostgresCluster) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


@pytest.fixture
def proxied_url(proxy: Proxy, database: str) -> str:
    """The database, with the proxy in between."""
    name = database.rsplit("/", 1)[1]
    return f"postgresql://postgres@127.0.0.1:{proxy.port}/{name}"
