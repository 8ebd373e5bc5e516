"""kill -9 at every numbered place of the pipeline, under a write load: nothing lost or doubled.

One replica is followed through all the places of the running stream; each initial sync has its
own. The judge is ``zerocache verify``. ``tests/fuzz/crash.py`` does the same at random.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from replication_manager.verify import verify
from tests.conftest import PostgresCluster
from tests.replication_manager import torn_checkpoint
from tests.replication_manager.crash_load import HEAVY, SCHEMA, write_heavily
from tests.replication_manager.harness import TIMEOUT_S, Replicator, make_config
from zerocache.failpoints import VARIABLE, Place

STREAM = [place for place in Place if Place.RECEIVED.number <= place.number]
STREAM = [place for place in STREAM if place.number <= Place.CHECKPOINTED.number]
SYNC = [place for place in Place if place.number < Place.RECEIVED.number]


@pytest.fixture(scope="module")
def world(
    postgres: PostgresCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Replicator]:
    """A replicator whose replica is complete, over a database of this module's own."""
    name = postgres.create_database()
    directory = tmp_path_factory.mktemp("crash")
    with psycopg.connect(postgres.url_of(name)) as connection:
        connection.execute(SCHEMA)
    replicator = Replicator(
        make_config(postgres.url_of(name), f"crash_{name}", directory), directory
    )
    replicator.start()
    replicator.stop()
    yield replicator
    if replicator.process is not None:
        replicator.kill()
    postgres.drop_database(name)


def _die(replicator: Replicator, **environment: str) -> None:
    """Run the process until it dies of what ``environment`` asks for."""
    replicator.start(wait=False, environment=environment)
    assert replicator.process is not None
    try:
        status = replicator.process.wait(TIMEOUT_S)
    finally:
        replicator.kill()
    assert status == -signal.SIGKILL, f"never came there; the log:\n{replicator.log()}"


def _assert_complete(replicator: Replicator) -> None:
    verdict = verify(replicator.config.upstream.db, replicator.file)
    assert verdict.is_equal, verdict
    assert verdict.compared > HEAVY
    log = replicator.rows('SELECT count(*), max(pos) FROM "_zero.changeLog"')
    state = replicator.rows('SELECT logPos, logFloor FROM "_zero.replicationState"')
    assert log[0] == (state[0][0] - state[0][1], state[0][0])


def _generation(replicator: Replicator) -> str:
    rows = replicator.rows('SELECT replicaVersion FROM "_zero.replicationConfig"')
    return str(rows[0][0])


@pytest.mark.parametrize("place", STREAM, ids=lambda place: f"{place.number}-{place.value}")
def test_killed_while_streaming(world: Replicator, place: Place) -> None:
    url, generation = world.config.upstream.db, _generation(world)
    with write_heavily(url, seed=place.number, published=place is not Place.IDLE_RECORDED):
        times = 2 if place in (Place.BEFORE_CHECKPOINT, Place.CHECKPOINTED) else 5
        _die(world, **{VARIABLE: f"{place.value}:{times}"})
        world.start()
    _assert_complete(world)
    assert world.stop() == 0
    # It went on from where it was; it did not start over.
    assert _generation(world) == generation


def test_killed_in_a_backfill(world: Replicator) -> None:
    url, generation, place = world.config.upstream.db, _generation(world), Place.MID_BACKFILL
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE hidden.late (id int PRIMARY KEY, t text)")
        connection.execute(
            "INSERT INTO hidden.late SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i"
        )
    with write_heavily(url, seed=place.number):
        world.start(environment={VARIABLE: f"{place.value}:2"})
        with psycopg.connect(url) as connection:
            connection.execute("ALTER TABLE hidden.late SET SCHEMA public")
        assert world.process is not None
        assert world.process.wait(TIMEOUT_S) == -signal.SIGKILL, world.log()
        world.kill()
        assert "backfill_finished" not in world.log()
        world.start()
        world.wait_until(lambda: "backfill_finished" in world.log())
    _assert_complete(world)
    assert world.rows("SELECT count(*) FROM late") == [(20_000,)]
    assert world.stop() == 0
    assert _generation(world) == generation


@pytest.mark.parametrize("write", [1, 30, 400])
def test_killed_in_the_middle_of_a_checkpoint(world: Replicator, write: int) -> None:
    generation = _generation(world)
    with write_heavily(world.config.upstream.db, seed=write):
        world.start(
            wait=False,
            module=torn_checkpoint.__name__,
            environment={torn_checkpoint.VARIABLE: str(write)},
        )
        assert world.process is not None
        assert world.process.wait(TIMEOUT_S) == -signal.SIGKILL, world.log()
        world.kill()
        world.start()
    _assert_complete(world)
    assert world.stop() == 0
    assert _generation(world) == generation


@pytest.mark.parametrize("place", SYNC, ids=lambda place: f"{place.number}-{place.value}")
def test_killed_in_the_initial_sync(
    world: Replicator, place: Place, app_id: str, tmp_path: Path, postgres: PostgresCluster
) -> None:
    url = world.config.upstream.db
    replicator = Replicator(make_config(url, app_id, tmp_path), tmp_path)
    with write_heavily(url, seed=place.number):
        times = 2 if place in (Place.COPYING, Place.INDEXING) else 1
        _die(replicator, **{VARIABLE: f"{place.value}:{times}"})
        assert replicator.file.exists() == (place is Place.REPLICA_REPLACED)
        replicator.start()
    _assert_complete(replicator)
    assert not list(tmp_path.glob("*.initial-sync*"))
    # The slots of the attempts that died are gone; nothing pins WAL but ours.
    slots = "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, %s)"
    assert postgres.psql(slots, app_id) == [(1,)]
    assert replicator.stop() == 0
    postgres.psql(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
        "WHERE starts_with(slot_name, %s)",
        app_id,
    )
