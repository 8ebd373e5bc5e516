"""Which client groups read which pipelines, and what each of them gets.

Owns the map from pipelines to client groups, in both directions, and turns what the engine did
into one update per group. Runs on the engine's thread and touches nothing but the engine: no
sockets, no event loop. Invariant: a pipeline is in the map exactly as long as a group subscribes
to it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Protocol

import apsw

from view_syncer.cvr.facts import RowKey
from view_syncer.differences import Difference, DifferenceKey, Differences
from view_syncer.ivm.encode import ClientTables, RowPatch
from view_syncer.ivm.engine import Advance, Engine, Subscription
from view_syncer.ivm.hydration import EncodedRows, Hydration, HydrationRequest
from view_syncer.ivm.pipeline import Pipeline
from view_syncer.membership import MembershipLog, UnitId
from zerocache.errors import QueryError
from zerocache.protocol.versions import NO_STATE, Watermark
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql.ast import ColumnRef, LiteralRef, Query, Simple
from zerocache.zql.shape import Instance

QueryKey = str
LONGEST_BEGINNING_S = 0.005
"""How long one group's queries may keep the engine before the rest of them goes elsewhere."""
MOST_ROWS_AT_ONCE = 2_000
MOST_QUERIES_AT_ONCE = 32
"""What beginning and encoding them takes is still short."""


@dataclass(slots=True)
class GroupUpdate:
    """One client group's share of an advance.

    ``share`` is equal for groups whose patch is made of exactly the same encoded pieces, so its
    frames need to be built only once. ``fresh`` names, as deletions, the rows put of which none of
    its queries yielded any before; one that is deleted here as well may be another under the same
    key. ``internal`` holds the patches of internal queries. ``failed`` names queries whose rows
    cannot be sent.
    """

    share: tuple[int, ...]
    dels: list[str] = field(default_factory=list)
    puts: list[list[str]] = field(default_factory=list)
    fresh: list[Sequence[str]] = field(default_factory=list)
    internal: dict[QueryKey, RowPatch] = field(default_factory=dict)
    failed: dict[QueryKey, QueryError] = field(default_factory=dict)

    def rows(self) -> list[Sequence[str]]:
        """The row operations in order. A row that several queries hold is put once."""
        runs: list[Sequence[str]] = [self.dels] if self.dels else []
        if len(self.puts) == 1:
            return [*runs, self.puts[0]]
        puts = list(dict.fromkeys(chain.from_iterable(self.puts)))
        return [*runs, puts] if puts else runs


@dataclass(slots=True)
class WorkerAdvance:
    """An advance as the groups of this worker see it."""

    version: Watermark
    updates: dict[Group, GroupUpdate]
    reset: bool = False


@dataclass(slots=True)
class Reconciled:
    """Outcome of changing a group's set of queries, at ``version``.

    ``added`` queries run now, as ``units``; ``failed`` ones do not. ``puts`` and ``dels`` are the
    row differences against what the group's queries yielded before.
    """

    version: Watermark
    added: set[QueryKey]
    failed: dict[QueryKey, QueryError]
    puts: Sequence[str]
    dels: Sequence[str]
    internal: dict[QueryKey, Sequence[str]]
    units: dict[QueryKey, UnitId] = field(default_factory=dict)


@dataclass(slots=True)
class FullView:
    """Everything a group's queries yield at ``version``; or, with ``dels``, all that somebody
    with older rows lacks of it."""

    version: Watermark
    puts: Sequence[str]
    internal: dict[QueryKey, Sequence[str]]
    dels: Sequence[str] = ()


@dataclass(slots=True)
class Prepared:
    """Queries hydrated ahead of a reconciliation, elsewhere or by the engine itself (``begun``;
    only touched on its thread), and those that cannot be served. Without ``rows`` nothing of it is
    encoded."""

    hydrations: list[Hydration] = field(default_factory=list)
    begun: list[Pipeline] = field(default_factory=list)
    # What the queries are under ``schema``.
    instances: dict[QueryKey, Instance] = field(default_factory=dict)
    schema: ReplicaSchema | None = None
    failed: dict[QueryKey, QueryError] = field(default_factory=dict)
    rows: bool = True
    # Set once all of it was used.
    reconciled: bool = False
    # The outcome, if that was at once.
    result: Reconciled | None = None


@dataclass(frozen=True, slots=True)
class InternalQuery:
    """The rows of a bookkeeping table as ``client`` reads them: all, or those that have ``value``
    in ``column``."""

    table: str
    client: ClientTables
    column: str | None = None
    value: str = ""

    def query(self) -> Query:
        if self.column is None:
            return Query(table=self.table)
        condition = Simple("=", ColumnRef(self.column), LiteralRef(self.value))
        return Query(table=self.table, where=condition)


@dataclass(frozen=True, slots=True)
class Switch:
    """What else than queries to start makes up a reconciliation."""

    remove: set[QueryKey]
    internal: Mapping[QueryKey, InternalQuery]


@dataclass(frozen=True, slots=True)
class QueryMeasures:
    """What is known of a running query. ``advances_ms`` is a digest in its protocol form, None if
    the query has not been advanced yet; groups that share a pipeline share its figures."""

    row_count: int
    hydration_ms: float
    advances_ms: list[float] | None


class Group(Protocol):
    """What the host needs of a client group: identity only."""

    def __hash__(self) -> int: ...


class _GroupQueries:
    """A group's running queries, owned by the engine thread."""

    def __init__(self) -> None:
        self.client: dict[QueryKey, Subscription] = {}
        self.internal: dict[QueryKey, Subscription] = {}

    def held(self) -> dict[str, set[int]]:
        return _union(self.pipelines())

    def pipelines(self) -> frozenset[Pipeline]:
        return frozenset(s.pipeline for s in self.client.values())

    def internal_pipelines(self) -> frozenset[Pipeline]:
        return frozenset(s.pipeline for s in self.internal.values())


class FanOut:
    """The groups of one worker. :meth:`void` after the engine was reset or replaced."""

    def __init__(self, membership: MembershipLog) -> None:
        self._membership = membership
        self._groups: dict[Group, _GroupQueries] = {}
        self._readers: dict[Pipeline, dict[Group, set[QueryKey]]] = {}
        self._differences = Differences()
        # What internal queries are under a schema: every group has the same, but for the value.
        self._internal: dict[tuple[str, str | None, ClientTables], Instance] = {}
        self._internal_schema: ReplicaSchema | None = None

    def void(self, known_to: Watermark) -> None:
        self._membership.void(known_to)
        self._groups.clear()
        self._readers.clear()
        self._differences.clear()

    def updates(self, advance: Advance) -> dict[Group, GroupUpdate]:
        """Of every advance that resets nothing, what each group gets."""
        self._differences.clear()
        remains = _Remains(advance)
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
                        self._add_patch(update, patch, pipeline, queries, remains)
                        break  # equal queries under several hashes share one pipeline and patch
        return updates

    def _add_patch(
        self,
        update: GroupUpdate,
        patch: RowPatch,
        pipeline: Pipeline,
        queries: _GroupQueries,
        remains: _Remains,
    ) -> None:
        share: tuple[int, ...] = (id(patch),)
        if patch.dels or patch.keys:
            others = queries.pipelines() - {pipeline}
            kept = remains.of_no_other(patch.dels, others)
            if len(kept) != len(patch.dels):
                share = (id(patch), id(update))
            update.dels.extend(kept)
            if patch.keys:
                update.fresh.append(remains.of_no_other(patch.keys, others))
        update.share += share
        if patch.puts:
            update.puts.append(patch.puts)

    def begin(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        queries: Mapping[QueryKey, Query],
        prepared: Prepared,
        quick_rows: int,
        switch: Switch | None = None,
    ) -> dict[QueryKey, HydrationRequest]:
        """Start those of ``queries`` that are over at once; the group does not have them yet. With
        a ``switch``, and if these are all and no more than :data:`MOST_ROWS_AT_ONCE`, it has them.
        Returns what must be hydrated first."""
        requests, rows = _begin(engine, client, queries, prepared, quick_rows)
        if switch is None or requests or rows > MOST_ROWS_AT_ONCE:
            return requests
        if self._begin_internal(engine, switch.internal, prepared, MOST_ROWS_AT_ONCE - rows):
            prepared.result = self.reconcile(
                engine, group, client, queries, switch.remove, switch.internal, prepared
            )
            prepared.reconciled = True
        return requests

    def _begin_internal(
        self,
        engine: Engine,
        internal: Mapping[QueryKey, InternalQuery],
        prepared: Prepared,
        most_rows: int,
    ) -> bool:
        """Start those that are over at once; whether all run now and need no more rows than that:
        nothing bounds what an application keeps there."""
        for rows in internal.values():
            instance = self._instance_of(engine, rows)
            request = engine.request(instance, rows.client, rows=False)
            if isinstance(request, Pipeline):
                most_rows -= request.size()
                continue
            # None at all would be no limit.
            begun = engine.start_quickly(request, max(1, most_rows))
            if begun is None:
                return False
            prepared.begun.append(begun)
            most_rows -= begun.size()
        return most_rows >= 0

    def reconcile(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        add: Mapping[QueryKey, Query],
        remove: set[QueryKey],
        internal: Mapping[QueryKey, InternalQuery],
        prepared: Prepared,
    ) -> Reconciled:
        queries = self._groups.setdefault(group, _GroupQueries())
        before = queries.held() if prepared.rows else {}
        retired = [
            (key, queries.client.pop(key)) for key in [*remove, *add] if key in queries.client
        ]
        try:
            result = self._start(engine, group, client, add, internal, prepared)
            if prepared.rows:
                self._add_rows(engine, group, client, before, prepared, result)
        finally:
            # Whatever happened: nobody else takes them out of the map.
            for key, subscription in retired:
                self._leave(engine, group, key, subscription)
        for key in result.added:
            running = queries.client[key]
            unit = self._membership.id_of(running.pipeline, running.client)
            assert unit is not None
            result.units[key] = unit
        return result

    def _start(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        add: Mapping[QueryKey, Query],
        internal: Mapping[QueryKey, InternalQuery],
        prepared: Prepared,
    ) -> Reconciled:
        queries = self._groups[group]
        failed: dict[QueryKey, QueryError] = dict(prepared.failed)
        instances = prepared.instances if prepared.schema is engine.schema else {}
        for key, query in add.items():
            if key in failed:
                continue
            try:
                queries.client[key] = self._join(
                    engine, group, key, instances.get(key) or query, client
                )
            except QueryError as error:
                failed[key] = error
            except apsw.SQLError as error:
                failed[key] = QueryError(f"the query cannot be computed ({error}); make it simpler")
        result = Reconciled(engine.version, set(add) - failed.keys(), failed, [], [], {})
        for key, rows in internal.items():
            instance = self._instance_of(engine, rows)
            queries.internal[key] = self._join(engine, group, key, instance, rows.client)
            if prepared.rows:
                result.internal[key] = engine.rows(queries.internal[key])
        for hydration in prepared.hydrations:
            engine.drop_unused(hydration.pipeline)
        drop_begun(engine, prepared)
        return result

    def _add_rows(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        before: Mapping[str, set[int]],
        prepared: Prepared,
        result: Reconciled,
    ) -> None:
        """The difference to the rows there were ``before``."""
        queries = self._groups[group]
        ready = [hydration.encoded for hydration in prepared.hydrations]
        try:
            result.puts = self._encode_new(engine, queries, client, before, ready)
        except QueryError:
            result.puts = self._encode_each(engine, group, result)
        if before:
            after = queries.held()  # without what turned out not to be sendable
            gone = {t: rows - after.get(t, set()) for t, rows in before.items()}
            result.dels = [text for _, _, text in engine.deletions(client, gone)]

    def _encode_new(
        self,
        engine: Engine,
        queries: _GroupQueries,
        client: ClientTables,
        before: Mapping[str, set[int]],
        ready: list[EncodedRows],
    ) -> Sequence[str]:
        """Rows only the new queries brought."""

        def made() -> Sequence[str]:
            fresh = {t: rows - before.get(t, set()) for t, rows in queries.held().items()}
            return engine.encode_rows(client, fresh, ready)

        if before:
            return made()
        # All who begin with the same queries are sent the same.
        key = DifferenceKey(engine.version, client, queries.pipelines(), frozenset(), NO_STATE)
        return self._differences.get(key, lambda: Difference([], made())).puts

    def _encode_each(self, engine: Engine, group: Group, result: Reconciled) -> list[str]:
        """Some rows cannot be sent: find out whose they are."""
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

    def full_view(self, engine: Engine, group: Group) -> FullView:
        queries = self._groups.setdefault(group, _GroupQueries())
        held, clients = queries.held(), {s.client for s in queries.client.values()}
        runs = [engine.encode_rows(client, held) for client in clients]
        puts = runs[0] if len(runs) == 1 else list(chain.from_iterable(runs))
        view = FullView(engine.version, puts, {})
        for key, subscription in queries.internal.items():
            view.internal[key] = engine.rows(subscription)
        return view

    def is_short(self, group: Group, held: frozenset[RowKey]) -> bool:
        """Whether a :meth:`difference` from ``held`` looks at :data:`MOST_ROWS_AT_ONCE` at most."""
        queries = self._groups.get(group)
        running = [] if queries is None else [*queries.pipelines(), *queries.internal_pipelines()]
        return len(held) + sum(pipeline.size() for pipeline in running) <= MOST_ROWS_AT_ONCE

    def difference(
        self,
        engine: Engine,
        group: Group,
        client: ClientTables,
        held: frozenset[RowKey],
        base: Watermark,
    ) -> FullView:
        """What leads from ``held``, the rows somebody had at version ``base``, to the present."""
        queries = self._groups.setdefault(group, _GroupQueries())
        dels, puts = self._differences.get(
            DifferenceKey(engine.version, client, queries.pipelines(), held, base),
            lambda: _difference(engine, client, queries.held(), held, base),
        )
        view = FullView(engine.version, puts, {}, dels)
        for key, subscription in queries.internal.items():
            view.internal[key] = engine.rows(subscription)
        return view

    def drop(self, engine: Engine, group: Group) -> None:
        queries = self._groups.pop(group, None)
        if queries is None:
            return
        for key, subscription in [*queries.client.items(), *queries.internal.items()]:
            self._leave(engine, group, key, subscription)

    def measures(self, group: Group) -> dict[QueryKey, QueryMeasures]:
        queries = self._groups.get(group)
        running = {} if queries is None else queries.client
        return {key: _measures(s.pipeline) for key, s in running.items()}

    def _instance_of(self, engine: Engine, rows: InternalQuery) -> Instance:
        if self._internal_schema is not engine.schema:
            self._internal_schema = engine.schema
            self._internal.clear()
        name = rows.table, rows.column, rows.client
        known = self._internal.get(name)
        if known is None:
            known = self._internal[name] = engine.lift(rows.query(), rows.client)
        # The value is the only literal there is.
        return Instance(known.shape, tuple((param, rows.value) for param, _ in known.params))

    def _join(
        self,
        engine: Engine,
        group: Group,
        key: QueryKey,
        query: Query | Instance,
        client: ClientTables,
    ) -> Subscription:
        subscription = engine.subscribe(query, client)
        readers = self._readers.setdefault(subscription.pipeline, {})
        readers.setdefault(group, set()).add(key)
        self._membership.started(subscription.pipeline, subscription.client, engine.version)
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
                self._differences.ended(pipeline)
        engine.unsubscribe(subscription)
        if not engine.reads(subscription):
            self._membership.ended(pipeline, subscription.client, engine.version)


def _begin(
    engine: Engine,
    client: ClientTables,
    queries: Mapping[QueryKey, Query],
    prepared: Prepared,
    quick_rows: int,
) -> tuple[dict[QueryKey, HydrationRequest], int]:
    """Start those of ``queries`` that are over at once and need no more than ``quick_rows``.
    Returns what must be hydrated for the others, and how many rows at most there are of those that
    run now; queries that make no sense fail."""
    requests: dict[QueryKey, HydrationRequest] = {}
    rows = 0
    end = time.monotonic() + LONGEST_BEGINNING_S
    prepared.schema = engine.schema
    for key, query in queries.items():
        try:
            request = engine.request(query, client, rows=prepared.rows)
        except QueryError as error:
            prepared.failed[key] = error
            continue
        prepared.instances[key] = request.instance
        if isinstance(request, Pipeline):
            rows += request.size()
            continue
        begun = None
        if quick_rows and time.monotonic() < end:
            begun = engine.start_quickly(request, quick_rows)
        if begun is None:
            requests[key] = request
        else:
            prepared.begun.append(begun)
            rows += begun.size()
    return requests, rows


def drop_begun(engine: Engine, prepared: Prepared) -> None:
    """Stop what was begun ahead and nobody joined."""
    while prepared.begun:
        engine.drop_unused(prepared.begun.pop())


def _difference(
    engine: Engine,
    client: ClientTables,
    rows: Mapping[str, set[int]],
    held: frozenset[RowKey],
    base: Watermark,
) -> Difference:
    present = engine.keys_by_row(client, rows)
    keys = set(chain.from_iterable(named.values() for named in present.values()))
    changed: dict[str, set[int]] = {}
    for table, named in present.items():
        kept = {rowid for rowid, key in named.items() if key in held}
        changed[table] = (named.keys() - kept) | engine.changed_since(table, kept, base)
    return Difference(list(held - keys), engine.encode_rows(client, changed))


class _Remains:
    """What of the rows that queries lost or got in an advance other queries kept. It is found out
    once for any two queries, not for each group that has both: groups are many, rows may be."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        # By the lists they were made of, which the advance keeps.
        self._texts: dict[int, list[str]] = {}
        self._rowids: dict[int, dict[str, set[int]]] = {}
        self._kept: dict[tuple[int, Pipeline], set[tuple[str, int]]] = {}

    def of_no_other(
        self, rows: list[tuple[str, int, str]], others: Collection[Pipeline]
    ) -> Sequence[str]:
        """The texts of the rows that none of ``others`` kept; not to be changed."""
        if not rows:
            return ()
        kept: set[tuple[str, int]] = set()
        for other in others:
            kept |= self._kept_by(other, rows)
        if kept:
            return [text for table, rowid, text in rows if (table, rowid) not in kept]
        texts = self._texts.get(id(rows))
        if texts is None:
            texts = self._texts[id(rows)] = [text for _, _, text in rows]
        return texts

    def _kept_by(self, other: Pipeline, rows: list[tuple[str, int, str]]) -> set[tuple[str, int]]:
        """Those that ``other`` kept through the whole advance. A row it only just entered does not
        count: its put follows the deletion, and its rowid may have belonged to another row."""
        kept = self._kept.get((id(rows), other))
        if kept is None:
            kept = self._kept[id(rows), other] = set()
            delta = self._advance.deltas.get(other, {})
            for table, rowids in self._by_table(rows).items():
                held = other.held_of(table, rowids)
                if held and table in delta:
                    held = held - delta[table].entered
                kept.update((table, rowid) for rowid in held)
        return kept

    def _by_table(self, rows: list[tuple[str, int, str]]) -> dict[str, set[int]]:
        found = self._rowids.get(id(rows))
        if found is None:
            found = self._rowids[id(rows)] = {}
            for table, rowid, _ in rows:
                found.setdefault(table, set()).add(rowid)
        return found


def _measures(pipeline: Pipeline) -> QueryMeasures:
    digest = pipeline.advances_ms
    return QueryMeasures(
        pipeline.row_count(),
        pipeline.hydration_s * 1000,
        None if digest is None else digest.protocol_value(),
    )


def _union(pipelines: Collection[Pipeline]) -> dict[str, set[int]]:
    held: dict[str, set[int]] = {}
    for pipeline in pipelines:
        for table, rows in pipeline.rows().items():
            if table in held:
                held[table] |= rows
            else:
                held[table] = rows
    return held
