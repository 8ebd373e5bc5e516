"""Fixtures for whatever calls the application's endpoints, and for a whole worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.view_syncer.application import Application, Sleeps, api_client
from tests.view_syncer.server import Replica, Server, server_config, serving
from view_syncer.api_client import ApiClient


@pytest.fixture
async def application() -> AsyncIterator[Application]:
    async with Application() as application:
        yield application


@pytest.fixture
def sleeps() -> Sleeps:
    return Sleeps()


@pytest.fixture
async def client(sleeps: Sleeps) -> AsyncIterator[ApiClient]:
    async with api_client(sleeps) as client:
        yield client


@pytest.fixture
async def replica(tmp_path: Path, app_id: str) -> AsyncIterator[Replica]:
    """Three tasks, and permissions that let everybody read all of ``task`` and ``tag``."""
    tasks = [{"id": "a", "title": "A"}, {"id": "b", "title": "B"}, {"id": "c", "title": "C"}]
    replica = Replica(tmp_path, app_id, tasks)
    await replica.notifier.start()
    replica.notifier.publish(replica.version)
    yield replica
    await replica.notifier.close()
    replica.writer.close()


@pytest.fixture
async def server(database: str, app_id: str, replica: Replica) -> AsyncIterator[Server]:
    """A worker without application endpoints: only ad-hoc queries."""
    async with serving(replica, server_config(database, app_id, replica.path)) as server:
        yield server
