"""Runs the query engine beside the event loop and fans its results out.

Owns the :class:`Engine` and the :class:`FanOut`, which one job at a time may touch
(:mod:`view_syncer.engine_jobs`). Results reach the event loop in the order in which the engine
produced them, so whoever learns of a subscription at version *v* learns of every later advance
after it. Never does I/O but SQLite; never touches a connection.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import structlog

from view_syncer.cvr.facts import Members, RowKey
from view_syncer.engine_jobs import EngineJobs
from view_syncer.fan_out import (
    MOST_QUERIES_AT_ONCE,
    FanOut,
    FullView,
    Group,
    InternalQuery,
    Prepared,
    QueryKey,
    QueryMeasures,
    Reconciled,
    Switch,
    WorkerAdvance,
    drop_begun,
)
from view_syncer.hydrator import Hydrator
from view_syncer.intake import Intake, Turn
from view_syncer.ivm.encode import ClientTables, Encoder
from view_syncer.ivm.engine import Engine
from view_syncer.ivm.hydration import HydrationLimits, HydrationRequest
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.ivm.snapshot import ReaderPool, SnapshotReader
from view_syncer.membership import MAX_CHECKPOINT_ROWS, MembershipLog, Taken, Unit, UnitId
from zerocache.errors import QueryError
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import Watermark
from zerocache.replica import damage
from zerocache.replica.auto_index import IndexWish
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import Query

log = structlog.get_logger(__name__)
T = TypeVar("T")

MAX_UNDELIVERED = 2
"""Two: the engine works on one advance while the event loop sends the other."""


@dataclass(frozen=True, slots=True)
class EngineState:
    """A version of the replica, the generation it belongs to, and its schema."""

    version: Watermark
    replica_version: Watermark
    schema: ReplicaSchema


class Preparation:
    """Queries on their way, from :meth:`begin` to :meth:`end`, or for the length of an ``async
    with`` block."""

    def __init__(
        self,
        turn: Turn,
        prepared: Prepared,
        prepare: Callable[[], Awaitable[None]],
        release: Callable[[], None],
    ) -> None:
        self._turn = turn
        self._prepared = prepared
        self._prepare = prepare
        self._release = release
        self._begun = False

    async def begin(self) -> Prepared:
        await self._turn.begin()
        self._begun = True
        await self._prepare()
        return self._prepared

    def end(self) -> None:
        """Must follow :meth:`begin`, also if that failed."""
        if self._begun:
            self._release()
        self._turn.end()

    async def __aenter__(self) -> Prepared:
        try:
            return await self.begin()
        except BaseException:
            self.end()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.end()


class EngineHost:
    """Starts the engine thread, has jobs run, and delivers advances.

    * :meth:`notify` asks for an advance; requests that pile up are coalesced;
    * the next advance waits until the event loop took the last one over: a loop that is busy
      sending gets fewer and larger advances, not a queue of them;
    * ``on_advance`` and ``on_fatal`` are called on the event loop;
    * ``on_wishes`` hears, there too, which indexes a plan misses or uses of the engine's own, some
      time after its first hydration and at every :meth:`examine_plans`;
    * the replica file may be replaced under it (a resync): it is reopened and everything reset.
    """

    def __init__(
        self,
        path: str | Path,
        on_advance: Callable[[WorkerAdvance], None],
        on_fatal: Callable[[BaseException], None],
        on_wishes: Callable[[list[IndexWish]], None] | None = None,
        limits: HydrationLimits = HydrationLimits(),  # noqa: B008 (immutable)
        intake: Intake | None = None,
    ) -> None:
        self._path = Path(path)
        self._on_advance = on_advance
        self._on_fatal = on_fatal
        self._on_wishes = on_wishes
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._jobs = EngineJobs(self._loop)
        self._advance_requested = threading.Event()
        # Advances that the event loop has not taken over yet, and whether another is wanted
        # meanwhile; both threads look at them, under the lock.
        self._delivery = threading.Lock()
        self._undelivered = 0
        self._held_back = False
        # While pipelines may be between two versions.
        self._moving = False
        # Before the file is opened: one that is replaced in between then looks replaced.
        self._inode = self._path.stat().st_ino
        with damage.reported(self._path):
            self._engine = Engine(self._path)
        self._state = _state_of(self._engine)
        self._membership = MembershipLog()
        self._fan_out = FanOut(self._membership)
        self._readers = ReaderPool(self._path, max_idle=1)
        self._hydrator = Hydrator(self._path, limits)
        self._quick_rows = min(limits.quick_rows, limits.max_rows or limits.quick_rows)
        self._intake = intake or Intake()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        await self._hydrator.close()
        self._jobs.end()
        await asyncio.to_thread(self._thread.join)
        self._readers.close()

    def notify(self) -> None:
        """A newer version may be ready."""
        if not self._advance_requested.is_set():
            self._advance_requested.set()
            self._jobs.put_aside(self._advance_on_request)

    @property
    def state(self) -> EngineState:
        """Where the engine is, as of the last advance that was delivered: nobody on the event loop
        has an answer of a later one."""
        return self._state

    def prepared(
        self,
        group: Group,
        client: ClientTables,
        queries: Mapping[QueryKey, Query],
        *,
        urgent: bool = False,
        rows: bool = True,
        before: Callable[[], Awaitable[None]] | None = None,
        switch: Switch | None = None,
    ) -> Preparation:
        """Hydrate those of ``queries`` that nobody runs, for a :meth:`reconcile` inside the block;
        on other threads, unless they are over at once. The engine goes on advancing meanwhile.
        Only so many blocks are open at a time; ``urgent`` is for whoever has clients that are
        served. ``rows`` as for :meth:`reconcile`. ``before`` is called before anything is waited
        for that may take long. With a ``switch`` the reconciliation follows at once, if there is
        nothing to wait for; then the result has its outcome."""
        prepared = Prepared(rows=rows)

        async def prepare() -> None:
            requests = await self._begin(group, client, queries, prepared, switch)
            if not requests:
                return
            if before is not None:
                await before()
            hydrating = (self._hydrate(group, key, r, prepared) for key, r in requests.items())
            # All of them are over before any failure is raised, so that no result is left behind.
            for failure in await asyncio.gather(*hydrating, return_exceptions=True):
                if failure is not None:
                    raise failure

        def release() -> None:
            self._hydrator.release(prepared.hydrations)
            if not prepared.reconciled:
                # Behind whatever of it is still under way.
                self._jobs.put(lambda: drop_begun(self._engine, prepared))

        return Preparation(self._intake.turn(urgent=urgent), prepared, prepare, release)

    async def _begin(
        self,
        group: Group,
        client: ClientTables,
        queries: Mapping[QueryKey, Query],
        prepared: Prepared,
        switch: Switch | None,
    ) -> dict[QueryKey, HydrationRequest]:
        rows = self._quick_rows
        call = self._call_short if len(queries) <= MOST_QUERIES_AT_ONCE else self._call
        return await call(
            lambda e: self._fan_out.begin(e, group, client, queries, prepared, rows, switch)
        )

    async def _hydrate(
        self, group: Group, key: QueryKey, request: HydrationRequest, prepared: Prepared
    ) -> None:
        try:
            result = await self._hydrator.hydrate(group, request)
        except (apsw.SQLError, FileNotFoundError) as error:
            # The schema changed under it, or the file is being replaced. The engine still has the
            # old snapshot, or the new schema by now: either way it can hydrate this one itself.
            log.info("hydration_outdated", reason=str(error))
            return
        if isinstance(result, QueryError):
            prepared.failed[key] = result
        else:
            prepared.hydrations.append(result)

    async def reconcile(
        self,
        group: Group,
        client: ClientTables,
        add: Mapping[QueryKey, Query],
        remove: Iterable[QueryKey],
        internal: Mapping[QueryKey, InternalQuery] | None = None,
        prepared: Prepared | None = None,
    ) -> Reconciled:
        """Start and stop queries of a group. A key in both ``add`` and the running set is
        replaced; its rows are only sent as far as they differ. If what is ``prepared`` was asked
        for without rows the answer has none: they will be asked for by other means."""
        removed = set(remove)
        ready = prepared or Prepared()

        def job(engine: Engine) -> Reconciled:
            engine = self._adopt(engine, ready)
            return self._fan_out.reconcile(
                engine, group, client, add, removed, internal or {}, ready
            )

        result = await self._call(job)
        ready.reconciled = True
        return result

    async def full_view(self, group: Group, client: ClientTables) -> FullView:
        return await self._call(lambda e: self._fan_out.full_view(e, group))

    async def difference(
        self, group: Group, client: ClientTables, held: frozenset[RowKey], base: Watermark
    ) -> FullView:
        """What a client that has the rows ``held`` of version ``base`` needs to have it all."""

        def difference(engine: Engine) -> FullView:
            return self._fan_out.difference(engine, group, client, held, base)

        def if_short(engine: Engine) -> FullView | None:
            return difference(engine) if self._fan_out.is_short(group, held) else None

        view = await self._call_short(if_short)
        return await self._call(difference) if view is None else view

    async def take_moves(self, keep_ended_s: float = math.inf) -> Taken:
        """What moved in and out of the queries here since the last call, and which units that
        ended so long ago are to be forgotten."""
        return await self._call(lambda e: self._membership.take(e.version, keep_ended_s))

    async def take_due(self, *, all_due: bool = False) -> list[UnitId]:
        """Units that are to be written down now by :meth:`members`; with ``all_due`` also young
        ones."""
        return await self._call(lambda _: self._membership.take_due(all_due=all_due))

    def has_unwritten(self) -> bool:
        """Whether units wait for their first :meth:`members`."""
        return self._membership.waiting()

    async def members(self, unit: UnitId) -> tuple[Watermark, Members] | None:
        """The rows of a unit and their version; None if it is gone, or cannot be written down.
        Named on another thread, on a snapshot of its own."""
        pinned = await self._call(lambda _: self._pin(unit))
        if pinned is None:
            return None
        try:
            return await asyncio.to_thread(pinned.read, self._readers)
        except QueryError as error:
            # Whoever is to be sent one of its rows is told so.
            log.warning("members_not_named", reason=str(error))
            await self._call(lambda _: self._membership.give_up(pinned.unit))
            return None

    async def drop(self, group: Group) -> None:
        """Release all queries of a group."""
        await self._call(lambda e: self._fan_out.drop(e, group))

    async def measures(self, group: Group) -> dict[QueryKey, QueryMeasures]:
        """Of each running query of a group."""
        return await self._call(lambda _: self._fan_out.measures(group))

    async def digests(self) -> tuple[list[float], list[float]]:
        """How long hydrations and advances of queries took, in ms, as protocol digests."""
        return await self._call(
            lambda e: (e.hydrations_ms.protocol_value(), e.advances_ms.protocol_value())
        )

    def examine_plans(self) -> None:
        """Look at every running plan again: tables grow, and wishes are forgotten."""
        self._jobs.put_aside(lambda: self._examine_later(self._engine.pipeline_of_each_plan()))

    async def read(self, function: Callable[[Engine], T]) -> T:
        """Run a read-only function on the engine thread."""
        return await self._call(function)

    async def _call(self, function: Callable[[Engine], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(partial(self._answer, function, future))
        return await future

    async def _call_short(self, function: Callable[[Engine], T]) -> T:
        """The same for what takes no longer than the event loop may be held up."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put_short(partial(self._answer, function, future))
        return await future

    # -- everything below is run by jobs, but for what it says ---------------------------------

    def _answer(self, function: Callable[[Engine], T], future: asyncio.Future[T]) -> None:
        try:
            with damage.reported(self._path):
                result = function(self._engine)
        except Exception as error:
            self._post(_fail, future, error)
            if self._moving:
                raise  # nobody can build on what that left behind
        else:
            self._post(_resolve, future, result)
        self._examine_later(self._engine.take_new_plans())

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        """In order, whichever thread this is."""
        if threading.get_ident() == self._loop_thread:
            self._loop.call_soon(callback, *args)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _run(self) -> None:
        """The thread's life."""
        try:
            with damage.reported(self._path):
                # Those who are served already go before whoever asks for something.
                self._jobs.run(before=self._advance_on_request)
        except BaseException as error:
            # An advance that failed half-way leaves pipelines between two versions.
            self._post(self._on_fatal, error)
        finally:
            self._engine.close()

    def _examine_later(self, pipelines: Iterable[Pipeline]) -> None:
        """One job each, behind whatever waits already."""
        if self._on_wishes is not None:
            for pipeline in pipelines:
                self._jobs.put_aside(partial(self._examine, pipeline))

    def _examine(self, pipeline: Pipeline) -> None:
        try:
            examination = self._engine.examine(pipeline)
            used = examination.used(self._engine.db)
        except apsw.SQLError as error:
            # The plan is of a schema that is gone; its successor is examined in its turn.
            log.info("plan_not_examined", reason=str(error))
            return
        wishes = [advice.wish for advice in examination.advice]
        wishes += [IndexWish(i.table, (), i.columns) for i in used if i.automatic]
        if wishes:
            assert self._on_wishes is not None
            self._post(self._on_wishes, wishes)

    def _advance_on_request(self) -> None:
        if not self._advance_requested.is_set():
            return
        self._advance_requested.clear()
        with self._delivery:
            self._held_back = self._undelivered >= MAX_UNDELIVERED
            if self._held_back:
                return
        self._advance()

    def _report(self, advance: WorkerAdvance) -> None:
        with self._delivery:
            self._undelivered += 1
        self._post(self._deliver, advance, _state_of(self._engine))

    def _deliver(self, advance: WorkerAdvance, state: EngineState) -> None:
        """On the event loop."""
        self._state = state
        try:
            self._on_advance(advance)
        finally:
            with self._delivery:
                self._undelivered -= 1
                wanted, self._held_back = self._held_back, False
            if wanted:
                self.notify()

    def _advance(self) -> None:
        try:
            inode = self._path.stat().st_ino
        except FileNotFoundError:
            # A resync is about to put the new file in place, and will say so.
            return
        if inode != self._inode:
            self._reopen(inode)
            return
        self._moving = True
        advance = self._engine.advance()
        self._moving = False
        if advance is None:
            return
        reach(Place.ADVANCED)
        self._membership.note(advance)
        if advance.reset:
            self._fan_out.void(advance.old_version)
        updates = {} if advance.reset else self._fan_out.updates(advance)
        result = WorkerAdvance(advance.version, updates, advance.reset)
        self._report(result)

    def _reopen(self, inode: int) -> None:
        replaced, self._engine = self._engine, Engine(self._path)
        self._inode = inode
        self._fan_out.void(replaced.version)
        replaced.close()
        log.info("replica_reopened", version=self._engine.version)
        self._report(WorkerAdvance(self._engine.version, {}, True))

    def _pin(self, unit_id: UnitId) -> _Pinned | None:
        """A snapshot at the engine's version, and the rows of a unit there."""
        unit = self._membership.unit(unit_id)
        if unit is None:
            return None
        rows = unit.pipeline.row_count()
        if rows > MAX_CHECKPOINT_ROWS:
            log.warning(
                "query_too_large_for_facts",
                table=unit.pipeline.plan.levels[0].table,
                rows=rows,
                most=MAX_CHECKPOINT_ROWS,
                effect="who comes back to it is sent all of it again; if these are mutation "
                "results, see that the application deletes those that clients acknowledged",
            )
            self._membership.give_up(unit)
            return None
        reader = self._readers.take()
        try:
            reader.begin()
            while reader.version > (reached := self._engine.version):
                self._advance()
                if self._engine.version <= reached:
                    break  # the file is being replaced: it is another one that goes on
                reader.begin()
        except BaseException:
            reader.close()
            raise
        engine = self._engine
        behind = (reader.version, reader.replica_version) != (
            engine.version,
            engine.replica_version,
        )
        if behind or self._membership.unit(unit_id) is not unit:
            self._readers.give_back(reader)
            self._membership.postpone(unit)
            return None
        since = self._membership.written(unit, engine.version)
        encoder = engine.encoder(unit.client)
        return _Pinned(unit, reader, unit.pipeline.rows(), encoder, since)

    def _adopt(self, engine: Engine, prepared: Prepared) -> Engine:
        """Take in what was hydrated elsewhere; returns the engine, which may be a new one if the
        replica was replaced."""
        behind = any(h.reader.version > engine.version for h in prepared.hydrations)
        # One that failed may have been ahead too, where the permissions are perhaps others.
        if behind or prepared.failed:
            self._advance()
        for hydration in prepared.hydrations:
            self._engine.adopt(hydration)
        return self._engine


@dataclass(frozen=True, slots=True)
class _Pinned:
    """``rows`` as of the snapshot of ``reader``."""

    unit: Unit
    reader: SnapshotReader
    rows: dict[str, set[int]]
    encoder: Encoder
    since: Watermark

    def read(self, readers: ReaderPool) -> tuple[Watermark, Members]:
        """Name the rows; gives the reader back."""
        try:
            keys = self.encoder.keys_by_row(self.reader.db, self.rows)
            named = [key for rows in keys.values() for key in rows.values()]
            return self.reader.version, Members(self.since, named)
        finally:
            readers.give_back(self.reader)


def _state_of(engine: Engine) -> EngineState:
    return EngineState(engine.version, engine.replica_version, engine.schema)


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.cancelled():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(error)
