"""What is remembered of queries that come and go, and what is forgotten.

Random lives of queries, over a keeper with a real store that fails at times. Whatever is answered
about a version is what the query had there; what is kept is bounded; and a query that was followed
all the time is known.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, cast

import apsw
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from view_syncer import membership
from view_syncer.cvr.facts import RESULTS_UNIT, Members
from view_syncer.cvr.sqlite import SqliteStore
from view_syncer.cvr.store import StoredFacts, StoreUnavailable
from view_syncer.engine_host import EngineHost
from view_syncer.fact_keeper import FactKeeper
from view_syncer.ivm.encode import ClientTables, RowPatch
from view_syncer.ivm.engine import Advance
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.membership import MembershipLog, Taken, Unit, unit_id
from zerocache.protocol.versions import Watermark, lexi_encode
from zerocache.zql.shape import Instance, Node

MAX_ENDED = 1
KEEP_ENDED_S = 100.0
NAMES = ("q1", "q2")
TABLES = ClientTables("schema", {})
RESULTS = ClientTables("results", {}, facts_as=RESULTS_UNIT)


class Query:
    """Stands for a pipeline: what it asks and which rows it has."""

    def __init__(self, name: str) -> None:
        self.instance = Instance(cast(Node, name), ())
        self.rows: frozenset[str] = frozenset()

    def row_count(self) -> int:
        return len(self.rows)


class FlakyStore:
    """A store that is away when told so: before it did anything, or after."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.failing = ""

    async def new_author(self) -> int:
        return await self._store.new_author()

    async def write_facts(self, *args: Any) -> None:
        await self._maybe("write", self._store.write_facts, *args)

    async def drop_facts(self, *args: Any) -> None:
        await self._maybe("drop", self._store.drop_facts, *args)

    async def read_facts(self, author: int, units: Collection[str]) -> StoredFacts:
        return await self._store.read_facts(author, units)

    async def _maybe(self, what: str, function: Any, *args: Any) -> None:
        if self.failing == f"before {what}":
            raise StoreUnavailable("gone for a test")
        await function(*args)
        if self.failing == f"after {what}":
            raise StoreUnavailable("gone for a test")


class World:
    """The engine's side: a log, its clock and version, and what was true at every version."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.version = 1
        self.log = MembershipLog(lambda: self.now_s)
        self.running: dict[str, Query] = {}
        self.upstream = dict.fromkeys(NAMES, frozenset[str]())
        # By query: what it had, for each version at which somebody followed it.
        self.truth: dict[str, dict[int, frozenset[str]]] = {name: {} for name in NAMES}
        self.unnameable: set[str] = set()
        self._follow(Query("results"), RESULTS)

    @property
    def watermark(self) -> Watermark:
        return Watermark(lexi_encode(self.version))

    def _follow(self, query: Query, client: ClientTables) -> None:
        self.log.started(cast(Pipeline, query), client, self.watermark)

    def start(self, name: str) -> None:
        if name not in self.running:
            query = self.running[name] = Query(name)
            query.rows = self.upstream[name]
            self._follow(query, TABLES)
            self._remember()

    def end(self, name: str) -> None:
        query = self.running.pop(name, None)
        if query is not None:
            self.log.ended(cast(Pipeline, query), TABLES, self.watermark)

    def reset(self) -> None:
        self.running.clear()
        self.log.void(self.watermark)
        self.version += 1
        self._follow(Query("results"), RESULTS)

    def give_up(self, name: str) -> None:
        unit = self.log.unit(unit_id(cast(Pipeline, Query(name)), TABLES))
        if unit is not None:
            self.log.give_up(unit)

    def advance(self, name: str, rows: frozenset[str]) -> None:
        old = self.watermark
        self.version += 1
        self.upstream[name] = rows
        query = self.running.get(name)
        if query is not None:
            left, entered = query.rows - rows, rows - query.rows
            query.rows = rows
            patch = RowPatch(
                dels=[("t", 1, key) for key in left], keys=[("t", 2, key) for key in entered]
            )
            advance = Advance(old, self.watermark)
            advance.patches[cast(Pipeline, query)] = {TABLES: patch}
            self.log.note(advance)
        self._remember()

    def _remember(self) -> None:
        for name, query in self.running.items():
            self.truth[name][self.version] = query.rows

    # -- as the engine's host ----------------------------------------------------------------------

    async def take_due(self, *, all_due: bool = False) -> list[str]:
        return self.log.take_due(all_due=all_due)

    async def take_moves(self, keep_ended_s: float) -> Taken:
        return self.log.take(self.watermark, keep_ended_s)

    async def members(self, unit: str) -> tuple[Watermark, Members] | None:
        known = self.log.unit(unit)
        if known is None:
            return None
        version, rows = self.watermark, cast(Query, known.pipeline).rows
        since = self.log.written(known, version)
        if cast(Query, known.pipeline).instance in self.unnameable:
            self.log.give_up(known)
            return None
        return version, Members(since, sorted(rows))


ROWS = st.frozensets(st.sampled_from("abcd"))
NAME = st.sampled_from(NAMES)
FAILURES = st.sampled_from(["before write", "after write", "before drop", "after drop"])
# Each as often as it is listed; ends and starts are short-lived, or nothing is ever written down.
STEPS = st.one_of(
    st.tuples(st.just("start"), NAME),
    st.tuples(st.just("start"), NAME),
    st.tuples(st.just("advance"), NAME, ROWS),
    st.tuples(st.just("advance"), NAME, ROWS),
    st.tuples(st.just("end"), NAME),
    st.tuples(st.just("flush"), st.just("")),
    st.tuples(st.just("flush"), st.just("")),
    st.tuples(st.just("later"), st.sampled_from([3.0, 3.0, 3.0, KEEP_ENDED_S])),
    st.tuples(st.just("flush"), FAILURES),
    st.tuples(st.just("reset")),
    st.tuples(st.just("unnameable"), NAME),
    st.tuples(st.just("give_up"), NAME),
)


class Run:
    def __init__(self, world: World, store: FlakyStore, path: Path) -> None:
        self.world, self.store, self._path = world, store, path
        self.keeper = FactKeeper(cast(Any, store), cast(EngineHost, world), KEEP_ENDED_S)

    async def step(self, kind: str, *args: Any) -> None:
        world = self.world
        match kind:
            case "flush":
                (self.store.failing,) = args
                await self.keeper.flush()
                self.store.failing = ""
                await self.check()
            case "later":
                world.now_s += args[0]
            case "unnameable":
                world.unnameable.symmetric_difference_update(args)
            case _:
                getattr(world, kind)(*args)

    async def check(self) -> None:
        for name in NAMES:
            unit = unit_id(cast(Pipeline, Query(name)), TABLES)
            for number, rows in self.world.truth[name].items():
                base = self.keeper.version(Watermark(lexi_encode(number)))
                held = await self.keeper.held(base, [unit], "g")
                assert held is None or held.rows == rows, (name, number)

    def kept(self) -> set[str]:
        """The units the store has anything of."""
        db = apsw.Connection(str(self._path))
        tables = ("fact_checkpoints", "fact_deltas")
        kept = {u for t in tables for (u,) in db.execute(f"SELECT unit FROM {t}")}  # noqa: S608
        db.close()
        return kept


async def play(steps: Sequence[tuple[Any, ...]], folder: Path) -> None:
    path = folder / "cvr.db"
    store = SqliteStore(f"sqlite:{path}", "app_0/cvr")
    await store.open()
    run = Run(World(), FlakyStore(store), path)
    await run.keeper.open()
    try:
        for step in steps:
            await run.step(*step)
        await run.keeper.flush(final=True)
        await run.check()
        assert len(run.kept()) <= len(run.world.running) + 1 + MAX_ENDED
    finally:
        await store.close()


WRITTEN = [("start", "q1"), ("later", 3.0), ("flush", ""), ("advance", "q1", frozenset("a"))]
# It begins again at the very version up to which all was written, with other rows.
BEGINS_AGAIN = [*WRITTEN, ("end", "q1"), ("advance", "q1", frozenset()), ("flush", "")]
# What leads to the version is lost, and the store is away when it is to forget the rest.
NOT_FORGOTTEN = [*WRITTEN, ("give_up", "q1"), ("flush", "before drop"), ("flush", "after drop")]


@example(steps=[*BEGINS_AGAIN, ("start", "q1"), ("flush", "")])
@example(steps=NOT_FORGOTTEN)
@settings(max_examples=100, deadline=None)
@given(steps=st.lists(STEPS, min_size=30, max_size=80))
def test_what_is_answered_is_true_and_what_is_kept_is_bounded(
    steps: list[tuple[Any, ...]],
) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(membership, "MAX_ENDED", MAX_ENDED)
        asyncio.run(play(steps, Path(folder)))


async def keeping(tmp_path: Path) -> tuple[Run, SqliteStore]:
    path = tmp_path / "cvr.db"
    store = SqliteStore(f"sqlite:{path}", "app_0/cvr")
    await store.open()
    run = Run(World(), FlakyStore(store), path)
    await run.keeper.open()
    return run, store


async def known(run: Run, name: str, number: int) -> bool:
    unit = unit_id(cast(Pipeline, Query(name)), TABLES)
    base = run.keeper.version(Watermark(lexi_encode(number)))
    return await run.keeper.held(base, [unit], "g") is not None


async def test_query_that_is_followed_all_the_time_is_known_at_every_version(
    tmp_path: Path,
) -> None:
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    for rows in ("ab", "b", "", "abc"):
        world.now_s += 3.0
        await run.keeper.flush()
        world.advance("q1", frozenset(rows))
    await run.keeper.flush()
    for number, truth in world.truth["q1"].items():
        base = run.keeper.version(Watermark(lexi_encode(number)))
        held = await run.keeper.held(base, [unit_id(cast(Pipeline, Query("q1")), TABLES)], "g")
        assert held is not None
        assert held.rows == truth
    await store.close()


async def test_query_that_ended_is_known_until_nobody_can_come_back(tmp_path: Path) -> None:
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    await run.keeper.flush(final=True)
    world.end("q1")
    world.now_s += KEEP_ENDED_S - 1
    await run.keeper.flush()
    assert await known(run, "q1", 1)
    assert len(run.kept()) == 2
    world.now_s += 1
    await run.keeper.flush()
    assert run.kept() == {RESULTS_UNIT}
    await store.close()


async def test_query_that_grew_too_large_is_forgotten_with_all_its_moves(tmp_path: Path) -> None:
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    await run.keeper.flush(final=True)
    unit = world.log.unit(unit_id(cast(Pipeline, Query("q1")), TABLES))
    assert isinstance(unit, Unit)
    world.advance("q1", frozenset("ab"))
    world.log.give_up(unit)
    await run.keeper.flush()
    assert run.kept() == {RESULTS_UNIT}
    assert not await known(run, "q1", 2)
    world.advance("q1", frozenset("abc"))
    await run.keeper.flush()
    assert run.kept() == {RESULTS_UNIT}
    await store.close()


async def test_moves_that_nobody_took_go_with_the_query_that_is_forgotten(tmp_path: Path) -> None:
    """It ended since the last time, and is forgotten the next: what is written of it then would
    be of no use, and nobody would drop it any more."""
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    await run.keeper.flush(final=True)
    world.advance("q1", frozenset("a"))
    world.end("q1")
    world.now_s += KEEP_ENDED_S
    await run.keeper.flush()
    assert run.kept() == {RESULTS_UNIT}
    await store.close()


async def test_moves_from_before_it_began_again_go_with_the_query_that_is_given_up(
    tmp_path: Path,
) -> None:
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    await run.keeper.flush(final=True)
    world.advance("q1", frozenset("a"))
    world.end("q1")
    world.start("q1")
    world.give_up("q1")
    await run.keeper.flush()
    assert run.kept() == {RESULTS_UNIT}
    await store.close()


async def test_query_that_only_grows_is_looked_at_once_it_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its moves never outnumber its rows by much, and would be kept for ever."""
    monkeypatch.setattr(membership, "MIN_MOVED", 2)
    monkeypatch.setattr(membership, "MAX_CHECKPOINT_ROWS", 3)
    run, store = await keeping(tmp_path)
    world = run.world
    world.start("q1")
    await run.keeper.flush(final=True)
    name = unit_id(cast(Pipeline, Query("q1")), TABLES)
    world.advance("q1", frozenset("abc"))
    assert name not in world.log.take_due()
    world.advance("q1", frozenset("abcd"))
    assert name in world.log.take_due()
    await store.close()
