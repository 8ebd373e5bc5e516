"""Bodies, their frames, and the recent ones a group keeps."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.sync_messages import ClientSchema, TableSchema
from benchmarks.sync_state import SyncSession, SyncState
from view_syncer import wire
from view_syncer.poke import MAX_FIRST_BYTES, SMALL_POKE_BYTES, History, PokeBody, merge
from zerocache.protocol import downstream
from zerocache.protocol.versions import NEVER, ViewVersion, Watermark, lexi_encode

SCHEMA = ClientSchema(
    {"t": TableSchema({"id": {"type": "string"}, "v": {"type": "number"}}, ["id"])}
)
KEYS = {"t": ("id",)}
IDS = st.sampled_from("abcd")


def row_put(key: str, value: Any) -> str:
    text = msgspec.json.encode({"id": key, "v": value}).decode()
    return downstream.put_row("t", text)


def row_del(key: str) -> str:
    return downstream.del_row("t", msgspec.json.encode({"id": key}).decode())


def version(number: int, config: int = 0) -> ViewVersion:
    return ViewVersion(Watermark(lexi_encode(number)), config)


query_ops = st.lists(
    st.builds(
        lambda put, q: downstream.put_query(q) if put else downstream.del_query(q),
        st.booleans(),
        IDS,
    ),
    max_size=3,
)


@st.composite
def histories(draw: st.DrawFn) -> list[PokeBody]:
    """Consecutive bodies as a group emits them: deletions before puts, mutation ids that rise."""
    bodies = []
    state, config, lmid = 1, 0, 0
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.booleans()):
            state, config = state + draw(st.integers(1, 40)), 0
        else:
            config += 1
        body = PokeBody(version(state, config))
        dels = [row_del(k) for k in draw(st.lists(IDS, max_size=3))]
        puts = [row_put(k, draw(st.integers(0, 99))) for k in draw(st.lists(IDS, max_size=3))]
        body.rows = [run for run in (dels, puts) if run]
        body.got = draw(query_ops)
        body.desired = draw(st.dictionaries(IDS, query_ops.filter(bool), max_size=2))
        if draw(st.booleans()):
            lmid += 1
            body.lmids = {"c": lmid}
            body.mutations = [downstream.put_mutation("c", lmid, b"{}")]
        bodies.append(body)
    return bodies


def play(session: SyncSession, base: ViewVersion | None, body: PokeBody) -> None:
    for opcode, payload in wire.payloads(body.poke(base, session.version >= 52)):
        if opcode == wire.BINARY:
            session.receive_binary(payload)
        else:
            session.receive_text(payload)


def poke_payloads(base: ViewVersion | None, body: PokeBody, binary: bool) -> list[bytes]:
    return [payload for _, payload in wire.payloads(body.poke(base, binary))]


def opened(state: SyncState, protocol: int) -> SyncSession:
    session = SyncSession(state, protocol)
    session.receive_text(downstream.connected("w", 1))
    return session


@given(bodies=histories(), cut=st.integers(0, 5), protocol=st.sampled_from([51, 52]))
def test_one_merged_poke_has_the_effect_of_all(
    bodies: list[PokeBody], cut: int, protocol: int
) -> None:
    history = History()
    every, late = SyncState(SCHEMA), SyncState(SCHEMA)
    step_by_step, at_once = opened(every, protocol), opened(late, protocol)
    base: ViewVersion | None = None
    for number, body in enumerate(bodies):
        history.add(body)
        play(step_by_step, base, body)
        if number < cut:
            play(at_once, base, body)
        base = body.version
    cut_base = bodies[min(cut, len(bodies)) - 1].version if cut else None
    missed = history.since(cut_base or NEVER)
    assert missed is not None
    newest = bodies[-1].version
    if cut_base != newest:
        play(at_once, cut_base, merge(newest, missed, KEYS))
    assert late.rows == every.rows
    assert late.got == every.got
    assert {c: q for c, q in late.desired.items() if q} == {
        c: q for c, q in every.desired.items() if q
    }
    assert late.last_mutation_ids == every.last_mutation_ids
    assert late.mutation_results == every.mutation_results
    assert late.cookie == every.cookie == newest.cookie()


@given(bodies=histories(), limit=st.integers(0, 30))
def test_history_is_bounded_and_never_answers_with_a_part(
    bodies: list[PokeBody], limit: int
) -> None:
    history = History(limit)
    kept: list[PokeBody] = []
    for body in bodies:
        history.add(body)
        kept.append(body)
        held = history.since(history.floor)
        assert held is not None
        assert sum(1 + b.size() for b in held) <= limit
        versions = [NEVER, *(b.version for b in kept)]
        for number, base in enumerate(versions):
            missed = history.since(base)
            if base < history.floor:
                assert missed is None
            else:
                assert missed == kept[number:]


def test_restarted_history_knows_nothing_older() -> None:
    history = History()
    history.add(PokeBody(version(1)))
    history.restart(version(5))
    assert history.since(version(1)) is None
    assert history.since(version(5)) == []


def test_version_between_two_bodies_gets_the_later_one() -> None:
    history = History()
    bodies = [PokeBody(version(1)), PokeBody(version(5))]
    for body in bodies:
        history.add(body)
    assert history.since(version(3)) == bodies[1:]


def test_merging_does_not_change_what_is_merged() -> None:
    first = PokeBody(version(1), desired={"c": [downstream.put_query("q")]})
    second = PokeBody(version(2), desired={"c": [downstream.del_query("q")]})
    merge(version(2), [first, second], KEYS)
    assert first.size() == second.size() == 1


def test_clear_comes_alone_in_the_first_part() -> None:
    body = PokeBody(version(1), lmids={"c": 1}, rows=[[row_put("a", 1)]], clear=True)
    parts = [msgspec.json.decode(frame)[1] for frame in body.frames(False)]
    assert parts[0]["rowsPatch"] == [{"op": "clear"}]
    assert set(parts[0]) == {"pokeID", "rowsPatch"}
    assert parts[1]["lastMutationIDChanges"] == {"c": 1}


def test_hundred_and_one_rows_are_two_parts() -> None:
    """sync-protocol.md §10 #23"""
    body = PokeBody(version(1), rows=[[row_put(str(i), i) for i in range(101)]])
    parts = [msgspec.json.decode(frame)[1]["rowsPatch"] for frame in body.frames(False)]
    assert [len(rows) for rows in parts] == [100, 1]


def test_large_rows_close_a_part_early() -> None:
    """sync-protocol.md §10 #24"""
    rows = [row_put(key * 600_000, 1) for key in "abc"]
    parts = [
        msgspec.json.decode(frame)[1]["rowsPatch"]
        for frame in PokeBody(version(1), rows=[rows]).frames(False)
    ]
    assert [len(part) for part in parts] == [2, 1]


def test_binary_poke_of_ten_mebibytes_is_cut_into_chunks() -> None:
    """sync-protocol.md §10 #26"""
    body = PokeBody(version(1), rows=[[row_put("é" * (5 * 1024 * 1024), 1)]])
    frames = poke_payloads(None, body, True)
    chunks = frames[1:-1]
    assert len(chunks) == 11
    assert all(chunk[:1] == b"\x00" and len(chunk) <= 1_048_576 for chunk in chunks)
    (part,) = msgspec.json.decode(b"".join(chunk[1:] for chunk in chunks))
    assert part["pokeID"] == "01"


def test_empty_binary_poke_is_an_empty_array() -> None:
    """sync-protocol.md §10 #27: a poke is whole before it begins, so no chunk is ever taken back"""
    assert poke_payloads(version(1), PokeBody(version(1)), True)[1:-1] == [b"\x00[]"]


def test_empty_text_poke_is_start_and_end() -> None:
    start, end = poke_payloads(version(1), PokeBody(version(1)), False)
    assert msgspec.json.decode(start) == ["pokeStart", {"pokeID": "01", "baseCookie": "01"}]
    assert msgspec.json.decode(end) == ["pokeEnd", {"pokeID": "01", "cookie": "01"}]


def test_poke_is_made_once_per_base_and_wire_form() -> None:
    body = PokeBody(version(1), got=[downstream.put_query("q")])
    assert body.poke(None, False) is body.poke(None, False)
    assert body.poke(None, True) is not body.poke(None, False)
    assert poke_payloads(version(0, 1), body, False)[0] != poke_payloads(None, body, False)[0]


def test_small_poke_is_one_run_and_large_ones_share_their_parts() -> None:
    small = PokeBody(version(2), rows=[[row_put("a", 1)]])
    assert len(small.poke(version(1), False)) == 1
    large = PokeBody(version(2), rows=[[row_put("a" * SMALL_POKE_BYTES, 1)]])
    one, other = large.poke(version(1), False), large.poke(None, False)
    assert one[1] is other[1]


def test_history_is_bounded_by_size_and_keeps_frames_of_the_newest_only() -> None:
    history = History(max_bytes=1000)
    bodies = [PokeBody(version(n), rows=[[row_put("k" * 300, n)]]) for n in range(1, 5)]
    for body in bodies:
        body.poke(None, False)
        history.add(body)
    assert history.since(version(2)) == bodies[2:]
    assert history.since(version(1)) is None
    assert [bool(body._pokes) for body in bodies] == [False, False, False, True]


def test_a_large_body_that_a_group_begins_with_is_not_kept() -> None:
    def of_size(number: int, characters: int) -> PokeBody:
        return PokeBody(version(number), rows=[[row_put("k" * characters, number)]])

    small, large = 100, 2 * MAX_FIRST_BYTES
    history = History()
    bodies = [of_size(1, small), of_size(2, small), of_size(3, large), of_size(4, large)]
    for body, first in zip(bodies, [True, True, False, True], strict=True):
        history.add(body, first=first)
        if body is bodies[2]:
            assert history.since(NEVER) == bodies[:3]
    assert history.floor == version(4)
    after = of_size(5, small)
    history.add(after)
    assert history.since(version(4)) == [after]
    assert history.since(version(3)) is None
