"""What is made for one who comes back is there for the next, as long as it is of any use."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view_syncer.ivm.cases import c, q
from tests.view_syncer.ivm.replica import Change, Replica, Row, Table, client_tables
from view_syncer import differences
from view_syncer.cvr.facts import RowKey
from view_syncer.fan_out import FanOut, FullView, Prepared, Reconciled
from view_syncer.ivm.engine import Engine
from view_syncer.membership import MembershipLog
from zerocache.protocol.versions import Watermark
from zerocache.zql.ast import Query

TABLES = {"task": Table({"id": "text", "title": "text"}, ("id",))}
CLIENT = client_tables(TABLES)
ALL = q("task")
NOTHING: frozenset[RowKey] = frozenset()


class World:
    """Groups whose clients come back with what they held."""

    def __init__(self, path: Path) -> None:
        rows: list[Row] = [{"id": f"t{i}", "title": "x" * 100} for i in range(10)]
        self.replica = Replica(path, TABLES, {"task": rows})
        self.engine = Engine(self.replica.path)
        self.log = MembershipLog()
        self.fan_out = FanOut(self.log)

    def run(self, group: str, query: Query = ALL) -> Reconciled:
        return self.fan_out.reconcile(
            self.engine, group, CLIENT, {"q": query}, set(), {}, Prepared()
        )

    def back(self, group: str, held: frozenset[RowKey] = NOTHING, base: str = "00") -> FullView:
        """As the first who comes so, and as the second."""
        self.back_once(group, held, base)
        return self.back_once(group, held, base)

    def back_once(self, group: str, held: frozenset[RowKey], base: str) -> FullView:
        return self.fan_out.difference(self.engine, group, CLIENT, held, Watermark(base))

    def drop(self, group: str) -> None:
        self.fan_out.drop(self.engine, group)
        # Whoever else remembers what ran.
        self.log.take_due(all_due=True)
        self.engine.take_new_plans()
        gc.collect()

    def advance(self, *changes: Change) -> None:
        self.replica.commit(changes)
        advance = self.engine.advance()
        assert advance is not None
        self.fan_out.updates(advance)

    @property
    def kept(self) -> differences.Differences:
        return self.fan_out._differences

    def close(self) -> None:
        self.engine.close()
        self.replica.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    one = World(tmp_path / "replica.db")
    yield one
    one.close()


def test_groups_that_have_the_same_way_to_go_share_it(world: World) -> None:
    for group in "ab":
        world.run(group)
    first, second = world.back("a"), world.back("b")
    assert len(first.puts) == 10
    assert second.puts is first.puts
    assert second.dels is first.dels
    assert world.back("a", frozenset({"gone"})).dels == ["gone"]
    assert len(world.kept) == 2


def test_groups_that_begin_with_the_same_queries_are_sent_the_same(world: World) -> None:
    made = [world.run(group).puts for group in "abc"]
    assert len(made[0]) == 10
    assert [*made[1]] == [*made[0]]
    assert made[2] is made[1]
    assert world.run("d", q("task", where=c("id", "=", "t1"))).puts == [
        put for put in made[0] if '"t1"' in put
    ]
    world.advance(Change("put", "task", {"id": "t1", "title": "new"}))
    after = [world.run(group).puts for group in "efg"]
    assert after[2] is after[1]
    assert sorted(after[2]) != sorted(made[2])
    assert len(after[2]) == 10


def test_what_only_one_asks_for_is_not_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "MAX_ASKED", 3)
    world.run("a")
    for n in range(1, 9):
        world.back_once("a", NOTHING, f"0{n}")
    assert len(world.kept) == 0
    assert len(world.kept._asked) <= 3
    world.back_once("a", NOTHING, "08")
    assert len(world.kept) == 1


def test_what_is_kept_is_bounded_by_number(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "MAX_DIFFERENCES", 3)
    world.run("a")
    made = [world.back("a", base=f"0{n}").puts for n in range(5)]
    assert len(world.kept) == 3
    for n, puts in enumerate(made):
        if n >= 2:
            assert world.back("a", base=f"0{n}").puts is puts
    # Those made first have gone, and are made again.
    again = world.back("a", base="00").puts
    assert again is not made[0]
    assert [*again] == [*made[0]]


def test_what_is_kept_is_bounded_by_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.run("a")
    world.back("a")
    one = world.kept.bytes
    assert one > 10 * 100
    monkeypatch.setattr(differences, "MAX_DIFFERENCE_BYTES", 3 * one)
    for n in range(1, 9):
        last = world.back("a", base=f"0{n}").puts
        assert world.kept.bytes <= 3 * one
    assert len(world.kept) == 3
    assert world.back("a", base="08").puts is last


def test_one_that_is_too_large_is_made_again_and_drives_out_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run("a")
    small = world.back("a").puts
    monkeypatch.setattr(differences, "MAX_DIFFERENCE_BYTES", world.kept.bytes)
    held = frozenset({"gone", "gone too"})
    large = world.back("a", held)
    again = world.back("a", held)
    assert sorted(again.dels) == sorted(large.dels) == ["gone", "gone too"]
    assert again.puts is not large.puts
    assert world.back("a").puts is small


def test_query_that_ended_is_not_remembered_by_its_differences(world: World) -> None:
    """Though the replica is silent, so that there is no next version."""
    some = q("task", where=c("id", "=", "t1"))
    world.run("a")
    world.run("b", some)
    kept = world.back("a").puts
    assert len(world.back("b").puts) == 1
    pipelines = {s.pipeline for s in world.fan_out._groups["b"].client.values()}
    (ended,) = (weakref.ref(pipeline) for pipeline in pipelines)
    pipelines.clear()
    size = world.kept.bytes
    world.drop("b")
    assert ended() is None
    assert len(world.kept) == 1
    assert 0 < world.kept.bytes < size
    assert world.back("a").puts is kept


def test_nothing_is_remembered_of_an_older_version(world: World) -> None:
    """Also when nobody comes back any more."""
    world.run("a")
    before = world.back("a").puts
    world.advance(Change("put", "task", {"id": "t1", "title": "new"}))
    assert len(world.kept) == 0
    assert world.kept.bytes == 0
    assert sorted(world.back("a").puts) != sorted(before)


def test_nothing_is_remembered_of_an_engine_that_starts_over(world: World) -> None:
    world.run("a")
    world.back("a")
    world.fan_out.void(world.engine.version)
    assert len(world.kept) == 0
