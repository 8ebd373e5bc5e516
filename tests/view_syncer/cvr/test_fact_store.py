"""The fact store: what an author wrote is what a reader gets, all of it or nothing."""

from __future__ import annotations

from typing import cast

import pytest

from tests.view_syncer.cvr.conftest import Clock, Store
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


async def test_unknown_author_has_no_facts(store: Store) -> None:
    assert await store.read_facts(4711, ["u"]) == StoredFacts(None, {})


async def test_written_facts_are_read_in_the_order_of_versions(store: Store) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", Checkpoint(V1, BODY), Delta(V3, b"3"))])
    await store.write_facts(a, V3, [UnitWrite("u", None, Delta(V2, b"")), UnitWrite("empty")])
    assert await store.read_facts(a, ["u", "empty"]) == StoredFacts(
        V3, {"u": UnitFacts(Checkpoint(V1, BODY), [Delta(V2, b""), Delta(V3, b"3")])}
    )


async def test_checkpoint_replaces_the_one_before_and_keeps_deltas(store: Store) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", Checkpoint(V1, b"old"), Delta(V1, b"1"))])
    await store.write_facts(a, V2, [UnitWrite("u", Checkpoint(V2, b"new"))])
    read = await store.read_facts(a, ["u"])
    assert read.units == {"u": UnitFacts(Checkpoint(V2, b"new"), [Delta(V1, b"1")])}


async def test_delta_of_the_same_version_replaces_it(store: Store) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", None, Delta(V1, b"once"))])
    await store.write_facts(a, V1, [UnitWrite("u", None, Delta(V1, b"again"))])
    assert (await store.read_facts(a, ["u"])).units["u"].deltas == [Delta(V1, b"again")]


async def test_facts_are_read_by_author_and_unit(store: Store) -> None:
    a = await store.new_author()
    b = await store.new_author()
    await store.write_facts(
        a, V1, [UnitWrite("u", None, Delta(V1, b"au")), UnitWrite("v", None, Delta(V1, b"av"))]
    )
    await store.write_facts(b, V2, [UnitWrite("u", None, Delta(V2, b"bu"))])
    read = await store.read_facts(a, {"u"})
    assert read == StoredFacts(V1, {"u": UnitFacts(None, [Delta(V1, b"au")])})


async def test_dropped_units_are_gone_and_others_stay(store: Store) -> None:
    a = await store.new_author()
    b = await store.new_author()
    both = [UnitWrite(unit, Checkpoint(V1, b"c"), Delta(V1, b"d")) for unit in "uv"]
    await store.write_facts(a, V1, both)
    await store.write_facts(b, V1, both)
    await store.drop_facts(a, ["u"])
    assert set((await store.read_facts(a, "uv")).units) == {"v"}
    assert set((await store.read_facts(b, "uv")).units) == {"u", "v"}


async def test_progress_is_noted_without_facts(store: Store) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [])
    assert await store.read_facts(a, []) == StoredFacts(V1, {})


async def test_write_that_fails_leaves_nothing(store: Store) -> None:
    a = await store.new_author()
    await store.write_facts(a, V1, [])
    no_version = cast(Watermark, None)
    bad = [
        UnitWrite("u", Checkpoint(V2, b""), Delta(V2, b"")),
        UnitWrite("v", Checkpoint(no_version, b"")),
    ]
    with pytest.raises(StoreUnavailable):
        await store.write_facts(a, V2, bad)
    assert await store.read_facts(a, ["u"]) == StoredFacts(V1, {})


async def forget_all(store: Store, clock: Clock) -> None:
    clock.now_s += 10
    await store.forget_authors(clock.now_s, clock.now_s, keep=0)


async def test_author_that_was_forgotten_is_told_so(store: Store, clock: Clock) -> None:
    """Or it would go on as if what it wrote before were still there."""
    a = await store.new_author()
    await store.write_facts(a, V1, [UnitWrite("u", None, Delta(V1, b""))])
    await forget_all(store, clock)
    for _ in range(2):
        with pytest.raises(AuthorForgotten):
            await store.write_facts(a, V2, [UnitWrite("u", None, Delta(V2, b""))])
    assert await store.read_facts(a, ["u"]) == StoredFacts(None, {})


async def test_authors_are_numbered_from_one_and_never_again(store: Store, clock: Clock) -> None:
    assert [await store.new_author() for _ in range(3)] == [1, 2, 3]
    await forget_all(store, clock)
    assert await store.new_author() == 4


async def test_author_that_wrote_nothing_yet_is_known(store: Store) -> None:
    assert await store.read_facts(await store.new_author(), ["u"]) == StoredFacts(
        Watermark("00"), {}
    )


async def test_writes_beyond_one_message_are_all_or_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("view_syncer.cvr.postgres.MAX_CHUNK_BYTES", 1000)
    a = await store.new_author()
    writes = [UnitWrite(f"u{n}", Checkpoint(V1, BODY), Delta(V1, BODY)) for n in range(10)]
    await store.write_facts(a, V1, writes)
    read = await store.read_facts(a, [write.unit for write in writes])
    expected = UnitFacts(Checkpoint(V1, BODY), [Delta(V1, BODY)])
    assert read == StoredFacts(V1, {write.unit: expected for write in writes})
    bad = [*(UnitWrite(f"v{n}", Checkpoint(V2, BODY)) for n in range(10))]
    bad.append(UnitWrite("w", Checkpoint(cast(Watermark, None), BODY)))
    with pytest.raises(StoreUnavailable):
        await store.write_facts(a, V2, bad)
    assert await store.read_facts(a, ["v0", "v9", "w"]) == StoredFacts(V1, {})
    with pytest.raises(AuthorForgotten):
        await store.write_facts(a + 1, V2, writes)
    assert await store.read_facts(a + 1, ["u0", "u9"]) == StoredFacts(None, {})


async def test_deltas_below_a_version_are_dropped_with_a_write(store: Store) -> None:
    a = await store.new_author()
    for v in (V1, V2, V3):
        await store.write_facts(a, v, [UnitWrite("u", delta=Delta(v, b"")), UnitWrite("w")])
    await store.write_facts(a, V3, [UnitWrite("u", Checkpoint(V3, b"c"), drop_before=V2)])
    read = await store.read_facts(a, ["u"])
    assert read.units["u"] == UnitFacts(Checkpoint(V3, b"c"), [Delta(V2, b""), Delta(V3, b"")])
