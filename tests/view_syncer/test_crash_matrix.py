"""kill -9 of a sync worker at its numbered places, under a write load, with clients on it.

The worker is replaced by its supervisor; clients come back with what they have, and must end up
with exactly upstream's rows, whatever the worker had begun.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.conftest import PostgresCluster
from tests.e2e.node import Node
from tests.replication_manager.crash_load import SCHEMA, write_heavily
from tests.view_syncer.crash_clients import Follower, allow_everything, upstream_rows
from zerocache.failpoints import ONCE_VARIABLE, VARIABLE, Place

PLACES = [place for place in Place if place.number >= Place.MID_HYDRATION.number]
_PASSAGES = {Place.MID_HYDRATION: 2, Place.MID_FLUSH: 2, Place.FLUSHED: 2}
_CLIENTS = 3


@pytest.fixture(scope="module")
def crashing_node(
    postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    name = postgres.create_database()
    with psycopg.connect(postgres.url_of(name)) as connection:
        connection.execute(SCHEMA)
    settings = {
        "ZERO_QUERY_URL": "",
        "ZERO_MUTATE_URL": "",
        "ZERO_NUM_SYNC_WORKERS": "1",
        "NODE_ENV": "production",
    }
    directory = tmp_path_factory.mktemp("crash")
    node = Node(
        directory, postgres.url_of(name), f"crash_{name}", "", kind="zerocache", settings=settings
    )
    node.start()
    allow_everything(node.upstream, node.app_id)
    node.stop()
    yield node
    if node.process is not None:
        node.kill9()
    postgres.drop_database(name)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.number}-{place.value}")
async def test_clients_end_up_with_upstreams_rows(
    crashing_node: Node, place: Place, tmp_path: Path
) -> None:
    node = crashing_node
    node.settings[VARIABLE] = f"{place.value}:{_PASSAGES.get(place, 8)}"
    node.settings[ONCE_VARIABLE] = str(tmp_path / "fired")
    await asyncio.to_thread(node.start)
    first = node.sync_workers()[0].pid
    base = place.number * 10
    followers = [Follower(node.url, base + n, 51 + n % 2) for n in range(_CLIENTS)]
    try:
        with write_heavily(node.upstream, seed=place.number):
            async with asyncio.timeout(60):
                await followers[0].lost.wait()
            # Whoever comes now finds what the dead worker left.
            followers.append(Follower(node.url, base + 9, 51))
            async with asyncio.timeout(60):
                await followers[-1].poked.wait()
        expected = await asyncio.to_thread(upstream_rows, node.upstream)
        for follower in followers:
            await follower.shows(expected)
        assert node.sync_workers()[0].pid != first
        assert "fired" in os.listdir(tmp_path)
    finally:
        for follower in followers:
            await follower.close()
        await asyncio.to_thread(node.stop)
