"""Stores for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from view_syncer.cvr.postgres import PostgresStore


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(database, "app_0/cvr", max_connections=3)
    await store.open()
    yield store
    await store.close()
