"""Cutting pokes into parts and chunks: limits hold, nothing is lost, everything parses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zerocache.protocol.downstream import del_query, put_mutation, put_query, put_row
from zerocache.protocol.joined_rows import SEPARATOR, Block, JoinedRows, size_of
from zerocache.protocol.poke_parts import (
    MAX_CHUNK_BYTES,
    MAX_ENTRIES,
    PokeChunks,
    PokeParts,
    poke_parts,
)


def bodies(frames: list[bytes]) -> list[dict[str, Any]]:
    parsed = [json.loads(frame) for frame in frames]
    assert all(kind == "pokePart" for kind, _ in parsed)
    return [body for _, body in parsed]


def chunk_bodies(frames: list[bytes]) -> list[dict[str, Any]]:
    assert all(frame[0] == 0 for frame in frames)
    return json.loads(b"".join(frame[1:] for frame in frames))  # type: ignore[no-any-return]


def row(number: int, text: str = "") -> str:
    return put_row("issue", json.dumps({"id": number, "t": text}, ensure_ascii=False))


def sized_row(characters: int) -> str:
    empty = len(row(1))
    return row(1, "x" * (characters - empty))


def fill(parts: PokeParts) -> None:
    parts.add_lmid("c1", 3)
    parts.add_desired("c1", [put_query("q1"), del_query("q2")])
    parts.add_desired("c2", [put_query("q1")])
    parts.add_got([put_query("q1")])
    parts.add_rows([row(1, "é😀"), row(2)])
    parts.add_rows([row(3).encode()])
    parts.add_mutations([put_mutation("c1", 3, "{}")])


FILLED = {
    "pokeID": "4ewakg:01",
    "lastMutationIDChanges": {"c1": 3},
    "desiredQueriesPatches": {
        "c1": [{"op": "put", "hash": "q1"}, {"op": "del", "hash": "q2"}],
        "c2": [{"op": "put", "hash": "q1"}],
    },
    "gotQueriesPatch": [{"op": "put", "hash": "q1"}],
    "rowsPatch": [
        {"op": "put", "tableName": "issue", "value": {"id": 1, "t": "é😀"}},
        {"op": "put", "tableName": "issue", "value": {"id": 2, "t": ""}},
        {"op": "put", "tableName": "issue", "value": {"id": 3, "t": ""}},
    ],
    "mutationsPatch": [
        {"op": "put", "mutation": {"id": {"id": 3, "clientID": "c1"}, "result": {}}}
    ],
}


def test_one_part_holds_all_kinds_in_order() -> None:
    parts = PokeParts("4ewakg:01")
    fill(parts)
    assert parts.take() == []
    (body,) = bodies(parts.finish())
    assert body == FILLED
    assert list(body) == list(FILLED)


def test_chunks_carry_the_same_bodies_as_parts() -> None:
    """sync-protocol.md §10 #25"""
    parts, chunks = poke_parts("4ewakg:01", 51), poke_parts("4ewakg:01", 52)
    assert (parts.binary, chunks.binary) == (False, True)
    fill(parts)
    fill(chunks)
    frames = chunks.finish()
    assert len(frames) == 1
    assert chunk_bodies(frames) == bodies(parts.finish())


def test_an_empty_poke_has_no_parts_and_one_empty_chunk() -> None:
    """sync-protocol.md §10 #27"""
    assert PokeParts("p").finish() == []
    assert PokeChunks("p").finish() == [b"\x00[]"]


def test_101_rows_make_parts_of_100_and_1() -> None:
    """sync-protocol.md §10 #23"""
    parts = PokeParts("p")
    parts.add_rows([row(n) for n in range(101)])
    assert len(parts.take()) == 1
    (last,) = bodies(parts.finish())
    assert len(last["rowsPatch"]) == 1


def test_every_kind_counts_towards_the_100() -> None:
    parts = PokeParts("p")
    for number in range(30):
        parts.add_lmid(f"c{number}", 1)
    parts.add_desired("c", [put_query(f"q{n}") for n in range(30)])
    parts.add_got([put_query(f"q{n}") for n in range(30)])
    parts.add_mutations([put_mutation("c", n, "{}") for n in range(9)])
    assert parts.take() == []
    parts.add_rows([row(1), row(2)])
    first, second = bodies(parts.finish())
    assert len(first["rowsPatch"]) == 1
    assert second == {"pokeID": "p", "rowsPatch": [json.loads(row(2))]}


def test_three_rows_of_600000_characters_make_parts_of_2_and_1() -> None:
    """sync-protocol.md §10 #24"""
    parts = PokeParts("p")
    parts.add_rows([sized_row(600_000)] * 3)
    assert [len(b["rowsPatch"]) for b in bodies(parts.finish())] == [2, 1]


def test_a_part_closes_when_the_limit_is_reached_exactly() -> None:
    parts = PokeParts("p")
    parts.add_rows([sized_row(524_288), sized_row(524_287)])
    assert parts.take() == []
    parts = PokeParts("p")
    parts.add_rows([sized_row(524_288)])
    parts.add_rows([sized_row(524_288), row(1)])
    assert [len(b["rowsPatch"]) for b in bodies(parts.finish())] == [2, 1]


def test_text_is_measured_in_characters() -> None:
    parts = PokeParts("p")
    parts.add_rows([row(1, "é" * 600_000)])
    assert parts.take() == []


def test_a_row_of_10_mib_is_split_into_11_frames() -> None:
    """sync-protocol.md §10 #26"""
    chunks = PokeChunks("p")
    chunks.add_rows([sized_row(10 * (1 << 20))])
    frames = chunks.take() + chunks.finish()
    assert len(frames) == 11
    assert max(map(len, frames)) <= MAX_CHUNK_BYTES
    assert len(chunk_bodies(frames)[0]["rowsPatch"]) == 1


def test_chunks_are_handed_out_while_rows_still_arrive() -> None:
    chunks = PokeChunks("p")
    chunks.add_rows([sized_row(600_000)] * 4)
    early = chunks.take()
    assert len(early) >= 2
    assert len(chunk_bodies(early + chunks.finish())) == 2


def test_a_chunk_that_cannot_hold_a_character_is_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes"):
        PokeChunks("p", 4)


def joined(encoded: list[str], lengths: Iterable[int]) -> JoinedRows:
    """``encoded`` in blocks of so many, the rest in one."""
    remaining, blocks = iter(encoded), []
    for length in [*lengths, len(encoded)]:
        if block := list(islice(remaining, length)):
            blocks.append(Block(SEPARATOR.join(block).encode(), len(block)))
    return JoinedRows(blocks)


def test_joined_rows_look_like_the_rows_they_are() -> None:
    encoded = [row(n, "é,\n") for n in range(5)]
    rows = joined(encoded, [2, 1])
    assert [block.length for block in rows.blocks] == [2, 1, 2]
    assert [*rows] == encoded
    assert (len(rows), rows[1], rows[3:]) == (5, encoded[1], encoded[3:])
    assert not joined([], [])
    assert size_of(rows) == sum(len(text.encode()) for text in encoded) + 2 * len(SEPARATOR)


def test_a_block_that_is_not_what_it_says_is_not_taken_apart() -> None:
    with pytest.raises(AssertionError, match="2 row operations came apart as 1"):
        list(JoinedRows([Block(row(1).encode(), 2)]))


@pytest.mark.parametrize(("first", "parts"), [(1, [0, 100]), (0, [100])])
def test_a_block_begins_another_part_if_it_does_not_fit(first: int, parts: list[int]) -> None:
    target = PokeParts("p")
    target.add_got([put_query("q")] * first)
    target.add_rows(joined([row(n) for n in range(100)], []))
    frames = target.take()
    assert target.finish() == []
    assert [len(body.get("rowsPatch", ())) for body in bodies(frames)] == parts


def test_large_rows_of_a_block_go_in_several_parts() -> None:
    parts = PokeParts("p")
    parts.add_rows(joined([row(0), *[sized_row(600_000)] * 3], [1]))
    assert [len(b["rowsPatch"]) for b in bodies(parts.finish())] == [3, 1]


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
rows = st.lists(st.tuples(st.integers(0, 9), texts), max_size=250)


@settings(max_examples=60, deadline=None)
@given(
    rows,
    st.integers(5, 64),
    st.sampled_from([str, bytes, JoinedRows]),
    st.lists(st.integers(1, 120)),
)
def test_slices_join_to_the_rows_and_never_split_a_character(
    values: list[tuple[int, str]], chunk_bytes: int, form: type, lengths: list[int]
) -> None:
    """sync-protocol.md §10 #26"""
    encoded = [row(number, text) for number, text in values]
    parts, chunks = PokeParts("p"), PokeChunks("p", chunk_bytes)
    for target in (parts, chunks):
        if form is JoinedRows:
            target.add_rows(joined(encoded, lengths))
        else:
            target.add_rows([r.encode() for r in encoded] if form is bytes else encoded)
    frames = chunks.take() + chunks.finish()
    assert all(len(frame) <= chunk_bytes for frame in frames)
    for frame in frames:
        frame[1:].decode()  # strict: raises inside a character
    part_bodies = bodies(parts.take() + parts.finish())
    assert chunk_bodies(frames) == part_bodies
    assert all(len(body["rowsPatch"]) <= MAX_ENTRIES for body in part_bodies)
    assert [r for body in part_bodies for r in body["rowsPatch"]] == list(map(json.loads, encoded))
