"""A client group: the clients that share one local database, and what each has been told.

All work of a group is done one task at a time (sync-protocol.md §4.1) under :attr:`_lock`;
advances of the replica arrive between the steps of a task and are applied in version order. While
a task has asked the engine or the record store for something that the next poke depends on, it
*holds* the group: advances queue up and are applied when the answer is in. When the engine loses
what it knew of the group (:meth:`ClientGroup.invalidate`), whatever task waits for its answer
gives up, and :meth:`ClientGroup.rebuild` starts over for everybody.

Invariants (§5.1): the pokes of one connection form a chain; after a poke with version v a client
holds exactly the union of its group's got queries at v; what a cookie promises is durable before
the ``pokeEnd`` that carries it; when that cannot be proven the client is told to wipe its view and
is sent all of it, never a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from view_syncer.admission import (
    check_deleted,
    check_first_message,
    check_query_ops,
    declared_schema,
)
from view_syncer.advances import AdvanceQueue, GroupAdvance, Superseded
from view_syncer.audience import Audience, Client
from view_syncer.auth import require_pinned
from view_syncer.bodies import add_rows, config_body, full_body, got_body, wiping
from view_syncer.context import ConnectionContext
from view_syncer.cvr.record import ConfigChange, GroupRecord, QueryHash
from view_syncer.cvr.store import ConcurrentModification, RecordStore, StoreUnavailable
from view_syncer.engine_host import EngineHost
from view_syncer.fan_out import GroupUpdate, Prepared
from view_syncer.ivm.encode import ClientTables
from view_syncer.poke import PokeBody
from view_syncer.queries import QuerySource, Wanted
from view_syncer.query_failures import report_failed, report_rejected
from view_syncer.schema_check import check_client_schema, client_tables
from view_syncer.ttl_clock import TtlClock
from zerocache.errors import ClientFacingError, QueryError, UnsafeIntegerError
from zerocache.protocol import downstream
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import (
    ChangeDesiredQueries,
    DeleteClients,
    InitConnection,
)
from zerocache.protocol.versions import NEVER, ViewVersion, Watermark

log = structlog.get_logger(__name__)
T = TypeVar("T")

REPLICA_WAIT_S = 10.0
"""How long a client whose cookie is newer than the replica waits for it to catch up."""
EXPIRY_SLACK_MS = 50.0


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker gives its groups."""

    engine: EngineHost
    store: RecordStore
    queries: QuerySource
    internal_schemas: frozenset[str]
    on_empty: Callable[[ClientGroup], None]
    on_deleted_clients: Callable[[ClientGroup, list[str], ConnectionContext], None]


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the inspector may look at, and must not change. ``asts`` of the running queries."""

    record: GroupRecord
    asts: Mapping[QueryHash, bytes]
    tables: ClientTables | None
    ttl_now_ms: float


class ClientGroup:
    """See the module docstring. Public coroutines are the tasks of §4; they may be called
    concurrently and run one after the other."""

    def __init__(self, group_id: str, services: Services) -> None:
        self.group_id = group_id
        self._services = services
        self._lock = asyncio.Lock()
        self._audience = Audience()
        self._record = GroupRecord(group_id)
        self._loaded = False
        # The version the store has; a save must find it there.
        self._stored = NEVER
        self._tables: ClientTables | None = None
        self._running: dict[QueryHash, bytes] = {}
        self._internal_running = False
        # True until the running queries' rows at the present version are known to be what
        # clients hold.
        self._cold = True
        # True until the first hydration ever: nobody can hold anything yet.
        self._new = False
        self._advances = AdvanceQueue(self._apply_advance)
        self._clock = TtlClock(asyncio.get_running_loop().time)
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.pinned_user: tuple[str | None] | None = None
        self.closed = False
        # Set when what this object knows can no longer be trusted: it must not be reused.
        self.stale = False

    # -- tasks ---------------------------------------------------------------------------------

    async def connect(self, client: Client, message: InitConnection) -> None:
        """First message of a connection (§4.2): configuration, then its queries, then a poke."""
        # Not under the lock: a stranger must not be able to hold up the group.
        await self._services.queries.validate(client.context)
        async with self._task():
            if not self._audience.has(client):
                return  # replaced while it waited
            self.check_user(client.user_id)
            await self._load()
            await self._check_cookie(client)
            declared = declared_schema(self._record, message)
            await self._check_schema(declared)
            check_first_message(self._record, client.client_id, message)
            if not self._audience.has(client):
                return
            # Nothing was remembered before this point: a refused connection leaves no trace.
            self._admit(client, declared)
            change = ConfigChange()
            self._configure(client, message, change)
            deleted = self._delete(message.deleted, change)
            deleted += self._retain(client, message.active_clients, change)
            await self._commit(change)
            if message.deleted is not None and message.deleted.client_ids:
                self._acknowledge(deleted, client)
            await self._reconcile(client)
            await self._catch_up()

    async def change_queries(self, client: Client, message: ChangeDesiredQueries) -> None:
        async with self._task():
            if not self._is_member(client):
                return
            ops = message.desired_queries_patch
            check_query_ops(self._record, ops)
            change = ConfigChange()
            self._record.apply_query_ops(client.client_id, ops, self._clock.now_ms(), change)
            await self._commit(change)
            await self._reconcile(client)
            await self._catch_up()

    async def delete_clients(self, client: Client, message: DeleteClients) -> None:
        async with self._task():
            if not self._is_member(client):
                return
            check_deleted(client.client_id, message)
            change = ConfigChange()
            deleted = self._delete(message, change)
            await self._commit(change)
            if deleted:
                self._acknowledge(deleted, client)
            await self._reconcile(client)
            await self._catch_up()

    async def refresh_queries(self, client: Client | None = None) -> None:
        """Transform all queries again (credentials or permissions changed), in the name of
        ``client`` or else of the newest connection."""
        async with self._task():
            if not self._loaded or not self._audience.admitted():
                return
            if client is not None and not self._is_member(client):
                return
            await self._reconcile(client, fresh=True)
            await self._catch_up()

    async def rebuild(self) -> None:
        """Start over after :meth:`invalidate`. Without clients the next one to come does it."""
        async with self._task():
            if not self._loaded or not self._cold or not self._audience.admitted():
                return
            try:
                if self._record.client_schema is not None:
                    await self._check_schema(self._record.client_schema)
                await self._reconcile(None)
                await self._catch_up()
            except ClientFacingError as error:
                self._audience.fail(error)

    async def settle(self) -> None:
        """Bring what runs in line with what is known here: drop the queries whose time to live
        has run out, apply changed permissions. Does not ask the application."""
        async with self._task():
            if not self._audience.admitted():
                return
            await self._reconcile(None, ask=False)
            await self._catch_up()

    async def revalidate(self, client: Client) -> None:
        """Ask the application again whether the client's credentials are good."""
        context = client.context
        try:
            await self._services.queries.validate(context)
        except ClientFacingError:
            if client.context is not context:
                return  # the credentials have been replaced, and validated, in the meantime
            raise
        client.validated_s = asyncio.get_running_loop().time()

    async def touch(self) -> None:
        """Write down how far the TTL clock is. A failure costs queries nothing but a longer
        life, so it is only logged."""
        now_ms = self._clock.now_ms()
        if not self._record.exists or now_ms == self._clock.saved_ms:
            return
        try:
            await self._services.store.touch(self.group_id, now_ms)
        except StoreUnavailable as error:
            log.warning("touch_failed", clientGroupID=self.group_id, reason=str(error))
        else:
            self._clock.saved_ms = now_ms

    async def stop(self) -> None:
        """Release everything; the group object is spent. Waits for the task that runs."""
        async with self._lock:
            if self.closed:
                return
            self.closed = True
            if self._expiry is not None:
                self._expiry.cancel()
            await self._services.engine.drop(self)
            await self.touch()

    @asynccontextmanager
    async def _task(self) -> AsyncIterator[None]:
        """One task at a time. One that fails for a reason that is not the client's may have left
        this object ahead of the store or the engine, so the object ends with it."""
        async with self._lock:
            if self.closed or self.stale:
                raise ClientFacingError(
                    "Rehome", "This client group moved on; connect again.", maxBackoffMs=1000
                )
            try:
                yield
            except Superseded:
                log.info("task_superseded", clientGroupID=self.group_id)
            except ClientFacingError:
                raise
            except Exception as error:
                raise self.abandon(error) from error

    def abandon(self, error: Exception) -> ClientFacingError:
        """Give this object up; clients come back to a new one. Returns what they were told."""
        log.error("client_group_failed", clientGroupID=self.group_id, exc_info=error)
        self.stale = True
        told = ClientFacingError(
            "ServerOverloaded",
            "The server could not process the request; try again.",
            minBackoffMs=1000,
            maxBackoffMs=10000,
        )
        self._audience.fail(told)
        return told

    # -- connections ---------------------------------------------------------------------------

    def admitted(self) -> list[Client]:
        """The connections that passed all checks, the newest last."""
        return self._audience.admitted()

    @property
    def clients(self) -> Mapping[str, Client]:
        return self._audience.clients

    def join(self, client: Client) -> Client | None:
        """Register a connection; returns the one it replaces."""
        self._clock.start()
        return self._audience.join(client)

    def leave(self, client: Client) -> None:
        if not self._audience.has(client):
            return
        self._audience.leave(client)
        if not self.clients:
            self._clock.stop()
            self.schedule(self.touch())
            self._services.on_empty(self)

    def ttl_now_ms(self) -> float:
        return self._clock.now_ms()

    def pin_user(self, user_id: str | None) -> None:
        """Bind the group to its first validated user (§1.4)."""
        self.check_user(user_id)
        self.pinned_user = (user_id,)

    def check_user(self, user_id: str | None) -> None:
        """Raise ``Unauthorized`` for anybody but the pinned user."""
        if self.pinned_user is not None:
            require_pinned(self.pinned_user[0], user_id)

    def inspected(self) -> Inspected:
        return Inspected(self._record, self._running, self._tables, self._clock.now_ms())

    # -- advances ------------------------------------------------------------------------------

    def on_advance(self, version: Watermark, update: GroupUpdate, shared: PokeBody | None) -> None:
        """The replica moved and this group sees some of it. ``shared`` is the ready-made body if
        the update consists of rows only."""
        self._advances.put(GroupAdvance(version, update, shared))

    def invalidate(self) -> None:
        """What the engine knew of this group is lost (schema change, new replica), or cannot be
        used. Takes effect at once; a :meth:`rebuild` must follow."""
        self._advances.void()
        self._cold = True
        self._running.clear()
        self._internal_running = False

    def _apply_advance(self, advance: GroupAdvance) -> None:
        if self.closed or self.stale:
            return
        update, shared = advance.update, advance.shared
        if update.failed:
            # The rest of the update is of no use either: a poke must be complete.
            self._report_failed(update.failed)
            self.invalidate()
            self.schedule(self.rebuild())
            return
        if shared is None:
            shared = PokeBody(ViewVersion(advance.version))
            try:
                self._services.queries.add_internal(self.group_id, update, shared)
            except UnsafeIntegerError as error:
                self._audience.fail(ClientFacingError("Internal", str(error)))
                self.stale = True
                return
            if update.dels:
                shared.rows.append(update.dels)
            shared.rows.extend(update.puts)
            if not shared.size():
                return
        self._audience.emit(shared)

    # -- steps of tasks ------------------------------------------------------------------------

    def _is_member(self, client: Client) -> bool:
        """Whether this is the connection of its client and passed all checks."""
        return client.admitted and self._audience.has(client)

    def _admit(self, client: Client, declared: ClientSchema) -> None:
        self.pin_user(client.user_id)
        self._record.client_schema = declared
        self._tables = client_tables(declared)
        client.admitted = True
        client.validated_s = asyncio.get_running_loop().time()

    async def _load(self) -> None:
        if self._loaded:
            return
        self._record = record = await self._services.store.load(self.group_id)
        self._stored = record.version
        self._clock.load(record.ttl_clock_ms)
        self._audience.restart(record.version)
        _, replica_version, _ = await self._services.engine.state()
        newer = record.replica_version is not None and record.replica_version > replica_version
        if newer or not await self._services.queries.wait_for_version(
            record.version.state, REPLICA_WAIT_S
        ):
            raise ClientFacingError(
                "ClientNotFound",
                f"The client group is at {record.version.cookie()}, a state this server's replica "
                "does not have.",
            )
        if record.client_schema is not None:
            self._tables = client_tables(record.client_schema)
        self._new = not record.exists
        self._loaded = True

    async def _check_cookie(self, client: Client) -> None:
        """§4.2.2, with one difference: data advances are not recorded, so as long as this object
        has not hydrated, a cookie of such an advance may be newer than the record."""
        base = client.base
        if base is None:
            return
        if not self._record.exists:
            raise ClientFacingError(
                "ClientNotFound", "The server does not know this client group; start a new one."
            )
        version = self._audience.version
        if base <= version:
            return
        if base.config or not self._cold:
            raise ClientFacingError(
                "InvalidConnectionRequestBaseCookie",
                f"Cookie {base.cookie()} is ahead of the server's {version.cookie()}.",
            )
        if not await self._services.queries.wait_for_version(base.state, REPLICA_WAIT_S):
            raise ClientFacingError(
                "ClientNotFound",
                f"Cookie {base.cookie()} is of a state this server's replica never had.",
            )
        self._audience.restart(base)

    async def _check_schema(self, schema: ClientSchema) -> None:
        _, replica_version, replica = await self._services.engine.state()
        check_client_schema(schema, replica, self._services.internal_schemas)
        self._record.replica_version = replica_version

    def _configure(self, client: Client, message: InitConnection, change: ConfigChange) -> None:
        record = self._record
        if record.profile_id != client.profile_id:
            record.profile_id = client.profile_id
            change.meta = True
        record.add_client(client.client_id, change)
        ops = message.desired_queries_patch
        record.apply_query_ops(client.client_id, ops, self._clock.now_ms(), change)

    def _delete(self, message: DeleteClients | None, change: ConfigChange) -> list[str]:
        deleted = list(message.client_ids) if message is not None else []
        for client_id in deleted:
            self._record.delete_client(client_id, self._clock.now_ms(), change)
        return deleted

    def _retain(
        self, client: Client, active: tuple[str, ...] | None, change: ConfigChange
    ) -> list[str]:
        """Delete the clients not listed as alive; connected ones stay, the list can lag (§4.5)."""
        if active is None:
            return []
        alive = {*active, *self.clients, client.client_id}
        gone = [c for c in self._record.clients if c not in alive]
        for client_id in gone:
            self._record.delete_client(client_id, self._clock.now_ms(), change)
        return gone

    def _acknowledge(self, deleted: list[str], sender: Client) -> None:
        self._audience.tell(downstream.delete_clients(deleted))
        self._services.on_deleted_clients(self, deleted, sender.context)

    async def _commit(self, change: ConfigChange) -> None:
        """Write a configuration change, then poke its desired patches (§4.2.6)."""
        if not change and self._record.exists:
            return
        with self._advances.held():
            body = None
            present = self._audience.version
            if change.bump or not self._record.exists:
                body = config_body(ViewVersion(present.state, present.config + 1), change)
            await self._save(change, present if body is None else body.version)
            if body is not None:
                self._audience.emit(body)

    async def _save(self, change: ConfigChange, version: ViewVersion) -> None:
        record = self._record
        record.version = version
        record.ttl_clock_ms = self._clock.now_ms()
        try:
            await self._services.store.save(record, change, self._stored)
        except ConcurrentModification as error:
            self.stale = True
            rehome = ClientFacingError("Rehome", str(error), maxBackoffMs=1000)
            self._audience.fail(rehome)
            raise rehome from error
        self._stored = version
        self._clock.saved_ms = record.ttl_clock_ms

    async def _reconcile(
        self, client: Client | None, *, fresh: bool = False, ask: bool = True
    ) -> None:
        """Bring the running queries in line with the desired ones and poke the difference.
        ``fresh`` asks the application again for every named query, ``ask=False`` for none."""
        assert self._tables is not None
        if self._advances.deaf:
            await self._advances.of_engine(self._services.engine.drop(self))
            self._advances.deaf = False
        try:
            live = self._record.live_queries(self._clock.now_ms())
            known = {h: q for h, q in self._record.queries.items() if h in live}
            context = self._context(client)
            resolution = self._services.queries.resolve(
                known, context, self._running, fresh=fresh, ask=ask or self._cold
            )
            wanted = await self._advances.of_engine(resolution)
            report_rejected(self._audience, self._record, wanted.rejected)
            await self._apply(wanted, [h for h in self._record.queries if h not in live])
        finally:
            self._schedule_expiry()

    async def _apply(self, wanted: Wanted, expired: list[QueryHash]) -> None:
        add = {h: q for h, (key, q) in wanted.queries.items() if self._running.get(h) != key}
        remove = [h for h in self._running if h not in wanted.queries]
        if not (add or remove or expired or self._cold):
            return
        assert self._tables is not None
        epoch = self._advances.epoch
        # Hydrating may take long, so it comes before the hold: pokes of running queries go on.
        async with self._services.engine.prepared(self._tables, add) as prepared:
            self._advances.check(epoch)
            with self._advances.held():
                await self._switch(wanted, add, remove, expired, prepared)

    async def _switch(
        self,
        wanted: Wanted,
        add: Mapping[QueryHash, Any],
        remove: list[QueryHash],
        expired: list[QueryHash],
        prepared: Prepared,
    ) -> None:
        assert self._tables is not None
        queries = self._services.queries
        internal = {} if self._internal_running else queries.internal(self.group_id)
        result = await self._advances.of_engine(
            self._services.engine.reconcile(self, self._tables, add, remove, internal, prepared)
        )
        self._internal_running = True
        self._advances.drain(result.version)
        for query in remove:
            del self._running[query]
        for query in add:
            self._running.pop(query, None)
        for query in result.added:
            self._running[query] = wanted.queries[query][0]
        change = ConfigChange()
        # Also those that did not run yet, when this object is new and the record is not.
        stopped = [h for h, q in self._record.queries.items() if q.got and h not in self._running]
        version = self._next_version(result.version)
        body = got_body(version, self._record, result.added, stopped, change)
        add_rows(body, result, queries, self.group_id)
        for query in expired:
            self._record.drop_query(query, change)
        if change:
            self._record.prune(self._clock.now_ms(), change)
        await self._save_result(change, body)
        if result.failed:
            self._report_failed(result.failed)

    def _next_version(self, state: Watermark) -> ViewVersion:
        """The version of a poke at the replica's ``state``. An object that did not see how the
        group got to its present version must not reuse a data version: before it was made, that
        cookie may have been issued for other contents."""
        present = self._audience.version
        if state > present.state:
            return ViewVersion(state, 1 if self._has_gap else 0)
        return ViewVersion(present.state, present.config + 1)

    @property
    def _has_gap(self) -> bool:
        """Clients may hold rows of which it is not known whether they are still in."""
        return self._cold and not self._new

    async def _save_result(self, change: ConfigChange, body: PokeBody) -> None:
        """Durable first, then the poke. A group that was cold has no deletions to offer: whoever
        holds rows is brought up to date by a full view instead."""
        gap = self._has_gap
        self._cold = self._new = False
        if not body.size() and not gap:
            if change:
                await self._save(change, self._audience.version)
            return
        await self._save(change, body.version)
        if gap:
            self._audience.restart(body.version)
        else:
            self._audience.emit(body)

    async def _catch_up(self) -> None:
        """Bring every connected client to the group's version (§5.5)."""
        behind = self._audience.catch_up()
        if behind:
            with self._advances.held():
                await self._send_full(behind)

    async def _send_full(self, clients: list[Client]) -> None:
        assert self._tables is not None
        view = await self._advances.of_engine(self._services.engine.full_view(self, self._tables))
        self._advances.drain(view.version)
        version, queries = self._audience.version, self._services.queries
        body = full_body(version, self._record, view, queries)
        wipe = wiping(body)
        for client in clients:
            if self._is_member(client):
                self._audience.send(client, body if client.base is None else wipe)

    # -- errors and timers ---------------------------------------------------------------------

    def _context(self, client: Client | None) -> ConnectionContext | None:
        """Whose credentials drive shared work: the requester's, else the newest connection's."""
        if client is not None:
            return client.context
        newest = self._audience.newest()
        return None if newest is None else newest.context

    def _report_failed(self, failed: Mapping[QueryHash, QueryError]) -> None:
        if not report_failed(self._audience, self._record, failed):
            self.stale = True

    def schedule(self, task: Coroutine[Any, Any, None]) -> None:
        """Run a task of this group in the background; its failure ends the group's clients."""
        running = asyncio.get_running_loop().create_task(self._guard(task))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _guard(self, task: Coroutine[Any, Any, None]) -> None:
        try:
            await task
        except ClientFacingError as error:
            log.warning("group_task_failed", clientGroupID=self.group_id, kind=error.kind)
            self._audience.fail(error)
        except Exception as error:
            self.abandon(error)

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        end = self._record.next_expiry_ms()
        if end is None or not self.clients or self.closed:
            return
        delay_ms = max(EXPIRY_SLACK_MS, end - self._clock.now_ms() + EXPIRY_SLACK_MS)
        self._expiry = asyncio.get_running_loop().call_later(
            delay_ms / 1000, lambda: self.schedule(self.settle())
        )
