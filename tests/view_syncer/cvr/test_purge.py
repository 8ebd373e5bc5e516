"""Garbage collection of view records (sync-protocol.md §5.7)."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.view_syncer.cvr.conftest import Clock, Store
from tests.view_syncer.cvr.records import new_record
from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.purge import (
    MAX_GROWTH,
    MAX_INTERVAL_S,
    SILENT_S,
    TOMBSTONE_S,
    PurgePolicy,
    Reaper,
)
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.store import (
    Checkpoint,
    ConcurrentModification,
    Delta,
    UnitWrite,
)
from zerocache.protocol.versions import NEVER, Watermark

HOUR = 3600.0
POLICY = PurgePolicy(inactive_s=48 * HOUR, interval_s=60, batch_size=2)
V1 = Watermark("01")
FACTS = [UnitWrite("u", Checkpoint(V1, b"c"), Delta(V1, b"d"))]


@pytest.fixture
def reaper(store: Store, clock: Clock) -> Reaper:
    return Reaper(store, POLICY, clock)


async def add(store: Store, *groups: str) -> None:
    for group in groups:
        change = ConfigChange()
        record = GroupRecord(group)
        record.add_client("c", change)
        await store.save(record, change, NEVER)


async def deleted(store: Store, *groups: str) -> list[bool]:
    return [(await store.load(group)).deleted for group in groups]


async def test_group_is_purged_only_after_the_time(
    store: Store, reaper: Reaper, clock: Clock
) -> None:
    await add(store, "g")
    clock.now_s += 48 * HOUR
    assert await reaper.step() == 0
    assert await deleted(store, "g") == [False]
    clock.now_s += 1
    assert await reaper.step() == 1
    assert await deleted(store, "g") == [True]


@pytest.mark.parametrize("how", ["touch", "save"])
async def test_sign_of_life_keeps_a_group(
    store: Store, reaper: Reaper, clock: Clock, how: str
) -> None:
    await add(store, "alive", "dead")
    clock.now_s += 24 * HOUR
    if how == "touch":
        await store.touch("alive", 1)
    else:
        await store.save(await store.load("alive"), ConfigChange(), NEVER)
    clock.now_s += 24 * HOUR + 1
    assert await reaper.step() == 1
    assert await deleted(store, "alive", "dead") == [False, True]


async def test_purged_group_is_an_empty_tombstone_that_nothing_revives(
    store: Store, reaper: Reaper, clock: Clock
) -> None:
    change = ConfigChange()
    record = new_record(change)
    await store.save(record, change, NEVER)
    clock.now_s += 49 * HOUR
    await reaper.step()
    tombstone = GroupRecord("g", exists=True, deleted=True, profile_id="p")
    assert await store.load("g") == tombstone
    await store.touch("g", 99)
    for held in (record, await store.load("g")):
        with pytest.raises(ConcurrentModification):
            await store.save(held, ConfigChange(), held.version)
    with pytest.raises(ConcurrentModification):
        await store.save(GroupRecord("g"), ConfigChange(), NEVER)
    assert await store.load("g") == tombstone


async def test_tombstone_goes_after_a_month(store: Store, reaper: Reaper, clock: Clock) -> None:
    await add(store, "g")
    clock.now_s += 49 * HOUR
    await reaper.step()
    clock.now_s += TOMBSTONE_S
    await reaper.step()
    assert await deleted(store, "g") == [True]
    clock.now_s += 1
    await reaper.step()
    assert not (await store.load("g")).exists
    await add(store, "g")
    assert (await store.load("g")).clients == {"c"}


async def test_oldest_go_first_and_batches_grow_while_there_are_more(
    store: Store, reaper: Reaper, clock: Clock
) -> None:
    groups = [f"g{n}" for n in range(9)]
    for group in groups:
        await add(store, group)
        clock.now_s += 1
    clock.now_s += 49 * HOUR
    seen = []
    for _ in range(4):
        seen.append((await reaper.step(), sum(await deleted(store, *groups))))
        assert await deleted(store, *groups) == [n < seen[-1][1] for n in range(9)]
    assert seen == [(2, 2), (4, 6), (3, 9), (0, 9)]
    assert reaper.batch_size == POLICY.batch_size


async def test_growth_is_bounded() -> None:
    class Endless:
        async def claim_purging(self, worker: str, lease_s: float) -> bool:
            return True

        async def purge_groups(self, inactive_since_s: float, limit: int) -> int:
            return limit

        async def forget_tombstones(self, before_s: float) -> None: ...

        async def forget_authors(
            self, inactive_since_s: float, silent_since_s: float, keep: int
        ) -> None: ...

    reaper = Reaper(Endless(), POLICY)
    for _ in range(20):
        await reaper.step()
    assert (reaper.batch_size, reaper.interval_s) == (MAX_GROWTH * 2, 60)


async def test_idle_reaper_looks_less_often(store: Store, reaper: Reaper, clock: Clock) -> None:
    intervals = []
    for _ in range(6):
        await reaper.step()
        intervals.append(reaper.interval_s)
    assert intervals == [120, 240, 480, 960, 960, 960]
    await add(store, "g")
    clock.now_s += 49 * HOUR
    await reaper.step()
    assert reaper.interval_s == 60


async def test_batch_size_0_purges_nothing(store: Store, clock: Clock) -> None:
    reaper = Reaper(store, PurgePolicy(48 * HOUR, 60, 0), clock)
    await add(store, "g")
    clock.now_s += 1000 * HOUR
    assert await reaper.step() == 0
    assert await deleted(store, "g") == [False]


async def test_one_worker_purges_until_it_is_gone(
    make_store: Callable[[], Store], store: Store, clock: Clock
) -> None:
    other = make_store()
    await other.open()
    first, second = Reaper(store, POLICY, clock), Reaper(other, POLICY, clock)
    await first.step()
    await add(store, "a", "b", "c")
    clock.now_s += 49 * HOUR
    await first.step()
    assert await second.step() == 0
    clock.now_s += 2 * MAX_INTERVAL_S + 1
    assert await second.step() == 1
    assert await first.step() == 0
    await other.close()


async def test_group_that_is_being_written_is_passed_over(
    postgres_store: PostgresStore, database: str, clock: Clock
) -> None:
    await add(postgres_store, "busy", "idle")
    clock.now_s += 49 * HOUR
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute(
            'SELECT FROM "app_0/cvr".view_groups WHERE "clientGroupID" = %s FOR UPDATE', ("busy",)
        )
        assert await Reaper(postgres_store, POLICY, clock).step() == 1
        assert await deleted(postgres_store, "busy", "idle") == [False, True]


async def known(store: Store, *authors: int) -> list[bool]:
    """Which of them are; the facts go with the author, or stay with it."""
    found = [await store.read_facts(author, "u") for author in authors]
    assert all(bool(facts.units) == (facts.complete_to is not None) for facts in found)
    return [facts.complete_to is not None for facts in found]


async def add_author(store: Store) -> int:
    author = await store.new_author()
    await store.write_facts(author, V1, FACTS)
    return author


async def test_facts_go_when_the_groups_of_their_time_do(
    store: Store, reaper: Reaper, clock: Clock
) -> None:
    ended, alive = await add_author(store), await add_author(store)
    clock.now_s += 48 * HOUR
    await reaper.step()
    assert await known(store, ended, alive) == [True, True]
    await store.write_facts(alive, V1, [])
    clock.now_s += 1
    await reaper.step()
    assert await known(store, ended, alive) == [False, True]


async def test_of_silent_authors_the_newest_are_kept(
    store: Store, reaper: Reaper, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("view_syncer.cvr.purge.KEPT_AUTHORS", 2)
    alive, *silent = [await add_author(store) for _ in range(5)]
    clock.now_s += SILENT_S
    await reaper.step()
    assert await known(store, alive, *silent) == [True] * 5
    clock.now_s += 1
    await store.write_facts(alive, V1, [])
    await reaper.step()
    assert await known(store, alive, *silent) == [True, False, False, True, True]


async def test_author_that_writes_is_kept_even_if_groups_are_not(
    store: Store, clock: Clock
) -> None:
    reaper = Reaper(store, PurgePolicy(inactive_s=0, interval_s=60, batch_size=2), clock)
    author = await add_author(store)
    clock.now_s += SILENT_S
    await reaper.step()
    assert await known(store, author) == [True]
