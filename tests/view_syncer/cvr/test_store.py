"""What every store of records does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from tests.view_syncer.cvr.conftest import Store
from tests.view_syncer.cvr.records import new_record, version
from view_syncer.cvr.record import ConfigChange
from view_syncer.cvr.store import ConcurrentModification
from zerocache.protocol.versions import NEVER


async def test_unknown_group_is_a_fresh_record(store: Store) -> None:
    record = await store.load("nobody")
    assert not record.exists
    assert record.version == NEVER


async def test_saved_record_is_loaded_as_it_was(store: Store) -> None:
    change = ConfigChange()
    record = new_record(change)
    await store.save(record, change, NEVER)
    assert record.exists
    loaded = await store.load("g")
    assert loaded == record
    assert loaded.queries["ast"].ast_json == record.queries["ast"].ast_json


async def test_removed_parts_are_gone(store: Store) -> None:
    change = ConfigChange()
    record = new_record(change)
    await store.save(record, change, NEVER)
    second = ConfigChange()
    record.drop_query("ast", second)
    record.delete_client("c1", 5, second)
    old, record.version = record.version, version("01")
    await store.save(record, second, old)
    assert await store.load("g") == record


async def test_save_on_another_version_fails_and_writes_nothing(
    store: Store,
) -> None:
    change = ConfigChange()
    record = new_record(change)
    await store.save(record, change, NEVER)
    stale = await store.load("g")
    record.version = version("00", 2)
    await store.save(record, ConfigChange(bump=True), version("00", 1))
    late = ConfigChange()
    stale.add_client("late", late)
    stale.version = version("00", 2)
    with pytest.raises(ConcurrentModification, match="00:01"):
        await store.save(stale, late, version("00", 1))
    assert (await store.load("g")).clients == {"c1"}


async def test_only_one_of_two_first_saves_succeeds(store: Store) -> None:
    """sync-protocol.md §10 #37"""

    async def first() -> None:
        change = ConfigChange()
        await store.save(new_record(change), change, NEVER)

    outcomes = await asyncio.gather(first(), first(), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcomes) == ["ConcurrentModification", "NoneType"]


async def test_ttl_clock_never_goes_back(store: Store) -> None:
    change = ConfigChange()
    await store.save(new_record(change), change, NEVER)
    await store.touch("g", 100)
    await store.touch("g", 50)
    assert (await store.load("g")).ttl_clock_ms == 100
    await store.touch("nobody", 1)


async def test_servers_that_open_at_once_are_fine(make_store: Callable[[], Store]) -> None:
    stores = [make_store() for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    change = ConfigChange()
    record = new_record(change)
    await stores[0].save(record, change, NEVER)
    assert await stores[3].load("g") == record
    await asyncio.gather(*(store.close() for store in stores))


async def test_record_may_change_while_its_save_waits(store: Store) -> None:
    change = ConfigChange()
    record = new_record(change)
    saving = asyncio.ensure_future(store.save(record, change, NEVER))
    await asyncio.sleep(0)
    record.add_client("later", change)
    await saving
    assert (await store.load("g")).clients == {"c1"}
