"""One client's connection: from the upgrade request to the last frame.

Owns the handshake (sync-protocol.md §1), the order of what the client sends, and liveness (§4.7).
Everything about data belongs to the client group. Frames are processed strictly in order, one at
a time; pings are answered in that order too, and a timer sends pongs besides, because a ping may
be stuck behind slow work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from websockets.exceptions import InvalidHandshake

from view_syncer.api_client import join_headers
from view_syncer.auth import Auth
from view_syncer.client_group import ClientGroup
from view_syncer.context import ConnectionContext
from view_syncer.limits import Limits
from view_syncer.upgrade import Upgrade
from view_syncer.websocket import WebSocket
from zerocache.errors import ClientFacingError, HandshakeRefused
from zerocache.protocol import downstream
from zerocache.protocol.handshake import (
    ConnectParams,
    Subprotocol,
    check_version,
    close_reason,
    decode_subprotocol,
    parse_connect_url,
)
from zerocache.protocol.messages import (
    AckMutationResponses,
    ChangeDesiredQueries,
    DeleteClients,
    InitConnection,
    Inspect,
    Ping,
    Push,
    UpdateAuth,
    UpstreamMessage,
    decode_upstream,
)
from zerocache.protocol.versions import ViewVersion

log = structlog.get_logger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
PONG_CHECK_S = 3.0
PONG_AFTER_SILENCE_S = 6.0
FULL_BACKOFF_MS = 5000
PING_AFTER_SILENCE = 0.5
"""Of the idle time-out: then a WebSocket ping is sent, which browsers answer by themselves."""
PINGS_UNANSWERED = 3
SEND_TIMEOUT_S = 10.0
"""How long a peer may take nothing of what waits for it (§4.7)."""


class Host(Protocol):
    """What a connection needs of its worker."""

    @property
    def limits(self) -> Limits: ...
    async def authenticate(self, params: ConnectParams, token: str | None) -> Auth: ...
    def check_new(self, params: ConnectParams, address: str) -> None: ...
    def group(self, group_id: str) -> ClientGroup: ...
    def check_user(self, group_id: str, user_id: str | None) -> None: ...
    async def push(self, connection: Connection, message: Push) -> None: ...
    def ack_results(self, connection: Connection, message: AckMutationResponses) -> None: ...
    async def update_auth(self, connection: Connection, message: UpdateAuth) -> bool: ...
    async def inspect(self, connection: Connection, message: Inspect) -> bytes: ...
    def check_load(self) -> None: ...
    def joined(self, connection: Connection) -> None: ...
    def left(self, connection: Connection) -> None: ...


@dataclass(slots=True)
class Peer:
    """Who is at the other end: the socket's, and the client's address behind proxies. ``refusal``
    is why it is only told to come back later."""

    name: str
    address: str = ""
    refusal: str = ""


class Connection:
    """See the module docstring; also the :class:`~view_syncer.client_group.Client` of a group."""

    def __init__(
        self,
        socket: WebSocket,
        host: Host,
        params: ConnectParams,
        auth: Auth,
        context: ConnectionContext,
    ) -> None:
        self._socket = socket
        self._host = host
        self.params = params
        self.auth = auth
        self.context = context
        self.client_id = params.client_id
        self.user_id = params.user_id
        self.profile_id = params.profile_id
        self.version = params.version
        self.base: ViewVersion | None = None
        self.greeted = False
        self.admitted = False
        self.validated_s = 0.0
        self.group: ClientGroup = host.group(params.client_group_id)
        self._initialized = False
        self._failed = False
        options = host.limits.options
        # A client pings only while no pokes come, so its silence alone proves nothing: what counts
        # is that it does not even answer pings of the WebSocket.
        self._idle_s = options.idle_timeout_seconds
        self._init_s = options.init_timeout_seconds
        # When something was last heard, and how often it was asked for a sign of life since.
        self._heard_s = 0.0
        self._pings = 0
        self._opened_s = asyncio.get_running_loop().time()

    # -- Client ---------------------------------------------------------------------------------

    @property
    def clogged(self) -> bool:
        return self._socket.clogged

    def send(self, runs: Sequence[bytes]) -> None:
        self._socket.send_frames(runs)

    def fail(self, error: ClientFacingError) -> None:
        """Send an error and, unless its kind keeps the connection, close."""
        if self._failed or not self._socket.is_open:
            return
        # What happens to a server is not the client's fault.
        report = log.info if error.kind == "Rehome" else log.warning
        report(
            "client_error",
            clientGroupID=self.params.client_group_id,
            clientID=self.client_id,
            errorKind=error.kind,
            message=str(error),
        )
        self._socket.send_text(downstream.error(error, self.version))
        if error.close_code is not None:
            self._failed = True
            self.admitted = False
            reason = close_reason(str(error)) if error.close_code != 1000 else ""
            self._socket.close(error.close_code, reason)

    def close(self) -> None:
        self._socket.close(1000)

    def _cut_off(self, reason: str) -> None:
        """End a connection whose peer does not read: an error would wait in line as well."""
        log.warning(
            "slow_client_cut_off",
            clientGroupID=self.params.client_group_id,
            clientID=self.client_id,
            reason=reason,
            bufferedBytes=self._socket.buffered,
        )
        self._socket.abort()

    # -- life -----------------------------------------------------------------------------------

    async def run(self, subprotocol: Subprotocol) -> None:
        """Serve until the connection is over. The caller has authenticated it."""
        replaced = self.group.join(self)
        if isinstance(replaced, Connection):
            replaced.close()
        self._host.joined(self)
        self._socket.on_drained = self._drained
        try:
            self._socket.send_text(downstream.connected(self.params.wsid))
            await self._process(subprotocol.init_connection)
            while (frame := await self._socket.receive()) is not None:
                await self._process(lambda data=frame: decode_upstream(data))  # type: ignore[misc]
        finally:
            self._socket.on_drained = None
            self.group.leave(self)
            self._host.left(self)

    async def _process(self, decode: Callable[[], UpstreamMessage | None]) -> None:
        if self._failed:
            return
        try:
            message = decode()
            if message is not None:
                if not isinstance(message, InitConnection):
                    await self._host.limits.message(message, self, self.user_id)
                await self._handle(message)
        except ClientFacingError as error:
            self.fail(error)
        except Exception as error:
            # Whatever it is, the client must hear of it, and not come back at once.
            log.error("connection_failed", clientID=self.client_id, exc_info=error)
            self.fail(
                ClientFacingError(
                    "ServerOverloaded",
                    "The server could not process the request; try again.",
                    minBackoffMs=1000,
                    maxBackoffMs=10000,
                )
            )

    async def _handle(self, message: UpstreamMessage) -> None:
        match message:
            case Ping():
                self._socket.send_text(downstream.PONG)
            case InitConnection():
                await self._initialize(message)
            case Push():
                await self._host.push(self, message)
            case ChangeDesiredQueries() if self._initialized:
                await self.group.change_queries(self, message)
            case DeleteClients() if self._initialized:
                await self.group.delete_clients(self, message)
            case AckMutationResponses() if self._initialized:
                self._host.ack_results(self, message)
            case UpdateAuth() if self._initialized:
                if await self._host.update_auth(self, message):
                    await self.group.refresh_queries(self)
            case Inspect() if self._initialized:
                self._socket.send_text(await self._host.inspect(self, message))
            case _:
                log.debug("message_ignored", type=type(message).__name__)

    async def _initialize(self, message: InitConnection) -> None:
        if self._initialized:
            raise ClientFacingError(
                "InvalidMessage", "initConnection was sent twice on one connection."
            )
        self._initialized = True
        if self.params.base_cookie is not None:
            try:
                self.base = ViewVersion.from_cookie(self.params.base_cookie)
            except ValueError as error:
                raise ClientFacingError(
                    "InvalidConnectionRequestBaseCookie", f"Unusable cookie: {error}"
                ) from error
        self._host.check_load()
        self.context = self.context.with_init(message)
        await self.group.connect(self, message)

    def _drained(self) -> None:
        self.group.drained(self)

    def keep_alive(self, now_s: float) -> None:
        """To be called every :data:`PONG_CHECK_S`, by a timer that no connection holds up: answers
        a ping that may be stuck behind slow work (§4.7), and ends a connection that takes nothing
        anymore, says nothing anymore or never said what it wants."""
        if self._is_silent(now_s):
            log.info("idle_client_closed", clientID=self.client_id)
            self._socket.close(1000, "idle")
            return
        if self._init_s and not self._initialized and now_s - self._opened_s > self._init_s:
            self._socket.close(1008, "no initConnection in time")
            return
        if self._socket.stalled_for_s() > SEND_TIMEOUT_S:
            self._cut_off("it takes nothing")
        elif now_s - self._socket.last_sent_s > PONG_AFTER_SILENCE_S:
            self._socket.send_text(downstream.PONG)

    def _is_silent(self, now_s: float) -> bool:
        """Whether the client is gone without a word. It is asked for a sign of life first, more
        than once: after a moment in which this process was held up, what it sent is still to be
        read. One whose messages wait here is not silent, it is made to wait."""
        heard_s = self._socket.last_received_s
        if heard_s != self._heard_s:
            self._heard_s, self._pings = heard_s, 0
        silence_s = now_s - heard_s
        if not self._idle_s or silence_s <= self._idle_s * PING_AFTER_SILENCE:
            return False
        if not self._socket.ping():
            return False
        self._pings += 1
        return silence_s > self._idle_s and self._pings > PINGS_UNANSWERED


async def serve(socket: WebSocket, host: Host, peer: Peer) -> None:
    """The whole life of one accepted TCP connection."""
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            request = await socket.request
    except (TimeoutError, ConnectionResetError, InvalidHandshake):
        socket.abort()
        return
    if not socket.accept():
        return
    try:
        params, subprotocol = _read_request(request)
    except HandshakeRefused as refusal:
        socket.close(1002, close_reason(str(refusal)))
        return
    opening = _Opening(socket, params.version)
    connection = await opening.run(lambda: _open(socket, host, peer, request, params, subprotocol))
    if connection is not None:
        log.info(
            "ws_connect",
            clientGroupID=params.client_group_id,
            clientID=params.client_id,
            version=params.version,
            peer=peer.name,
            address=peer.address,
        )
        await connection.run(subprotocol)
        log.info("ws_disconnect", clientID=params.client_id, code=socket.close_code)


class _Opening:
    """Reports a refusal before there is a connection object."""

    def __init__(self, socket: WebSocket, version: int) -> None:
        self._socket = socket
        self._version = version

    async def run(self, step: Callable[[], Awaitable[Connection]]) -> Connection | None:
        try:
            return await step()
        except ClientFacingError as error:
            log.warning("connection_refused", errorKind=error.kind, message=str(error))
            self._socket.send_text(downstream.error(error, self._version))
            code = error.close_code or 1000
            self._socket.close(code, close_reason(str(error)) if code != 1000 else "")
            return None


async def _open(
    socket: WebSocket,
    host: Host,
    peer: Peer,
    request: Upgrade,
    params: ConnectParams,
    subprotocol: Subprotocol,
) -> Connection:
    check_version(params.version)
    if peer.refusal:
        raise ClientFacingError("ServerOverloaded", peer.refusal, minBackoffMs=FULL_BACKOFF_MS)
    auth = await host.authenticate(params, subprotocol.auth_token)
    # Before any live socket of this client is touched: a stranger must not evict anybody.
    host.check_user(params.client_group_id, params.user_id)
    host.check_new(params, peer.address)
    headers = join_headers(request.headers)
    context = ConnectionContext.create(params, auth, headers)
    return Connection(socket, host, params, auth, context)


def _read_request(request: Upgrade) -> tuple[ConnectParams, Subprotocol]:
    return parse_connect_url(request.path), decode_subprotocol(request.subprotocols)
