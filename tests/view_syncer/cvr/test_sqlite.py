"""What only the store in an SQLite file does."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from tests.view_syncer.cvr.conftest import SCHEMA_NAME
from tests.view_syncer.cvr.records import new_record, version
from view_syncer.cvr.record import ConfigChange, GroupRecord
from view_syncer.cvr.sqlite import SqliteStore
from view_syncer.cvr.sqlite_file import path_of
from view_syncer.cvr.store import ConcurrentModification, StoreUnavailable
from zerocache.errors import ConfigurationError
from zerocache.protocol.versions import NEVER


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cvr.db"


@pytest.fixture
async def store(file: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(f"sqlite:{file}", SCHEMA_NAME)
    await store.open()
    yield store
    await store.close()


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:/a/b.db", "/a/b.db"), ("sqlite:b.db", "b.db"), ("sqlite:///a/b.db", "/a/b.db")],
)
def test_url_names_a_file(url: str, path: str) -> None:
    assert path_of(url) == Path(path)


@pytest.mark.parametrize("url", ["sqlite:", "sqlite::memory:", "sqlite://host/a.db"])
def test_url_without_a_file_to_share_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ZERO_CVR_DB"):
        path_of(url)


async def open_and_close(url: str, schema: str = SCHEMA_NAME) -> None:
    store = SqliteStore(url, schema)
    try:
        await store.open()
    finally:
        await store.close()


async def test_file_that_cannot_be_made_is_a_matter_of_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"ZERO_CVR_DB.*/missing/cvr\.db"):
        await open_and_close(f"sqlite:{tmp_path}/missing/cvr.db")


def test_file_of_something_else_is_a_matter_of_configuration(file: Path) -> None:
    file.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigurationError, match="a file that zerocache made"):
        asyncio.run(open_and_close(f"sqlite:{file}"))


async def test_file_of_another_shard_is_refused(store: SqliteStore, file: Path) -> None:
    with pytest.raises(ConfigurationError, match="'app_0/cvr', not to 'app_1/cvr'"):
        await open_and_close(f"sqlite:{file}", "app_1/cvr")


async def test_file_of_a_newer_server_is_refused(store: SqliteStore, file: Path) -> None:
    db = apsw.Connection(str(file))
    db.execute("UPDATE view_meta SET version = 99")
    db.close()
    with pytest.raises(ConfigurationError, match=r"have version 99.*up to 1"):
        await open_and_close(f"sqlite:{file}")


async def test_power_cut_loses_nothing_that_was_promised(store: SqliteStore, file: Path) -> None:
    """As far as it depends on the settings: SQLite syncs its log at every commit."""
    settings = await store._writes.run(
        lambda db: (db.pragma("journal_mode"), db.pragma("synchronous"))
    )
    assert settings == ("wal", 2)


async def test_wave_of_saves_shares_few_transactions(store: SqliteStore) -> None:
    commits: list[int] = []

    def note() -> bool:
        commits.append(1)
        return False

    await store._writes.run(lambda db: db.set_commit_hook(note))

    async def save(number: int) -> None:
        change = ConfigChange()
        record = GroupRecord(f"g{number}", version=version("00", 1))
        record.add_client("c", change)
        await store.save(record, change, NEVER)

    await asyncio.gather(*map(save, range(200)))
    assert len(commits) <= 4
    records = await asyncio.gather(*(store.load(f"g{n}") for n in range(200)))
    assert all(record.clients == {"c"} for record in records)


async def test_failing_write_takes_no_other_along(store: SqliteStore) -> None:
    async def save(number: int) -> None:
        record = GroupRecord(f"g{number}", version=version("00", 1))
        if number % 5 == 0:
            record.replica_version = b"no text"  # type: ignore[assignment]
        change = ConfigChange()
        record.add_client("c", change)
        await store.save(record, change, NEVER)

    outcomes = await asyncio.gather(*map(save, range(20)), return_exceptions=True)
    assert [isinstance(o, StoreUnavailable) for o in outcomes] == [n % 5 == 0 for n in range(20)]
    records = await asyncio.gather(*(store.load(f"g{n}") for n in range(20)))
    assert [r.clients for r in records] == [set() if n % 5 == 0 else {"c"} for n in range(20)]


async def test_full_disk_fails_all_that_shared_the_transaction(store: SqliteStore) -> None:
    first = ConfigChange()
    await store.save(new_record(first), first, NEVER)
    pages = await store._writes.run(lambda db: db.pragma("page_count"))
    await store._writes.run(lambda db: db.pragma("max_page_count", pages))

    async def save(number: int) -> None:
        record = GroupRecord(f"g{number}", profile_id="p" * 50_000)
        await store.save(record, ConfigChange(), NEVER)

    outcomes = await asyncio.gather(*map(save, range(5)), return_exceptions=True)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
    await store._writes.run(lambda db: db.pragma("max_page_count", 10**6))
    assert not (await store.load("g0")).exists
    await save(0)
    assert (await store.load("g0")).exists


_STEPS = 25


def _count_up(url: str) -> None:
    """Add clients to one shared record, by compare-and-set."""

    async def run() -> None:
        store = SqliteStore(url, SCHEMA_NAME)
        await store.open()
        done = 0
        while done < _STEPS:
            record, change = await store.load("g"), ConfigChange()
            before = record.version
            record.add_client(f"c{len(record.clients)}", change)
            record.version = version("00", before.config + 1)
            try:
                await store.save(record, change, before)
                done += 1
            except ConcurrentModification:
                continue
        await store.close()

    asyncio.run(run())


async def test_processes_share_the_file(file: Path) -> None:
    """All open it at once, and none loses what another wrote."""
    context = multiprocessing.get_context("spawn")
    url = f"sqlite:{file}"
    workers = [context.Process(target=_count_up, args=(url,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        await asyncio.to_thread(worker.join)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store = SqliteStore(url, SCHEMA_NAME)
    await store.open()
    record = await store.load("g")
    await store.close()
    assert record.version == version("00", 3 * _STEPS)
    assert len(record.clients) == 3 * _STEPS
