"""The query engine of one worker: shared pipelines over a replica, advanced commit by commit.

A library of its own: SQLite in, encoded row patches out; no sockets, no asyncio, no Postgres. Not
thread-safe: one thread calls it, and nothing here waits for anything but SQLite.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import structlog

from view_syncer.ivm.advice import Examination, examine
from view_syncer.ivm.changes import Batch, read_batch
from view_syncer.ivm.digest import Digest
from view_syncer.ivm.encode import ClientTables, Encoder, MadeTexts, RowPatch
from view_syncer.ivm.hydration import EncodedRows, Hydration, HydrationRequest
from view_syncer.ivm.pipeline import Delta, Pipeline, Touch, changed_since
from view_syncer.ivm.plan import Plan, make_plan
from view_syncer.ivm.quick import QuickTries, hydrate_quickly
from view_syncer.ivm.routing import Router
from view_syncer.ivm.snapshot import SnapshotReader
from zerocache.errors import QueryError
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import load_schema
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import Query
from zerocache.zql.shape import Instance, Node, lift

log = structlog.get_logger(__name__)

MAX_PLANS = 2_000
"""Plans kept before those that no pipeline uses are dropped."""

MAX_ENCODERS = 256
"""Client schemas whose encoders are kept before those that nobody reads with are dropped."""

REHYDRATE_MIN_ROWS = 256
REHYDRATE_MARGIN = 2.0
IMAGE_ROW_S = 3e-6
"""From this many touched rows on a pipeline is recomputed instead of advanced if its last
hydration was faster, by this factor, than advancing is expected to be. Both costs are measured,
and the margin keeps a pipeline near the break-even point from going back and forth. Before that
the same choice is made for all pipelines of a table together, because a change costs IMAGE_ROW_S
(measured) before it is known whom it concerns."""


@dataclass(eq=False, slots=True)
class Subscription:
    """Somebody's interest in one pipeline, read through one client schema."""

    pipeline: Pipeline
    client: ClientTables


@dataclass(slots=True)
class Advance:
    """Result of moving to a newer version.

    ``patches``: per pipeline that changed and per client schema that reads it; ``deltas``: the
    same as rowids. ``failed``: pairs
    whose rows cannot be encoded, with the reason; their subscribers must be told. ``reset``: the
    schema changed; every subscription is void and must be made anew.
    """

    old_version: Watermark
    version: Watermark
    patches: dict[Pipeline, dict[ClientTables, RowPatch]] = field(default_factory=dict)
    failed: dict[tuple[Pipeline, ClientTables], QueryError] = field(default_factory=dict)
    deltas: dict[Pipeline, Delta] = field(default_factory=dict)
    reset: bool = False


class Engine:
    """Pipelines by instance, reference-counted, all at :attr:`version`."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._current = SnapshotReader(self._path)
        self._spare = SnapshotReader(self._path)
        self._current.begin()
        self.schema: ReplicaSchema = load_schema(self._current.db)
        self._router = Router(self.schema)
        # The schema as plans see it: with the indexes there are at `_schema_cookie`.
        self._planning_schema = self.schema
        self._schema_cookie = self._current.db.pragma("schema_version")
        self._plans: dict[Node, Plan] = {}
        self._max_plans = MAX_PLANS
        # Of every plan that is new since `take_new_plans`, the pipeline it was made for.
        self._new_plans: list[Pipeline] = []
        self._examined: set[Plan] = set()
        self._tries = QuickTries()
        self._pipelines: dict[Instance, Pipeline] = {}
        self._clients: dict[Pipeline, dict[ClientTables, int]] = {}
        self._encoders: dict[ClientTables, Encoder] = {}
        self._max_encoders = MAX_ENCODERS
        # Of all pipelines, also of those that are gone.
        self.hydrations_ms = Digest()
        self.advances_ms = Digest()

    @property
    def version(self) -> Watermark:
        return self._current.version

    @property
    def replica_version(self) -> Watermark:
        return self._current.replica_version

    @property
    def db(self) -> apsw.Connection:
        """The connection at :attr:`version`, for reads beside the pipelines."""
        return self._current.db

    @property
    def pipeline_count(self) -> int:
        return len(self._pipelines)

    def take_new_plans(self) -> list[Pipeline]:
        """One pipeline of each plan made since the last call."""
        taken, self._new_plans = self._new_plans, []
        return taken

    def pipeline_of_each_plan(self) -> list[Pipeline]:
        return list({pipeline.plan: pipeline for pipeline in self._pipelines.values()}.values())

    def examine(self, pipeline: Pipeline) -> Examination:
        """Which indexes the statements of a pipeline use, and which they miss."""
        return examine(pipeline.plan, self._current.db, pipeline.params)

    def lift(self, query: Query, client: ClientTables) -> Instance:
        """The query under :attr:`schema`; all instances of a shape share one object for it."""
        instance = lift(query, self.schema, client.row_keys)
        plan = self._plans.get(instance.shape)
        return instance if plan is None else Instance(plan.shape, instance.params)

    def request(
        self, query: Query | Instance, client: ClientTables, *, rows: bool = True
    ) -> HydrationRequest | Pipeline:
        """The pipeline of ``query`` if it runs, else what a hydration elsewhere needs to know. With
        ``rows`` it is to encode them too. An instance must be of :attr:`schema`."""
        instance = query if isinstance(query, Instance) else self.lift(query, client)
        running = self._pipelines.get(instance)
        if running is not None:
            return running
        encoder = self.encoder(client) if rows else None
        return HydrationRequest(self._plan(instance), instance, self.schema, client, encoder)

    def start_quickly(self, request: HydrationRequest, most_rows: int) -> Pipeline | None:
        """Hydrate here and now if that is over at once and takes no more than ``most_rows`` at one
        level; else None. The caller must subscribe next, or :meth:`drop_unused`."""
        if not self._tries.worth(request.plan):
            return None
        db = self._current.db
        pipeline = hydrate_quickly(db, request.plan, request.instance, most_rows)
        self._tries.note(request.plan, succeeded=pipeline is not None)
        if pipeline is not None:
            self._install(pipeline)
        return pipeline

    def adopt(self, hydration: Hydration) -> None:
        """Take in a pipeline that was hydrated elsewhere, brought to :attr:`version`.

        Does nothing if that is not possible (another schema, a reset in between) or not needed
        (it runs by now): :meth:`subscribe` then does what is left to do. The caller must have
        advanced the engine to the hydration's version at least, and must subscribe next.
        """
        pipeline = hydration.pipeline
        if hydration.schema is not self.schema or pipeline.instance in self._pipelines:
            return
        if hydration.reader.replica_version != self.replica_version:
            return
        try:
            if hydration.reader.version < self.version and not self._catch_up(hydration):
                return
        except apsw.SQLError as error:
            log.warning("hydration_not_caught_up", reason=str(error))
            return
        self._install(pipeline)

    def _catch_up(self, hydration: Hydration) -> bool:
        """Apply to one pipeline what the engine has already seen; False if only a new hydration
        helps."""
        router = Router(self.schema)
        pipeline = hydration.pipeline
        router.add(pipeline)
        pipeline.attach(router.on_support)
        old, new = hydration.reader, self._current
        batch = read_batch(old, new, router.watched())
        if batch.reset:
            return False
        if batch.truncated:
            pipeline.rehydrate(new.db, old.version)
        else:
            touch = router.route(batch, new.db).get(pipeline)
            if touch is not None:
                pipeline.apply(new.db, touch, batch)
        pipeline.release()
        return True

    def _install(self, pipeline: Pipeline) -> None:
        self._router.add(pipeline)
        pipeline.attach(self._router.on_support)
        self._pipelines[pipeline.instance] = pipeline
        self._clients[pipeline] = {}
        self.hydrations_ms.add(pipeline.hydration_s * 1000)
        if pipeline.plan not in self._examined:
            self._examined.add(pipeline.plan)
            self._new_plans.append(pipeline)

    def subscribe(self, query: Query | Instance, client: ClientTables) -> Subscription:
        """Join the pipeline of ``query``, hydrating it here and now if it does not run. An instance
        must be of :attr:`schema`."""
        instance = query if isinstance(query, Instance) else self.lift(query, client)
        pipeline = self._pipelines.get(instance)
        if pipeline is None:
            pipeline = self._start(instance)
        readers = self._clients[pipeline]
        readers[client] = readers.get(client, 0) + 1
        return Subscription(pipeline, client)

    def unsubscribe(self, subscription: Subscription) -> None:
        pipeline = subscription.pipeline
        readers = self._clients.get(pipeline)
        if readers is None:
            return  # voided by a reset
        readers[subscription.client] -= 1
        if not readers[subscription.client]:
            del readers[subscription.client]
        self.drop_unused(pipeline)

    def drop_unused(self, pipeline: Pipeline) -> None:
        """Stop a pipeline that nobody reads."""
        if self._clients.get(pipeline):
            return
        if self._clients.pop(pipeline, None) is not None:
            del self._pipelines[pipeline.instance]
            pipeline.release()
            self._router.remove(pipeline)

    def rows(self, subscription: Subscription) -> Sequence[str]:
        """A ``put`` for every row of the subscription, at :attr:`version`."""
        return self.encode_rows(subscription.client, subscription.pipeline.rows())

    def encode_rows(
        self,
        client: ClientTables,
        rows: Mapping[str, set[int]],
        ready: Collection[EncodedRows] = (),
    ) -> Sequence[str]:
        """A ``put`` for each of ``rows`` (by table), at :attr:`version`; what is ``ready`` from
        before is used as far as it is still true."""
        if not ready:
            return self.encoder(client).puts(self._current.db, rows)
        puts: list[str] = []
        missing: dict[str, set[int]] = {}
        for table, rowids in rows.items():
            left = set(rowids)
            for encoded in ready:
                texts = encoded.tables.get(table, {})
                usable = left & texts.keys()
                if usable and encoded.version != self.version:
                    usable -= changed_since(self._current.db, table, usable, encoded.version)
                puts.extend(texts[rowid] for rowid in usable)
                left -= usable
            missing[table] = left
        puts.extend(self.encoder(client).puts(self._current.db, missing))
        return puts

    def deletions(
        self, client: ClientTables, rows: Mapping[str, set[int]]
    ) -> list[tuple[str, int, str]]:
        """A ``del`` for each of ``rows`` (by table), at :attr:`version`."""
        encoder = self.encoder(client)
        return encoder.dels(self._current.db, rows)

    def keys_by_row(
        self, client: ClientTables, rows: Mapping[str, set[int]]
    ) -> dict[str, dict[int, str]]:
        """What names each of ``rows`` to clients: its ``del``, by table and rowid."""
        return self.encoder(client).keys_by_row(self._current.db, rows)

    def changed_since(self, table: str, rowids: set[int], version: Watermark) -> set[int]:
        """Those of ``rowids`` whose content may differ from what it was at ``version``."""
        if self.schema[table].min_row_version > version:
            return rowids
        if version == self.version:
            return set()
        return changed_since(self._current.db, table, rowids, version)

    def reads(self, subscription: Subscription) -> bool:
        """Whether anybody still follows this pipeline through this client schema."""
        return subscription.client in self._clients.get(subscription.pipeline, ())

    def advance(self) -> Advance | None:
        """Move to the newest commit; None if the snapshot is already there.

        The snapshot is renewed either way: the writer can reset its WAL only when no reader
        depends on it.
        """
        old, new = self._current, self._spare
        new.begin()
        if new.version == old.version and new.replica_version == old.replica_version:
            self._current, self._spare = new, old
            old.end()
            return None
        try:
            result = self._advance(old, new)
        finally:
            old.end()
        self._current, self._spare = new, old
        if result.reset:
            self._reset()
        return result

    def close(self) -> None:
        self._current.close()
        self._spare.close()

    def _start(self, instance: Instance) -> Pipeline:
        pipeline = Pipeline(self._plan(instance), instance)
        pipeline.hydrate(self._current.db)
        self._install(pipeline)
        return pipeline

    def _plan(self, instance: Instance) -> Plan:
        plan = self._plans.get(instance.shape)
        if plan is None:
            self._notice_new_indexes()
            self._forget_idle_plans()
            plan = self._plans[instance.shape] = make_plan(instance.shape, self._planning_schema)
        return plan

    def _forget_idle_plans(self) -> None:
        """Plans outlive their pipelines, because shapes come back; but clients may invent any
        number of them."""
        if len(self._plans) < self._max_plans:
            return
        used = {pipeline.plan for pipeline in self._pipelines.values()}
        self._plans = {shape: plan for shape, plan in self._plans.items() if plan in used}
        self._examined &= used
        self._tries.keep_only(used)
        self._max_plans = max(MAX_PLANS, 2 * len(self._plans))

    def _notice_new_indexes(self) -> None:
        """Plans depend on which indexes there are, and the engine's own come and go without a
        reset. Anything else that changes the schema is followed by one."""
        cookie = self._current.db.pragma("schema_version")
        if cookie != self._schema_cookie:
            self._schema_cookie = cookie
            self._planning_schema = load_schema(self._current.db)

    def _advance(self, old: SnapshotReader, new: SnapshotReader) -> Advance:
        result = Advance(old.version, new.version)
        if new.replica_version != old.replica_version:
            result.reset = True
            return result
        batch = read_batch(old, new, self._router.watched(), self._recomputes)
        if batch.reset:
            result.reset = True
            return result
        if not batch:
            return result
        result.deltas = self._deltas(batch, new, result)
        made: dict[ClientTables, MadeTexts] = {}
        for pipeline, delta in result.deltas.items():
            if delta:
                self._encode(pipeline, delta, old, new, result, made)
        return result

    def _recomputes(self, table: str, rows: int) -> bool:
        """Whether to recompute everything that reads ``table`` instead of looking at ``rows``
        changed rows one by one."""
        if rows < REHYDRATE_MIN_ROWS:
            return False
        seconds = sum(pipeline.hydration_s for pipeline in self._router.readers(table))
        return rows * IMAGE_ROW_S > REHYDRATE_MARGIN * seconds

    def _deltas(self, batch: Batch, new: SnapshotReader, result: Advance) -> dict[Pipeline, Delta]:
        refused: dict[Pipeline, apsw.SQLError] = {}
        touches: dict[Pipeline, Touch | None] = dict(self._router.route(batch, new.db, refused))
        for pipeline, error in refused.items():
            touches.pop(pipeline, None)
            self._give_up(pipeline, error, result)
        for table in batch.truncated:
            touches.update(dict.fromkeys(self._router.readers(table)))
        deltas: dict[Pipeline, Delta] = {}
        for pipeline, touch in touches.items():
            try:
                deltas[pipeline] = self._advance_one(pipeline, touch, batch, new)
            except apsw.SQLError as error:
                # A statement that SQLite does not take is the query's own fault: it must not end
                # the worker, and with it everybody else's.
                self._give_up(pipeline, error, result)
        return deltas

    def _give_up(self, pipeline: Pipeline, error: apsw.SQLError, result: Advance) -> None:
        """A pipeline that is half-way between two versions: all who read it start over."""
        log.warning("query_given_up", reason=str(error))
        failure = QueryError(f"the query cannot be followed ({error}); make it simpler")
        result.patches[pipeline] = {}
        for client in self._clients.pop(pipeline):
            result.failed[pipeline, client] = failure
        del self._pipelines[pipeline.instance]
        self._router.forget(pipeline)

    def _advance_one(
        self, pipeline: Pipeline, touch: Touch | None, batch: Batch, new: SnapshotReader
    ) -> Delta:
        """Without ``touch`` anything may have changed."""
        start = time.perf_counter()
        if touch is None or pipeline.rehydrate_is_cheaper(
            touch, REHYDRATE_MIN_ROWS, REHYDRATE_MARGIN
        ):
            delta = pipeline.rehydrate(new.db, batch.old_version)
        else:
            delta = pipeline.apply(new.db, touch, batch)
        milliseconds = (time.perf_counter() - start) * 1000
        pipeline.note_advance(milliseconds)
        self.advances_ms.add(milliseconds)
        return delta

    def _encode(
        self,
        pipeline: Pipeline,
        delta: Delta,
        old: SnapshotReader,
        new: SnapshotReader,
        result: Advance,
        made: dict[ClientTables, MadeTexts],
    ) -> None:
        patches: dict[ClientTables, RowPatch] = {}
        for client in self._clients[pipeline]:
            try:
                texts = made.setdefault(client, MadeTexts())
                patches[client] = self.encoder(client).delta(old.db, new.db, delta, texts)
            except QueryError as error:
                result.failed[pipeline, client] = error
        result.patches[pipeline] = patches

    def encoder(self, client: ClientTables) -> Encoder:
        """Made once per client schema; may be used on any thread."""
        encoder = self._encoders.get(client)
        if encoder is None:
            self._forget_idle_encoders()
            encoder = self._encoders[client] = Encoder(client, self.schema)
        return encoder

    def _forget_idle_encoders(self) -> None:
        """Clients may invent any number of schemas."""
        if len(self._encoders) < self._max_encoders:
            return
        used = {client for readers in self._clients.values() for client in readers}
        self._encoders = {c: encoder for c, encoder in self._encoders.items() if c in used}
        self._max_encoders = max(MAX_ENCODERS, 2 * len(self._encoders))

    def _reset(self) -> None:
        """Forget everything that was derived from the old schema or generation."""
        self.schema = self._planning_schema = load_schema(self._current.db)
        self._router = Router(self.schema)
        self._plans.clear()
        self._new_plans.clear()
        self._examined.clear()
        self._tries.keep_only(set())
        self._pipelines.clear()
        self._clients.clear()
        self._encoders.clear()
        log.info("engine_reset", version=self.version, replica_version=self.replica_version)
