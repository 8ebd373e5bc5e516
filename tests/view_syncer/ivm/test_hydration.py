"""Hydrations beside the engine: their limits, and what adopting them later gives."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.view_syncer.ivm import world as w
from tests.view_syncer.ivm.cases import TABLES, c, changes, ex, q, rel, seed_rows
from tests.view_syncer.ivm.group import Group, to_hydrate
from tests.view_syncer.ivm.replica import Replica, Row, Table, client_tables
from tests.view_syncer.ivm.test_engine_property import CLIENT, PROFILE
from view_syncer.ivm.engine import Engine
from view_syncer.ivm.hydration import (
    Hydration,
    HydrationCancelled,
    HydrationLimits,
    HydrationRequest,
    hydrate,
)
from view_syncer.ivm.pipeline import Delta, Pipeline
from view_syncer.ivm.snapshot import ReaderPool
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.zql import ast

ALL = client_tables(TABLES)
UNLIMITED = HydrationLimits()


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    one = Replica(tmp_path / "replica.db", TABLES, seed_rows())
    yield one
    one.close()


@pytest.fixture
def engine(replica: Replica) -> Iterator[Engine]:
    one = Engine(replica.path)
    yield one
    one.close()


def request(engine: Engine, query: ast.Query) -> HydrationRequest:
    return to_hydrate(engine, query, ALL)


def beside(
    engine: Engine, replica: Replica, query: ast.Query, limits: HydrationLimits = UNLIMITED
) -> Hydration:
    return hydrate(replica.path, request(engine, query), limits)


def commit(replica: Replica, text: str) -> None:
    replica.commit(changes(text, replica))


def sql(replica: Replica, statement: str) -> None:
    """What the writer does when it must, without waiting for it."""
    db = apsw.Connection(str(replica.path))
    db.execute(statement)
    db.close()


class Fetched:
    """Counts the ``put`` operations the engine had to encode itself."""

    def __init__(self, engine: Engine) -> None:
        self.rows: set[int] = set()
        encoder = engine.encoder(ALL)
        puts = encoder.puts

        def counted(db: apsw.Connection, rows: dict[str, set[int]]) -> Sequence[str]:
            self.rows.update(r for several in rows.values() for r in several)
            return puts(db, rows)

        encoder.puts = counted  # type: ignore[method-assign,assignment]


# -- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        q("task"),
        q("task", limit=1000),
        q("task", c("id", "=", "t1"), rel=[rel("task", "owner=owner", limit=1000)]),
        q("task", c("rank", ">", 0), rel=[rel("note")]),
    ],
    ids=["all", "window", "related window", "related"],
)
def test_a_query_beyond_its_rows_fails_and_names_the_setting(
    replica: Replica, engine: Engine, query: ast.Query
) -> None:
    with pytest.raises(QueryError, match=r"more than \d rows.*ZEROCACHE_MAX_ROWS_PER_QUERY"):
        beside(engine, replica, query, HydrationLimits(max_rows=1))


@pytest.mark.parametrize("query", [q("task"), q("task", limit=5), q("task", limit=1000)])
def test_a_query_of_exactly_its_rows_is_within_the_limit(
    replica: Replica, engine: Engine, query: ast.Query
) -> None:
    hydration = beside(engine, replica, query, HydrationLimits(max_rows=5))
    assert hydration.pipeline.row_count() == 5
    hydration.close()


def test_rows_kept_in_reserve_do_not_count(replica: Replica, engine: Engine) -> None:
    hydration = beside(engine, replica, q("task", limit=2), HydrationLimits(max_rows=2))
    assert hydration.pipeline.row_count() == 2
    hydration.close()


@pytest.mark.parametrize("early", [False, True], ids=["advanced", "recomputed"])
@pytest.mark.parametrize("limit", [None, 1000])
def test_a_query_that_grows_beyond_the_limit_later_goes_on(
    replica: Replica, engine: Engine, limit: int | None, early: bool
) -> None:
    """The limit is on hydrating; an advance must not fail for everybody because one query grew."""
    query = q("person", c("id", "IN", ["u1", "u3"]), rel=[rel("task", "id=owner", limit=limit)])
    hydration = beside(engine, replica, query, HydrationLimits(max_rows=3))
    group = Group(engine, ALL)
    group.add("q", query, hydration)
    hydration.close()
    commit(replica, "t2.owner:=u1, t3.owner:=u1, u1=>u9, u4=>u1")
    with mock.patch.object(Pipeline, "rehydrate_is_cheaper", return_value=early):
        group.advance()
    assert sum(table == "task" for table, _ in group.store) == 5


_ENDLESS = q("task", ex("task", ex("task", ex("task", c("title", "=", "no"), "rank=rank"),
                                     "rank=rank"), "rank=rank"))  # fmt: skip


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Replica]:
    """Enough rows of one rank to keep `_ENDLESS` busy far longer than any test waits."""
    row = {"owner": None, "reviewer": None, "rank": 1, "title": "x"}
    rows: list[Row] = [{"id": f"t{i}", **row} for i in range(3000)]
    one = Replica(tmp_path / "large.db", TABLES, {"task": rows})
    yield one
    one.close()


def test_a_query_beyond_its_time_fails_and_names_the_setting(large: Replica) -> None:
    engine = Engine(large.path)
    limits = HydrationLimits(max_seconds=0.05)
    with pytest.raises(QueryError, match=r"more than 0\.05 s.*ZEROCACHE_MAX_HYDRATION_SECONDS"):
        beside(engine, large, _ENDLESS, limits)
    engine.close()


def test_a_hydration_nobody_waits_for_ends(large: Replica) -> None:
    engine = Engine(large.path)
    stop = threading.Event()
    wanted = replace(request(engine, _ENDLESS), cancelled=stop)
    ended: list[BaseException] = []

    def run() -> None:
        try:
            hydrate(large.path, wanted, UNLIMITED).close()
        except HydrationCancelled as reason:
            ended.append(reason)

    thread = threading.Thread(target=run)
    thread.start()
    stop.set()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert len(ended) == 1
    engine.close()


def test_a_failed_hydration_leaves_no_snapshot_behind(replica: Replica, engine: Engine) -> None:
    """A forgotten read transaction would keep the writer's WAL from ever being reset."""
    pool = ReaderPool(replica.path, 4)
    with pytest.raises(QueryError):
        hydrate(pool, request(engine, q("task")), HydrationLimits(max_rows=1))
    hydration = hydrate(pool, request(engine, q("task")), UNLIMITED)
    reader = hydration.reader
    hydration.close()
    assert not reader.db.in_transaction
    assert pool.take() is reader
    reader.close()


def test_a_pooled_reader_is_not_bound_by_the_last_query(replica: Replica, engine: Engine) -> None:
    pool = ReaderPool(replica.path, 4)
    stop = threading.Event()
    hydrate(pool, replace(request(engine, q("task")), cancelled=stop), UNLIMITED).close()
    stop.set()
    second = hydrate(pool, request(engine, q("task")), UNLIMITED)
    assert second.pipeline.row_count() == 5
    second.close()
    pool.close()


# -- rows that cannot be encoded ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "error"),
    [
        ("int8", "9007199254740993", UnsafeIntegerError),
        ("json", f"'{'[' * 1500}{']' * 1500}'", QueryError),
    ],
    ids=["integer", "nesting"],
)
def test_a_row_without_a_json_form_fails_the_query(
    tmp_path: Path, kind: str, value: str, error: type[Exception]
) -> None:
    tables = {"t": Table({"id": "text", "v": kind}, ("id",))}
    replica = Replica(tmp_path / "r.db", tables, {"t": [{"id": "a", "v": None}]})
    sql(replica, f'UPDATE "t" SET v = {value}')  # noqa: S608 (own constants)
    engine = Engine(replica.path)
    wanted = to_hydrate(engine, q("t"), client_tables(tables))
    with pytest.raises(error):
        hydrate(replica.path, wanted, UNLIMITED)
    engine.close()
    replica.close()


# -- adopting ----------------------------------------------------------------------------------

NOTED = q("task", ex("note"), order="rank↑", limit=3, rel=[rel("note")])


def test_an_adopted_pipeline_is_the_one_that_runs(replica: Replica, engine: Engine) -> None:
    hydration = beside(engine, replica, NOTED)
    engine.adopt(hydration)
    assert engine.subscribe(NOTED, ALL).pipeline is hydration.pipeline
    assert engine.request(NOTED, ALL) is hydration.pipeline
    hydration.close()


def test_only_rows_written_meanwhile_are_encoded_again(replica: Replica, engine: Engine) -> None:
    hydration = beside(engine, replica, NOTED)
    fetched = Fetched(engine)
    commit(replica, "n1.body:=new")
    engine.advance()
    group = Group(engine, ALL)
    group.add("q", NOTED, hydration)
    hydration.close()
    assert len(fetched.rows) == 1
    assert [row["body"] for row in group.store.values() if row["id"] == "n1"] == ["new"]


def test_a_truncated_table_is_empty_after_adopting(replica: Replica, engine: Engine) -> None:
    query = q("task", rel=[rel("note")])
    hydration = beside(engine, replica, query)
    commit(replica, "truncate note, ins n9(t2)")
    engine.advance()
    group = Group(engine, ALL)
    group.add("q", query, hydration)
    hydration.close()
    notes = [key for table, key in group.store if table == "note"]
    assert notes == [json.dumps({"id": "n9"}, separators=(",", ":"))]


@pytest.mark.parametrize(
    "statement",
    [
        'INSERT INTO "_zero.changeLog" (version, "table", row, op) '
        "VALUES ('zz', 'task', 0, 'r'); UPDATE \"_zero.replicationState\" "
        "SET logPos = logPos + 1, stateVersion = 'zz'",
        "UPDATE \"_zero.replicationConfig\" SET replicaVersion = 'zz'",
    ],
    ids=["schema", "generation"],
)
def test_what_cannot_be_followed_is_hydrated_anew(
    replica: Replica, engine: Engine, statement: str
) -> None:
    hydration = beside(engine, replica, NOTED)
    commit(replica, "t1.rank:=99")
    sql(replica, statement)
    advance = engine.advance()
    assert advance is not None
    assert advance.reset
    engine.adopt(hydration)
    assert engine.pipeline_count == 0
    assert engine.subscribe(NOTED, ALL).pipeline is not hydration.pipeline
    hydration.close()


def test_a_log_trimmed_behind_a_slow_hydration_is_noticed(replica: Replica, engine: Engine) -> None:
    """The engine kept up, the hydration did not."""
    hydration = beside(engine, replica, NOTED)
    commit(replica, "t1.rank:=99")
    engine.advance()
    sql(replica, "UPDATE \"_zero.replicationState\" SET logFloor = logPos, stateVersion = 'zz'")
    advance = engine.advance()
    assert advance is not None
    assert not advance.reset
    engine.adopt(hydration)
    assert engine.pipeline_count == 1
    subscription = engine.subscribe(NOTED, ALL)
    assert subscription.pipeline is hydration.pipeline
    assert any('"rank":99' in text for text in engine.rows(subscription))
    hydration.close()


def test_a_query_that_runs_by_now_keeps_its_pipeline(replica: Replica, engine: Engine) -> None:
    hydration = beside(engine, replica, NOTED)
    running = engine.subscribe(NOTED, ALL)
    engine.adopt(hydration)
    assert engine.subscribe(NOTED, ALL).pipeline is running.pipeline
    hydration.close()


# -- properties --------------------------------------------------------------------------------

STEPS = st.lists(st.lists(w.batches, min_size=1, max_size=2), min_size=1, max_size=5)


def _ask(engine: Engine, query: ast.Query) -> HydrationRequest | None:
    found = engine.request(query, CLIENT)
    return found if isinstance(found, HydrationRequest) else None


def _check(path: Path, group: Group, queries: list[ast.Query]) -> None:
    fresh = Engine(path)
    expected = Group(fresh, CLIENT)
    for name, subscription in group.queries.items():
        rows = expected.add(name, queries[int(name)]).pipeline.rows()
        assert subscription.pipeline.rows() == rows
    assert group.store == expected.store
    fresh.close()


@PROFILE
@given(
    seed=w.seeds,
    queries=st.lists(w.queries(), min_size=1, max_size=3),
    steps=STEPS,
    hydrated=st.lists(st.integers(0, 5), min_size=3, max_size=3),
    waited=st.lists(st.integers(0, 5), min_size=3, max_size=3),
)
def test_adopting_at_any_later_commit_equals_a_fresh_hydration(
    seed: dict[str, list[w.Row]],
    queries: list[ast.Query],
    steps: list[list[list[w.Change]]],
    hydrated: list[int],
    waited: list[int],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = w.World(Path(folder) / "replica.db", seed)
        engine = Engine(world.path)
        group = Group(engine, CLIENT)
        prepared: dict[int, Hydration] = {}
        for step in range(len(steps) + 1):
            if step:
                world.apply(steps[step - 1])
                group.advance()
            for i, query in enumerate(queries):
                start = min(hydrated[i], len(steps))
                wanted = _ask(engine, query) if step == start else None
                if wanted is not None:
                    prepared[i] = hydrate(world.path, wanted, UNLIMITED)
                if step == min(start + waited[i], len(steps)):
                    group.add(str(i), query, prepared.get(i))
            _check(world.path, group, queries)
        for hydration in prepared.values():
            hydration.close()
        engine.close()
        world.close()


def _normal(deltas: dict[Pipeline, Delta], pipelines: list[Pipeline]) -> list[object]:
    return [
        {
            table: (sorted(d.entered), sorted(d.left), sorted(d.edited))
            for table, d in deltas.get(pipeline, {}).items()
            if d
        }
        for pipeline in pipelines
    ]


@PROFILE
@given(
    seed=w.seeds,
    queries=st.lists(w.queries(), min_size=1, max_size=3),
    steps=st.lists(
        st.tuples(st.lists(w.batches, min_size=1, max_size=2), st.booleans()),
        min_size=1,
        max_size=4,
    ),
)
def test_recomputing_and_advancing_give_the_same_delta_and_patches(
    seed: dict[str, list[w.Row]],
    queries: list[ast.Query],
    steps: list[tuple[list[list[w.Change]], bool]],
) -> None:
    """Whatever the measured costs decide, and however often they change their mind."""
    with tempfile.TemporaryDirectory() as folder:
        world = w.World(Path(folder) / "replica.db", seed)
        engines = [Engine(world.path), Engine(world.path)]
        held = [[e.subscribe(query, CLIENT).pipeline for query in queries] for e in engines]
        for transactions, first in steps:
            world.apply(transactions)
            found = []
            for engine, pipelines, early in zip(engines, held, (first, not first), strict=True):
                with mock.patch.object(Pipeline, "rehydrate_is_cheaper", return_value=early):
                    advance = engine.advance()
                assert advance is not None
                patches = [advance.patches.get(p, {}).get(CLIENT) for p in pipelines]
                operations = [p and (sorted(p.dels), sorted(p.puts)) for p in patches]
                found.append((_normal(advance.deltas, pipelines), operations))
            assert found[0] == found[1]
        for engine in engines:
            engine.close()
        world.close()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 2000),
    row_s=st.floats(1e-7, 1e-3),
    hydration_s=st.floats(1e-5, 1.0),
)
def test_the_cheaper_way_is_chosen_once_the_batch_is_large(
    rows: int, row_s: float, hydration_s: float
) -> None:
    pipeline = mock.Mock(spec=Pipeline, _row_s=row_s, hydration_s=hydration_s)
    touch = mock.Mock(size=lambda: rows)
    cheaper = Pipeline.rehydrate_is_cheaper(pipeline, touch, 256, 2.0)
    assert cheaper == (rows >= 256 and rows * row_s > 2.0 * hydration_s)
