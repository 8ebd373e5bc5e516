"""Stores for the tests of this folder: ``store`` is each kind in turn."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.sqlite import SqliteStore

Store = PostgresStore | SqliteStore
SCHEMA_NAME = "app_0/cvr"


class Clock:
    """The stores' time, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["postgres", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Callable[[], Store]:
    """Stores over the same tables."""
    if request.param == "sqlite":
        url = f"sqlite:{tmp_path}/cvr.db"
        return lambda: SqliteStore(url, SCHEMA_NAME, clock=clock)
    database: str = request.getfixturevalue("database")
    return lambda: PostgresStore(database, SCHEMA_NAME, max_connections=3, clock=clock)


@pytest.fixture
async def store(make_store: Callable[[], Store]) -> AsyncIterator[Store]:
    store = make_store()
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def postgres_store(database: str, clock: Clock) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database, SCHEMA_NAME, max_connections=3, clock=clock)
    await store.open()
    yield store
    await store.close()
