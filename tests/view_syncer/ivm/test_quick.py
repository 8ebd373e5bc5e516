"""Queries that the engine hydrates itself: which, what comes of them, and which are given up."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view_syncer.ivm.cases import c, q, rel
from tests.view_syncer.ivm.group import to_hydrate
from tests.view_syncer.ivm.replica import Change, Replica, Row
from tests.view_syncer.test_hydrator import CLIENT, TABLES, endless
from view_syncer.ivm import quick
from view_syncer.ivm.engine import Engine
from view_syncer.ivm.hydration import HydrationLimits, HydrationRequest, hydrate
from view_syncer.ivm.quick import MOST_PASSED_OVER, QuickTries
from zerocache.zql import ast

SMALL = q("task", where=c("id", "=", "t1"))


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    rows: list[Row] = [{"id": f"t{i}", "rank": i % 7, "title": "x"} for i in range(2000)]
    one = Replica(tmp_path / "replica.db", TABLES, {"task": rows})
    yield one
    one.close()


@pytest.fixture
def engine(replica: Replica) -> Iterator[Engine]:
    one = Engine(replica.path)
    yield one
    one.close()


def request(engine: Engine, query: ast.Query) -> HydrationRequest:
    return to_hydrate(engine, query, CLIENT)


@pytest.mark.parametrize(
    "query",
    [
        SMALL,
        q("task", where=c("rank", "=", 3)),
        q("task", order="title↓ id↑", limit=20),
        q("task", where=c("id", "=", "t1"), rel=[rel("task", "rank=rank", "others", limit=5)]),
    ],
    ids=["key", "filter", "window", "related"],
)
def test_it_yields_what_a_hydration_elsewhere_does(
    replica: Replica, engine: Engine, query: ast.Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "QUICK_CPU_S", 60.0)  # however slow the machine is
    monkeypatch.setattr(quick, "QUICK_S", 60.0)
    elsewhere = hydrate(replica.path, request(engine, query), HydrationLimits())
    begun = engine.start_quickly(request(engine, query), 300)
    assert begun is not None
    assert begun.rows() == elsewhere.pipeline.rows() != {}
    assert engine.subscribe(query, CLIENT).pipeline is begun
    elsewhere.close()


def test_one_that_takes_long_is_given_up_and_leaves_nothing(engine: Engine) -> None:
    version = engine.version
    assert engine.start_quickly(request(engine, endless(0)), 300) is None
    assert engine.pipeline_count == 0
    assert engine.db.in_transaction  # still the snapshot of before
    assert engine.version == version
    assert engine.start_quickly(request(engine, SMALL), 300) is not None


@pytest.mark.parametrize("query", [q("task"), q("task", limit=1000)], ids=["plain", "window"])
def test_one_of_many_rows_is_given_up(engine: Engine, query: ast.Query) -> None:
    assert engine.start_quickly(request(engine, query), 300) is None
    assert engine.pipeline_count == 0


def test_a_plan_that_was_tried_in_vain_is_passed_over_for_a_while(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[object] = []
    real = quick.hydrate_quickly

    @functools.wraps(real)
    def counted(*arguments: object) -> object:
        tries.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("view_syncer.ivm.engine.hydrate_quickly", counted)
    for _ in range(6):
        assert engine.start_quickly(request(engine, q("task")), 300) is None
    assert len(tries) == 2  # the first, and the one after four that were passed over
    assert engine.start_quickly(request(engine, SMALL), 300) is not None  # another plan
    assert len(tries) == 3


def test_passing_over_doubles_up_to_a_bound_and_ends_with_a_success(engine: Engine) -> None:
    tries, plan = QuickTries(), request(engine, SMALL).plan
    gaps = []
    for _ in range(8):
        tries.note(plan, succeeded=False)
        gap = 0
        while not tries.worth(plan):
            gap += 1
        gaps.append(gap)
    assert gaps == [4, 8, 16, 32, MOST_PASSED_OVER, MOST_PASSED_OVER, *gaps[6:]]
    assert gaps[-1] == MOST_PASSED_OVER
    tries.note(plan, succeeded=True)
    tries.note(plan, succeeded=False)
    passed_over = 0
    while not tries.worth(plan):
        passed_over += 1
    assert passed_over == 4


def test_what_is_begun_follows_the_commits_until_somebody_joins(
    replica: Replica, engine: Engine
) -> None:
    query = q("task", where=c("rank", "=", 3))
    begun = engine.start_quickly(request(engine, query), 300)
    assert begun is not None
    before = begun.row_count()
    replica.commit([Change("put", "task", {"id": "t3", "rank": 4, "title": "x"})])
    engine.advance()
    assert begun.row_count() == before - 1
    engine.drop_unused(begun)
    assert engine.pipeline_count == 0
