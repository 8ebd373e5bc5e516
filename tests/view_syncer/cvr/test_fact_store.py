"""The fact store: what an author wrote is what a reader gets, all of it or nothing."""

from __future__ import annotations

import psycopg
import pytest

from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.store import (
    AuthorForgotten,
    Checkpoint,
    Delta,
    StoredFacts,
    StoreUnavailable,
    UnitFacts,
    UnitWrite,
)
from zerocache.protocol.versions import Watermark

V1, V2, V3 = Watermark("01"), Watermark("0z"), Watermark("110")
BODY = bytes(range(256))


async def test_unknown_author_has_no_facts(store: PostgresStore) -> None:
    assert await store.read_facts(4711, ["u"]) == StoredFacts(None, {})


async def test_written_facts_are_read_in_the_order_of_versions(store: PostgresStore) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", Checkpoint(V1, BODY), Delta(V3, b"3"))])
    await store.write_facts(a, V3, [UnitWrite("u", None, Delta(V2, b"")), UnitWrite("empty")])
    assert await store.read_facts(a, ["u", "empty"]) == StoredFacts(
        V3, {"u": UnitFacts(Checkpoint(V1, BODY), [Delta(V2, b""), Delta(V3, b"3")])}
    )


async def test_checkpoint_replaces_the_one_before_and_keeps_deltas(store: PostgresStore) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", Checkpoint(V1, b"old"), Delta(V1, b"1"))])
    await store.write_facts(a, V2, [UnitWrite("u", Checkpoint(V2, b"new"))])
    read = await store.read_facts(a, ["u"])
    assert read.units == {"u": UnitFacts(Checkpoint(V2, b"new"), [Delta(V1, b"1")])}


async def test_delta_of_the_same_version_replaces_it(store: PostgresStore) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", None, Delta(V1, b"once"))])
    await store.write_facts(a, V1, [UnitWrite("u", None, Delta(V1, b"again"))])
    assert (await store.read_facts(a, ["u"])).units["u"].deltas == [Delta(V1, b"again")]


async def test_facts_are_read_by_author_and_unit(store: PostgresStore) -> None:
    a, b = await store.new_author(), await store.new_author()
    a = await store.new_author()
    b = await store.new_author()
    await store.write_facts(
        a, V1, [UnitWrite("u", None, Delta(V1, b"au")), UnitWrite("v", None, Delta(V1, b"av"))]
    )
    await store.write_facts(b, V2, [UnitWrite("u", None, Delta(V2, b"bu"))])
    read = await store.read_facts(a, {"u"})
    assert read == StoredFacts(V1, {"u": UnitFacts(None, [Delta(V1, b"au")])})


async def test_dropped_units_are_gone_and_others_stay(store: PostgresStore) -> None:
    a = await store.new_author()
    b = await store.new_author()
    both = [UnitWrite(unit, Checkpoint(V1, b"c"), Delta(V1, b"d")) for unit in "uv"]
    await store.write_facts(a, V1, both)
    await store.write_facts(b, V1, both)
    await store.drop_facts(a, ["u"])
    assert set((await store.read_facts(a, "uv")).units) == {"v"}
    assert set((await store.read_facts(b, "uv")).units) == {"u", "v"}


async def test_progress_is_noted_without_facts(store: PostgresStore) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [])
    assert await store.read_facts(a, []) == StoredFacts(V1, {})


async def test_write_that_fails_leaves_nothing(store: PostgresStore) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [])
    bad = [UnitWrite("u", Checkpoint(V2, b""), Delta(V2, b"")), UnitWrite("nul\0", None, None)]
    bad.append(UnitWrite("nul\0", Checkpoint(V2, b"")))
    with pytest.raises(StoreUnavailable):
        await store.write_facts(a, V2, bad)
    assert await store.read_facts(a, ["u"]) == StoredFacts(V1, {})


async def test_author_that_was_forgotten_is_told_so(store: PostgresStore, database: str) -> None:
    """Or it would go on as if what it wrote before were still there."""
    a = await store.new_author()
    await store.write_facts(a, V1, [])
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute('DELETE FROM "app_0/cvr".fact_authors')
    with pytest.raises(AuthorForgotten):
        await store.write_facts(a, V2, [UnitWrite("u", None, Delta(V2, b""))])
    assert await store.read_facts(a, ["u"]) == StoredFacts(None, {})


async def test_authors_are_numbered_from_one_and_never_again(
    store: PostgresStore, database: str
) -> None:
    assert [await store.new_author() for _ in range(3)] == [1, 2, 3]
    async with await psycopg.AsyncConnection.connect(database) as db:
        await db.execute('DELETE FROM "app_0/cvr".fact_authors')
    assert await store.new_author() == 4


async def test_deltas_below_a_version_are_dropped_with_a_write(store: PostgresStore) -> None:
    a = await store.new_author()
    for v in (V1, V2, V3):
        await store.write_facts(a, v, [UnitWrite("u", delta=Delta(v, b"")), UnitWrite("w")])
    await store.write_facts(a, V3, [UnitWrite("u", Checkpoint(V3, b"c"), drop_before=V2)])
    read = await store.read_facts(a, ["u"])
    assert read.units["u"] == UnitFacts(Checkpoint(V3, b"c"), [Delta(V2, b""), Delta(V3, b"")])
