"""The rules that move a group's record (sync-protocol.md §4.3-4.5)."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from view_syncer.cvr.record import (
    DEFAULT_TTL_MS,
    MAX_TTL_MS,
    ConfigChange,
    GroupRecord,
    clamp_ttl,
)
from zerocache.protocol.messages import ClearQueries, DeleteQuery, PutQuery, QueryOp
from zerocache.protocol.versions import NOBODY, ViewVersion, Watermark, lexi_encode


def put(query: str, ttl: float | None = None) -> PutQuery:
    return PutQuery(query, ttl, name="n", args=[])


def apply(record: GroupRecord, *ops: QueryOp, client: str = "c", now: float = 0.0) -> ConfigChange:
    change = ConfigChange()
    record.apply_query_ops(client, ops, now, change)
    return change


def test_first_sight_of_a_client_bumps_the_version() -> None:
    record, change = GroupRecord("g"), ConfigChange()
    record.add_client("c", change)
    assert (change.bump, change.desired, change.clients) == (True, {}, {"c"})
    again = ConfigChange()
    record.add_client("c", again)
    assert not again


def test_unknown_query_is_put_and_remembered() -> None:
    record = GroupRecord("g")
    change = apply(record, put("q"))
    assert change.bump
    assert change.desired == {"c": [("put", "q")]}
    assert change.queries == {"q"}
    assert record.queries["q"].name == "n"
    assert not record.queries["q"].got


def test_query_known_to_the_group_is_put_for_the_client_only() -> None:
    record = GroupRecord("g")
    apply(record, put("q"), client="other")
    change = apply(record, PutQuery("q"))
    assert change.desired == {"c": [("put", "q")]}
    assert change.queries == set()


@pytest.mark.parametrize(("ttl", "changes"), [(20, True), (10, False), (5, False)])
def test_active_desire_only_takes_a_longer_ttl(ttl: float, changes: bool) -> None:
    """sync-protocol.md §10 #43"""
    record = GroupRecord("g")
    apply(record, put("q", 10))
    change = apply(record, put("q", ttl))
    assert change.bump is changes
    assert record.desires["c", "q"].ttl_ms == max(10, ttl)


def test_inactive_desire_takes_a_shorter_ttl() -> None:
    """sync-protocol.md §10 #43"""
    record = GroupRecord("g")
    apply(record, put("q", 1000))
    apply(record, DeleteQuery("q"), now=1)
    apply(record, put("q", 10), now=2)
    apply(record, DeleteQuery("q"), now=3)
    assert record.next_expiry_ms() == 13


def test_internal_hashes_are_ignored() -> None:
    record = GroupRecord("g")
    change = apply(record, PutQuery("lmids"), PutQuery("mutationResults"))
    assert not change
    assert record.queries == {}


def test_undefined_query_is_an_error_and_nothing_is_applied() -> None:
    record = GroupRecord("g")
    with pytest.raises(ValueError, match="'x'"):
        apply(record, put("q"), PutQuery("x"))
    assert record.queries == {}
    assert record.desires == {}


@pytest.mark.parametrize("half", [PutQuery("q", name="n"), PutQuery("q", args=[])])
def test_half_a_definition_is_an_error(half: PutQuery) -> None:
    with pytest.raises(ValueError):
        apply(GroupRecord("g"), half)


def test_put_and_del_in_one_request_leave_both_patches() -> None:
    """sync-protocol.md §10 #39"""
    change = apply(GroupRecord("g"), put("q"), DeleteQuery("q"))
    assert change.desired == {"c": [("put", "q"), ("del", "q")]}


def test_del_of_something_not_desired_is_echoed_but_not_stored() -> None:
    record = GroupRecord("g")
    change = apply(record, DeleteQuery("q"))
    assert change.desired == {"c": [("del", "q")]}
    assert change.bump
    assert change.desires == set()


def test_clear_ends_queries_at_once() -> None:
    record = GroupRecord("g")
    apply(record, put("q"), put("r"))
    apply(record, put("r"), client="other")
    change = apply(record, ClearQueries())
    assert sorted(change.desired["c"]) == [("del", "q"), ("del", "r")]
    assert record.live_queries(0) == {"r"}


def test_deleting_a_client_makes_its_desires_inactive() -> None:
    record = GroupRecord("g")
    record.add_client("c", ConfigChange())
    apply(record, put("q", 10))
    change = ConfigChange()
    record.delete_client("c", 5, change)
    assert change.desired == {"c": [("del", "q")]}
    assert record.clients == set()
    assert record.live_queries(14.9) == {"q"}
    assert record.live_queries(15) == set()


def test_deleting_a_client_without_desires_is_no_new_version() -> None:
    record = GroupRecord("g")
    record.add_client("c", ConfigChange())
    change = ConfigChange()
    record.delete_client("c", 0, change)
    assert not change.bump
    assert change.clients == {"c"}
    nothing = ConfigChange()
    record.delete_client("unknown", 0, nothing)
    assert not nothing


def test_deleted_client_that_goes_on_asking_is_registered_again() -> None:
    """Or nobody would ever delete it, and its queries would live forever."""
    record = GroupRecord("g")
    record.add_client("c", ConfigChange())
    record.delete_client("c", 0, ConfigChange())
    change = apply(record, put("q"))
    assert record.clients == {"c"}
    assert change.clients == {"c"}


def test_query_without_any_desire_is_due_at_once() -> None:
    record = GroupRecord("g")
    apply(record, put("q"))
    apply(record, ClearQueries(), now=7)
    assert record.live_queries(7) == set()
    assert record.next_expiry_ms() == 0


def test_query_expires_with_the_last_of_its_clients() -> None:
    """sync-protocol.md §10 #46"""
    record = GroupRecord("g")
    apply(record, put("q", 10), client="a")
    apply(record, put("q", 50), client="b")
    apply(record, DeleteQuery("q"), client="a", now=0)
    assert record.next_expiry_ms() is None
    apply(record, DeleteQuery("q"), client="b", now=1)
    assert record.next_expiry_ms() == 51
    assert record.live_queries(50) == {"q"}


def test_pruning_forgets_only_what_cannot_matter() -> None:
    record, change = GroupRecord("g"), ConfigChange()
    apply(record, put("q", 10), client="gone")
    apply(record, put("q", 10), client="here")
    apply(record, DeleteQuery("q"), client="gone", now=0)
    record.prune(10, change)
    assert set(record.desires) == {("here", "q")}
    assert change.desires == {("gone", "q")}


def test_dropped_query_is_forgotten_with_all_desires() -> None:
    record, change = GroupRecord("g"), ConfigChange()
    apply(record, put("q"), client="a")
    apply(record, put("q"), client="b")
    record.drop_query("q", change)
    assert (record.queries, record.desires) == ({}, {})
    assert change.desires == {("a", "q"), ("b", "q")}


@pytest.mark.parametrize(
    ("given_ms", "counts_ms"),
    [
        (None, DEFAULT_TTL_MS),
        (-1, MAX_TTL_MS),
        (86_400_000, MAX_TTL_MS),
        (0, 0),
        (7, 7),
        (10**400, MAX_TTL_MS),
        (-(10**400), MAX_TTL_MS),
    ],
)
def test_ttl_is_clamped(given_ms: float | None, counts_ms: float) -> None:
    """sync-protocol.md §10 #44"""
    assert clamp_ttl(given_ms) == counts_ms


CLIENTS, QUERIES = st.sampled_from("ab"), st.sampled_from("pqr")


class RecordMachine(RuleBasedStateMachine):
    """The record against a model that keeps, per client and query, when the wish ends."""

    def __init__(self) -> None:
        super().__init__()
        self.record = GroupRecord("g")
        self.now = 0.0
        # (ttl, inactivated at or None)
        self.model: dict[tuple[str, str], tuple[float, float | None]] = {}
        self.echoed: dict[str, set[str]] = {}

    def _apply(self, client: str, ops: Iterable[QueryOp]) -> ConfigChange:
        change = ConfigChange()
        self.record.apply_query_ops(client, ops, self.now, change)
        for owner, patches in change.desired.items():
            held = self.echoed.setdefault(owner, set())
            for op, query in patches:
                (held.add if op == "put" else held.discard)(query)
        assert change.bump == bool(change.desired)
        return change

    @rule(client=CLIENTS, query=QUERIES, ttl=st.sampled_from([None, -1, 0, 10, 10**9]))
    def put(self, client: str, query: str, ttl: float | None) -> None:
        old = self.model.get((client, query))
        counts = clamp_ttl(ttl)
        longer = old is None or old[1] is not None or counts > old[0]
        change = self._apply(client, [put(query, ttl)])
        assert change.bump is longer
        if longer:
            self.model[client, query] = (counts, None)

    @rule(client=CLIENTS, query=QUERIES)
    def delete(self, client: str, query: str) -> None:
        self._apply(client, [DeleteQuery(query)])
        self._inactivate(client, query)

    @rule(client=CLIENTS)
    def clear(self, client: str) -> None:
        self._apply(client, [ClearQueries()])
        self.model = {key: value for key, value in self.model.items() if key[0] != client}

    @rule(client=CLIENTS)
    def delete_client(self, client: str) -> None:
        change = ConfigChange()
        self.record.delete_client(client, self.now, change)
        for _, query in change.desired.get(client, []):
            self.echoed[client].discard(query)
        for query in "pqr":
            self._inactivate(client, query)

    @rule(by=st.sampled_from([1.0, 10.0, 400_000.0]))
    def wait_and_expire(self, by: float) -> None:
        self.now += by
        live, change = self.record.live_queries(self.now), ConfigChange()
        for query in set(self.record.queries) - live:
            self.record.drop_query(query, change)
            self.model = {key: value for key, value in self.model.items() if key[1] != query}
        self.record.prune(self.now, change)
        self.model = {
            key: (ttl, since)
            for key, (ttl, since) in self.model.items()
            if since is None or since + ttl > self.now
        }
        assert self.record.live_queries(self.now) == live

    def _inactivate(self, client: str, query: str) -> None:
        old = self.model.get((client, query))
        if old is not None and old[1] is None:
            self.model[client, query] = (old[0], self.now)

    @invariant()
    def live_queries_are_those_somebody_wants(self) -> None:
        live = {
            query
            for (_, query), (ttl, since) in self.model.items()
            if since is None or since + ttl > self.now
        }
        assert self.record.live_queries(self.now) == live

    @invariant()
    def clients_were_told_exactly_what_they_desire(self) -> None:
        active = {c: set(q) for c, q in self.record.active_desires().items()}
        assert {c: q for c, q in self.echoed.items() if q} == active

    @invariant()
    def next_expiry_is_the_first_end_of_a_query(self) -> None:
        # A query that nobody has a word on any more is due at once.
        ends = dict.fromkeys(self.record.queries, 0.0)
        for (_, query), (ttl, since) in self.model.items():
            end = float("inf") if since is None else since + ttl
            ends[query] = max(ends.get(query, 0.0), end)
        first = min((e for e in ends.values() if e != float("inf")), default=None)
        assert self.record.next_expiry_ms() == first


TestRecordMachine = RecordMachine.TestCase


@given(st.floats(allow_nan=False))
def test_clamped_ttl_is_always_in_range(ttl: float) -> None:
    assert 0 <= clamp_ttl(ttl) <= MAX_TTL_MS


def at(state: int, issuer: int) -> ViewVersion:
    return ViewVersion.of_issuer(issuer, Watermark(lexi_encode(state)))


def test_cookies_of_another_copy_are_told_from_those_of_before_and_after_it() -> None:
    record = GroupRecord("g")
    assert record.enter_generation(Watermark("01"))
    record.note_author(1, at(2, 1))
    assert not record.enter_generation(Watermark("01"))
    assert record.was_known_at(at(9, 1))
    # Upstream may have lost what came from 5 on; the group is served from its copy at 8.
    assert record.enter_generation(Watermark("05"))
    record.note_author(2, at(8, 2))
    for issuer in (1, NOBODY):
        known = [record.was_known_at(at(state, issuer)) for state in (3, 5, 6, 7)]
        assert known == [True, False, False, False]
    # From 8 on the numbers alone do not tell, but the author does.
    assert not record.was_known_at(at(9, 1))
    assert record.was_known_at(at(8, 2))
    assert record.was_known_at(at(9, 2))


def test_author_that_goes_on_with_a_new_copy_is_known_before_and_after() -> None:
    record = GroupRecord("g")
    record.enter_generation(Watermark("01"))
    record.note_author(1, at(2, 1))
    record.enter_generation(Watermark("05"))
    record.note_author(1, at(6, 1), at(4, 1))
    assert record.was_known_at(at(4, 1))
    assert record.was_known_at(at(6, 1))
