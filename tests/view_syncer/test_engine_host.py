"""The engine beside the event loop: order of results, sharing, resets."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest
from structlog.testing import capture_logs

from tests.view_syncer.server import Replica, delete_task, edit_task, put_task, until
from view_syncer import engine_host
from view_syncer.engine_host import EngineHost
from view_syncer.fan_out import (
    MOST_QUERIES_AT_ONCE,
    MOST_ROWS_AT_ONCE,
    InternalQuery,
    Switch,
    WorkerAdvance,
)
from view_syncer.ivm.encode import ClientTables, SyncedTable
from view_syncer.ivm.engine import Engine, Subscription
from view_syncer.ivm.hydration import HydrationLimits, HydrationRequest
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.ivm.snapshot import SnapshotReader
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import open_replica
from zerocache.replica.writer import ReplicaWriter
from zerocache.zql.ast import Query, parse_query

TABLES = ClientTables("t", {"task": SyncedTable("task", ("id", "title", "n"), ("id",))})
ALL = Query(table="task")


class Listener:
    def __init__(self) -> None:
        self.advances: list[WorkerAdvance] = []
        self.fatal: list[BaseException] = []
        self._arrived = asyncio.Event()

    def on_advance(self, advance: WorkerAdvance) -> None:
        self.advances.append(advance)
        self._arrived.set()

    async def next(self) -> WorkerAdvance:
        async with asyncio.timeout(10):
            while not self.advances:
                self._arrived.clear()
                await self._arrived.wait()
        return self.advances.pop(0)


@pytest.fixture
async def listener() -> Listener:
    return Listener()


@pytest.fixture
async def host(replica: Replica, listener: Listener) -> AsyncIterator[EngineHost]:
    host = EngineHost(replica.path, listener.on_advance, listener.fatal.append)
    host.start()
    yield host
    await host.close()
    assert listener.fatal == []


def titled(title: str) -> Query:
    where = (
        '{"type":"simple","op":"=","left":{"type":"column","name":"title"},'
        f'"right":{{"type":"literal","value":"{title}"}}}}'
    )
    return parse_query(f'{{"table":"task","where":{where}}}'.encode())


async def test_added_query_brings_its_rows_and_then_its_changes(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    result = await host.reconcile("g", TABLES, {"q": ALL}, ())
    assert result.version == replica.version
    assert (result.added, result.failed, result.dels) == ({"q"}, {}, [])
    assert len(result.puts) == 3
    version = replica.write(edit_task("a", title="A2"), delete_task("b"))
    host.notify()
    advance = await listener.next()
    assert advance.version == version
    (update,) = advance.updates.values()
    assert len(update.dels) == 1
    assert [len(run) for run in update.puts] == [1]


async def test_loop_that_is_busy_gets_few_large_advances_and_no_queue_of_them(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    for number in range(20):
        version = replica.write(edit_task("a", title=str(number)))
        host.notify()
        turned = threading.Event()
        host._jobs.put(turned.set)
        assert turned.wait(10)  # the engine is through with it; this loop did not turn
    assert host._undelivered == engine_host.MAX_UNDELIVERED
    seen = [await listener.next()]
    while seen[-1].version != version:
        seen.append(await listener.next())
    assert len(seen) <= engine_host.MAX_UNDELIVERED + 2
    assert seen[-1].updates
    await until(lambda: host._undelivered == 0)


async def test_second_query_brings_only_rows_the_first_did_not(host: EngineHost) -> None:
    await host.reconcile("g", TABLES, {"one": titled("A")}, ())
    result = await host.reconcile("g", TABLES, {"all": ALL}, ())
    assert len(result.puts) == 2
    result = await host.reconcile("g", TABLES, {}, ["all"])
    assert len(result.dels) == 2


async def test_replaced_query_is_sent_as_a_difference(host: EngineHost) -> None:
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    result = await host.reconcile("g", TABLES, {"q": titled("A")}, ())
    assert (len(result.puts), len(result.dels)) == (0, 2)


async def test_row_another_query_keeps_is_not_deleted(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    await host.reconcile("g", TABLES, {"all": ALL, "one": titled("A")}, ())
    replica.write(edit_task("a", title="other"))
    host.notify()
    (update,) = (await listener.next()).updates.values()
    assert update.dels == []


async def test_groups_that_get_the_same_share_it(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    for group in ("one", "two"):
        await host.reconcile(group, TABLES, {"q": ALL}, ())
    await host.reconcile("three", TABLES, {"q": titled("A")}, ())
    replica.write(edit_task("b", title="B2"))
    host.notify()
    updates = (await listener.next()).updates
    assert set(updates) == {"one", "two"}
    assert updates["one"].share == updates["two"].share


async def test_query_that_cannot_run_fails_alone(host: EngineHost) -> None:
    result = await host.reconcile("g", TABLES, {"good": ALL, "bad": Query(table="nope")}, ())
    assert result.added == {"good"}
    assert isinstance(result.failed["bad"], QueryError)
    assert len(result.puts) == 3


async def test_rows_without_a_json_form_fail_their_query_alone(
    host: EngineHost, replica: Replica, listener: Listener
) -> None:
    replica.write(put_task("big", title="big", n=2**53))
    host.notify()
    await listener.next()
    result = await host.reconcile("g", TABLES, {"all": ALL, "one": titled("A")}, ())
    assert result.added == {"one"}
    assert isinstance(result.failed["all"], UnsafeIntegerError)
    assert len(result.puts) == 1


async def test_query_that_sqlite_refuses_fails_alone_and_leaves_the_rest_as_it_was(
    host: EngineHost,
    replica: Replica,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await host.reconcile("g", TABLES, {"one": titled("A")}, ())

    def refuse(*_: object) -> None:
        raise apsw.SQLError("Expression tree is too large")

    monkeypatch.setattr(Pipeline, "hydrate", refuse)
    result = await host.reconcile("g", TABLES, {"bad": ALL}, ["one"])
    assert isinstance(result.failed["bad"], QueryError)
    assert len(result.dels) == 1
    monkeypatch.undo()
    await host.reconcile("h", TABLES, {"one": titled("A")}, ())
    replica.write(edit_task("a", title="A2"))
    host.notify()
    assert (await listener.next()).updates.keys() == {"h"}


async def test_change_of_queries_that_breaks_half_way_leaves_nobody_in_the_map(
    host: EngineHost,
    replica: Replica,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await host.reconcile("g", TABLES, {"one": titled("A")}, ())

    def fail(*_: object) -> None:
        raise apsw.FullError("the disk is full")

    monkeypatch.setattr(Engine, "deletions", fail)
    with pytest.raises(apsw.FullError):
        await host.reconcile("g", TABLES, {}, ["one"])
    monkeypatch.undo()
    await host.drop("g")
    await host.reconcile("h", TABLES, {"one": titled("A")}, ())
    replica.write(edit_task("a", title="A2"))
    host.notify()
    assert (await listener.next()).updates.keys() == {"h"}


async def test_rows_that_only_a_query_that_cannot_be_sent_would_keep_are_deleted(
    host: EngineHost, replica: Replica, listener: Listener
) -> None:
    other = ClientTables("without n", {"task": SyncedTable("task", ("id", "title"), ("id",))})
    replica.write(put_task("big", title="big", n=2**53))
    host.notify()
    await listener.next()
    # It runs already, so nothing of it is encoded beforehand.
    await host.reconcile("other", other, {"all": ALL}, ())
    await host.reconcile("g", TABLES, {"q": titled("A")}, ())
    result = await host.reconcile("g", TABLES, {"q": ALL}, ())
    assert isinstance(result.failed["q"], UnsafeIntegerError)
    assert len(result.dels) == 1


async def test_advance_that_cannot_be_encoded_names_the_query(
    host: EngineHost, replica: Replica, listener: Listener
) -> None:
    await host.reconcile("g", TABLES, {"all": ALL, "one": titled("A")}, ())
    replica.write(put_task("big", n=2**53))
    host.notify()
    (update,) = (await listener.next()).updates.values()
    assert update.failed.keys() == {"all"}


async def test_where_a_hydration_failed_the_engine_has_been_before_anybody_is_told(
    host: EngineHost, replica: Replica, listener: Listener
) -> None:
    """The commit it failed at may have changed the permissions too."""
    async with host.prepared("g", TABLES, {"all": ALL, "one": titled("A")}) as prepared:
        version = replica.write(put_task("big", title="big", n=2**53))
        prepared.failed["all"] = UnsafeIntegerError("as if it had been hydrated now")
        assert await host.read(lambda engine: engine.version) < version
        queries = {"all": ALL, "one": titled("A")}
        result = await host.reconcile("g", TABLES, queries, (), prepared=prepared)
    assert result.version == version
    assert result.failed.keys() == {"all"}


async def test_full_view_is_everything_once(host: EngineHost, replica: Replica) -> None:
    await host.reconcile("g", TABLES, {"all": ALL, "one": titled("A")}, ())
    view = await host.full_view("g", TABLES)
    assert view.version == replica.version
    assert len(view.puts) == len(set(view.puts)) == 3
    assert (await host.full_view("unknown", TABLES)).puts == []


async def test_dropped_group_hears_nothing_more(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    await host.drop("g")
    await host.drop("g")
    assert await host.read(lambda e: e.pipeline_count) == 0
    replica.write(edit_task("a", title="A2"))
    host.notify()
    assert (await listener.next()).updates == {}


async def test_requests_that_pile_up_are_one_advance(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    for number in range(20):
        version = replica.write(edit_task("a", title=str(number)))
        host.notify()
    last = await listener.next()
    while last.version != version:
        last = await listener.next()
    host.notify()
    assert await host.read(lambda e: e.version) == version
    assert listener.advances == []


async def test_replaced_file_is_opened_and_everything_starts_over(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    copy = replica.path.with_name("copy.db")
    replica.writer.close()
    shutil.copy(replica.path, copy)
    for suffix in ("-wal", "-shm"):
        replica.path.with_name(replica.path.name + suffix).unlink(missing_ok=True)
    copy.rename(replica.path)
    replica.writer = ReplicaWriter(replica.path)
    host.notify()
    advance = await listener.next()
    assert advance.reset
    assert (await host.full_view("g", TABLES)).puts == []
    result = await host.reconcile("g", TABLES, {"q": ALL}, ())
    assert len(result.puts) == 3


async def test_failing_job_fails_its_caller_and_the_thread_lives(host: EngineHost) -> None:
    with pytest.raises(ZeroDivisionError):
        await host.read(lambda _: 1 / 0)
    assert await host.read(lambda engine: engine.replica_version) == "01"


async def test_engine_that_breaks_is_reported(replica: Replica) -> None:
    listener = Listener()
    host = EngineHost(replica.path, listener.on_advance, listener.fatal.append)
    host.start()
    moved = replica.path.rename(replica.path.with_name("moved.db"))
    replica.path.write_bytes(b"no replica")
    host.notify()
    await until(lambda: bool(listener.fatal))
    moved.rename(replica.path)
    await host.close()


async def test_file_that_is_missing_for_a_moment_is_waited_for(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    moved = replica.path.rename(replica.path.with_name("moved.db"))
    host.notify()
    await host.read(lambda engine: engine.version)  # behind the advance
    moved.rename(replica.path)
    assert listener.fatal == []


@pytest.mark.parametrize("late", [False, True], ids=["before", "while it is opened"])
async def test_query_that_is_asked_while_the_file_is_missing_is_served_from_the_old_snapshot(
    replica: Replica, listener: Listener, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    elsewhere = HydrationLimits(quick_rows=0)
    host = EngineHost(replica.path, listener.on_advance, listener.fatal.append, limits=elsewhere)
    host.start()
    away = replica.path.with_name("moved.db")

    def take_away(path: Path) -> apsw.Connection:
        replica.path.rename(away)
        return open_replica(path)

    if late:
        monkeypatch.setattr("view_syncer.ivm.snapshot.open_replica", take_away)
    else:
        replica.path.rename(away)
    async with host.prepared("g", TABLES, {"q": ALL}) as prepared:
        result = await host.reconcile("g", TABLES, {"q": ALL}, (), prepared=prepared)
    assert len(result.puts) == 3
    assert away.exists()
    away.rename(replica.path)
    await host.close()
    assert listener.fatal == []


async def test_query_too_large_for_facts_is_given_up_and_said_so(
    host: EngineHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "MAX_CHECKPOINT_ROWS", 2)
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    (unit,) = await host.take_due(all_due=True)
    with capture_logs() as logs:
        assert await host.members(unit) is None
    (said,) = [entry for entry in logs if entry["event"] == "query_too_large_for_facts"]
    assert (said["table"], said["rows"], said["most"]) == ("task", 3, 2)
    assert await host.take_due(all_due=True) == []


async def test_members_that_are_read_while_the_file_is_missing_hold_nobody_up(
    host: EngineHost, replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader has seen a version that the engine cannot get to."""
    await host.reconcile("g", TABLES, {"q": ALL}, ())
    (unit,) = await host.take_due(all_due=True)
    replica.write(edit_task("a", title="A2"))
    take, away = host._readers.take, replica.path.with_name("moved.db")

    def take_the_last_one() -> SnapshotReader:
        reader = take()
        replica.path.rename(away)
        return reader

    monkeypatch.setattr(host._readers, "take", take_the_last_one)
    async with asyncio.timeout(10):
        assert await host.members(unit) is None
    monkeypatch.undo()
    away.rename(replica.path)
    assert await host.take_due(all_due=True) == [unit]
    members = await host.members(unit)
    assert members is not None
    assert members[0] == replica.version


async def test_query_whose_schema_changes_while_it_hydrates_is_served_from_the_old_snapshot(
    host: EngineHost, replica: Replica
) -> None:
    db = apsw.Connection(str(replica.path))
    db.execute("ALTER TABLE task RENAME COLUMN title TO name")
    db.close()
    async with host.prepared("g", TABLES, {"q": ALL}) as prepared:
        assert prepared.hydrations == []
        result = await host.reconcile(object(), TABLES, {"q": ALL}, (), prepared=prepared)
    assert result.added == {"q"}
    assert result.failed == {}


async def test_quick_query_is_begun_ahead_and_handed_over(host: EngineHost) -> None:
    async with host.prepared("g", TABLES, {"q": ALL}) as prepared:
        assert await host.read(lambda engine: engine.pipeline_count) == 1
        assert prepared.hydrations == []  # no other thread had anything to do with it
        result = await host.reconcile("g", TABLES, {"q": ALL}, (), prepared=prepared)
    assert len(result.puts) == 3
    assert await host.read(lambda engine: engine.pipeline_count) == 1


async def test_commit_between_beginning_and_handing_over_is_in_the_rows(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    async with host.prepared("g", TABLES, {"q": ALL}) as prepared:
        version = replica.write(edit_task("a", title="A2"), delete_task("b"))
        host.notify()
        await listener.next()
        result = await host.reconcile("g", TABLES, {"q": ALL}, (), prepared=prepared)
    assert result.version == version
    assert len(result.puts) == 2
    assert any('"A2"' in put for put in result.puts)


async def test_what_was_begun_and_not_wanted_after_all_ends(host: EngineHost) -> None:
    async with host.prepared("g", TABLES, {"q": ALL}):
        pass
    assert await host.read(lambda engine: engine.pipeline_count) == 0


async def test_what_is_begun_for_somebody_who_gives_up_meanwhile_ends(host: EngineHost) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(_: object) -> None:
        entered.set()
        go_on.wait(10)

    blocked = asyncio.create_task(host.read(hold_up))
    await asyncio.to_thread(entered.wait, 10)

    async def ask() -> None:
        async with host.prepared("g", TABLES, {"q": ALL}):
            raise AssertionError("it was cancelled before")

    asking = asyncio.create_task(ask())
    await until(lambda: host._jobs.unfinished == 2)  # what begins it waits behind the other job
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    await blocked
    assert await host.read(lambda engine: engine.pipeline_count) == 0


async def test_advance_goes_before_the_jobs_that_wait(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def hold_up(_: object) -> None:
        entered.set()
        go_on.wait(10)

    await host.reconcile("g", TABLES, {"q": ALL}, ())
    blocked = asyncio.create_task(host.read(hold_up))
    await asyncio.to_thread(entered.wait, 10)
    asked = asyncio.create_task(host.read(lambda engine: engine.version))
    await until(lambda: host._jobs.unfinished == 2)
    version = replica.write(edit_task("a", title="A2"))
    host.notify()
    go_on.set()
    await blocked
    assert await asked == version
    assert (await listener.next()).version == version


async def test_advance_that_fails_inside_another_job_is_reported_too(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pipelines may be between two versions then, whoever asked for it."""
    listener = Listener()
    host = EngineHost(replica.path, listener.on_advance, listener.fatal.append)
    host.start()

    def fail() -> None:
        raise ArithmeticError("half-way")

    monkeypatch.setattr(host._engine, "advance", fail)
    with pytest.raises(ArithmeticError):
        await host.read(lambda _: host._advance())
    await until(lambda: bool(listener.fatal))
    await host.close()


INTERNAL = {"own": InternalQuery("task", TABLES, "title", "T")}


async def test_event_loop_is_not_held_up_by_many_internal_rows(
    host: EngineHost, listener: Listener, replica: Replica
) -> None:
    """An application that keeps mutation results has any number of them in a group."""
    many = MOST_ROWS_AT_ONCE + 1
    version = replica.write(*[put_task(f"t{n}", title="T") for n in range(many)])
    host.notify()
    await until(lambda: host.state.version == version)
    ran_by: list[int] = []
    rows = Engine.rows

    def observed(engine: Engine, subscription: Subscription) -> Sequence[str]:
        ran_by.append(threading.get_ident())
        return rows(engine, subscription)

    one = parse_query(b'{"table":"task","limit":1}')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "rows", observed)
        async with host.prepared("g", TABLES, {"q": one}, switch=Switch(set(), INTERNAL)) as ready:
            result = ready.result
            if result is None:
                result = await host.reconcile("g", TABLES, {"q": one}, (), INTERNAL, ready)
        assert (len(result.puts), len(result.internal["own"])) == (1, many)
        assert threading.get_ident() not in ran_by
        view = await host.difference("g", TABLES, frozenset(), Watermark(version))
        assert (len(view.puts), len(view.internal["own"])) == (1, many)
        assert threading.get_ident() not in ran_by


@pytest.mark.parametrize("more", [0, 1])
async def test_event_loop_is_not_held_up_by_many_queries(host: EngineHost, more: int) -> None:
    ran_by: set[int] = set()
    request = Engine.request

    def observed(engine: Engine, *args: Any, **options: Any) -> HydrationRequest | Pipeline:
        ran_by.add(threading.get_ident())
        return request(engine, *args, **options)

    queries = {str(n): titled(str(n)) for n in range(MOST_QUERIES_AT_ONCE + more)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "request", observed)
        async with host.prepared("g", TABLES, queries):
            assert (ran_by == {threading.get_ident()}) is (more == 0)
