"""Both stores beside a plain model: after every step they say the same."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field, replace
from operator import methodcaller
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.view_syncer.cvr.conftest import SCHEMA_NAME, Clock, Store
from tests.view_syncer.cvr.records import SCHEMA
from view_syncer.cvr.postgres import PostgresStore
from view_syncer.cvr.record import ConfigChange, Desire, GroupRecord, QueryRecord
from view_syncer.cvr.sqlite import SqliteStore
from view_syncer.cvr.store import (
    AuthorForgotten,
    Checkpoint,
    ConcurrentModification,
    Delta,
    StoredFacts,
    UnitFacts,
    UnitWrite,
)
from zerocache.protocol.versions import ViewVersion, Watermark, lexi_encode

T = TypeVar("T")

GROUPS, NAMES, UNITS = st.sampled_from("gh"), st.sampled_from("abc"), st.sampled_from("uv")
# Few values, so that they meet: in the order of integers, which is not that of their digits.
WATERMARKS = st.sampled_from([Watermark(lexi_encode(n)) for n in (1, 9, 35, 36, 1300)])
VERSIONS = st.builds(ViewVersion, WATERMARKS, st.sampled_from([0, 1, 2**53 - 1]))
TIMES_MS = st.sampled_from([0.0, 0.1, 7.5, 1e12])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
BODIES = st.binary(max_size=8)
QUERIES = st.builds(
    QueryRecord,
    st.sampled_from([None, b'{"table":"t"}']),
    st.none() | TEXT,
    st.sampled_from([None, b'[1, "\\ud83d\\ude00"]']),
    st.none() | VERSIONS,
    st.none() | TEXT,
)
DESIRES = st.builds(Desire, TIMES_MS, st.none() | TIMES_MS)


@dataclass
class Part:
    """What becomes of one client, query or desire: the new value, or None if it goes."""

    kind: str
    key: Any
    value: Any


PARTS = st.one_of(
    st.builds(Part, st.just("client"), NAMES, st.booleans()),
    st.builds(Part, st.just("query"), NAMES, st.none() | QUERIES),
    st.builds(Part, st.just("desire"), st.tuples(NAMES, NAMES), st.none() | DESIRES),
)
WRITES = st.builds(
    UnitWrite,
    UNITS,
    st.none() | st.builds(Checkpoint, WATERMARKS, BODIES),
    st.none() | st.builds(Delta, WATERMARKS, BODIES),
    st.none() | WATERMARKS,
)


def one_of_each_unit(writes: list[UnitWrite]) -> list[UnitWrite]:
    return list({write.unit: write for write in writes}.values())


@dataclass
class Author:
    complete_to: Watermark
    active_s: float
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    deltas: dict[str, dict[Watermark, Delta]] = field(default_factory=dict)

    def write(self, write: UnitWrite) -> None:
        deltas = self.deltas.setdefault(write.unit, {})
        if write.checkpoint is not None:
            self.checkpoints[write.unit] = write.checkpoint
        for version in [v for v in deltas if write.drop_before and v < write.drop_before]:
            del deltas[version]
        if write.delta is not None:
            deltas[write.delta.version] = write.delta

    def stored(self) -> StoredFacts:
        units = {
            unit: UnitFacts(
                self.checkpoints.get(unit),
                [delta for _, delta in sorted(self.deltas.get(unit, {}).items())],
            )
            for unit in "uv"
        }
        known = {u: facts for u, facts in units.items() if facts.checkpoint or facts.deltas}
        return StoredFacts(self.complete_to, known)


@dataclass
class World:
    """Opened once; every example begins with empty stores."""

    run: Callable[[Coroutine[Any, Any, Any]], Any]
    stores: list[Store]
    clock: Clock
    empty: Callable[[], None]


class StoreMachine(RuleBasedStateMachine):
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.empty()
        self.records: dict[str, GroupRecord] = {}
        self.active_s: dict[str, float] = {}
        self.deleted_s: dict[str, float] = {}
        self.authors: dict[int, Author] = {}
        self.newest_author = 0

    @initialize()
    def begin(self) -> None:
        numbers = self._each(lambda store: store.new_author())
        self.newest_author = numbers
        self.authors[numbers] = Author(Watermark("00"), self._now)

    # -- records -------------------------------------------------------------------------------

    @rule(
        group=GROUPS,
        parts=st.lists(PARTS, max_size=4),
        version=VERSIONS,
        profile=st.none() | TEXT,
        replica=st.none() | WATERMARKS,
        provable=VERSIONS,
        author=st.integers(0, 2),
        clock_ms=TIMES_MS,
        has_schema=st.booleans(),
    )
    def save(
        self,
        group: str,
        parts: list[Part],
        version: ViewVersion,
        profile: str | None,
        replica: Watermark | None,
        provable: ViewVersion,
        author: int,
        clock_ms: float,
        has_schema: bool,
    ) -> None:
        record = copy.deepcopy(self.records.get(group)) or GroupRecord(group)
        expected, change = record.version, ConfigChange()
        record.version, record.profile_id, record.replica_version = version, profile, replica
        record.provable_from, record.ttl_clock_ms = provable, clock_ms
        record.note_author(author, version)
        record.client_schema = SCHEMA if has_schema else None
        for part in parts:
            _apply(record, part, change)
        outcome = self._each(lambda store: _saved(store, copy.deepcopy(record), change, expected))
        assert outcome is not record.deleted
        if outcome:
            self.records[group] = replace(record, exists=True)
            self.active_s[group] = self._now

    @rule(group=GROUPS, version=VERSIONS, exists=st.booleans())
    def save_on_a_wrong_version(self, group: str, version: ViewVersion, exists: bool) -> None:
        stored = self.records.get(group)
        if exists and stored is not None and stored.version == version and not stored.deleted:
            return
        if not exists and stored is None:
            return
        record, change = GroupRecord(group, version=version, exists=exists), ConfigChange()
        record.add_client("stranger", change)
        assert not self._each(lambda store: _saved(store, copy.deepcopy(record), change, version))

    @rule(group=GROUPS, clock_ms=TIMES_MS)
    def touch(self, group: str, clock_ms: float) -> None:
        self._each(lambda store: store.touch(group, clock_ms))
        record = self.records.get(group)
        if record is not None and not record.deleted:
            record.ttl_clock_ms = max(record.ttl_clock_ms, clock_ms)
            self.active_s[group] = self._now

    @rule(age_s=st.sampled_from([5.0, 50.0]), limit=st.integers(1, 3))
    def purge(self, age_s: float, limit: int) -> None:
        before = self._now - age_s
        old = sorted((at, g) for g, at in self.active_s.items() if at < before)
        purged = self._each(lambda store: store.purge_groups(before, limit))
        assert purged == min(len(old), limit)
        if purged < len(old) and old[purged - 1][0] == old[purged][0]:
            # A tie: either may have gone, and not the same one in each store.
            purged += self._each(lambda store: store.purge_groups(before, len(old)))
        for _, group in old[:purged]:
            profile = self.records[group].profile_id
            self.records[group] = GroupRecord(group, exists=True, deleted=True, profile_id=profile)
            del self.active_s[group]
            self.deleted_s[group] = self._now

    @rule(age_s=st.sampled_from([0.0, 5.0, 50.0]))
    def forget_tombstones(self, age_s: float) -> None:
        before = self._now - age_s
        self._each(lambda store: store.forget_tombstones(before))
        for group in [g for g, at in self.deleted_s.items() if at < before]:
            del self.deleted_s[group], self.records[group]

    # -- facts ---------------------------------------------------------------------------------

    @rule()
    def new_author(self) -> None:
        number = self._each(lambda store: store.new_author())
        assert number > self.newest_author
        self.newest_author = number
        self.authors[number] = Author(Watermark("00"), self._now)

    @rule(
        back=st.sampled_from([0, 0, 0, 1, 2]),
        complete_to=WATERMARKS,
        writes=st.lists(WRITES, min_size=1, max_size=3),
    )
    def write_facts(self, back: int, complete_to: Watermark, writes: list[UnitWrite]) -> None:
        number, writes = self.newest_author - back, one_of_each_unit(writes)
        written = self._each(lambda store: _written(store, number, complete_to, writes))
        author = self.authors.get(number)
        assert written is (author is not None)
        if author is not None:
            author.complete_to, author.active_s = complete_to, self._now
            for write in writes:
                author.write(write)
        self._compare_facts(number)

    @rule(back=st.sampled_from([0, 1]), units=st.lists(UNITS, max_size=1))
    def drop_facts(self, back: int, units: list[str]) -> None:
        number = self.newest_author - back
        self._each(lambda store: store.drop_facts(number, units))
        if number in self.authors:
            for unit in units:
                self.authors[number].checkpoints.pop(unit, None)
                self.authors[number].deltas.pop(unit, None)

    @rule(
        inactive_s=st.sampled_from([0.0, 30.0, 300.0]),
        silent_s=st.sampled_from([5.0, 50.0]),
        keep=st.integers(0, 2),
    )
    def forget_authors(self, inactive_s: float, silent_s: float, keep: int) -> None:
        inactive_since, silent_since = self._now - inactive_s, self._now - silent_s
        self._each(lambda store: store.forget_authors(inactive_since, silent_since, keep))
        silent = sorted(n for n, author in self.authors.items() if author.active_s < silent_since)
        for number in silent:
            kept = number in silent[len(silent) - keep :] if keep else False
            if not kept or self.authors[number].active_s < inactive_since:
                del self.authors[number]
        self._compare_all_facts()

    @rule(by_s=st.sampled_from([1.0, 10.0, 100.0]))
    def wait(self, by_s: float) -> None:
        self.world.clock.now_s += by_s

    # -- what they say -------------------------------------------------------------------------

    @rule()
    def compare(self) -> None:
        for group in "gh":
            expected = self.records.get(group) or GroupRecord(group)
            assert self._each(methodcaller("load", group)) == expected
        self._compare_all_facts()

    def _compare_all_facts(self) -> None:
        for number in range(max(1, self.newest_author - 4), self.newest_author + 1):
            self._compare_facts(number)

    def _compare_facts(self, number: int) -> None:
        author = self.authors.get(number)
        facts = StoredFacts(None, {}) if author is None else author.stored()
        assert self._each(lambda store: store.read_facts(number, "uv")) == facts

    def teardown(self) -> None:
        self.compare()

    @property
    def _now(self) -> float:
        return self.world.clock.now_s

    def _each(self, act: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """The answer that all stores give."""
        first, *others = [self.world.run(act(store)) for store in self.world.stores]
        assert all(other == first for other in others)
        answer: T = first
        return answer


def _apply(record: GroupRecord, part: Part, change: ConfigChange) -> None:
    if part.kind == "client":
        (record.clients.add if part.value else record.clients.discard)(part.key)
        change.clients.add(part.key)
        return
    into: dict[Any, Any] = record.queries if part.kind == "query" else record.desires
    if part.value is None:
        into.pop(part.key, None)
    else:
        into[part.key] = copy.copy(part.value)
    (change.queries if part.kind == "query" else change.desires).add(part.key)


async def _saved(
    store: Store, record: GroupRecord, change: ConfigChange, expected: ViewVersion
) -> bool:
    try:
        await store.save(record, change, expected)
    except ConcurrentModification:
        return False
    return True


async def _written(
    store: Store, author: int, complete_to: Watermark, writes: list[UnitWrite]
) -> bool:
    try:
        await store.write_facts(author, complete_to, writes)
    except AuthorForgotten:
        return False
    return True


@pytest.fixture
def world(database: str, tmp_path: Path) -> Iterator[World]:
    clock = Clock()
    stores: list[Store] = [
        PostgresStore(database, SCHEMA_NAME, max_connections=1, clock=clock),
        SqliteStore(f"sqlite:{tmp_path}/cvr.db", SCHEMA_NAME, clock=clock),
    ]

    def empty() -> None:
        """By the stores' own means; the numbers of authors go on."""
        clock.now_s += 1
        for store in stores:
            runner.run(store.purge_groups(clock.now_s, 10))
            runner.run(store.forget_tombstones(clock.now_s + 1))
            runner.run(store.forget_authors(clock.now_s, clock.now_s, keep=0))

    with asyncio.Runner() as runner:
        for store in stores:
            runner.run(store.open())
        yield World(runner.run, stores, clock, empty)
        for store in stores:
            runner.run(store.close())


def test_stores_do_what_the_model_does(world: World) -> None:
    machine = type("Machine", (StoreMachine,), {"world": world})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
