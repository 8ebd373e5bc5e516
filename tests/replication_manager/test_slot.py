"""Slots: names, claims, clean-up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import psycopg
import pytest

from replication_manager import slot as slots
from replication_manager.signals import StopSignal
from replication_manager.slot import (
    claim_new_slot,
    find_slot,
    finish_claim,
    slot_suffix,
    take_over,
)
from tests.conftest import PostgresCluster
from tests.replication_manager.harness import TIMEOUT_S
from zerocache.errors import ReplicationError, ResyncRequired
from zerocache.postgres.connection import connect
from zerocache.postgres.setup import set_up_upstream
from zerocache.postgres.shard import ShardNames


@pytest.fixture
def shard(database: str, app_id: str) -> ShardNames:
    shard = ShardNames(app_id)
    set_up_upstream(database, shard)
    return shard


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    signal = StopSignal()
    yield signal
    signal.close()


def _names(postgres: PostgresCluster, shard: ShardNames) -> list[str]:
    rows = postgres.psql(
        "SELECT slot_name FROM pg_replication_slots WHERE starts_with(slot_name, %s) ORDER BY 1",
        shard.slot_prefix,
    )
    return [name.removeprefix(shard.slot_prefix) for (name,) in rows]


def _make_slot(postgres: PostgresCluster, database: str, name: str) -> None:
    postgres.psql(
        "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')",
        name,
        database=database.rsplit("/", 1)[1],
    )


def test_suffixes_count_in_letters() -> None:
    assert [slot_suffix(n) for n in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        "a", "b", "z", "aa", "ab", "az", "ba", "zz", "aaa",
    ]  # fmt: skip


def test_unclaimed_slots_are_dropped_and_their_names_reused(
    postgres: PostgresCluster, database: str, shard: ShardNames, stop: StopSignal
) -> None:
    for suffix in ("a", "d"):
        _make_slot(postgres, database, shard.slot_prefix + suffix)
    # Looks alike, belongs to the app "<app>_0" (shard 0): not ours.
    foreign = f"{shard.slot_prefix}0_a"
    _make_slot(postgres, database, foreign)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(claim_new_slot(database, shard, stop))
        assert _names(postgres, shard) == ["0_a", "a", "b", "c"]


def test_concurrent_creators_get_distinct_slots(
    postgres: PostgresCluster, database: str, shard: ShardNames, stop: StopSignal
) -> None:
    claimed: list[str] = []
    together = threading.Barrier(3)

    def create() -> None:
        with claim_new_slot(database, shard, stop) as claim:
            claimed.append(claim.name)
            together.wait(TIMEOUT_S)

    threads = [threading.Thread(target=create) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(claimed)) == 3
    rows = postgres.psql(
        f'SELECT count(*) FROM "{shard.shard_schema}".replicas',  # noqa: S608 - test
        database=database.rsplit("/", 1)[1],
    )
    assert rows == [(3,)]


def test_failure_while_copying_drops_slot_and_claim(
    postgres: PostgresCluster, database: str, shard: ShardNames, stop: StopSignal
) -> None:
    with pytest.raises(ZeroDivisionError), claim_new_slot(database, shard, stop):
        raise ZeroDivisionError
    assert _names(postgres, shard) == []


def test_blocked_creation_says_what_blocks_it(
    postgres: PostgresCluster,
    database: str,
    shard: ShardNames,
    stop: StopSignal,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slots, "LOCK_TIMEOUT_MS", 100)
    with psycopg.connect(database, application_name="long-report") as blocker:
        blocker.execute("CREATE TABLE held (a int)")
        with (
            pytest.raises(ReplicationError, match="long-report"),
            claim_new_slot(database, shard, stop),
        ):
            pass
        blocker.rollback()
    assert _names(postgres, shard) == []


def test_slot_of_an_unfinished_sync_is_not_used(
    database: str, shard: ShardNames, stop: StopSignal
) -> None:
    with claim_new_slot(database, shard, stop) as claim, connect(database, "test") as control:
        with pytest.raises(ResyncRequired):
            find_slot(control, shard, claim.version)
        finish_claim(database, shard, claim, b"{}", b"{}")
        assert find_slot(control, shard, claim.version).name == claim.name


def test_take_over_removes_older_replicas_but_not_newer_ones(
    postgres: PostgresCluster, database: str, shard: ShardNames, stop: StopSignal
) -> None:
    claims = []
    for _ in range(2):
        with claim_new_slot(database, shard, stop) as claim:
            finish_claim(database, shard, claim, b"{}", b"{}")
            claims.append(claim.name)
    with (
        claim_new_slot(database, shard, stop) as syncing,
        connect(database, "test") as control,
    ):
        take_over(control, shard, claims[1], name="zero-test", returning=False)
        left = {shard.slot_prefix + name for name in _names(postgres, shard)}
        assert left == {claims[1], syncing.name}


def test_take_over_removes_finished_replicas_that_were_never_used(
    postgres: PostgresCluster, database: str, shard: ShardNames, stop: StopSignal
) -> None:
    """What a sync leaves behind that died between its claim and the rename."""
    with claim_new_slot(database, shard, stop) as old:
        finish_claim(database, shard, old, b"{}", b"{}")
    with connect(database, "test") as control:
        take_over(control, shard, old.name, name="zero-test", returning=False)
        with claim_new_slot(database, shard, stop) as newer:
            finish_claim(database, shard, newer, b"{}", b"{}")
            take_over(control, shard, old.name, name="zero-test", returning=False)
            left = {shard.slot_prefix + name for name in _names(postgres, shard)}
            assert left == {old.name, newer.name}
        take_over(control, shard, old.name, name="zero-test", returning=False)
        left = {shard.slot_prefix + name for name in _names(postgres, shard)}
        assert left == {old.name}
