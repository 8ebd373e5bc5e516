"""A client group: the clients that share one local database, and what each has been told.

All work of a group is done one task at a time (sync-protocol.md §4.1); advances of the replica
arrive between the steps of a task. This module owns the order of the steps and the life of the
object; the steps are those of :mod:`view_syncer.group_config` (what a message asks for) and
:mod:`view_syncer.group_view` (what clients are sent). When the engine loses what it knew of the
group (:meth:`ClientGroup.invalidate`), whatever task waits for its answer gives up, and
:meth:`ClientGroup.rebuild` starts over for everybody.

Invariant: an object that may know less or more than the store or the engine is *stale*. It serves
nobody again, and its clients are sent to the object that takes its place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from view_syncer.admission import (
    check_deleted,
    check_first_message,
    check_query_ops,
    declared_schema,
)
from view_syncer.advances import GroupAdvance, Superseded
from view_syncer.audience import Audience, Client
from view_syncer.auth import require_pinned
from view_syncer.context import ConnectionContext
from view_syncer.cvr.keeper import RecordKeeper
from view_syncer.cvr.record import ConfigChange, GroupRecord, QueryHash
from view_syncer.cvr.store import ConcurrentModification, RecordStore
from view_syncer.engine_host import EngineHost
from view_syncer.fact_keeper import FactKeeper
from view_syncer.fan_out import GroupUpdate
from view_syncer.group_config import configure, delete_clients, retain_clients
from view_syncer.group_view import GroupView
from view_syncer.ivm.encode import ClientTables
from view_syncer.poke import PokeBody
from view_syncer.queries import QuerySource
from view_syncer.replica_wait import ReplicaWait
from view_syncer.schema_check import ClientSchemas
from view_syncer.schema_gate import require_schema
from zerocache.errors import ClientFacingError, QueryError
from zerocache.options_limits import ClientLimits
from zerocache.protocol import downstream
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import ChangeDesiredQueries, DeleteClients, InitConnection
from zerocache.protocol.versions import ViewVersion, Watermark

log = structlog.get_logger(__name__)

EXPIRY_SLACK_MS = 50.0


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker gives its groups."""

    engine: EngineHost
    store: RecordStore
    facts: FactKeeper
    queries: QuerySource
    replica: ReplicaWait
    schemas: ClientSchemas
    limits: ClientLimits
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
        self._keeper = RecordKeeper(group_id, services.store, services.facts.author)
        self._view = GroupView(
            self,
            self._keeper,
            self._audience,
            services.engine,
            services.queries,
            services.facts,
            on_lost=lambda: self.schedule(self.rebuild()),
        )
        self._loaded = False
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.pinned_user: tuple[str | None] | None = None
        self.closed = False
        # Set when what this object knows can no longer be trusted: it must not be reused.
        self.stale = False

    # -- tasks ---------------------------------------------------------------------------------

    async def connect(self, client: Client, message: InitConnection) -> None:
        """First message of a connection (§4.2): configuration, then its queries, then a poke."""
        # Not under the lock: neither a stranger nor a slow replica must hold up the group.
        await self._services.queries.validate(client.context)
        if client.base is not None and self._may_reach(client.base):
            await self._services.replica.wait(client.base)
        async with self._task():
            if not self._audience.has(client):
                return  # replaced while it waited
            self.check_user(client.user_id)
            fresh = await self._load()
            await self._check_cookie(client, fresh=fresh)
            declared = declared_schema(self._record, message)
            await self._check_schema(declared)
            limits = self._services.limits
            check_first_message(self._record, client.client_id, message, limits)
            if not self._audience.has(client):
                return
            # Nothing was remembered before this point: a refused connection leaves no trace.
            self._admit(client, declared)
            await self._configure(client, message)
            await self._update(client)

    async def change_queries(self, client: Client, message: ChangeDesiredQueries) -> None:
        async with self._task():
            if not self._is_member(client):
                return
            ops = message.desired_queries_patch
            check_query_ops(self._record, ops, self._services.limits)
            change = ConfigChange()
            self._record.apply_query_ops(client.client_id, ops, self.ttl_now_ms(), change)
            await self._view.commit(change)
            await self._update(client)

    async def delete_clients(self, client: Client, message: DeleteClients) -> None:
        async with self._task():
            if not self._is_member(client):
                return
            check_deleted(client.client_id, message)
            change = ConfigChange()
            deleted = delete_clients(self._record, message, self.ttl_now_ms(), change)
            await self._view.commit(change)
            if deleted:
                self._acknowledge(deleted, client)
            await self._update(client)

    async def refresh_queries(self, client: Client | None = None) -> None:
        """Transform all queries again (credentials or permissions changed), in the name of
        ``client`` or else of the newest connection."""
        async with self._task():
            if not self._loaded or not self._audience.admitted():
                return
            if client is not None and not self._is_member(client):
                return
            await self._update(client, fresh=True)

    async def rebuild(self) -> None:
        """Start over after :meth:`invalidate`. Without clients the next one to come does it."""
        async with self._task():
            if not self._loaded or not self._view.cold or not self._audience.admitted():
                return
            try:
                if self._record.client_schema is not None:
                    await self._check_schema(self._record.client_schema)
                await self._update(None)
            except ClientFacingError as error:
                self._audience.fail(error)

    async def catch_up(self) -> None:
        """Bring clients that fell behind to the present."""
        async with self._task():
            if self._loaded and not self._view.cold and self._audience.admitted():
                await self._view.catch_up()

    async def settle(self) -> None:
        """Bring what runs in line with what is known here: drop the queries whose time to live
        has run out, apply changed permissions. Does not ask the application."""
        async with self._task():
            if self._audience.admitted():
                await self._update(None, ask=False)

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
        """Write down how far the TTL clock is."""
        await self._keeper.touch()

    async def stop(self) -> None:
        """Release everything; the group object is spent. Waits for the task that runs, unless
        nobody asked for it: what the group does on its own account is given up."""
        for task in self._tasks:
            task.cancel()
        async with self._lock:
            if self.closed:
                return
            self.closed = True
            if self._expiry is not None:
                self._expiry.cancel()
            await self._services.engine.drop(self)
            await self.touch()

    # -- connections ---------------------------------------------------------------------------

    def admitted(self) -> list[Client]:
        """The connections that passed all checks, the newest last."""
        return self._audience.admitted()

    @property
    def clients(self) -> Mapping[str, Client]:
        return self._audience.clients

    def join(self, client: Client) -> Client | None:
        """Register a connection; returns the one it replaces."""
        self._keeper.clock.start()
        return self._audience.join(client)

    def leave(self, client: Client) -> None:
        if not self._audience.has(client):
            return
        self._audience.leave(client)
        if not self.clients:
            self._keeper.clock.stop()
            self._services.on_empty(self)

    def drained(self, client: Client) -> None:
        """The client takes pokes again: one for all that it missed."""
        if self.closed or self.stale or not self._is_member(client):
            return
        if not self._audience.catch_up_one(client):
            self.schedule(self.catch_up())

    def ttl_now_ms(self) -> float:
        """The group's TTL clock: it runs only while somebody is connected (§4.4)."""
        return self._keeper.clock.now_ms()

    def pin_user(self, user_id: str | None) -> None:
        """Bind the group to its first validated user (§1.4)."""
        self.check_user(user_id)
        self.pinned_user = (user_id,)

    def check_user(self, user_id: str | None) -> None:
        """Raise ``Unauthorized`` for anybody but the pinned user."""
        if self.pinned_user is not None:
            require_pinned(self.pinned_user[0], user_id)

    def inspected(self) -> Inspected:
        view = self._view
        return Inspected(self._record, view.running, view.tables, self.ttl_now_ms())

    # -- the engine ----------------------------------------------------------------------------

    def on_advance(self, version: Watermark, update: GroupUpdate, shared: PokeBody | None) -> None:
        """The replica moved and this group sees some of it. ``shared`` is the ready-made body if
        the update consists of rows only."""
        if self.closed or self.stale:
            return
        try:
            self._view.on_advance(GroupAdvance(version, update, shared))
        except QueryError as error:
            self._cannot_serve(error)

    def permissions_changed(self, version: Watermark) -> None:
        """From the advance to ``version`` on nobody may be shown what the queries yield under the
        permissions of before. To be called before :meth:`on_advance`."""
        if not (self.closed or self.stale) and self._view.bar(version):
            self.schedule(self.settle())

    def invalidate(self) -> None:
        """What the engine knew of this group is lost (schema change, new replica), or cannot be
        used. Takes effect at once; a :meth:`rebuild` must follow."""
        self._view.invalidate()

    # -- failures ------------------------------------------------------------------------------

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
            except ConcurrentModification as error:
                moved = ClientFacingError("Rehome", str(error), maxBackoffMs=1000)
                raise self._end(moved) from error
            except QueryError as error:
                raise self._cannot_serve(error) from error
            except Exception as error:
                raise self.abandon(error) from error

    def abandon(self, error: Exception) -> ClientFacingError:
        """Give this object up; clients come back to a new one. Returns what they were told."""
        log.error("client_group_failed", clientGroupID=self.group_id, exc_info=error)
        return self._end(
            ClientFacingError(
                "ServerOverloaded",
                "The server could not process the request; try again.",
                minBackoffMs=1000,
                maxBackoffMs=10000,
            )
        )

    def _cannot_serve(self, error: QueryError) -> ClientFacingError:
        """Rows that every view of the group needs have no form on the wire: coming back helps
        only when they were corrected."""
        log.error("client_group_unservable", clientGroupID=self.group_id, reason=str(error))
        return self._end(ClientFacingError("Internal", str(error)))

    def _end(self, told: ClientFacingError) -> ClientFacingError:
        self.stale = True
        self._audience.fail(told)
        return told

    # -- steps of tasks ------------------------------------------------------------------------

    @property
    def _record(self) -> GroupRecord:
        return self._keeper.record

    def _is_member(self, client: Client) -> bool:
        """Whether this is the connection of its client and passed all checks."""
        return client.admitted and self._audience.has(client)

    def _admit(self, client: Client, declared: ClientSchema) -> None:
        self.pin_user(client.user_id)
        self._record.client_schema = declared
        self._view.use(self._services.schemas.tables(declared))
        client.admitted = True
        client.validated_s = asyncio.get_running_loop().time()

    async def _load(self) -> bool:
        """True if it was not loaded before."""
        if self._loaded:
            return False
        record = await self._keeper.load()
        if record.deleted:
            raise ClientFacingError(
                "ClientNotFound",
                "The client group was inactive for so long that the server forgot it; start a "
                "new one.",
            )
        self._audience.restart(record.version)
        self._keeper.note_read(self._services.engine.state.version)
        await self._services.replica.reach(record.version, record.replica_version)
        schema = record.client_schema
        tables = self._services.schemas.tables(schema) if schema else None
        self._view.start(tables, new=not record.exists)
        self._loaded = True
        return True

    async def _check_cookie(self, client: Client, *, fresh: bool) -> None:
        """§4.2.2, with one difference: data advances are not recorded, so a cookie of such an
        advance, made before this object or by another server, may be newer than the record."""
        base = client.base
        if base is None:
            return
        if not self._record.exists:
            raise ClientFacingError(
                "ClientNotFound", "The server does not know this client group; start a new one."
            )
        own = base.issuer == self._services.facts.author
        if not (own or fresh) and base > self._record.version:
            # Perhaps its server knows of changes that this object does not.
            await self._keeper.verify()
        self._reach_cookie(base)
        foreign = self._services.replica.is_of_another_copy(base, self._record.replica_version)
        if foreign or not self._record.was_known_at(base):
            await self._view.start_over_from(base)

    def _may_reach(self, base: ViewVersion) -> bool:
        """Whether there may be such a cookie that is newer than all that is known here."""
        seen = not self._view.cold and base.issuer == self._services.facts.author
        return not seen and base == ViewVersion.of_issuer(base.issuer, base.state)

    def _reach_cookie(self, base: ViewVersion) -> None:
        """Be at ``base`` at least."""
        version = self._audience.version
        if base <= version:
            return
        if not self._may_reach(base):
            raise ClientFacingError(
                "InvalidConnectionRequestBaseCookie",
                f"Cookie {base.cookie()} is ahead of the server's {version.cookie()}.",
            )
        self._services.replica.require(base, self._record.replica_version)
        self._audience.restart(base)

    async def _check_schema(self, schema: ClientSchema) -> None:
        services = self._services
        generation = await require_schema(services.engine, schema, services.schemas)
        if self._record.replica_version is None:
            self._record.enter_generation(generation)

    async def _configure(self, client: Client, message: InitConnection) -> None:
        record, now_ms, change = self._record, self.ttl_now_ms(), ConfigChange()
        configure(record, client.client_id, client.profile_id, message, now_ms, change)
        deleted = delete_clients(record, message.deleted, now_ms, change)
        connected = {*self.clients, client.client_id}
        deleted += retain_clients(record, message.active_clients, connected, now_ms, change)
        acknowledging = message.deleted is not None and bool(message.deleted.client_ids)
        await self._view.commit(change, followed=not acknowledging)
        if acknowledging:
            self._acknowledge(deleted, client)

    def _acknowledge(self, deleted: list[str], sender: Client) -> None:
        self._audience.tell(downstream.delete_clients(deleted))
        self._services.on_deleted_clients(self, deleted, sender.context)

    async def _update(
        self, client: Client | None, *, fresh: bool = False, ask: bool = True
    ) -> None:
        """Run what is desired, and bring everybody up to date with it."""
        try:
            await self._view.reconcile(self._context(client), fresh=fresh, ask=ask)
        finally:
            self._schedule_expiry()
        await self._view.catch_up()

    def _context(self, client: Client | None) -> ConnectionContext | None:
        """Whose credentials drive shared work: the requester's, else the newest connection's."""
        if client is not None:
            return client.context
        newest = self._audience.newest()
        return None if newest is None else newest.context

    # -- background ----------------------------------------------------------------------------

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
        if end is None or not self.clients or self.closed or self.stale:
            return
        delay_ms = max(EXPIRY_SLACK_MS, end - self.ttl_now_ms() + EXPIRY_SLACK_MS)
        self._expiry = asyncio.get_running_loop().call_later(
            delay_ms / 1000, lambda: self.schedule(self.settle())
        )
