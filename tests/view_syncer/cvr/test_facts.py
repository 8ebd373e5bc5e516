"""The members of a unit at any version, from one set of members and the moves around it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from view_syncer.cvr.facts import Members, Move, UnitHistory, pack
from view_syncer.cvr.store import Checkpoint, Delta, UnitFacts
from zerocache.protocol.versions import Watermark, lexi_encode

KEYS = [f'{{"op":"del","id":{i}}}' for i in range(8)]


def version(number: int) -> Watermark:
    return Watermark(lexi_encode(number))


@st.composite
def lives(draw: st.DrawFn) -> list[set[str]]:
    """The members of a unit at each version, version 0 first."""
    return draw(st.lists(st.sets(st.sampled_from(KEYS)), min_size=1, max_size=12))


def moves_of(life: list[set[str]], swapped: bool) -> list[Move]:
    """``swapped``: keys that stay pass from one row to another, so they leave and enter."""
    moves = []
    for number in range(1, len(life)):
        old, new = life[number - 1], life[number]
        both = sorted(old & new)[:2] if swapped else []
        left, entered = sorted(old - new) + both, sorted(new - old) + both
        if left or entered:
            moves.append(Move(version(number), left, entered))
    return moves


@given(lives(), st.integers(0, 11), st.integers(1, 4), st.booleans())
def test_members_at_every_version_are_those_that_were(
    life: list[set[str]], written: int, per_delta: int, swapped: bool
) -> None:
    written = min(written, len(life) - 1)
    moves = moves_of(life, swapped)
    deltas = [
        Delta(chunk[-1].version, pack(chunk))
        for i in range(0, len(moves), per_delta)
        if (chunk := moves[i : i + per_delta])
    ]
    members = Members(version(0), sorted(life[written]))
    history = UnitHistory.read(UnitFacts(Checkpoint(version(written), pack(members)), deltas))
    assert history is not None
    for number, expected in enumerate(life):
        assert history.at(version(number)) == expected


@given(lives(), st.integers(0, 11))
def test_nothing_is_told_of_versions_before_the_beginning(life: list[set[str]], since: int) -> None:
    members = Members(version(since + 1), sorted(life[0]))
    history = UnitHistory.read(UnitFacts(Checkpoint(version(since + 2), pack(members)), []))
    assert history is not None
    assert history.at(version(since)) is None
    assert history.at(version(since + 1)) == life[0]


def test_unit_whose_members_were_never_written_has_no_history() -> None:
    assert UnitHistory.read(UnitFacts(None, [Delta(version(1), pack([]))])) is None


def test_members_that_did_not_move_are_the_same_object() -> None:
    """Many clients are compared against them."""
    checkpoint = Checkpoint(version(5), pack(Members(version(1), KEYS)))
    history = UnitHistory.read(UnitFacts(checkpoint, []))
    assert history is not None
    assert history.at(version(2)) is history.at(version(9))


def test_nothing_is_told_across_a_time_in_which_nobody_followed_the_unit() -> None:
    """Between the versions 3 and 6 anything may have happened."""
    members = Checkpoint(version(2), pack(Members(version(1), KEYS[:1])))
    moves = [
        Move(version(3), [], KEYS[1:2]),
        Move(version(6), [], [], begins=True),
        Move(version(7), [], KEYS[2:3]),
    ]
    history = UnitHistory.read(UnitFacts(members, [Delta(version(7), pack(moves))]))
    assert history is not None
    assert history.at(version(5)) == set(KEYS[:2])
    assert history.at(version(6)) is None
    assert history.at(version(7)) is None
