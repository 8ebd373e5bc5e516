"""Frames made here are what any WebSocket peer reads, and can be taken apart again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import websocket as peer
from view_syncer import wire

frames = st.tuples(st.sampled_from([wire.TEXT, wire.BINARY]), st.binary(max_size=300))


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 100_000])
def test_every_form_of_length_is_read_by_a_peer(size: int) -> None:
    payload = b"x" * size
    assert peer.FrameReader().feed(wire.text(payload)) == [peer.Message(peer.TEXT, payload)]
    assert list(wire.payloads([wire.text(payload)])) == [(wire.TEXT, payload)]


@given(runs=st.lists(st.lists(frames, max_size=4), max_size=4))
def test_runs_come_apart_into_what_they_were_made_of(
    runs: list[list[tuple[int, bytes]]],
) -> None:
    encoded = [b"".join(wire.frame(opcode, data) for opcode, data in run) for run in runs]
    assert list(wire.payloads(encoded)) == [frame for run in runs for frame in run]
    assert peer.FrameReader().feed(b"".join(encoded)) == [
        peer.Message(opcode, data) for run in runs for opcode, data in run
    ]
