"""A client group: the clients that share one local database, and what each has been told.

All work of a group is done one task at a time (sync-protocol.md §4.1) under :attr:`_lock`;
advances of the replica arrive between the steps of a task and are applied in version order. While
a task has asked the engine or the record store for something that the next poke depends on, it
*holds* the group: advances queue up and are applied when the answer is in.

Invariants (§5.1): the pokes of one connection form a chain; after a poke with version v a client
holds exactly the union of its group's got queries at v; what a cookie promises is durable before
the ``pokeEnd`` that carries it; when that cannot be proven the client is told to wipe its view and
is sent all of it, never a part.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from view_syncer.auth import require_pinned
from view_syncer.context import ConnectionContext
from view_syncer.cvr.record import ConfigChange, GroupRecord, QueryHash
from view_syncer.cvr.store import ConcurrentModification, RecordStore
from view_syncer.engine_host import EngineHost, GroupUpdate, Reconciled
from view_syncer.ivm.encode import ClientTables
from view_syncer.poke import History, PokeBody, frame_poke, merge
from view_syncer.queries import QuerySource, Wanted
from view_syncer.schema_check import check_client_schema, client_tables
from zerocache.errors import ClientFacingError, QueryError, UnsafeIntegerError
from zerocache.protocol import downstream
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.messages import ChangeDesiredQueries, DeleteClients, InitConnection
from zerocache.protocol.versions import NEVER, NO_STATE, ViewVersion, Watermark

log = structlog.get_logger(__name__)

REPLICA_WAIT_S = 10.0
"""How long a client whose cookie is newer than the replica waits for it to catch up."""
EXPIRY_SLACK_MS = 50.0


class Client(Protocol):
    """What a group needs of a connection.

    ``cookie`` is the version of the last poke sent (initially the one the client came with, None
    for nothing); the group advances it. ``send`` must not block.
    """

    client_id: str
    user_id: str | None
    version: int
    profile_id: str
    base: ViewVersion | None
    greeted: bool
    context: ConnectionContext

    def send(self, frames: Iterable[bytes], *, binary_parts: bool = False) -> None: ...
    def fail(self, error: ClientFacingError) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What a worker gives its groups."""

    engine: EngineHost
    store: RecordStore
    queries: QuerySource
    internal_schemas: frozenset[str]
    on_empty: Callable[[ClientGroup], None]
    on_deleted_clients: Callable[[ClientGroup, list[str], ConnectionContext], None]


class ClientGroup:
    """See the module docstring. Public coroutines are the tasks of §4; they may be called
    concurrently and run one after the other."""

    def __init__(self, group_id: str, services: Services) -> None:
        self.group_id = group_id
        self._services = services
        self._lock = asyncio.Lock()
        self._record = GroupRecord(group_id)
        self._loaded = False
        # The version the store has; a save must find it there.
        self._stored = NEVER
        self._version = NEVER
        self._history = History()
        self._tables: ClientTables | None = None
        self._running: dict[QueryHash, bytes] = {}
        self._internal_running = False
        # True until the running queries' rows at `_version` are known to be what clients hold.
        self._cold = True
        self._holds = 0
        self._pending: list[tuple[Watermark, GroupUpdate, PokeBody | None]] = []
        self._clock_started: float | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.clients: dict[str, Client] = {}
        self.pinned_user: tuple[str | None] | None = None
        self.closed = False
        # Set when what this object knows can no longer be trusted: it must not be reused.
        self.stale = False

    # -- tasks ---------------------------------------------------------------------------------

    async def connect(self, client: Client, message: InitConnection) -> None:
        """First message of a connection (§4.2): configuration, then its queries, then a poke."""
        async with self._lock:
            if self._clients_connection(client) is not client:
                return  # replaced while it waited
            await self._load()
            await self._check_cookie(client)
            declared = self._declared_schema(message)
            await self._check_schema(declared)
            await self._services.queries.validate(client.context)
            self.pin_user(client.user_id)
            # Nothing was remembered before this point: a refused connection leaves no trace.
            self._record.client_schema = declared
            self._tables = client_tables(declared)
            change = ConfigChange()
            self._configure(client, message, change)
            deleted = self._delete(client, message.deleted, change)
            deleted += self._retain(client, message.active_clients, change)
            await self._commit(change)
            if message.deleted is not None and message.deleted.client_ids:
                self._acknowledge(deleted, client)
            await self._reconcile(client)
            await self._catch_up()

    async def change_queries(self, client: Client, message: ChangeDesiredQueries) -> None:
        async with self._lock:
            if self._clients_connection(client) is not client or not client.greeted:
                return
            change = ConfigChange()
            self._apply_ops(client, message.desired_queries_patch, change)
            await self._commit(change)
            await self._reconcile(client)
            await self._catch_up()

    async def delete_clients(self, client: Client, message: DeleteClients) -> None:
        async with self._lock:
            if self._clients_connection(client) is not client:
                return
            change = ConfigChange()
            deleted = self._delete(client, message, change)
            await self._commit(change)
            if deleted:
                self._acknowledge(deleted, client)
            await self._reconcile(client)
            await self._catch_up()

    async def refresh_queries(self, client: Client | None = None) -> None:
        """Transform all queries again (credentials or permissions changed)."""
        async with self._lock:
            if not self._loaded or self.closed or not self.clients:
                return
            await self._reconcile(client, fresh=True)
            await self._catch_up()

    async def rebuild(self) -> None:
        """The engine lost everything it knew of this group (schema change, new replica)."""
        async with self._lock:
            if not self._loaded or self.closed:
                return
            self._running.clear()
            self._internal_running = False
            self._cold = True
            self._pending.clear()
            await self._services.engine.drop(self)
            try:
                if self._record.client_schema is not None:
                    await self._check_schema(self._record.client_schema)
                await self._reconcile(None)
                await self._catch_up()
            except ClientFacingError as error:
                self._fail_all(error)

    async def expire(self) -> None:
        """Drop the queries whose time to live has run out."""
        async with self._lock:
            if self.closed or not self.clients:
                return
            await self._reconcile(None, ask=False)
            await self._catch_up()

    async def stop(self) -> None:
        """Release everything; the group object is spent. Waits for the task that runs."""
        async with self._lock:
            if self.closed:
                return
            self.closed = True
            if self._expiry is not None:
                self._expiry.cancel()
            await self._services.engine.drop(self)
            if self._record.exists:
                await self._services.store.touch(self.group_id, self.ttl_now_ms())

    # -- connections ---------------------------------------------------------------------------

    def join(self, client: Client) -> Client | None:
        """Register a connection; returns the one it replaces."""
        replaced = self.clients.get(client.client_id)
        self.clients[client.client_id] = client
        if self._clock_started is None:
            self._clock_started = asyncio.get_running_loop().time()
        return replaced

    def leave(self, client: Client) -> None:
        if self._clients_connection(client) is not client:
            return
        del self.clients[client.client_id]
        if not self.clients:
            self._record.ttl_clock_ms = self.ttl_now_ms()
            self._clock_started = None
            self._services.on_empty(self)

    def ttl_now_ms(self) -> float:
        """The group's TTL clock: it runs only while somebody is connected (§4.4)."""
        if self._clock_started is None:
            return self._record.ttl_clock_ms
        elapsed = asyncio.get_running_loop().time() - self._clock_started
        return self._record.ttl_clock_ms + elapsed * 1000

    def pin_user(self, user_id: str | None) -> None:
        """Bind the group to its first validated user (§1.4)."""
        self.check_user(user_id)
        self.pinned_user = (user_id,)

    def check_user(self, user_id: str | None) -> None:
        """Raise ``Unauthorized`` for anybody but the pinned user."""
        if self.pinned_user is not None:
            require_pinned(self.pinned_user[0], user_id)

    # -- advances ------------------------------------------------------------------------------

    def on_advance(self, version: Watermark, update: GroupUpdate, shared: PokeBody | None) -> None:
        """The replica moved and this group sees some of it. ``shared`` is the ready-made body if
        the update consists of rows only."""
        if self.closed:
            return
        self._pending.append((version, update, shared))
        if not self._holds:
            self._drain(None)

    def _drain(self, until: Watermark | None) -> None:
        """Apply queued advances, at most up to ``until``."""
        while self._pending and (until is None or self._pending[0][0] <= until):
            version, update, shared = self._pending.pop(0)
            self._apply_advance(version, update, shared)

    def _apply_advance(
        self, version: Watermark, update: GroupUpdate, shared: PokeBody | None
    ) -> None:
        if update.failed:
            self._fail_queries(update.failed)
            return
        if version <= self._version.state:
            raise AssertionError(
                f"advance to {version} after version {self._version.cookie()} of {self.group_id}"
            )
        if shared is None:
            shared = PokeBody(ViewVersion(version))
            self._services.queries.add_internal(self.group_id, update, shared)
            if update.dels:
                shared.rows.append(update.dels)
            shared.rows.extend(update.puts)
            if not shared.size():
                return
        self._emit(shared)

    def _emit(self, body: PokeBody) -> None:
        """Make ``body`` the group's newest state and send it to the clients that are current."""
        previous = self._version
        if body.version <= previous:
            raise AssertionError(f"version {body.version} does not follow {previous}")
        self._version = body.version
        self._history.add(body)
        for client in list(self.clients.values()):
            if (client.base or NEVER) == previous:
                self._send(client, body)

    def _send(self, client: Client, body: PokeBody) -> None:
        binary = client.version >= 52
        client.send(frame_poke(client.base, body, binary), binary_parts=binary)
        client.base = body.version
        client.greeted = True

    # -- steps of tasks ------------------------------------------------------------------------

    def _clients_connection(self, client: Client) -> Client | None:
        return self.clients.get(client.client_id)

    async def _load(self) -> None:
        if self._loaded:
            return
        self._record = record = await self._services.store.load(self.group_id)
        self._stored = self._version = record.version
        self._history.restart(record.version)
        if record.client_schema is not None:
            self._tables = client_tables(record.client_schema)
        if not await self._services.queries.wait_for_version(record.version.state, REPLICA_WAIT_S):
            raise ClientFacingError(
                "ClientNotFound",
                f"The client group is at {record.version.cookie()}, a state this server's replica "
                "does not have.",
            )
        self._loaded = True

    async def _check_cookie(self, client: Client) -> None:
        """§4.2.2, with one difference: data advances are not recorded, so a cookie may be newer
        than the record as long as the replica has reached its state."""
        base = client.base
        if base is None:
            return
        if not self._record.exists:
            raise ClientFacingError(
                "ClientNotFound", "The server does not know this client group; start a new one."
            )
        if base.state == self._version.state and base.config > self._version.config:
            raise ClientFacingError(
                "InvalidConnectionRequestBaseCookie",
                f"Cookie {base.cookie()} is ahead of the server's {self._version.cookie()}.",
            )
        if not await self._services.queries.wait_for_version(base.state, REPLICA_WAIT_S):
            raise ClientFacingError(
                "ClientNotFound",
                f"Cookie {base.cookie()} is of a state this server's replica never had.",
            )
        if base > self._version and self._cold:
            # A version this group had before its object was made, by data alone.
            self._version = base
            self._history.restart(base)

    def _declared_schema(self, message: InitConnection) -> ClientSchema:
        """The group's client schema: the stored one, which a re-sent one must equal (§6)."""
        stored, declared = self._record.client_schema, message.client_schema
        if stored is None and declared is None:
            raise ClientFacingError(
                "InvalidConnectionRequest",
                "The first connection of a client group must carry its client schema.",
            )
        differs = stored and declared and stored.canonical() != declared.canonical()
        if differs:
            raise ClientFacingError(
                "InvalidConnectionRequest",
                "The client schema differs from the one this client group was made with.",
            )
        schema = stored or declared
        assert schema is not None
        return schema

    async def _check_schema(self, schema: ClientSchema) -> None:
        _, _, replica = await self._services.engine.state()
        check_client_schema(schema, replica, self._services.internal_schemas)

    def _configure(self, client: Client, message: InitConnection, change: ConfigChange) -> None:
        record = self._record
        if record.profile_id != client.profile_id:
            record.profile_id = client.profile_id
            change.meta = True
        record.add_client(client.client_id, change)
        self._apply_ops(client, message.desired_queries_patch, change)

    def _apply_ops(self, client: Client, ops: Iterable[Any], change: ConfigChange) -> None:
        try:
            self._record.apply_query_ops(client.client_id, ops, self.ttl_now_ms(), change)
        except ValueError as error:
            raise ClientFacingError("InvalidMessage", str(error)) from error

    def _delete(
        self, client: Client, message: DeleteClients | None, change: ConfigChange
    ) -> list[str]:
        deleted = list(message.client_ids) if message is not None else []
        if client.client_id in deleted:
            raise ClientFacingError("InvalidMessage", "A client cannot delete itself.")
        for client_id in deleted:
            self._record.delete_client(client_id, self.ttl_now_ms(), change)
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
            self._record.delete_client(client_id, self.ttl_now_ms(), change)
        return gone

    def _acknowledge(self, deleted: list[str], sender: Client) -> None:
        frame = downstream.delete_clients(deleted)
        for client in list(self.clients.values()):
            client.send([frame])
        self._services.on_deleted_clients(self, deleted, sender.context)

    async def _commit(self, change: ConfigChange) -> None:
        """Write a configuration change, then poke its desired patches (§4.2.6)."""
        if not change and self._record.exists:
            return
        with _Hold(self):
            body = None
            if change.bump or not self._record.exists:
                version = ViewVersion(self._version.state, self._version.config + 1)
                body = PokeBody(version)
                for client_id, ops in change.desired.items():
                    body.desired[client_id] = [_query_op(op, query) for op, query in ops]
            await self._save(change, self._version if body is None else body.version)
            if body is not None:
                self._emit(body)

    async def _save(self, change: ConfigChange, version: ViewVersion) -> None:
        record = self._record
        record.version = version
        record.ttl_clock_ms = self.ttl_now_ms()
        if self._clock_started is not None:
            self._clock_started = asyncio.get_running_loop().time()
        try:
            await self._services.store.save(record, change, self._stored)
        except ConcurrentModification as error:
            self.stale = True
            self._fail_all(ClientFacingError("Rehome", str(error), maxBackoffMs=1000))
            raise ClientFacingError("Rehome", str(error), maxBackoffMs=1000) from error
        self._stored = version

    async def _reconcile(
        self, client: Client | None, *, fresh: bool = False, ask: bool = True
    ) -> None:
        """Bring the running queries in line with the desired ones and poke the difference.
        ``fresh`` asks the application again for every named query, ``ask=False`` for none."""
        assert self._tables is not None
        live = self._record.live_queries(self.ttl_now_ms())
        known = {h: q for h, q in self._record.queries.items() if h in live}
        wanted = await self._services.queries.resolve(
            known, self._context(client), self._running, fresh=fresh, ask=ask
        )
        self._report_rejected(wanted)
        add = {h: q for h, (key, q) in wanted.queries.items() if self._running.get(h) != key}
        remove = [h for h in self._running if h not in wanted.queries]
        expired = [h for h in self._record.queries if h not in live]
        if add or remove or expired or not self._internal_running:
            with _Hold(self):
                await self._switch(wanted, add, remove, expired)
        self._schedule_expiry()

    async def _switch(
        self,
        wanted: Wanted,
        add: Mapping[QueryHash, Any],
        remove: list[QueryHash],
        expired: list[QueryHash],
    ) -> None:
        assert self._tables is not None
        queries = self._services.queries
        internal = {} if self._internal_running else queries.internal(self.group_id)
        result = await self._services.engine.reconcile(self, self._tables, add, remove, internal)
        self._internal_running = True
        self._drain(result.version)
        for query in remove:
            del self._running[query]
        for query in add:
            self._running.pop(query, None)
        for query in result.added:
            self._running[query] = wanted.queries[query][0]
        change = ConfigChange()
        body = self._result_body(result, change, [*remove, *result.failed], expired)
        await self._save_result(result, change, body)
        if result.failed:
            self._fail_queries(result.failed)

    def _result_body(
        self,
        result: Reconciled,
        change: ConfigChange,
        stopped: Iterable[QueryHash],
        expired: Iterable[QueryHash],
    ) -> PokeBody:
        state, config = self._version.state, self._version.config
        newer = result.version > state
        body = PokeBody(ViewVersion(result.version) if newer else ViewVersion(state, config + 1))
        for query in result.added:
            record = self._record.queries[query]
            if not record.got:
                record.got = True
                change.queries.add(query)
                body.got.append(downstream.put_query(query))
        for query in stopped:
            stopped_record = self._record.queries.get(query)
            if stopped_record is not None and stopped_record.got:
                stopped_record.got = False
                change.queries.add(query)
                body.got.append(downstream.del_query(query))
        for query in expired:
            record_ = self._record.queries.get(query)
            if record_ is not None and record_.got:
                body.got.append(downstream.del_query(query))
            self._record.drop_query(query, change)
        body.rows.extend(run for run in (result.dels, result.puts) if run)
        self._services.queries.add_internal_rows(self.group_id, result.internal, body)
        return body

    async def _save_result(self, result: Reconciled, change: ConfigChange, body: PokeBody) -> None:
        """Durable first, then the poke. A group that was cold has no deletions to offer: whoever
        holds rows of an older state is brought up to date by a full view instead."""
        gap = self._cold and self._version.state not in (NO_STATE, result.version)
        self._cold = False
        if not body.size() and not gap:
            if change:
                await self._save(change, self._version)
            return
        await self._save(change, body.version)
        if gap:
            self._version = body.version
            self._history.restart(body.version)
        else:
            self._emit(body)

    async def _catch_up(self) -> None:
        """Bring every connected client to the group's version (§5.5); the first poke of a
        connection is sent even if it is empty (§3.6)."""
        behind: list[Client] = []
        for client in list(self.clients.values()):
            base = client.base or NEVER
            if base == self._version:
                if not client.greeted:
                    self._send(client, PokeBody(self._version))
                continue
            bodies = self._history.since(base)
            if bodies is not None:
                self._send(client, merge(self._version, bodies))
            else:
                behind.append(client)
        if behind:
            with _Hold(self):
                await self._send_full(behind)

    async def _send_full(self, clients: list[Client]) -> None:
        assert self._tables is not None
        view = await self._services.engine.full_view(self, self._tables)
        self._drain(view.version)
        body = PokeBody(self._version)
        for client_id, queries in self._record.active_desires().items():
            body.desired[client_id] = [downstream.put_query(q) for q in queries]
        body.got = [downstream.put_query(h) for h, q in self._record.queries.items() if q.got]
        body.rows.append(view.puts)
        self._services.queries.add_internal_rows(self.group_id, view.internal, body)
        wiping = PokeBody(
            body.version, body.lmids, body.desired, body.got, body.rows, body.mutations, clear=True
        )
        for client in clients:
            if self._clients_connection(client) is client:
                empty = (client.base or NEVER).state == NO_STATE
                self._send(client, body if empty else wiping)

    # -- errors and timers ---------------------------------------------------------------------

    def _context(self, client: Client | None) -> ConnectionContext | None:
        """Whose credentials drive shared work: the requester's, else the newest connection's."""
        if client is not None:
            return client.context
        newest = next(reversed(self.clients.values()), None)
        return None if newest is None else newest.context

    def _report_rejected(self, wanted: Wanted) -> None:
        for client in list(self.clients.values()):
            errors = [
                error
                for query, error in wanted.rejected.items()
                if (client.client_id, query) in self._record.desires
            ]
            if errors:
                client.send([downstream.transform_error(errors, client.version)])

    def _fail_queries(self, failed: Mapping[QueryHash, QueryError]) -> None:
        """Queries the engine cannot serve. Rows that have no JSON form end the connections that
        want them; anything else is reported and the connection stays."""
        for query, error in failed.items():
            record = self._record.queries.get(query)
            if record is None:  # an internal query: nobody can be served
                self._fail_all(ClientFacingError("Internal", str(error)))
                self.stale = True
                continue
            if isinstance(error, UnsafeIntegerError):
                self._fail_desiring(query, ClientFacingError("Internal", str(error)))
                continue
            report = {
                "error": "parse",
                "id": query,
                "name": record.name or "(ad-hoc query)",
                "message": str(error),
            }
            for client in list(self.clients.values()):
                if (client.client_id, query) in self._record.desires:
                    client.send([downstream.transform_error([report], client.version)])

    def _fail_desiring(self, query: QueryHash, error: ClientFacingError) -> None:
        """The group can no longer follow this query, so its next task starts from nothing."""
        self._cold = True
        for client in list(self.clients.values()):
            if (client.client_id, query) in self._record.desires:
                client.fail(error)
        self.schedule(self.rebuild())

    def _fail_all(self, error: ClientFacingError) -> None:
        for client in list(self.clients.values()):
            client.fail(error)

    def schedule(self, task: Any) -> None:
        """Run a task of this group in the background; its failure ends the group's clients."""
        running = asyncio.get_running_loop().create_task(self._guard(task))
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def _guard(self, task: Any) -> None:
        try:
            await task
        except ClientFacingError as error:
            log.warning("group_task_failed", clientGroupID=self.group_id, kind=error.kind)
            self._fail_all(error)

    def _schedule_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        end = self._record.next_expiry_ms()
        if end is None or not self.clients:
            return
        delay_ms = max(EXPIRY_SLACK_MS, end - self.ttl_now_ms() + EXPIRY_SLACK_MS)
        self._expiry = asyncio.get_running_loop().call_later(
            delay_ms / 1000, lambda: self.schedule(self.expire())
        )


class _Hold:
    """While held, advances of the group wait; they are applied when the last hold ends."""

    def __init__(self, group: ClientGroup) -> None:
        self._group = group

    def __enter__(self) -> None:
        self._group._holds += 1

    def __exit__(self, *_: object) -> None:
        group = self._group
        group._holds -= 1
        if not group._holds and not group.closed:
            group._drain(None)


def _query_op(op: str, query: QueryHash) -> bytes:
    return downstream.put_query(query) if op == "put" else downstream.del_query(query)
