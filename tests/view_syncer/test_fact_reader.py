"""Reading membership facts back: together for all who come back, each for itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from view_syncer import fact_reader
from view_syncer.cvr.facts import Members, Move, pack
from view_syncer.cvr.sqlite import SqliteStore
from view_syncer.cvr.store import Checkpoint, Delta, StoredFacts, StoreUnavailable, UnitWrite
from view_syncer.fact_reader import FactReader
from zerocache.protocol.versions import ViewVersion, Watermark

V1, V2, V3 = Watermark("01"), Watermark("02"), Watermark("03")


class CountingStore(SqliteStore):
    """Remembers which units were asked for together; ``broken``: it fails."""

    asked: list[set[str]]
    broken = False

    async def read_facts(self, author: int, units: Collection[str]) -> StoredFacts:
        self.asked.append(set(units))
        if self.broken:
            raise StoreUnavailable("for a test")
        return await super().read_facts(author, units)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[CountingStore]:
    one = CountingStore(f"sqlite:{tmp_path}/cvr.db", "app_0/cvr")
    one.asked = []
    await one.open()
    yield one
    await one.close()


async def author_of(store: CountingStore, *units: str, to: Watermark = V2) -> int:
    """An issuer that wrote that each of the units had one row, of its name, at ``V1``, and that
    another came at ``V2``."""
    number = await store.new_author()
    moves = pack([Move(V2, [], ["later"])])
    await store.write_facts(
        number,
        to,
        [UnitWrite(u, Checkpoint(V1, pack(Members(V1, [u]))), Delta(V2, moves)) for u in units],
    )
    return number - 1


async def rows(
    reader: FactReader, issuer: int, state: Watermark, *units: str
) -> dict[str, frozenset[str] | None]:
    found = await reader.histories(ViewVersion.of_issuer(issuer, state), units)
    return {unit: None if h is None else h.at(state) for unit, h in found.items()}


async def test_members_are_told_at_every_version_that_is_complete(store: CountingStore) -> None:
    reader = FactReader(store)
    issuer = await author_of(store, "u", "v")
    assert await rows(reader, issuer, V1, "u", "v") == {"u": {"u"}, "v": {"v"}}
    assert await rows(reader, issuer, V2, "u") == {"u": {"u", "later"}}
    assert await rows(reader, issuer, V3, "u") == {"u": None}
    assert await rows(reader, issuer, V1, "unknown") == {"unknown": None}
    assert await rows(reader, issuer + 1, V1, "u") == {"u": None}


async def test_those_who_come_together_are_read_for_together(store: CountingStore) -> None:
    reader = FactReader(store)
    names = [f"u{n}" for n in range(40)]
    issuer = await author_of(store, "shared", *names)
    found = await asyncio.gather(*(rows(reader, issuer, V1, "shared", name) for name in names))
    assert found == [{"shared": {"shared"}, name: {name}} for name in names]
    assert len(store.asked) <= 1 + fact_reader.READS_AT_ONCE
    assert sum(map(len, store.asked)) == 1 + len(names)
    assert await rows(reader, issuer, V1, *names) == {name: {name} for name in names}
    assert sum(map(len, store.asked)) == 1 + len(names)


async def test_what_is_too_much_to_be_kept_is_answered_all_the_same(
    store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fact_reader, "MAX_CACHED_KEYS", 2)
    reader = FactReader(store)
    names = [f"u{n}" for n in range(9)]
    issuer = await author_of(store, *names)
    assert await rows(reader, issuer, V1, *names) == {name: {name} for name in names}


async def test_facts_that_were_incomplete_are_read_again(store: CountingStore) -> None:
    reader = FactReader(store)
    issuer = await author_of(store, "u", to=V1)
    assert await rows(reader, issuer, V2, "u") == {"u": None}
    await store.write_facts(issuer + 1, V2, [])
    assert await rows(reader, issuer, V2, "u") == {"u": {"u", "later"}}


async def test_facts_that_were_not_written_yet_are_asked_for_again(store: CountingStore) -> None:
    reader = FactReader(store)
    number = await store.new_author()
    await store.write_facts(number, V2, [])
    assert await rows(reader, number - 1, V1, "u") == {"u": None}
    checkpoint = Checkpoint(V2, pack(Members(V1, ["u"])))
    await store.write_facts(number, V2, [UnitWrite("u", checkpoint, None)])
    assert await rows(reader, number - 1, V1, "u") == {"u": {"u"}}


async def test_whoever_gives_up_takes_nobody_along(store: CountingStore) -> None:
    reader = FactReader(store)
    issuer = await author_of(store, "u")
    first = asyncio.create_task(rows(reader, issuer, V1, "u"))
    second = asyncio.create_task(rows(reader, issuer, V1, "u"))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == {"u": {"u"}}
    assert first.cancelled()


async def test_a_store_that_fails_is_asked_again_by_the_next(store: CountingStore) -> None:
    reader = FactReader(store)
    issuer = await author_of(store, "u")
    store.broken = True
    with pytest.raises(StoreUnavailable):
        await rows(reader, issuer, V1, "u")
    store.broken = False
    assert await rows(reader, issuer, V1, "u") == {"u": {"u"}}
