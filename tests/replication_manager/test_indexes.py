"""The keeper of automatic indexes: what it builds, refuses and drops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from replication_manager.indexes import IndexKeeper, IndexLimits
from tests.replica.tables import build_replica
from tests.replication_manager.harness import Replicator, compare
from zerocache.replica import notifier
from zerocache.replica.auto_index import IndexWish, auto_indexes
from zerocache.replica.index_requests import SOCKET_NAME, IndexRequester
from zerocache.replica.notifier import watch_versions
from zerocache.replica.writer import ReplicaWriter

RANK = IndexWish("task", (), (("rank", False),))
TITLE_RANK = IndexWish("task", ("title",), (("rank", False),))
HOUR_MS = 3_600_000


class Clock:
    """Time as the keeper and the writer see it."""

    def __init__(self) -> None:
        self.now_ms = 10 * HOUR_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writer(tmp_path: Path, clock: Clock) -> Iterator[ReplicaWriter]:
    rows = [(i, f"s{i}", f"t{i % 5}", float(i)) for i in range(50)]
    path = build_replica(tmp_path / "replica.db", {"task": rows})
    writer = ReplicaWriter(path, now_ms=clock)
    yield writer
    writer.close()


def keeper(clock: Clock, writer: ReplicaWriter, **limits: Any) -> IndexKeeper:
    made = IndexKeeper(IndexLimits(**limits), now_ms=clock)
    made.open(writer)
    return made


def ask(keeper: IndexKeeper, writer: ReplicaWriter, *wishes: IndexWish) -> list[bool]:
    built = []
    for wish in wishes:
        keeper.submit(wish)
        built.append(keeper.work(writer, lambda: False))
    return built


def names(writer: ReplicaWriter) -> list[str]:
    return [auto.index.name for auto in writer.auto_indexes()]


def test_a_wish_is_built_once(clock: Clock, writer: ReplicaWriter) -> None:
    decides = keeper(clock, writer)
    for wish in (RANK, RANK, TITLE_RANK):
        decides.submit(wish)
    assert [decides.work(writer, lambda: False) for _ in range(3)] == [True, True, False]
    assert names(writer) == [RANK.name, TITLE_RANK.name]


def test_one_call_builds_one_index(clock: Clock, writer: ReplicaWriter) -> None:
    decides = keeper(clock, writer)
    decides.submit(RANK)
    decides.submit(TITLE_RANK)
    assert decides.work(writer, lambda: False)
    assert names(writer) == [RANK.name]


def test_what_upstreams_index_serves_is_not_built(clock: Clock, writer: ReplicaWriter) -> None:
    title = IndexWish("task", ("title",))
    slug = IndexWish("task", ("slug", "title"))  # slug is unique
    assert ask(keeper(clock, writer), writer, title, slug) == [False, False]
    assert names(writer) == []


@pytest.mark.parametrize(
    "wish",
    [
        IndexWish("nowhere", ("a",)),
        IndexWish("task", ("nothing",)),
        IndexWish("task", ()),
        IndexWish("task", ("title",), (("title", True),)),
        IndexWish("_zero.changeLog", ("row",)),
    ],
    ids=["unknown table", "unknown column", "no column", "a column twice", "internal table"],
)
def test_impossible_wishes_are_ignored(
    clock: Clock, writer: ReplicaWriter, wish: IndexWish
) -> None:
    assert ask(keeper(clock, writer), writer, wish) == [False]
    assert names(writer) == []


def test_a_wider_index_replaces_its_own_beginning(clock: Clock, writer: ReplicaWriter) -> None:
    wider = IndexWish("task", (), (("rank", False), ("title", False)))
    assert ask(keeper(clock, writer), writer, RANK, wider, RANK) == [True, True, False]
    assert names(writer) == [wider.name]


@pytest.mark.parametrize("limits", [{"rows": 49}, {"size_bytes": 100}, {"columns": 1}])
def test_bounds_on_one_index(clock: Clock, writer: ReplicaWriter, limits: dict[str, int]) -> None:
    assert ask(keeper(clock, writer, **limits), writer, TITLE_RANK) == [False]
    assert names(writer) == []


def test_a_build_over_budget_is_given_up_for_good(tmp_path: Path, clock: Clock) -> None:
    rows = [(i, f"s{i}", f"t{i % 5}", float(i)) for i in range(100_000)]
    writer = ReplicaWriter(build_replica(tmp_path / "large.db", {"task": rows}), now_ms=clock)
    decides = keeper(clock, writer, build_s=0.0)
    assert ask(decides, writer, RANK, RANK) == [False, False]
    assert names(writer) == []
    assert not writer.in_transaction
    writer.close()


def test_at_the_limit_the_index_asked_for_longest_ago_makes_room(
    clock: Clock, writer: ReplicaWriter
) -> None:
    decides = keeper(clock, writer, count=2)
    ask(decides, writer, RANK, TITLE_RANK)
    clock.now_ms += 2 * HOUR_MS
    ask(decides, writer, RANK)  # still in use
    wish = IndexWish("task", (), (("slug", False), ("rank", False)))
    assert ask(decides, writer, wish) == [True]
    assert TITLE_RANK.name not in names(writer)
    assert len(names(writer)) == 2


def test_an_index_in_use_is_not_dropped_for_another(clock: Clock, writer: ReplicaWriter) -> None:
    decides = keeper(clock, writer, count=1)
    assert ask(decides, writer, TITLE_RANK, RANK) == [True, False]
    assert names(writer) == [TITLE_RANK.name]
    clock.now_ms += 2 * HOUR_MS
    assert ask(decides, writer, RANK) == [True]
    assert names(writer) == [RANK.name]


def test_indexes_survive_a_restart_and_a_lower_limit_drops_the_oldest(
    clock: Clock, writer: ReplicaWriter
) -> None:
    ask(keeper(clock, writer), writer, RANK)
    clock.now_ms += 1
    ask(keeper(clock, writer), writer, TITLE_RANK)
    assert len(names(writer)) == 2
    keeper(clock, writer, count=1)
    assert names(writer) == [TITLE_RANK.name]


def test_switched_off_it_drops_all_and_listens_to_nobody(
    clock: Clock, writer: ReplicaWriter
) -> None:
    ask(keeper(clock, writer), writer, RANK)
    assert ask(keeper(clock, writer, count=0), writer, TITLE_RANK) == [False]
    assert names(writer) == []


def test_nothing_is_built_inside_a_transaction(clock: Clock, writer: ReplicaWriter) -> None:
    decides = keeper(clock, writer)
    writer.begin_transaction("200")
    assert ask(decides, writer, RANK) == [False]
    writer.end_transaction()
    writer.commit()
    assert decides.work(writer, lambda: False)


def in_replica(replicator: Replicator) -> list[str]:
    connection = replicator.connection()
    try:
        return [auto.index.name for auto in auto_indexes(connection)]
    finally:
        connection.close()


async def test_the_process_builds_what_a_worker_asks_for_and_keeps_it(
    new_replicator: Callable[..., Replicator], run_sql: Callable[[str], None]
) -> None:
    run_sql(
        "CREATE TABLE task (id int PRIMARY KEY, title text, rank int);"
        "INSERT INTO task SELECT i, 't' || i % 7, i FROM generate_series(1, 2000) i"
    )
    replicator = new_replicator()
    replicator.start()
    requester = IndexRequester(replicator.directory / SOCKET_NAME)
    versions = watch_versions(replicator.directory / notifier.SOCKET_NAME)
    version = await anext(versions)
    requester.ask([TITLE_RANK])
    # The version is announced again, so that workers come to see the index.
    assert await anext(versions) == version
    assert in_replica(replicator) == [TITLE_RANK.name]
    run_sql("INSERT INTO task VALUES (5000, 't1', -1); UPDATE task SET title = 'x' WHERE id < 9")
    replicator.catch_up()
    rows = replicator.rows("SELECT id FROM task WHERE title = 't1' ORDER BY rank LIMIT 2")
    assert rows == [(5000,), (15,)]
    assert compare(replicator) > 2_000
    await requester.close()
    await versions.aclose()

    assert replicator.stop() == 0
    replicator.start()
    assert in_replica(replicator) == [TITLE_RANK.name]
    assert replicator.stop() == 0
    replicator.config = replicator.config.model_copy(update={"auto_indexes": False})
    replicator.start()
    replicator.wait_until(lambda: in_replica(replicator) == [])
