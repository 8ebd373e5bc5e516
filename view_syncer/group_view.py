"""What a client group's queries yield, and the pokes that tell its clients.

Owns which queries the engine runs for the group, and every change of the group's version. Its
coroutines are steps of the group's tasks: one at a time. Advances come in between and are applied
as :mod:`view_syncer.advances` allows.

Invariants (sync-protocol.md §5.1): what a cookie promises is durable before the poke that carries
it; when it is not known what clients hold, they are told to wipe it and are sent all of the view,
never a part.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TypeVar

from view_syncer.advances import AdvanceQueue, GroupAdvance, Superseded
from view_syncer.audience import Audience, Client
from view_syncer.bodies import (
    add_rows,
    config_body,
    difference_body,
    full_body,
    got_body,
    wiping,
)
from view_syncer.coalesce import Step, coalesced
from view_syncer.context import ConnectionContext
from view_syncer.cvr.facts import Held
from view_syncer.cvr.keeper import RecordKeeper
from view_syncer.cvr.record import ConfigChange, GroupRecord, QueryHash
from view_syncer.engine_host import EngineHost
from view_syncer.fact_keeper import FactKeeper
from view_syncer.fan_out import Group, GroupUpdate, InternalQuery, Prepared, Switch
from view_syncer.ivm.encode import ClientTables
from view_syncer.poke import PokeBody
from view_syncer.queries import QuerySource, Wanted
from view_syncer.query_failures import report_failed, report_rejected
from zerocache.errors import QueryError
from zerocache.protocol.versions import NO_STATE, ViewVersion, Watermark
from zerocache.zql.ast import Query

T = TypeVar("T")


class GroupView:
    """See the module docstring.

    * ``owner`` stands for the group in the engine;
    * ``on_lost`` is called when an advance cannot be used: a rebuild must follow;
    * ``QueryError`` out of anything here means that no client of the group can be served.
    """

    def __init__(
        self,
        owner: Group,
        keeper: RecordKeeper,
        audience: Audience,
        engine: EngineHost,
        queries: QuerySource,
        facts: FactKeeper,
        on_lost: Callable[[], None],
    ) -> None:
        self._facts = facts
        self._owner = owner
        self._keeper = keeper
        self._audience = audience
        self._engine = engine
        self._queries = queries
        self._on_lost = on_lost
        self._advances = AdvanceQueue(self._apply_advance, self._merged, self._start_over)
        self.tables: ClientTables | None = None
        # The key of the AST of each query the engine runs for the group.
        self._running: dict[QueryHash, bytes] = {}
        self._internal_running = False
        # True until the running queries' rows at the present version are known to be what
        # clients hold.
        self.cold = True
        # True until the first hydration ever: nobody can hold anything yet.
        self._new = False
        # Set once rows turned out that cannot be sent: from then on queries that begin show it
        # themselves, each for itself.
        self._careful = False
        # Of a group that is not stored yet: what is to be stored with its first result.
        self._deferred: ConfigChange | None = None

    @property
    def running(self) -> Mapping[QueryHash, bytes]:
        return self._running

    @property
    def _record(self) -> GroupRecord:
        return self._keeper.record

    # -- advances --------------------------------------------------------------------------------

    def start(self, tables: ClientTables | None, *, new: bool) -> None:
        """The record is loaded; ``new`` if nobody ever held anything of this group."""
        self._new = new
        if tables is not None:
            self.use(tables)

    def use(self, tables: ClientTables) -> None:
        """What the clients declare."""
        self.tables = tables
        self._audience.row_keys = tables.row_keys

    def on_advance(self, advance: GroupAdvance) -> None:
        if advance.update.failed and not self._advances.deaf:
            # The rest of it is of no use either: a poke must be complete. Whose failure it is shows
            # when everybody starts over: perhaps the permissions of now hide what cannot be sent.
            self._start_carefully()
        else:
            self._advances.put(advance)

    def invalidate(self) -> None:
        """What the engine knew of this group is lost, or cannot be used."""
        self._advances.void()
        self.cold = True
        self._running.clear()
        self._internal_running = False

    def _start_over(self) -> None:
        self.invalidate()
        self._on_lost()

    def _start_carefully(self) -> None:
        self._careful = True
        self._start_over()

    def bar(self, version: Watermark) -> bool:
        """The permissions changed with ``version``: False if no query depends on them. Otherwise a
        :meth:`reconcile` must follow."""
        if not any(q.ast_json is not None for q in self._record.queries.values()):
            return False
        if not self._audience.admitted():
            # Nobody to do it for, and it would have to wait for somebody: who comes starts over.
            self.invalidate()
            return False
        return self._advances.bar(version)

    def _apply_advance(self, advance: GroupAdvance) -> None:
        body = self._body_of(advance)
        # It may be here already, with a client that came from another server.
        if body.size() and body.version > self._audience.version:
            self._audience.emit(body)

    def _merged(self, version: Watermark, advances: Sequence[GroupAdvance]) -> GroupAdvance:
        assert self.tables is not None
        body = PokeBody(self._facts.version(version))
        skipped = self._add_skipped(body, advances)
        body.rows = [coalesced((), self.tables.row_keys, skipped)]
        return GroupAdvance(version, GroupUpdate(()), body)

    def _add_skipped(self, body: PokeBody, advances: Sequence[GroupAdvance]) -> list[Step]:
        """Add what clients were not shown because the permissions changed, but for the rows: how
        those came is returned."""
        bodies = [self._body_of(advance) for advance in advances]
        body.add(bodies)
        body.rows = []
        return [
            Step(skipped.rows, advance.update.fresh)
            for skipped, advance in zip(bodies, advances, strict=True)
        ]

    def _body_of(self, advance: GroupAdvance) -> PokeBody:
        update, body = advance.update, advance.shared
        if body is None:
            body = PokeBody(self._facts.version(advance.version))
            self._queries.add_internal(self._record.group_id, update, body)
            body.rows.extend(update.rows())
        return body

    # -- steps of tasks --------------------------------------------------------------------------

    async def start_over_from(self, base: ViewVersion) -> None:
        """A client came with a cookie that proves nothing: all it has is to be replaced, which
        takes a version above it, and recent pokes do not lead there."""
        with self._advances.held():
            version = self._audience.version
            if base >= version:
                version = max(
                    self._facts.version_after(base), replace(base, config=base.config + 1)
                )
                await self._keeper.save(ConfigChange(meta=True), version)
            self._audience.restart(version)

    async def commit(self, change: ConfigChange, *, followed: bool = False) -> None:
        """Write a configuration change, then poke its desired patches (§4.2.6). If it makes the
        group and is ``followed`` by a :meth:`reconcile` at once, both wait for the result of that
        as long as it is only a matter of computing: one write then serves both pokes."""
        if self._deferred is not None:
            change.include(self._deferred)
            self._deferred = None
        if not change and self._record.exists:
            return
        if followed and not self._record.exists:
            self._deferred = change
            return
        with self._advances.held():
            body = None
            present = self._audience.version
            if change.bump or not self._record.exists:
                body = config_body(self._next_config(), change)
            await self._keeper.save(change, present if body is None else body.version)
            if body is None:
                return
            if self._has_gap:
                # Everybody is about to be brought here by one poke. What is poked before would
                # only replace a cookie whose rows are known by one that nobody knows.
                self._audience.restart(body.version)
            else:
                self._emit(body)

    async def _commit_deferred(self) -> None:
        if self._deferred is not None:
            await self.commit(ConfigChange())

    async def reconcile(
        self, context: ConnectionContext | None, *, fresh: bool = False, ask: bool = True
    ) -> None:
        """Bring the running queries in line with the desired ones and poke the difference.
        ``fresh`` asks the application again for every named query, ``ask=False`` for none."""
        while not await self._reconcile(context, fresh=fresh, ask=ask):
            pass

    async def _reconcile(
        self, context: ConnectionContext | None, *, fresh: bool, ask: bool
    ) -> bool:
        """False if the permissions changed too soon: nothing was done then."""
        # Of before the first answer: a loss at any later point voids all of them.
        epoch = self._advances.epoch
        if self._advances.deaf:
            await self._advances.of_engine(self._engine.drop(self._owner), epoch)
            self._advances.deaf = False
        live = self._record.live_queries(self._keeper.clock.now_ms())
        known = {h: q for h, q in self._record.queries.items() if h in live}
        if any(q.name is not None for q in known.values()):
            await self._commit_deferred()  # the application may take its time
        resolution = self._queries.resolve(
            known, context, self._running, fresh=fresh, ask=ask or self.cold
        )
        wanted = await self._advances.of_engine(resolution, epoch)
        report_rejected(self._audience, self._record, wanted.rejected)
        return await self._apply(wanted, [h for h in self._record.queries if h not in live], epoch)

    async def catch_up(self) -> None:
        """Bring every connected client to the group's version (§5.5)."""
        if self._advances.deaf:
            raise Superseded  # there is no view to catch up to before the rebuild
        epoch = self._advances.epoch
        # More than once if the replica moves on meanwhile: not all are brought to the same version.
        while behind := self._audience.catch_up():
            with self._advances.held():
                await self._bring(behind, epoch)
            self._advances.check(epoch)

    async def _apply(self, wanted: Wanted, expired: list[QueryHash], epoch: int) -> bool:
        add = {h: q for h, (key, q) in wanted.queries.items() if self._running.get(h) != key}
        remove = [h for h in self._running if h not in wanted.queries]
        if not (add or remove or expired or self.cold):
            self._advances.lift()
            return True
        assert self.tables is not None
        # Hydrating may take long, so it comes before the hold: pokes of running queries go on.
        urgent = not self.cold
        # Behind a gap nobody is sent what a query has: everybody is sent a difference, or it all.
        rows = self._careful or not self._has_gap
        # A cold group has no such pokes. Its queries can begin and be switched to in one go.
        switch = Switch(set(remove), self._internal()) if self.cold else None
        preparing = self._engine.prepared(
            self._owner,
            self.tables,
            add,
            urgent=urgent,
            rows=rows,
            before=self._commit_deferred,
            switch=switch,
        )
        with nullcontext() if switch is None else self._advances.held():
            try:
                beginning = self._advances.of_engine(preparing.begin(), epoch)
                prepared = await self._or_care(beginning)
                if wanted.permissions != self._queries.permissions_number:
                    if prepared.result is None:
                        return False
                    self._start_over()
                    self._advances.check(epoch)
                with self._advances.held():
                    await self._switch(wanted, add, remove, expired, prepared, epoch)
            finally:
                preparing.end()
        return True

    def _internal(self) -> dict[str, InternalQuery]:
        """The internal queries that do not run yet."""
        return {} if self._internal_running else self._queries.internal(self._record.group_id)

    async def _switch(
        self,
        wanted: Wanted,
        add: Mapping[QueryHash, Query],
        remove: list[QueryHash],
        expired: list[QueryHash],
        prepared: Prepared,
        epoch: int,
    ) -> None:
        assert self.tables is not None
        result = prepared.result
        if result is None:
            internal = self._internal()
            answer = self._engine.reconcile(
                self._owner, self.tables, add, remove, internal, prepared
            )
            result = await self._or_care(self._advances.of_engine(answer, epoch))
        barred = self._take_barred(wanted, result.version, epoch)
        self._internal_running = True
        for query in remove:
            del self._running[query]
        for query in add:
            self._running.pop(query, None)
        for query in result.added:
            self._running[query] = wanted.queries[query][0]
        change = ConfigChange()
        # What the engine tells is of this generation: with another the answer would be void.
        change.meta = self._record.enter_generation(self._engine.state.replica_version)
        # Also those that did not run yet, when this object is new and the record is not.
        stopped = [h for h, q in self._record.queries.items() if q.got and h not in self._running]
        version = self._next_version(result.version)
        added = {query: result.units[query] for query in result.added}
        body = got_body(version, self._record, added, stopped, change)
        skipped = self._add_skipped(body, barred)
        add_rows(body, result, self._queries, self._record.group_id)
        if skipped:
            body.rows = [coalesced(body.rows, self.tables.row_keys, skipped)]
        for query in expired:
            self._record.drop_query(query, change)
        if change:
            self._record.prune(self._keeper.clock.now_ms(), change)
        await self._save_result(change, body)
        if result.failed:
            report_failed(self._audience, self._record, result.failed)

    def _take_barred(
        self, wanted: Wanted, version: Watermark, epoch: int
    ) -> Sequence[GroupAdvance]:
        """The queries were switched at ``version``: what was kept back until then is part of the
        difference. Of rows it adds and that the switch takes away again nothing must remain."""
        self._advances.drain(version)
        self._advances.check(epoch)
        if self._advances.is_barred(version) and (
            wanted.permissions != self._queries.permissions_number
        ):
            # The permissions changed between the question and the answer.
            self._start_over()
        self._advances.check(epoch)
        return self._advances.take(version)

    def _next_version(self, state: Watermark) -> ViewVersion:
        """The version of a poke at the replica's ``state``. An object that did not see how the
        group got to its present version must not reuse a data version: before it was made, that
        cookie may have been issued for other contents."""
        present = self._audience.version
        if state > present.state:
            first = self._facts.version(state)
            return replace(first, config=first.config + 1) if self._has_gap else first
        return self._next_config()

    def _next_config(self) -> ViewVersion:
        """The next version at the same state."""
        present = self._audience.version
        following = replace(present, config=present.config + 1)
        if present.state == NO_STATE:
            return following  # nothing was hydrated yet, so there are no facts to be looked up
        return max(self._facts.version_after(present), following)

    @property
    def _has_gap(self) -> bool:
        """Clients may hold rows of which it is not known whether they are still in."""
        return self.cold and not self._new

    async def _save_result(self, change: ConfigChange, body: PokeBody) -> None:
        """Durable first, then the poke. A group that was cold has no deletions to offer: whoever
        holds rows is brought up to date by a full view instead."""
        gap, first = self._has_gap, self._new
        self.cold = self._new = False
        bodies = [body] if body.size() or gap else []
        if self._deferred is not None:
            bodies.insert(0, config_body(self._next_config(), self._deferred))
            change.include(self._deferred)
            self._deferred = None
        if not bodies:
            if change:
                await self._keeper.save(change, self._audience.version)
            return
        await self._keeper.save(change, bodies[-1].version)
        if gap:
            self._audience.restart(body.version)
        else:
            self._emit(*bodies, first=first)

    def _emit(self, *bodies: PokeBody, first: bool = False) -> None:
        """Poke what is this group's alone: nobody else will ask for its frames, which are as large
        again as what they are made of, twice. ``first`` as for :meth:`Audience.emit`."""
        self._audience.emit(*bodies, first=first)
        for body in bodies:
            body.forget_frames()

    async def _bring(self, clients: list[Client], epoch: int) -> None:
        """Bring clients here that recent pokes do not reach: by what they lack, if that can be
        told from where they are, else by everything."""
        bodies: dict[ViewVersion | None, PokeBody] = {}
        for client in clients:
            base = client.base
            if base not in bodies:
                bodies[base] = await self._or_care(self._body_from(base, epoch))
            if client.admitted and self._audience.has(client):
                self._audience.send(client, bodies[base])

    async def _or_care(self, step: Awaitable[T]) -> T:
        """Rows that cannot be sent are the failure of those queries that have them. Once all have
        begun carefully it is not theirs: what fails then is what every view of the group needs."""
        try:
            return await step
        except QueryError:
            if self._careful:
                raise
            self._start_carefully()
            raise Superseded from None

    async def _body_from(self, base: ViewVersion | None, epoch: int) -> PokeBody:
        held = await self._held(base)
        self._advances.check(epoch)
        assert self.tables is not None
        if base is None or held is None:
            answer = self._engine.full_view(self._owner, self.tables)
            view = await self._advances.of_engine(answer, epoch)
            self._reach(view.version, epoch)
            body = full_body(self._audience.version, self._record, view, self._queries)
            return body if base is None else wiping(body)
        answer = self._engine.difference(self._owner, self.tables, held.rows, base.state)
        view = await self._advances.of_engine(answer, epoch)
        self._reach(view.version, epoch)
        version = self._audience.version
        return difference_body(version, self._record, base, view, held.results, self._queries)

    def _reach(self, version: Watermark, epoch: int) -> None:
        self._advances.drain(version)
        self._advances.check(epoch)
        if self._advances.is_barred(version):
            raise Superseded  # the view is of the permissions of before; all are caught up later

    async def _held(self, base: ViewVersion | None) -> Held | None:
        """What a client at ``base`` has; None if that cannot be proven."""
        if base is None or base < self._record.provable_from:
            return None
        if not self._record.was_known_at(base):
            return None
        units: set[str] = set()
        for query in self._record.queries.values():
            if query.got_at is None or query.got_at > base:
                continue
            if query.unit is None:
                return None
            units.add(query.unit)
        return await self._facts.held(base, units, self._record.group_id)
