"""kill -9 of PostgreSQL itself, while the replication process stands at a place of the pipeline.

The process is stopped there, the server killed and started again, then the process goes on: it has
to find its way back by itself, and its replica must equal what the server recovered.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

from replication_manager.verify import verify
from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.crash_load import HEAVY, SCHEMA, write_heavily
from tests.replication_manager.harness import TIMEOUT_S, Replicator, make_config
from zerocache.failpoints import VARIABLE, Place

PLACES = (
    Place.SLOT_CLAIMED,
    Place.COPYING,
    Place.COPY_DURABLE,
    Place.CLAIM_FINISHED,
    Place.RECEIVED,
    Place.MID_APPLY,
    Place.COMMITTED,
    Place.DURABLE,
    Place.ACKNOWLEDGED,
)
_PASSED_ONCE = (Place.SLOT_CLAIMED, Place.COPY_DURABLE, Place.CLAIM_FINISHED)


@pytest.fixture(scope="module")
def mortal() -> Iterator[PostgresCluster]:
    """A server for these tests alone."""
    cluster = make_cluster()
    with psycopg.connect(cluster.url) as connection:
        connection.execute(SCHEMA)
    yield cluster
    destroy_cluster(cluster)


def _passages(place: Place) -> int:
    """Which passage it is: some places are passed only once."""
    return 1 if place in _PASSED_ONCE else 2


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place.number}-{place.value}")
def test_server_killed(mortal: PostgresCluster, place: Place, app_id: str, tmp_path: Path) -> None:
    replicator = Replicator(make_config(mortal.url, app_id, tmp_path), tmp_path)
    with write_heavily(mortal.url, seed=place.number):
        replicator.start(
            wait=False, environment={VARIABLE: f"{place.value}:{_passages(place)}:stop"}
        )
        assert replicator.process is not None
        process = psutil.Process(replicator.process.pid)
        replicator.wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        mortal.kill9()
        process.send_signal(signal.SIGCONT)
        mortal.start()
        replicator.next_message("ready")
    verdict = verify(mortal.url, replicator.file, wait_s=TIMEOUT_S)
    assert verdict.is_equal, verdict
    assert verdict.compared > HEAVY
    assert process.is_running(), replicator.log()
    assert replicator.stop() == 0
    mortal.drop_slots("postgres")
