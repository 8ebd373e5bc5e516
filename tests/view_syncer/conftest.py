"""Fixtures for whatever calls the application's endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.view_syncer.application import Application, Sleeps, api_client
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
