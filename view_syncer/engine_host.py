"""The engine's thread: runs the query engine beside the event loop and fans its results out.

Owns the one thread that may touch the :class:`Engine`, and the map from pipelines to the client
groups that read them. Results reach the event loop in the order in which the engine produced
them, so whoever learns of a subscription at version *v* learns of every later advance after it.
Never does I/O but SQLite; never touches a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import apsw
import msgspec
import structlog

from view_syncer.hydrator import Hydrator
from view_syncer.ivm.encode import ClientTables, RowPatch
from view_syncer.ivm.engine import Advance, Engine, Subscription
from view_syncer.ivm.hydration import EncodedRows, Hydration, HydrationLimits, HydrationRequest
from view_syncer.ivm.pipeline import Pipeline
from zerocache.errors import QueryError
from zerocache.protocol.versions import Watermark
from zerocache.replica.auto_index import IndexWish
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import Query

log = structlog.get_logger(__name__)
T = TypeVar("T")

QueryKey = str


@dataclass(slots=True)
class GroupUpdate:
    """One client group's share of an advance.

    ``share`` is equal for groups whose patch is made of exactly the same encoded pieces, so its
    frames need to be built only once. ``internal`` holds the patches of internal queries.
    ``failed`` names queries whose rows cannot be sent.
    """

    share: tuple[int, ...]
    dels: list[str] = field(default_factory=list)
    puts: list[list[str]] = field(default_factory=list)
    internal: dict[QueryKey, RowPatch] = field(default_factory=dict)
    failed: dict[QueryKey, QueryError] = field(default_factory=dict)


@dataclass(slots=True)
class WorkerAdvance:
    """An advance as the groups of this worker see it."""

    version: Watermark
    updates: dict[Group, GroupUpdate]
    reset: bool = False


@dataclass(slots=True)
class Reconciled:
    """Outcome of changing a group's set of queries, at ``version``.

    ``added`` queries run now; ``failed`` ones do not. ``puts`` and ``dels`` are the row
    differences against what the group's queries yielded before.
    """

    version: Watermark
    added: set[QueryKey]
    failed: dict[QueryKey, QueryError]
    puts: list[str]
    dels: list[str]
    internal: dict[QueryKey, list[str]]


@dataclass(slots=True)
class FullView:
    """Everything a group's queries yield at ``version``."""

    version: Watermark
    puts: list[str]
    internal: dict[QueryKey, list[str]]


@dataclass(slots=True)
class Prepared:
    """Queries hydrated ahead of a reconciliation, and those that cannot be served."""

    hydrations: list[Hydration] = field(default_factory=list)
    failed: dict[QueryKey, QueryError] = field(default_factory=dict)


class Group(Protocol):
    """What the host needs of a client group: identity only."""

    def __hash__(self) -> int: ...


class _GroupQueries:
    """A group's running queries, owned by the engine thread."""

    def __init__(self) -> None:
        self.client: dict[QueryKey, Subscription] = {}
        self.internal: dict[QueryKey, Subscription] = {}

    def held(self) -> dict[str, set[int]]:
        return _union(s.pipeline for s in self.client.values())


class EngineHost:
    """Starts the engine thread, runs jobs on it, and delivers advances.

    * :meth:`notify` asks for an advance; requests that pile up are coalesced;
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
    ) -> None:
        self._path = Path(path)
        self._on_advance = on_advance
        self._on_fatal = on_fatal
        self._on_wishes = on_wishes
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._advance_requested = threading.Event()
        self._engine = Engine(self._path)
        self._inode = self._path.stat().st_ino
        self._groups: dict[Group, _GroupQueries] = {}
        self._readers: dict[Pipeline, dict[Group, set[QueryKey]]] = {}
        self._hydrator = Hydrator(self._path, limits)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        await self._hydrator.close()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def notify(self) -> None:
        """A newer version may be ready."""
        if not self._advance_requested.is_set():
            self._advance_requested.set()
            self._jobs.put(self._advance)

    async def state(self) -> tuple[Watermark, Watermark, ReplicaSchema]:
        """(version, replica version, schema) of the engine."""
        return await self._call(lambda e: (e.version, e.replica_version, e.schema))

    @contextlib.asynccontextmanager
    async def prepared(
        self, client: ClientTables, queries: Mapping[QueryKey, Query]
    ) -> AsyncIterator[Prepared]:
        """Hydrate those of ``queries`` that nobody runs, on other threads, for a
        :meth:`reconcile` inside the block. The engine goes on advancing meanwhile."""
        prepared = Prepared()
        try:
            requests = await self._call(lambda e: _requests(e, client, queries, prepared.failed))
            results = await asyncio.gather(*map(self._hydrator.hydrate, requests.values()))
            for key, result in zip(requests, results, strict=True):
                if isinstance(result, QueryError):
                    prepared.failed[key] = result
                else:
                    prepared.hydrations.append(result)
            yield prepared
        finally:
            self._hydrator.release(prepared.hydrations)

    async def reconcile(
        self,
        group: Group,
        client: ClientTables,
        add: Mapping[QueryKey, Query],
        remove: Iterable[QueryKey],
        internal: Mapping[QueryKey, tuple[Query, ClientTables]] | None = None,
        prepared: Prepared | None = None,
    ) -> Reconciled:
        """Start and stop queries of a group. A key in both ``add`` and the running set is
        replaced; its rows are only sent as far as they differ."""
        removed = set(remove)
        ready = prepared or Prepared()
        return await self._call(
            lambda e: self._reconcile(e, group, client, add, removed, internal or {}, ready)
        )

    async def full_view(self, group: Group, client: ClientTables) -> FullView:
        return await self._call(lambda e: self._full_view(e, group))

    async def drop(self, group: Group) -> None:
        """Release all queries of a group."""
        await self._call(lambda e: self._drop(e, group))

    async def row_counts(self, group: Group) -> dict[QueryKey, int]:
        """How many rows each running query of a group has."""

        def count(_: Engine) -> dict[QueryKey, int]:
            queries = self._groups.get(group)
            running = {} if queries is None else queries.client
            return {key: s.pipeline.row_count() for key, s in running.items()}

        return await self._call(count)

    def examine_plans(self) -> None:
        """Look at every running plan again: tables grow, and wishes are forgotten."""
        self._jobs.put(lambda: self._examine_later(self._engine.pipeline_of_each_plan()))

    async def read(self, function: Callable[[Engine], T]) -> T:
        """Run a read-only function on the engine thread."""
        return await self._call(function)

    # -- everything below runs on the engine thread ------------------------------------------

    async def _call(self, function: Callable[[Engine], T]) -> T:
        future: asyncio.Future[T] = self._loop.create_future()

        def job() -> None:
            try:
                result = function(self._engine)
            except Exception as error:
                self._post(_fail, future, error)
            else:
                self._post(_resolve, future, result)
            self._examine_later(self._engine.take_new_plans())

        self._jobs.put(job)
        return await future

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException as error:
            # An advance that failed half-way leaves pipelines between two versions.
            self._post(self._on_fatal, error)
        finally:
            self._engine.close()

    def _examine_later(self, pipelines: Iterable[Pipeline]) -> None:
        """One job each, behind whatever waits already."""
        if self._on_wishes is not None:
            for pipeline in pipelines:
                self._jobs.put(partial(self._examine, pipeline))

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

    def _advance(self) -> None:
        self._advance_requested.clear()
        if self._path.stat().st_ino != self._inode:
            self._reopen()
            return
        advance = self._engine.advance()
        if advance is None:
            return
        if advance.reset:
            self._void()
        updates = {} if advance.reset else self._updates(advance)
        result = WorkerAdvance(advance.version, updates, advance.reset)
        self._post(self._on_advance, result)

    def _reopen(self) -> None:
        self._engine.close()
        self._engine = Engine(self._path)
        self._inode = self._path.stat().st_ino
        self._void()
        log.info("replica_reopened", version=self._engine.version)
        self._post(self._on_advance, WorkerAdvance(self._engine.version, {}, True))

    def _void(self) -> None:
        self._groups.clear()
        self._readers.clear()

    def _updates(self, advance: Advance) -> dict[Group, GroupUpdate]:
        updates: dict[Group, GroupUpdate] = {}
        for pipeline, patches in advance.patches.items():
            for group, keys in self._readers.get(pipeline, {}).items():
                queries = self._groups[group]
                for key in keys:
                    internal = queries.internal.get(key)
                    subscription = internal or queries.client[key]
                    patch = patches.get(subscription.client)
                    update = updates.get(group)
                    if update is None:
                        update = updates[group] = GroupUpdate(())
                    if patch is None:
                        update.failed[key] = advance.failed[pipeline, subscription.client]
                    elif internal is not None:
                        update.internal[key] = patch
                    else:
                        self._add_patch(update, patch, pipeline, queries, advance)
                        break  # equal queries under several hashes share one pipeline and patch
        return updates

    def _add_patch(
        self,
        update: GroupUpdate,
        patch: RowPatch,
        pipeline: Pipeline,
        queries: _GroupQueries,
        advance: Advance,
    ) -> None:
        share: tuple[int, ...] = (id(patch),)
        if patch.dels:
            others = {s.pipeline for s in queries.client.values() if s.pipeline is not pipeline}
            kept = [
                text
                for table, rowid, text in patch.dels
                if not any(_stays(p, table, rowid, advance) for p in others)
            ]
            if len(kept) != len(patch.dels):
                share = (id(patch), id(update))
            update.dels.extend(kept)
        update.share += share
        if patch.puts:
            update.puts.append(patch.puts)

    def _reconcile(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        add: Mapping[QueryKey, Query],
        remove: set[QueryKey],
        internal: Mapping[QueryKey, tuple[Query, ClientTables]],
        prepared: Prepared,
    ) -> Reconciled:
        engine = self._adopt(engine, prepared)
        queries = self._groups.setdefault(group, _GroupQueries())
        before = queries.held()
        retired = [
            (key, queries.client.pop(key)) for key in [*remove, *add] if key in queries.client
        ]
        failed: dict[QueryKey, QueryError] = dict(prepared.failed)
        for key, query in add.items():
            if key in failed:
                continue
            try:
                queries.client[key] = self._join(engine, group, key, query, client)
            except QueryError as error:
                failed[key] = error
        result = Reconciled(engine.version, set(add) - failed.keys(), failed, [], [], {})
        for key, (query, tables) in internal.items():
            queries.internal[key] = self._join(engine, group, key, query, tables)
            result.internal[key] = engine.rows(queries.internal[key])
        for hydration in prepared.hydrations:
            engine.drop_unused(hydration.pipeline)
        after = queries.held()
        ready = [hydration.encoded for hydration in prepared.hydrations]
        result.puts = self._encode_new(engine, group, client, before, after, result, ready)
        gone = {t: rows - after.get(t, set()) for t, rows in before.items()}
        result.dels = [text for _, _, text in engine.deletions(client, gone)]
        for key, subscription in retired:
            self._leave(engine, group, key, subscription)
        return result

    def _adopt(self, engine: Engine, prepared: Prepared) -> Engine:
        """Take in what was hydrated elsewhere; returns the engine, which may be a new one if the
        replica was replaced."""
        behind = any(h.reader.version > engine.version for h in prepared.hydrations)
        if behind:
            self._advance()
        for hydration in prepared.hydrations:
            self._engine.adopt(hydration)
        return self._engine

    def _encode_new(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        before: Mapping[str, set[int]],
        after: Mapping[str, set[int]],
        result: Reconciled,
        ready: list[EncodedRows],
    ) -> list[str]:
        """Rows only the new queries brought. If some cannot be sent, find out whose they are."""
        fresh = {t: rows - before.get(t, set()) for t, rows in after.items()}
        try:
            return engine.encode_rows(client, fresh, ready)
        except QueryError:
            puts: list[str] = []
            queries = self._groups[group]
            for key in sorted(result.added):
                subscription = queries.client[key]
                try:
                    puts.extend(engine.rows(subscription))
                except QueryError as error:
                    del queries.client[key]
                    self._leave(engine, group, key, subscription)
                    result.failed[key] = error
            result.added -= result.failed.keys()
            return puts

    def _full_view(self, engine: Engine, group: Group) -> FullView:
        queries = self._groups.setdefault(group, _GroupQueries())
        view = FullView(engine.version, [], {})
        for client in {s.client for s in queries.client.values()}:
            view.puts.extend(engine.encode_rows(client, queries.held()))
        for key, subscription in queries.internal.items():
            view.internal[key] = engine.rows(subscription)
        return view

    def _drop(self, engine: Engine, group: Group) -> None:
        queries = self._groups.pop(group, None)
        if queries is None:
            return
        for key, subscription in [*queries.client.items(), *queries.internal.items()]:
            self._leave(engine, group, key, subscription)

    def _join(
        self, engine: Engine, group: Group, key: QueryKey, query: Query, client: ClientTables
    ) -> Subscription:
        subscription = engine.subscribe(query, client)
        readers = self._readers.setdefault(subscription.pipeline, {})
        readers.setdefault(group, set()).add(key)
        return subscription

    def _leave(
        self, engine: Engine, group: Group, key: QueryKey, subscription: Subscription
    ) -> None:
        pipeline = subscription.pipeline
        readers = self._readers[pipeline]
        queries = self._groups.get(group)
        # A replaced query may have joined the same pipeline again under the same key.
        current = queries.client.get(key) if queries else None
        if current is None or current.pipeline is not pipeline:
            readers[group].discard(key)
            if not readers[group]:
                del readers[group]
            if not readers:
                del self._readers[pipeline]
        engine.unsubscribe(subscription)


def _requests(
    engine: Engine,
    client: ClientTables,
    queries: Mapping[QueryKey, Query],
    failed: dict[QueryKey, QueryError],
) -> dict[QueryKey, HydrationRequest]:
    """What must be hydrated for ``queries``; those that make no sense go into ``failed``."""
    requests: dict[QueryKey, HydrationRequest] = {}
    for key, query in queries.items():
        try:
            request = engine.request(query, client)
        except QueryError as error:
            failed[key] = error
        else:
            if isinstance(request, HydrationRequest):
                requests[key] = request
    return requests


def _stays(pipeline: Pipeline, table: str, rowid: int, advance: Advance) -> bool:
    """Whether another query kept the row through the whole advance. A row it only just entered
    does not count: its put follows the deletion, and its rowid may have belonged to another row."""
    if not pipeline.holds(table, rowid):
        return False
    delta = advance.deltas.get(pipeline, {}).get(table)
    return delta is None or rowid not in delta.entered


def _union(pipelines: Iterable[Pipeline]) -> dict[str, set[int]]:
    held: dict[str, set[int]] = {}
    for pipeline in set(pipelines):
        for table, rows in pipeline.rows().items():
            if table in held:
                held[table] |= rows
            else:
                held[table] = rows
    return held


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.cancelled():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(error)


def decode_rows(rows: Iterable[str]) -> list[Any]:
    """Internal rows (JSON arrays) as Python values."""
    return [msgspec.json.decode(row) for row in rows]
