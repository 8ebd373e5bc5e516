"""Where to go on, for every order that replica, change log and slot can be in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication_manager.change_db import LogState
from replication_manager.resume import ReplicaPosition, Resumption, plan_resumption
from replication_manager.slot import UsableSlot
from zerocache.errors import ResyncRequired
from zerocache.protocol.versions import Lsn


def replica(version: int, reached: int = 0, generation: str = "g") -> ReplicaPosition:
    return ReplicaPosition(generation, ("p",), Lsn(version), Lsn(reached))


def slot(confirmed: int) -> UsableSlot:
    return UsableSlot("s", Lsn(confirmed))


def log(floor: int, last: int, reached: int = 0) -> LogState:
    return LogState("g", ("p",), Lsn(last), Lsn(floor), Lsn(max(last, reached)), "me", 1)


def test_a_replica_ahead_of_the_log_gets_the_rest_from_upstream_again() -> None:
    assert plan_resumption(replica(50), slot(30), log(10, 30)) == Resumption(Lsn(30))


def test_a_replica_behind_the_log_is_brought_up_from_it() -> None:
    assert plan_resumption(replica(20), slot(30), log(10, 30)) == Resumption(Lsn(30), replay=True)


def test_a_copy_older_than_the_log_is_continued_only_if_the_slot_stood_still() -> None:
    assert plan_resumption(replica(5), slot(5), log(10, 30)) == Resumption(Lsn(5))
    with pytest.raises(ResyncRequired, match="older copy"):
        plan_resumption(replica(5), slot(30), log(10, 30))


def test_an_empty_log_begins_at_the_replica() -> None:
    plan = plan_resumption(replica(50), slot(50), None)
    assert plan == Resumption(Lsn(50), reset="it is empty")


def test_a_log_of_another_generation_begins_anew() -> None:
    plan = plan_resumption(replica(50, generation="h"), slot(50), log(10, 30))
    assert plan.reset is not None
    assert plan.after == 50


def test_an_older_copy_of_the_log_costs_no_replica_that_is_complete() -> None:
    plan = plan_resumption(replica(50), slot(40), log(10, 30))
    assert plan.reset is not None
    assert plan.after == 50
    with pytest.raises(ResyncRequired, match="older copy"):
        plan_resumption(replica(20), slot(40), log(10, 30))


def test_idle_positions_count() -> None:
    assert plan_resumption(replica(30), slot(90), log(10, 30, reached=90)).reset is None
    plan = plan_resumption(replica(30, reached=90), slot(90), None)
    assert plan.after == 30


_lsn = st.integers(0, 12)


@given(_lsn, _lsn, _lsn, _lsn, _lsn, _lsn, st.booleans())
def test_no_transaction_is_missing_wherever_it_goes_on(
    version: int, idle: int, floor: int, length: int, log_idle: int, confirmed: int, with_log: bool
) -> None:
    """Transactions have the LSNs 1 to 12. What replica and log say of themselves is true; the slot
    may be anywhere."""
    state = log(floor, floor + length, log_idle) if with_log else None
    try:
        plan = plan_resumption(replica(version, idle), slot(confirmed), state)
    except ResyncRequired:
        known = max(version, idle, state.last if state else 0, state.reached if state else 0)
        assert confirmed > max(version, idle)
        assert version < known or confirmed > known
        return
    replayed = range(version + 1, state.last + 1) if state and plan.replay else range(0)
    assert not plan.replay or (state is not None and version >= state.floor)
    has = set(range(1, version + 1)) | set(replayed)
    # Idle positions say that there is nothing of ours in between.
    empty = set(range(version + 1, idle + 1)) | (
        set(range(state.last + 1, state.reached + 1)) if state and plan.reset is None else set()
    )
    sent = {lsn for lsn in range(1, 30) if lsn > max(plan.after, confirmed)}
    missing = set(range(1, 13)) - has - sent - empty
    assert not missing
    if state is not None and plan.reset is None:
        # The log stays complete, too.
        stored = set(range(state.floor + 1, state.last + 1)) | sent | empty
        assert not set(range(state.floor + 1, 13)) - stored
