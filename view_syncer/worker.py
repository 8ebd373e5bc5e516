"""One sync worker: its engine, its client groups, and what they share.

Owns the life of the process's parts and the map of client groups; is the
:class:`~view_syncer.connection.Host` of every connection. A worker serves the groups that hash to
it and no others, so one engine pipeline serves all groups here that ask the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from view_syncer import connection as connections
from view_syncer.api_client import ApiClient, ApiEndpoint, open_session
from view_syncer.auth import Auth, Authenticator
from view_syncer.client_group import ClientGroup, Services
from view_syncer.connection import Connection, Peer, serve
from view_syncer.context import ConnectionContext
from view_syncer.cvr.opening import store_of
from view_syncer.cvr.purge import PurgePolicy, Reaper
from view_syncer.engine_host import EngineHost
from view_syncer.fact_keeper import FactKeeper
from view_syncer.fan_out import GroupUpdate, WorkerAdvance
from view_syncer.inspector import Inspector
from view_syncer.intake import Intake
from view_syncer.ivm.hydration import HydrationLimits
from view_syncer.limits import Limits
from view_syncer.maintenance import Intervals, Maintenance
from view_syncer.mutations import GroupPushes, Writes
from view_syncer.poke import PokeBody
from view_syncer.queries import QuerySource
from view_syncer.replica_wait import ReplicaWait
from view_syncer.schema_check import ClientSchemas
from view_syncer.transform import QueryTransformer
from view_syncer.websocket import WebSocket
from zerocache.config import Config
from zerocache.control import HandOff
from zerocache.errors import ClientFacingError, ReplicaError
from zerocache.protocol.handshake import ConnectParams
from zerocache.protocol.messages import AckMutationResponses, Inspect, Push, UpdateAuth
from zerocache.protocol.versions import ViewVersion, Watermark
from zerocache.replica import index_requests
from zerocache.replica.index_requests import IndexRequester
from zerocache.replica.notifier import watch_versions

log = structlog.get_logger(__name__)

LINGER_S = 30.0
"""How long a group without clients is kept: a reload or a short loss of the network then finds
its queries running and its recent pokes at hand."""
WRITE_LIMIT_BYTES = 256 * 1024
"""Unsent bytes beyond which a client is not poked any further until it has taken most of them."""
CLOSE_WAIT_S = 5.0
FACTS_WAIT_S = 5.0
PUSH_DRAIN_S = 10.0
"""How long pushes may take that are under way when the worker ends."""
DRAIN_PAUSE_S = 0.01
"""Between the client groups that are sent elsewhere: about what bringing one up to date costs the
server that gets it."""
DRAIN_SHARE = 0.5
"""Of the time a drain may take: the rest is for closing, pushes and records."""
EXAMINE_INTERVAL_S = 600.0
"""How often all running plans are examined for missing indexes: tables grow."""


class Worker:
    """Create with :meth:`start`, end with :meth:`stop`; ``on_fatal`` is called when the engine
    cannot go on and the process must be replaced, ``on_released`` with the address of each
    connection that is over."""

    def __init__(
        self,
        config: Config,
        on_fatal: Callable[[BaseException], None],
        on_released: Callable[[str], None] = lambda address: None,
    ) -> None:
        self._config = config
        self._on_released = on_released
        self.limits = Limits(config)
        self._on_fatal = on_fatal
        self._groups: dict[str, ClientGroup] = {}
        # By object, not by id: a stale group may still be on its way out when the next one of
        # the same id serves clients.
        self._pushes: dict[ClientGroup, GroupPushes] = {}
        self._lingering: dict[ClientGroup, asyncio.TimerHandle] = {}
        self._connections: set[asyncio.Task[None]] = set()
        self._live: set[Connection] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._draining = False

    async def start(self, version_socket: Path) -> None:
        """Open everything; returns when clients can be served."""
        config = self._config
        self._session = open_session()
        client = ApiClient(self._session, config.app.id, config.shard.num)
        query = ApiEndpoint.from_options(config.query, "ZERO_QUERY_URL")
        self._mutate = ApiEndpoint.from_options(config.mutate, "ZERO_MUTATE_URL")
        self._api = client
        self._authenticator = Authenticator(
            config.auth, endpoints=query.enabled and self._mutate.enabled
        )
        self._store = store_of(config)
        await self._store.open()
        self._queries = QuerySource(
            config.app_schema, config.shard_schema, QueryTransformer(client, query)
        )
        self._index_requests = IndexRequester(version_socket.with_name(index_requests.SOCKET_NAME))
        wanted = config.auto_indexes and config.auto_index_max > 0
        self._intake = Intake()
        self._engine = EngineHost(
            config.replica.file,
            self._on_advance,
            self._on_fatal,
            self._index_requests.ask if wanted else None,
            HydrationLimits(
                config.max_rows_per_query,
                config.max_hydration_seconds,
                config.quick_hydration_rows,
            ),
            self._intake,
        )
        self._engine.start()
        purging = PurgePolicy.of(config)
        # Groups that did not come back for so long are purged.
        self._facts = FactKeeper(self._store, self._engine, purging.inactive_s)
        await self._facts.open()
        self._writes = Writes.make(config, self._engine, self._queries)
        self._inspector = Inspector(config, self._engine, self._queries)
        self._replica = ReplicaWait(self._engine, self._queries)
        self._maintenance = self._make_maintenance()
        self._services = Services(
            engine=self._engine,
            store=self._store,
            facts=self._facts,
            queries=self._queries,
            replica=self._replica,
            schemas=ClientSchemas(frozenset({config.app_schema, config.shard_schema})),
            limits=config,
            on_empty=self._linger,
            on_deleted_clients=self._clean_up_deleted,
        )
        await self._sync_with_engine()
        self._spawn(self._follow_replica(version_socket))
        self._spawn(self._examine_plans())
        self._spawn(self._maintenance.run())
        self._spawn(self._facts.run())
        self._spawn(self._keep_alive())
        self._spawn(Reaper(self._store, purging).run())
        self._spawn(self._intake.run())

    async def stop(self) -> None:
        """Send every client elsewhere, finish what was accepted, release everything."""
        self._draining = True
        await self._move_clients_away()
        if self._connections:
            _, late = await asyncio.wait(self._connections, timeout=CLOSE_WAIT_S)
            for task in late:
                task.cancel()
        for handle in self._lingering.values():
            handle.cancel()
        await self._finish_pushes()
        # While the groups' queries still run: their rows are written down.
        await self._facts.close(FACTS_WAIT_S)
        await asyncio.gather(*(group.stop() for group in list(self._groups.values())))
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._engine.close()
        await self._index_requests.close()
        await self._store.close()
        await self._authenticator.close()
        await self._writes.close()
        await self._session.close()

    async def _move_clients_away(self) -> None:
        """Group by group, so that the server that receives them is not swamped."""
        groups = [group for group in self._groups.values() if group.clients]
        limit_s = self._config.drain_timeout_seconds
        pause_s = DRAIN_PAUSE_S
        if limit_s and groups:
            pause_s = min(pause_s, limit_s * DRAIN_SHARE / len(groups))
        moved = ClientFacingError("Rehome", "The server is shutting down.", maxBackoffMs=0)
        for group in groups:
            for client in list(group.clients.values()):
                client.fail(moved)
            await asyncio.sleep(pause_s)
        for connection in list(self._live):  # of groups that were given up meanwhile
            connection.fail(moved)
        log.info("clients_moved_away", clientGroups=len(groups))

    async def _finish_pushes(self) -> None:
        """Deliver what clients pushed, unless the application hangs: they push it again."""
        pushes = list(self._pushes.values())
        try:
            async with asyncio.timeout(PUSH_DRAIN_S):
                await asyncio.gather(*(each.drain() for each in pushes))
        except TimeoutError:
            log.warning("pushes_given_up", afterSeconds=PUSH_DRAIN_S)
            await asyncio.gather(*(each.abort() for each in pushes))

    def figures(self) -> dict[str, Any]:
        """For the operator (``/statz``); numbers are summed up over all workers."""
        pokes = sum(1 for connection in self._live if connection.clogged)
        return {
            "connections": len(self._connections),
            "clients": len(self._live),
            "clientsBehind": pokes,
            "clientGroups": len(self._groups),
            "clientsWaiting": self._intake.waiting,
            "draining": self._draining,
            "version": self._queries.version,
            "messagesRefused": self.limits.refused,
            "clientsAheadOfReplica": self._replica.sent_away,
            "maxResidentKilobytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }

    def _make_maintenance(self) -> Maintenance:
        auth = self._config.auth
        intervals = Intervals(
            revalidate_s=auth.revalidate_interval_seconds,
            retransform_s=auth.retransform_interval_seconds,
        )
        return Maintenance(self._all_groups, intervals)

    def adopt(self, sock: socket.socket, hand_off: HandOff) -> None:
        """Serve a connection whose upgrade request is still unread."""
        peer = Peer(hand_off.peer, hand_off.address, hand_off.refusal)
        task = asyncio.get_running_loop().create_task(self._serve(sock, peer))
        self._connections.add(task)
        task.add_done_callback(lambda task: self._ended(task, hand_off))

    def _ended(self, task: asyncio.Task[None], hand_off: HandOff) -> None:
        self._connections.discard(task)
        if not hand_off.refusal:
            self._on_released(hand_off.address)

    async def _serve(self, sock: socket.socket, peer: Peer) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        websocket = self._config.websocket
        try:
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                lambda: WebSocket(
                    max_size=websocket.max_payload_bytes,
                    write_limit=WRITE_LIMIT_BYTES,
                    compression=websocket.compression,
                ),
                sock,
            )
        except OSError:
            sock.close()
            return
        try:
            await serve(protocol, self, peer)
        except Exception as error:
            # One connection's bug must not take the worker's other clients along.
            log.exception("connection_crashed", exc_info=error)
            protocol.close(1011)

    # -- Host -----------------------------------------------------------------------------------

    async def authenticate(self, params: ConnectParams, token: str | None) -> Auth:
        if self._draining:
            raise ClientFacingError("Rehome", "The server is shutting down.")
        return await self._authenticator.authenticate(token, params.user_id)

    def check_user(self, group_id: str, user_id: str | None) -> None:
        group = self._groups.get(group_id)
        if group is not None:
            group.check_user(user_id)

    def check_new(self, params: ConnectParams, address: str) -> None:
        group = self._groups.get(params.client_group_id)
        if group is None:
            self.limits.new_group(address)
        elif params.client_id not in group.clients:
            self.limits.group_size(len(group.clients))

    def group(self, group_id: str) -> ClientGroup:
        group = self._groups.get(group_id)
        if group is None or group.stale or group.closed:
            group = self._groups[group_id] = ClientGroup(group_id, self._services)
        handle = self._lingering.pop(group, None)
        if handle is not None:
            handle.cancel()
        return group

    def check_load(self) -> None:
        self._intake.check()

    def joined(self, connection: Connection) -> None:
        self._live.add(connection)

    def left(self, connection: Connection) -> None:
        self._live.discard(connection)

    async def push(self, connection: Connection, message: Push) -> None:
        await self._pushes_of(connection.group).push(connection, message)

    def ack_results(self, connection: Connection, message: AckMutationResponses) -> None:
        self._pushes_of(connection.group).acknowledged(connection, message)

    async def update_auth(self, connection: Connection, message: UpdateAuth) -> bool:
        """Take over a new token; True if it changes anything."""
        auth = await self._authenticator.authenticate(
            message.auth or None, connection.user_id, connection.auth
        )
        if auth is connection.auth:
            return False
        context = connection.context.with_auth(auth)
        await self._queries.validate(context)
        connection.auth, connection.context = auth, context
        connection.validated_s = asyncio.get_running_loop().time()
        return True

    async def inspect(self, connection: Connection, message: Inspect) -> bytes:
        return await self._inspector.answer(connection, message)

    # -- groups ---------------------------------------------------------------------------------

    def _pushes_of(self, group: ClientGroup) -> GroupPushes:
        pushes = self._pushes.get(group)
        if pushes is None:
            pushes = self._pushes[group] = GroupPushes(group, self._api, self._mutate, self._writes)
        return pushes

    def _clean_up_deleted(
        self, group: ClientGroup, client_ids: list[str], context: ConnectionContext
    ) -> None:
        self._pushes_of(group).deleted(client_ids, context)

    def _linger(self, group: ClientGroup) -> None:
        if self._draining:
            return
        self._maintenance.left(group)
        delay = 0.0 if group.stale else LINGER_S
        self._lingering[group] = asyncio.get_running_loop().call_later(
            delay, lambda: self._spawn(self._dissolve(group))
        )

    async def _dissolve(self, group: ClientGroup) -> None:
        self._lingering.pop(group, None)
        if group.clients:
            return
        if self._groups.get(group.group_id) is group:
            del self._groups[group.group_id]
        pushes = self._pushes.pop(group, None)
        if pushes is not None:
            await pushes.drain()
        await group.stop()

    async def _keep_alive(self) -> None:
        """One timer for all connections."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(connections.PONG_CHECK_S)
            for connection in list(self._live):
                connection.keep_alive(loop.time())

    # -- replica --------------------------------------------------------------------------------

    async def _follow_replica(self, path: Path) -> None:
        async for _ in watch_versions(path):
            self._engine.notify()

    async def _examine_plans(self) -> None:
        while True:
            await asyncio.sleep(EXAMINE_INTERVAL_S)
            self._engine.examine_plans()

    def _on_advance(self, advance: WorkerAdvance) -> None:
        if advance.reset:
            self._on_reset(advance.version)
            return
        self._queries.set_version(advance.version)
        self._facts.advanced()
        shared: dict[tuple[int, ...], PokeBody] = {}
        version = self._facts.version(advance.version)
        own = advance.updates.get(self._queries)
        if own is not None and self._queries.take_permissions(own):
            # Before any group sends rows of this advance.
            for group in self._all_groups():
                group.permissions_changed(advance.version)
        for reader, update in advance.updates.items():
            if isinstance(reader, ClientGroup):
                body = _shared_body(version, update, shared)
                try:
                    reader.on_advance(advance.version, update, body)
                except Exception as error:
                    # Its clients start over; the other groups must not miss this advance.
                    reader.abandon(error)

    def _on_reset(self, version: Watermark) -> None:
        # Before any task gets an answer of the engine that no longer knows the groups.
        self._queries.forget_permissions()
        for group in self._all_groups():
            group.invalidate()
        before = self._queries.version
        if version > before:
            self._queries.set_version(version)
            self._spawn(self._rebuild())
            return
        # Cookies and facts of this life are ahead of the replica, or of the same version of another
        # history, and would be taken for those of what comes. Without permissions nobody is served
        # any more.
        reason = (
            f"the replica did not go on from {before}, it is at {version}: a copy of a restored "
            "upstream or an older backup took its place; the worker starts over"
        )
        self._facts.give_up(reason)
        self._on_fatal(ReplicaError(reason))

    async def _sync_with_engine(self) -> None:
        self._queries.set_version(self._engine.state.version)
        await self._queries.watch(self._engine)

    async def _rebuild(self) -> None:
        await self._sync_with_engine()
        for group in self._all_groups():
            group.schedule(group.rebuild())

    def _all_groups(self) -> list[ClientGroup]:
        return [group for group in self._groups.values() if not group.stale]

    def _spawn(self, coroutine: Any) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            error = task.exception()
            if error is not None:
                self._on_fatal(error)


def _shared_body(
    version: ViewVersion, update: GroupUpdate, shared: dict[tuple[int, ...], PokeBody]
) -> PokeBody | None:
    """One body, and one set of frames, for all groups whose update is the same row patches."""
    if update.internal or update.failed or not update.share:
        return None
    body = shared.get(update.share)
    if body is None:
        body = shared[update.share] = PokeBody(version)
        body.rows.extend(update.rows())
    return body
