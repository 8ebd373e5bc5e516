"""Routing: which pipelines a change visits, and above all which it does not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view_syncer.ivm.cases import (
    TABLES,
    all_of,
    any_of,
    c,
    changes,
    ex,
    nex,
    q,
    rel,
    seed_rows,
)
from tests.view_syncer.ivm.replica import Replica
from view_syncer.ivm.changes import read_batch
from view_syncer.ivm.pipeline import Pipeline, Touch
from view_syncer.ivm.plan import make_plan
from view_syncer.ivm.routing import Router
from view_syncer.ivm.snapshot import SnapshotReader
from zerocache.replica.reader import load_schema
from zerocache.zql import ast
from zerocache.zql.shape import lift


class Desk:
    """A router with its pipelines over one replica; answers by the pipelines' names."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.reader = SnapshotReader(replica.path)
        self.reader.begin()
        self.schema = load_schema(self.reader.db)
        self.router = Router(self.schema)
        self.pipelines: dict[str, Pipeline] = {}

    def add(self, name: str, query: ast.Query) -> Pipeline:
        instance = lift(query, self.schema, {})
        plans = {p.plan.shape: p.plan for p in self.pipelines.values()}
        plan = plans.get(instance.shape) or make_plan(instance.shape, self.schema)
        pipeline = Pipeline(plan, instance)
        pipeline.hydrate(self.reader.db)
        self.router.add(pipeline)
        pipeline.attach(self.router.on_support)
        self.pipelines[name] = pipeline
        return pipeline

    def remove(self, name: str) -> None:
        pipeline = self.pipelines.pop(name)
        pipeline.release()
        self.router.remove(pipeline)

    def touched(self, commit: str) -> dict[str, Touch]:
        self.replica.commit(changes(commit, self.replica))
        newer = SnapshotReader(self.replica.path)
        newer.begin()
        batch = read_batch(self.reader, newer, self.router.watched())
        found = self.router.route(batch, newer.db)
        self.reader.close()
        self.reader = newer
        names = {pipeline: name for name, pipeline in self.pipelines.items()}
        return {names[pipeline]: touch for pipeline, touch in found.items()}

    def evaluated(self, commit: str) -> dict[str, set[int]]:
        """Per pipeline the levels that must look at rows again."""
        return {n: set(t.evaluate) for n, t in self.touched(commit).items() if t.evaluate}


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    replica = Replica(tmp_path / "r.db", TABLES, seed_rows())
    one = Desk(replica)
    yield one
    one.reader.close()
    replica.close()


def test_an_equality_is_visited_only_by_rows_with_that_value(desk: Desk) -> None:
    for owner in ("u1", "u2", "u3"):
        desk.add(owner, q("task", c("owner", "=", owner)))
    assert set(desk.touched("t1.title:=new")) == {"u1"}


def test_both_the_old_and_the_new_value_find_their_pipelines(desk: Desk) -> None:
    for owner in ("u1", "u2", "u3"):
        desk.add(owner, q("task", c("owner", "=", owner)))
    assert set(desk.touched("t1.owner:=u2")) == {"u1", "u2"}


def test_several_equalities_must_all_hold(desk: Desk) -> None:
    both = all_of(c("owner", "=", "u1"), c("title", "=", "a"), c("rank", ">", 0))
    desk.add("both", q("task", both))
    assert set(desk.touched("t4.rank:=31")) == set()
    assert set(desk.touched("t1.rank:=11")) == {"both"}


def test_a_list_is_routed_by_its_members(desk: Desk) -> None:
    desk.add("list", q("task", c("id", "IN", ["t1", "t2", "t1"])))
    assert set(desk.touched("t3.rank:=1")) == set()
    assert set(desk.touched("t2.rank:=1")) == {"list"}
    desk.remove("list")
    assert set(desk.touched("t2.rank:=2")) == set()


def test_an_equality_inside_an_or_does_not_route(desk: Desk) -> None:
    desk.add("or", q("task", any_of(c("owner", "=", "u1"), c("rank", "=", 20))))
    assert set(desk.touched("t5.rank:=21")) == {"or"}


def test_numbers_find_their_route_however_they_are_written(desk: Desk) -> None:
    desk.add("twenty", q("task", c("rank", "=", 20)))
    assert set(desk.touched("ins t9(null,null,20.0)")) == {"twenty"}


def test_null_finds_no_equality(desk: Desk) -> None:
    desk.add("u1", q("task", c("owner", "=", "u1")))
    assert set(desk.touched("t3.title:=z")) == set()


def test_an_edit_that_moves_nothing_only_renews_the_contents(desk: Desk) -> None:
    desk.add("q", q("task", c("rank", ">", 5), order="rank↑", limit=2))
    touch = desk.touched("t1.title:=new")["q"]
    assert (touch.evaluate, touch.content) == ({}, {"task": {1}})
    assert touch.size() == 1
    assert desk.evaluated("t1.rank:=11") == {"q": {0}}


def test_child_rows_are_routed_by_the_supported_partitions(desk: Desk) -> None:
    desk.add("t1", q("task", c("id", "=", "t1"), rel=[rel("note")]))
    desk.add("t2", q("task", c("id", "=", "t2"), rel=[rel("note")]))
    assert set(desk.touched("n1.body:=new")) == {"t1"}
    assert desk.evaluated("n1.task:=t2") == {"t1": {1}, "t2": {1}}
    assert set(desk.touched("ins n9(t9)")) == set()


def test_a_row_inside_exists_leads_to_the_rows_that_ask_for_it(desk: Desk) -> None:
    desk.add("q", q("task", ex("note", c("body", "=", "x"))))
    touch = desk.touched("n4.body:=x")["q"]
    assert touch.evaluate[0] == {2}


def test_an_edit_that_cannot_decide_an_exists_climbs_nowhere(desk: Desk) -> None:
    desk.add("q", q("task", nex("note", c("body", "=", "x"))))
    assert desk.touched("n4.author:=u9") == {}
    assert desk.evaluated("n4.task:=t3") == {"q": {0}}


def test_climbing_reaches_only_pipelines_that_route_the_row_found(desk: Desk) -> None:
    for owner in ("u1", "u2"):
        desk.add(owner, q("task", all_of(c("owner", "=", owner), nex("note"))))
    assert desk.evaluated("ins n9(t4)") == {"u1": {0}}


def test_climbing_two_steps(desk: Desk) -> None:
    inner = ex("tag", c("label", "=", "red"))
    desk.add("q", q("task", nex("task_tag", inner)))
    assert desk.touched("g2.label:=red")["q"].evaluate == {0: {1, 5}}


def test_exists_on_a_child_level_evaluates_that_level(desk: Desk) -> None:
    written = ex("person", c("name", "=", "Cy"), "author=id")
    desk.add("q", q("task", rel=[rel("note", where=written)]))
    touch = desk.touched("u1.name:=Cy")["q"]
    assert touch.evaluate == {1: {1, 3, 5}}


def test_what_was_removed_is_visited_no_more(desk: Desk) -> None:
    query = q("task", ex("note"), rel=[rel("note")])
    desk.add("one", query)
    desk.add("two", query)
    desk.remove("one")
    assert set(desk.touched("n1.task:=t3")) == {"two"}
    desk.remove("two")
    assert desk.router.watched() == {}
    assert desk.touched("n1.task:=t1") == {}


def test_only_the_columns_somebody_needs_are_watched(desk: Desk) -> None:
    assert desk.router.watched() == {}
    desk.add("q", q("task", all_of(c("rank", ">", 1), nex("note", c("body", "=", "x")))))
    watched = {table: set(columns) for table, columns in desk.router.watched().items()}
    assert watched == {"task": {"rank", "id"}, "note": {"task", "body"}}


def test_readers_of_a_table_include_those_that_only_test_it(desk: Desk) -> None:
    one = desk.add("q", q("task", nex("note")))
    assert set(desk.router.readers("note")) == {one}
    assert set(desk.router.readers("tag")) == set()
    desk.remove("q")
    assert set(desk.router.readers("note")) == set()
