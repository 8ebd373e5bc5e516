"""Pipelines: net deltas over all levels, recomputation, and what they tell their router."""

from __future__ import annotations

from collections.abc import Collection, Iterator
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
from view_syncer.ivm.pipeline import Delta, Pipeline, TableDelta, Touch, changed_since
from view_syncer.ivm.plan import Partition, make_plan
from view_syncer.ivm.routing import Router
from view_syncer.ivm.snapshot import SnapshotReader
from zerocache.replica.reader import load_schema
from zerocache.zql import ast
from zerocache.zql.shape import lift

REPORTS = "id=boss"


class Stand:
    """One pipeline, routed and advanced by hand."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.old, self.new = SnapshotReader(replica.path), SnapshotReader(replica.path)
        self.old.begin()
        self.schema = load_schema(self.old.db)
        self.router = Router(self.schema)
        self.support: dict[int, set[Partition]] = {}

    def start(self, query: ast.Query) -> Pipeline:
        instance = lift(query, self.schema, {})
        self.pipeline = Pipeline(make_plan(instance.shape, self.schema), instance)
        self.pipeline.hydrate(self.old.db)
        self.router.add(self.pipeline)
        self.pipeline.attach(self._listen)
        return self.pipeline

    def _listen(
        self,
        pipeline: Pipeline,
        level: int,
        gained: Collection[Partition],
        lost: Collection[Partition],
    ) -> None:
        known = self.support.setdefault(level, set())
        assert known.isdisjoint(gained)
        assert known.issuperset(lost)
        self.support[level] = (known | set(gained)) - set(lost)
        self.router.on_support(pipeline, level, gained, lost)

    def apply(self, *commits: str, recompute: bool = False) -> Delta:
        for commit in commits:
            self.replica.commit(changes(commit, self.replica))
        self.new.begin()
        batch = read_batch(self.old, self.new, self.router.watched())
        if recompute:
            delta = self.pipeline.rehydrate(self.new.db, batch.old_version)
        else:
            touch = self.router.route(batch, self.new.db).get(self.pipeline, Touch())
            delta = self.pipeline.apply(self.new.db, touch, batch)
        self.old, self.new = self.new, self.old
        self.check()
        return delta

    def check(self) -> None:
        """The invariant: as if hydrated now; and the router knows every supported partition."""
        fresh = Pipeline(self.pipeline.plan, self.pipeline.instance)
        fresh.hydrate(self.old.db)
        assert self.pipeline.rows() == fresh.rows()
        for mine, other in zip(self.pipeline.levels, fresh.levels, strict=True):
            assert mine.support == other.support
            if mine.level.parent is not None:
                assert self.support.get(mine.level.index, set()) == mine.support.keys()

    def close(self) -> None:
        self.old.close()
        self.new.close()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    replica = Replica(tmp_path / "r.db", TABLES, seed_rows())
    one = Stand(replica)
    yield one
    one.close()
    replica.close()


def entered(*rows: int) -> TableDelta:
    return TableDelta(entered=set(rows))


def left(*rows: int) -> TableDelta:
    return TableDelta(left=set(rows))


def edited(*rows: int) -> TableDelta:
    return TableDelta(edited=set(rows))


def test_rows_are_the_union_of_all_levels(stand: Stand) -> None:
    pipeline = stand.start(q("person", c("id", "=", "u1"), rel=[rel("person", REPORTS)]))
    assert pipeline.rows() == {"person": {1, 2, 3}}
    assert pipeline.row_count() == 3
    assert pipeline.holds("person", 2)
    assert not pipeline.holds("person", 4)
    assert not pipeline.holds("task", 1)


def test_a_row_that_changes_levels_is_edited_not_replaced(stand: Stand) -> None:
    stand.start(q("person", c("id", "=", "u1"),
                  rel=[rel("person", REPORTS, rel=[rel("person", REPORTS)])]))  # fmt: skip
    assert stand.apply("u4.boss:=u1") == {"person": edited(4)}


def test_a_row_that_gains_a_second_place_is_edited_once(stand: Stand) -> None:
    stand.start(q("person", c("id", "=", "u1"), rel=[rel("person", REPORTS)]))
    assert stand.apply("u1.boss:=u1") == {"person": edited(1)}


def test_a_row_that_loses_one_of_two_places_unchanged_is_no_news(stand: Stand) -> None:
    stand.start(q("task", c("id", "IN", ["t1", "t4"]), rel=[rel("person", "owner=id")]))
    assert stand.apply("del t1") == {"task": left(1)}


def test_a_parent_that_moves_on_swaps_its_children(stand: Stand) -> None:
    stand.start(q("task", c("title", "=", "a"), rel=[rel("note")]))
    assert stand.apply("t1=>t6, n3.task:=t6") == {
        "task": edited(1),
        "note": TableDelta(entered={3}, left={1, 2}),
    }


def test_a_change_that_cancels_out_leaves_only_the_contents(stand: Stand) -> None:
    stand.start(q("task", c("rank", "=", 20), rel=[rel("note")]))
    assert stand.apply("t5.rank:=7, t5.rank:=20") == {"task": edited(5)}
    assert stand.apply("ins t9(null,null,20), del t9") == {}


def test_an_edit_reaches_a_row_however_many_places_it_has_once(stand: Stand) -> None:
    stand.start(q("task", rel=[rel("note", rel=[rel("person", "author=id")])]))
    assert stand.apply("u1.name:=Anna") == {"person": edited(1)}


def test_several_commits_in_one_batch_give_their_net_effect(stand: Stand) -> None:
    stand.start(q("task", ex("note"), rel=[rel("person", "owner=id")]))
    delta = stand.apply("ins n8(t3)", "t3.owner:=u4", "del n8", "del n5")
    assert delta == {"task": left(5), "note": left(5), "person": left(3)}


def test_rows_behind_not_exists_and_permissions_are_no_level(stand: Stand) -> None:
    hidden = ex("person", None, "owner=id")
    behind = ast.Exists(
        "EXISTS", ast.CorrelatedSubquery(hidden.related.correlation, hidden.related.subquery,
                                         system="permissions"))  # fmt: skip
    pipeline = stand.start(q("task", all_of(nex("note"), behind)))
    assert [level.table for level in pipeline.plan.levels] == ["task"]
    assert stand.apply("ins n8(t4)") == {"task": left(4)}
    assert stand.apply("del n8, del u1") == {}


def test_witnesses_of_every_branch_are_kept_for_emitted_rows_only(stand: Stand) -> None:
    pipeline = stand.start(q("task", any_of(c("title", "=", "d"), ex("note", c("body", "=", "x")))))
    assert pipeline.rows() == {"task": {1, 2, 4, 5}, "note": {1, 3, 5}}
    assert stand.apply("ins n8(t3,null,y), ins n9(t4,null,x)") == {"note": entered(7)}


def test_at_most_three_witnesses_with_the_lowest_keys_are_kept(stand: Stand) -> None:
    stand.start(q("task", all_of(c("id", "=", "t1"), ex("note"))))
    assert stand.apply("ins n0(t1), ins n8(t1)") == {"note": entered(6)}
    assert stand.apply("del n0") == {"note": TableDelta(entered={7}, left={6})}
    assert stand.apply("ins n9(t1)") == {}


def test_a_limited_child_refills_per_parent(stand: Stand) -> None:
    stand.start(q("task", c("id", "IN", ["t1", "t2"]),
                  rel=[rel("note", order="id↓", limit=1)]))  # fmt: skip
    assert stand.apply("del n2") == {"note": TableDelta(entered={1}, left={2})}
    assert stand.apply("n3.task:=t1") == {"note": TableDelta(entered={3}, left={1})}


def test_recomputing_reports_the_same_as_advancing(tmp_path: Path) -> None:
    commits = ["t5.rank:=1, del n1", "n4.task:=t5, u3.name:=C", "truncate note, ins n9(t2)"]
    query = q("task", ex("note"), rel=[rel("note", limit=1), rel("person", "owner=id")])
    seen = []
    for recompute in (False, True):
        replica = Replica(tmp_path / f"{recompute}.db", TABLES, seed_rows())
        stand = Stand(replica)
        stand.start(query)
        seen.append([stand.apply(commit, recompute=recompute) for commit in commits[:2]])
        stand.close()
        replica.close()
    assert seen[0] == seen[1]


def test_recomputing_after_a_truncation(stand: Stand) -> None:
    stand.start(q("task", ex("note"), rel=[rel("note")]))
    delta = stand.apply("truncate note, ins n3(t2,u1,k)", recompute=True)
    assert delta == {
        "task": left(1, 5),
        # The rowid of n1 is that of n3 now: deleted under the old key and put under the new.
        "note": TableDelta(left={2, 3, 4, 5}, edited={1}),
    }


def test_release_withdraws_every_supported_partition(stand: Stand) -> None:
    pipeline = stand.start(q("task", ex("note"), rel=[rel("person", "owner=id")]))
    assert any(stand.support.values())
    pipeline.release()
    assert not any(stand.support.values())


def test_changed_since_knows_rows_written_later(stand: Stand) -> None:
    before = stand.old.version
    stand.replica.commit(changes("t1.rank:=1, t3.rank:=1", stand.replica))
    stand.new.begin()
    assert changed_since(stand.new.db, "task", {1, 2}, before) == {1}
    assert changed_since(stand.new.db, "task", set(), before) == set()


def test_recomputing_pays_only_for_many_rows(stand: Stand) -> None:
    pipeline = stand.start(q("task"))
    few, many = Touch({0: {1, 2}}), Touch({0: set(range(200_000))})
    assert not pipeline.rehydrate_is_cheaper(few, 256, 2.0)
    assert pipeline.rehydrate_is_cheaper(many, 256, 2.0)
