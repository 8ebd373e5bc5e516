"""What only the store in PostgreSQL does."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg
import pytest

from tests.conftest import PostgresCluster
from tests.view_syncer.cvr.records import SCHEMA, version
from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.store import StoreUnavailable
from zerocache.errors import ClientFacingError, ConfigurationError
from zerocache.protocol.versions import NEVER


@pytest.fixture
def store(postgres_store: PostgresStore) -> PostgresStore:
    return postgres_store


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


async def test_value_the_database_refuses_is_named_as_the_stores_failure(
    store: PostgresStore,
) -> None:
    change = ConfigChange()
    record = GroupRecord("g", version=version("00", 1))
    record.add_client("nul\0", change)
    with pytest.raises(StoreUnavailable):
        await store.save(record, change, NEVER)
    assert not (await store.load("g")).exists


@pytest.mark.parametrize(
    "refused", ["nul\0", "".join(map(chr, range(0x4E00, 0x5E00)))], ids=["no text", "no key"]
)
async def test_value_the_database_refuses_fails_only_the_group_it_belongs_to(
    store: PostgresStore, refused: str
) -> None:
    async def save(number: int) -> None:
        change = ConfigChange()
        record = GroupRecord(f"g{number}", version=version("00", 1))
        record.add_client(refused if number % 5 == 0 else "c", change)
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
