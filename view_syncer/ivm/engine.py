"""The query engine of one worker: shared pipelines over a replica, advanced commit by commit.

A library of its own: SQLite in, encoded row patches out; no sockets, no asyncio, no Postgres. Not
thread-safe: one thread calls it, and nothing here waits for anything but SQLite.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apsw
import structlog

from view_syncer.ivm.changes import Batch, read_batch
from view_syncer.ivm.encode import ClientTables, Encoder, RowPatch, register_functions
from view_syncer.ivm.pipeline import Delta, Pipeline, Touch
from view_syncer.ivm.plan import Plan, make_plan
from view_syncer.ivm.routing import Router
from zerocache.errors import QueryError
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import load_schema, open_replica, read_state
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import Query
from zerocache.zql.shape import Instance, Node, lift

log = structlog.get_logger(__name__)

REHYDRATE_MIN_ROWS = 1_000
REHYDRATE_SHARE = 0.5
"""From this many touched rows on, and if they are this share of the row set or more, recomputing
the pipeline costs less than re-evaluating key by key."""


class SnapshotReader:
    """One connection whose read transaction can be moved to the newest commit."""

    def __init__(self, path: Path) -> None:
        self.db = open_replica(path)
        register_functions(self.db)
        self.version = Watermark("00")
        self.replica_version = Watermark("00")
        self.log_pos = 0
        self.log_floor = 0

    def begin(self) -> None:
        """Pin the newest commit."""
        if self.db.in_transaction:
            self.db.execute("COMMIT")
        self.db.execute("BEGIN")
        state = read_state(self.db)
        self.version, self.replica_version = state.version, state.replica_version
        self.log_pos, self.log_floor = state.log_pos, state.log_floor

    def end(self) -> None:
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def close(self) -> None:
        self.end()
        self.db.close()


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
        self._plans: dict[Node, Plan] = {}
        self._pipelines: dict[Instance, Pipeline] = {}
        self._clients: dict[Pipeline, dict[ClientTables, int]] = {}
        self._encoders: dict[ClientTables, Encoder] = {}

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

    def subscribe(self, query: Query, client: ClientTables) -> Subscription:
        """Join the pipeline of ``query``, hydrating it if nobody else runs it."""
        instance = lift(query, self.schema, client.row_keys)
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
        if not readers:
            del self._clients[pipeline]
            del self._pipelines[pipeline.instance]
            pipeline.release()
            self._router.remove(pipeline)

    def rows(self, subscription: Subscription) -> list[str]:
        """A ``put`` for every row of the subscription, at :attr:`version`."""
        return self.encode_rows(subscription.client, subscription.pipeline.rows())

    def encode_rows(self, client: ClientTables, rows: Mapping[str, set[int]]) -> list[str]:
        """A ``put`` for each of ``rows`` (by table), at :attr:`version`."""
        return self._encoder(client).puts(self._current.db, rows)

    def deletions(
        self, client: ClientTables, rows: Mapping[str, set[int]]
    ) -> list[tuple[str, int, str]]:
        """A ``del`` for each of ``rows`` (by table), at :attr:`version`."""
        encoder = self._encoder(client)
        return encoder.dels(self._current.db, rows)

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
        plan = self._plans.get(instance.shape)
        if plan is None:
            plan = self._plans[instance.shape] = make_plan(instance.shape, self.schema)
        pipeline = Pipeline(plan, instance, self._router.on_support)
        self._router.add(pipeline)
        try:
            pipeline.hydrate(self._current.db)
        except BaseException:
            pipeline.release()
            self._router.remove(pipeline)
            raise
        self._pipelines[instance] = pipeline
        self._clients[pipeline] = {}
        return pipeline

    def _advance(self, old: SnapshotReader, new: SnapshotReader) -> Advance:
        result = Advance(old.version, new.version)
        if new.replica_version != old.replica_version:
            result.reset = True
            return result
        batch = read_batch(old, new, self._router.watched())
        if batch.reset:
            result.reset = True
            return result
        if not batch:
            return result
        result.deltas = self._deltas(batch, new)
        for pipeline, delta in result.deltas.items():
            if delta:
                self._encode(pipeline, delta, old, new, result)
        return result

    def _deltas(self, batch: Batch, new: SnapshotReader) -> dict[Pipeline, Delta]:
        deltas: dict[Pipeline, Delta] = {}
        for table in batch.truncated:
            for pipeline in self._router.readers(table):
                if pipeline not in deltas:
                    deltas[pipeline] = pipeline.rehydrate(new.db, batch.old_version)
        for pipeline, touch in self._router.route(batch, new.db).items():
            if pipeline in deltas:
                continue
            if self._rehydrate_is_cheaper(pipeline, touch):
                deltas[pipeline] = pipeline.rehydrate(new.db, batch.old_version)
            else:
                deltas[pipeline] = pipeline.apply(new.db, touch, batch)
        return deltas

    def _rehydrate_is_cheaper(self, pipeline: Pipeline, touch: Touch) -> bool:
        rows = touch.size()
        return rows >= REHYDRATE_MIN_ROWS and rows >= REHYDRATE_SHARE * pipeline.hydrated_rows

    def _encode(
        self,
        pipeline: Pipeline,
        delta: Delta,
        old: SnapshotReader,
        new: SnapshotReader,
        result: Advance,
    ) -> None:
        patches: dict[ClientTables, RowPatch] = {}
        for client in self._clients[pipeline]:
            try:
                patches[client] = self._encoder(client).delta(old.db, new.db, delta)
            except QueryError as error:
                result.failed[pipeline, client] = error
        result.patches[pipeline] = patches

    def _encoder(self, client: ClientTables) -> Encoder:
        encoder = self._encoders.get(client)
        if encoder is None:
            encoder = self._encoders[client] = Encoder(client, self.schema)
        return encoder

    def _reset(self) -> None:
        """Forget everything that was derived from the old schema or generation."""
        self.schema = load_schema(self._current.db)
        self._router = Router(self.schema)
        self._plans.clear()
        self._pipelines.clear()
        self._clients.clear()
        self._encoders.clear()
        log.info("engine_reset", version=self.version, replica_version=self.replica_version)
