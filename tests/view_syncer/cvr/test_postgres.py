"""The record store over a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster
from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from zerocache.errors import ClientFacingError, ConfigurationError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import DeleteQuery, PutQuery
from zerocache.protocol.versions import NEVER, ViewVersion, Watermark

SCHEMA = ClientSchema.from_json(
    b'{"tables":{"t":{"columns":{"id":{"type":"string"}},"primaryKey":["id"]}}}'
)


def version(state: str, config: int = 0) -> ViewVersion:
    return ViewVersion(Watermark(state), config)


def new_record(change: ConfigChange) -> GroupRecord:
    record = GroupRecord("g", version=version("00", 1), client_schema=SCHEMA, profile_id="p")
    record.replica_version = Watermark("110")
    record.ttl_clock_ms = 12.5
    record.provable_from = version("00", 1)
    record.add_client("c1", change)
    ast = b'{ "table":"t", "limit":100000000000000000000 }'
    ops = [
        PutQuery("ast", 10, ast_json=ast, query=None, name="n", args=[1, {"x": None}]),
        PutQuery("named", name="n", args=["é😀", 1.5]),
    ]
    record.apply_query_ops("c1", ops, 0, change)
    record.apply_query_ops("c1", [DeleteQuery("ast")], 3.25, change)
    record.queries["named"].got_at = version("00", 1)
    record.queries["named"].unit = "unit-1"
    return record


async def test_unknown_group_is_a_fresh_record(store: PostgresStore) -> None:
    record = await store.load("nobody")
    assert not record.exists
    assert record.version == NEVER


async def test_saved_record_is_loaded_as_it_was(store: PostgresStore) -> None:
    change = ConfigChange()
    record = new_record(change)
    await store.save(record, change, NEVER)
    assert record.exists
    loaded = await store.load("g")
    assert loaded == record
    assert loaded.queries["ast"].ast_json == record.queries["ast"].ast_json


async def test_removed_parts_are_gone(store: PostgresStore) -> None:
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
    store: PostgresStore,
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


async def test_only_one_of_two_first_saves_succeeds(store: PostgresStore) -> None:
    """sync-protocol.md §10 #37"""

    async def first() -> None:
        change = ConfigChange()
        await store.save(new_record(change), change, NEVER)

    outcomes = await asyncio.gather(first(), first(), return_exceptions=True)
    assert sorted(type(o).__name__ for o in outcomes) == ["ConcurrentModification", "NoneType"]


async def test_ttl_clock_never_goes_back(store: PostgresStore) -> None:
    change = ConfigChange()
    await store.save(new_record(change), change, NEVER)
    await store.touch("g", 100)
    await store.touch("g", 50)
    assert (await store.load("g")).ttl_clock_ms == 100
    await store.touch("nobody", 1)


async def test_versions_compare_as_bytes(store: PostgresStore, database: str) -> None:
    async with await psycopg.AsyncConnection.connect(database) as db:
        rows = await (
            await db.execute(
                "SELECT column_name, collation_name FROM information_schema.columns "
                "WHERE table_schema = 'app_0/cvr' AND column_name LIKE '%Version' "
                "AND data_type = 'text'"
            )
        ).fetchall()
    assert dict(rows) == {
        "stateVersion": "C",
        "replicaVersion": "C",
    }


async def test_opening_twice_at_once_is_fine(database: str) -> None:
    stores = [PostgresStore(database, "x/cvr", max_connections=1) for _ in range(4)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.close() for store in stores))


async def test_value_the_database_refuses_is_named_as_the_stores_failure(
    store: PostgresStore,
) -> None:
    change = ConfigChange()
    record = GroupRecord("g", version=version("00", 1))
    record.add_client("nul\0", change)
    with pytest.raises(StoreUnavailable):
        await store.save(record, change, NEVER)
    assert not (await store.load("g")).exists


async def test_value_the_database_refuses_fails_only_the_group_it_belongs_to(
    store: PostgresStore,
) -> None:
    async def save(number: int) -> None:
        change = ConfigChange()
        record = GroupRecord(f"g{number}", version=version("00", 1))
        record.add_client("nul\0" if number % 5 == 0 else "c", change)
        await store.save(record, change, NEVER)

    outcomes = await asyncio.gather(*map(save, range(20)), return_exceptions=True)
    assert [isinstance(o, StoreUnavailable) for o in outcomes] == [n % 5 == 0 for n in range(20)]
    records = await asyncio.gather(*(store.load(f"g{n}") for n in range(20)))
    assert [r.clients for r in records] == [set() if n % 5 == 0 else {"c"} for n in range(20)]


async def test_record_that_cannot_be_read_fails_only_its_group(
    store: PostgresStore, database: str
) -> None:
    for group in ("bad", "good"):
        await store.save(GroupRecord(group, client_schema=SCHEMA), ConfigChange(), NEVER)
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute(
            """UPDATE "app_0/cvr".view_groups SET "clientSchema" = '7' """
            """WHERE "clientGroupID" = 'bad'"""
        )
    names = ["first", "bad", "good", "new"]
    loads = (store.load(group) for group in names)
    first, bad, good, new = await asyncio.gather(*loads, return_exceptions=True)
    assert isinstance(bad, ClientFacingError)
    assert [isinstance(r, GroupRecord) for r in (first, good, new)] == [True, True, True]


async def test_wave_of_groups_costs_few_statements(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = store._connection

    def counted() -> Any:
        calls.append(1)
        return original()

    monkeypatch.setattr(store, "_connection", counted)

    async def come(number: int) -> None:
        record = await store.load(f"g{number}")
        for state in ("01", "02", "03"):
            change, before = ConfigChange(), record.version
            record.version = version(state)
            record.add_client(f"c{state}", change)
            await store.save(record, change, before)

    await asyncio.gather(*map(come, range(100)))
    assert len(calls) <= 40
    loaded = await store.load("g7")
    assert (loaded.version, loaded.clients) == (version("03"), {"c01", "c02", "c03"})


async def test_lost_connections_are_the_stores_failure_and_pass(
    store: PostgresStore, postgres: PostgresCluster, database: str
) -> None:
    await store.load("g")
    name = database.rsplit("/", 1)[1]
    postgres.psql(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = %s AND application_name = 'zero-cvr'",
        name,
    )
    with pytest.raises(StoreUnavailable):
        await store.load("g")
    async with asyncio.timeout(10):
        while True:
            try:
                await store.load("g")
                break
            except StoreUnavailable:
                await asyncio.sleep(0.02)


async def test_missing_right_to_create_tables_is_a_matter_of_configuration(
    postgres: PostgresCluster, database: str
) -> None:
    postgres.psql("DROP ROLE IF EXISTS reader_only")
    postgres.psql("CREATE ROLE reader_only LOGIN")
    url = database.replace("postgres@", "reader_only@")
    store = PostgresStore(url, "y/cvr", max_connections=1)
    with pytest.raises(ConfigurationError, match="ZERO_CVR_DB"):
        await store.open()
    await store.close()
