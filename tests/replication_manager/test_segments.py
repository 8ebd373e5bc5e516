"""Segments: every message of every transaction comes back, in order; each stands alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication_manager.segments import Part, SegmentBuilder, read_messages
from zerocache.protocol.versions import Lsn

PREFIX = "app/0/ddl"


def begin(lsn: int) -> bytes:
    return struct.pack(">cQqI", b"B", lsn, 0, 7)


def commit(lsn: int) -> bytes:
    return struct.pack(">cbQQq", b"C", 0, lsn, lsn + 8, 0)


def relation(oid: int, version: int = 0) -> bytes:
    return struct.pack(">cI", b"R", oid) + b"public\0t\0d" + struct.pack(">H", version)


def row(oid: int, size: int = 3) -> bytes:
    return struct.pack(">cI", b"I", oid) + b"x" * size


def truncate(*oids: int) -> bytes:
    return struct.pack(">cIb", b"T", len(oids), 0) + struct.pack(f">{len(oids)}I", *oids)


def message(prefix: str, *, transactional: bool = True) -> bytes:
    head = struct.pack(">cbQ", b"M", transactional, 0)
    return head + prefix.encode() + b"\0" + struct.pack(">I", 2) + b"{}"


def transaction(lsn: int, *payloads: bytes) -> list[bytes]:
    return [begin(lsn), *payloads, commit(lsn)]


def build(
    payloads: list[bytes], *, stored: int = 0, part_bytes: int = 10_000, cut_every: int = 1
) -> list[Part]:
    """All parts, cut after every ``cut_every`` transactions and at the end."""
    builder = SegmentBuilder(PREFIX, Lsn(stored), part_bytes)
    parts: list[Part] = []
    ended = 0
    for payload in payloads:
        builder.add(payload)
        if payload[:1] == b"C":
            ended += 1
            if ended % cut_every == 0:
                parts += builder.cut()
        parts += builder.take_ready()
    had_complete, more = builder.has_complete, builder.cut()
    assert had_complete == bool(more)
    return parts + more


def segments(parts: list[Part]) -> Iterator[list[Part]]:
    segment: list[Part] = []
    for part in parts:
        assert part.position == len(segment)
        segment.append(part)
        if part.is_last:
            yield segment
            segment = []


def contents(segment: list[Part]) -> list[bytes]:
    return list(read_messages(part.data for part in segment))


def test_a_segment_is_named_after_its_last_transaction() -> None:
    parts = build([*transaction(5, relation(1), row(1)), *transaction(9, row(1))], cut_every=2)
    assert [(part.watermark, part.position, part.is_last) for part in parts] == [(9, 0, True)]
    assert contents(parts) == [
        *transaction(5, relation(1), row(1)),
        *transaction(9, row(1)),
    ]


def test_every_segment_describes_its_relations() -> None:
    first, second = segments(
        build([*transaction(5, relation(1), row(1)), *transaction(9, row(1), row(1))])
    )
    assert contents(first) == transaction(5, relation(1), row(1))
    assert contents(second) == transaction(9, relation(1), row(1), row(1))


def test_the_newest_description_is_repeated() -> None:
    *_, last = segments(
        build(
            [
                *transaction(5, relation(1), relation(2), row(1)),
                *transaction(7, relation(1, version=2), row(1)),
                *transaction(9, truncate(1, 2)),
            ]
        )
    )
    assert contents(last) == transaction(9, relation(1, version=2), relation(2), truncate(1, 2))


def test_transactions_the_log_has_are_left_out_but_their_relations_known() -> None:
    (only,) = segments(
        build([*transaction(5, relation(1), row(1)), *transaction(9, row(1))], stored=5)
    )
    assert contents(only) == transaction(9, relation(1), row(1))


def test_messages_of_others_are_left_out() -> None:
    ours = message(PREFIX)
    (only,) = segments(
        build(
            [
                message(PREFIX, transactional=False),
                *transaction(
                    5, message("other"), ours, message(PREFIX, transactional=False), b"Otest\0"
                ),
            ]
        )
    )
    assert contents(only) == transaction(5, ours)


def test_a_large_transaction_leaves_before_it_is_complete() -> None:
    builder = SegmentBuilder(PREFIX, Lsn(0), 100)
    for payload in [*transaction(5, relation(1), row(1)), begin(9), row(1, 150)]:
        builder.add(payload)
    early = builder.take_ready()
    assert {part.watermark for part in early} == {9}
    assert not any(part.is_last for part in early)
    assert builder.cut() == []
    builder.add(commit(9))
    (segment,) = segments(early + builder.cut())
    assert contents(segment) == [
        *transaction(5, relation(1), row(1)),
        *transaction(9, row(1, 150)),
    ]
    # What follows begins a segment of its own.
    for payload in transaction(12, row(1)):
        builder.add(payload)
    assert contents(builder.cut()) == transaction(12, relation(1), row(1))


def test_a_truncated_segment_is_noticed() -> None:
    (part,) = build(transaction(5, relation(1), row(1)))
    with pytest.raises(ValueError, match="ends inside a message"):
        list(read_messages([part.data[:-1]]))


_transactions = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 200)), max_size=6), min_size=1, max_size=12
)


@given(_transactions, st.integers(20, 400), st.integers(1, 4), st.integers(0, 12))
def test_nothing_is_lost_whatever_the_sizes(
    rows: list[list[tuple[int, int]]], part_bytes: int, cut_every: int, stored: int
) -> None:
    payloads: list[bytes] = []
    known: set[int] = set()
    for number, changes in enumerate(rows, 1):
        body = []
        for oid, size in changes:
            if oid not in known:
                known.add(oid)
                body.append(relation(oid))
            body.append(row(oid, size))
        payloads += transaction(number, *body)
    parts = build(payloads, stored=stored, part_bytes=part_bytes, cut_every=cut_every)
    assert all(len(part.data) <= part_bytes for part in parts)
    found: list[bytes] = []
    watermarks = []
    for segment in segments(parts):
        watermarks.append(segment[0].watermark)
        described: set[bytes] = set()
        for payload in contents(segment):
            if payload[:1] == b"R":
                described.add(payload[1:5])
                continue
            assert payload[:1] != b"I" or payload[1:5] in described
            found.append(payload)
    without = [payload for payload in payloads if payload[:1] != b"R"]
    begins = [at for at, payload in enumerate(without) if payload[:1] == b"B"]
    assert found == (without[begins[stored] :] if stored < len(begins) else [])
    assert watermarks == sorted(set(watermarks))
