"""Fixtures of the dev tests: the npm packages, fetched once per session."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from zerocache.dev.client_packages import fetch_packages


@pytest.fixture(scope="session")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real packages, by the real npm."""
    return asyncio.run(fetch_packages(tmp_path_factory.mktemp("npm")))
