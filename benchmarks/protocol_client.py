"""A client of the sync protocol that costs little: the load of the benchmarks, an eye for tests.

Owns one WebSocket connection and what was learned over it. Must never repair or tolerate what
the stock client refuses: every wait raises the first :class:`ProtocolViolation`. Invariant: the
state seen by a caller is that after a whole number of pokes.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from benchmarks import websocket
from benchmarks.sync_messages import ClientSchema, Connected, Other, Poke
from benchmarks.sync_state import (
    ProtocolViolation,
    SyncSession,
    SyncState,
)

DEFAULT_VERSION = 51
DEFAULT_TIMEOUT_S = 60.0
# What the stock client allows for the header before it sends initConnection as a frame.
MAX_HEADER_LENGTH = 8192


class ConnectionLost(Exception):
    """The server closed the connection, or it broke; ``code`` is the close code (1006: none)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"the connection was closed with code {code} {reason!r}")
        self.code = code
        self.reason = reason


class ServerError(Exception):
    """The server sent a fatal ``error`` message."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(f"{body['kind']}: {body['message']}")
        self.kind: str = body["kind"]
        self.body = body


@dataclass(frozen=True)
class DesiredQuery:
    """A query to be put: either ``ast``, or ``name`` with ``args``. ``hash`` is its id."""

    hash: str
    ast: dict[str, Any] | None = None
    name: str | None = None
    args: tuple[Any, ...] = ()
    ttl_ms: int | None = None

    def to_patch(self) -> dict[str, Any]:
        patch: dict[str, Any] = {"op": "put", "hash": self.hash}
        if self.ttl_ms is not None:
            patch["ttl"] = self.ttl_ms
        if self.ast is not None:
            return {**patch, "ast": self.ast}
        return {**patch, "name": self.name, "args": list(self.args)}


def ast_query(ast: dict[str, Any], ttl_ms: int | None = None) -> DesiredQuery:
    """A query by AST. Its hash is any stable digest: servers treat it as opaque."""
    digest = hashlib.blake2s(msgspec.json.encode(ast), digest_size=8).hexdigest()
    return DesiredQuery(digest, ast=ast, ttl_ms=ttl_ms)


def named_query(name: str, *args: Any, ttl_ms: int | None = None) -> DesiredQuery:
    """A query by name, resolved by the application's query endpoint."""
    digest = hashlib.blake2s(msgspec.json.encode([name, args]), digest_size=8).hexdigest()
    return DesiredQuery(digest, name=name, args=args, ttl_ms=ttl_ms)


def encode_subprotocol(init_message: list[Any] | None, auth_token: str | None) -> str:
    """The value of Sec-WebSocket-Protocol (sync-protocol.md §1.3)."""
    content: dict[str, Any] = {}
    if init_message is not None:
        content["initConnectionMessage"] = init_message
    if auth_token is not None:
        content["authToken"] = auth_token
    return quote(base64.b64encode(msgspec.json.encode(content)), safe="")


@dataclass
class _Waiter:
    predicate: Callable[[], bool]
    future: asyncio.Future[None]


class SyncClient(asyncio.Protocol):
    """One client of a client group.

    * ``await connect()`` once; the desired queries given here travel with the handshake.
    * ``state`` may be handed to the next client of the same group: that is a reconnect.
    * Waits end on messages, never by polling, and raise what ended the connection early.
    * ``on_poke`` runs at the end of each poke, before any wait returns.
    """

    def __init__(
        self,
        url: str,
        schema: ClientSchema,
        queries: Sequence[DesiredQuery] = (),
        *,
        client_id: str | None = None,
        client_group_id: str | None = None,
        user_id: str | None = None,
        auth_token: str | None = None,
        version: int = DEFAULT_VERSION,
        state: SyncState | None = None,
        keep_rows: bool = True,
        record: bool = False,
        on_poke: Callable[[Poke], None] | None = None,
    ) -> None:
        self.client_id = client_id or secrets.token_hex(8)
        self.client_group_id = client_group_id or secrets.token_hex(8)
        self.version = version
        self.state = state or SyncState(schema, keep_rows=keep_rows)
        self.session = SyncSession(self.state, version)
        # Applied pokes and other messages in order of arrival; pokes only if asked for.
        self.pokes: list[Poke] = []
        self.messages: list[Other] = []
        self.bytes_received = 0
        # What ended the connection; None while it is open.
        self.failure: Exception | None = None
        self._url = urlsplit(url)
        self._user_id = user_id
        self._auth_token = auth_token
        self._initial_queries = tuple(queries)
        self._record = record
        self._on_poke = on_poke
        self._key = websocket.new_key()
        self._wsid = secrets.token_hex(8)
        self._subprotocol = ""
        self._init_in_header = True
        self._request = b""
        # The bytes of the response head until it is complete, then None.
        self._head: bytes | None = b""
        self._reader = websocket.FrameReader()
        self._transport: asyncio.Transport | None = None
        self._waiters: list[_Waiter] = []

    # -- what callers do ---------------------------------------------------------------

    def prepare(self) -> None:
        """Make the opening request now, so that :meth:`connect` only has to send it: for those of
        whom many connect at once. The state must not change in between."""
        host, port = self._address()
        message = ["initConnection", self._init_body()]
        self._subprotocol = encode_subprotocol(message, self._auth_token)
        self._init_in_header = len(self._subprotocol) <= MAX_HEADER_LENGTH
        if not self._init_in_header:
            self._subprotocol = encode_subprotocol(None, self._auth_token)
        self._request = websocket.upgrade_request(
            f"{host}:{port}",
            self._target(),
            self._key,
            {"Sec-WebSocket-Protocol": self._subprotocol},
        )

    async def connect(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Open the socket, send initConnection, and wait for ``connected``."""
        await asyncio.get_running_loop().create_connection(lambda: self, *self._address())
        if not self._request:
            self.prepare()
        self._write(self._request)
        await self.wait_for(lambda: self.session.connected, timeout_s)
        if self.failure is not None:
            raise self.failure
        if not self._init_in_header:
            self.send("initConnection", self._init_body())

    def change_queries(
        self, put: Iterable[DesiredQuery] = (), delete: Iterable[DesiredQuery | str] = ()
    ) -> None:
        patch = [query.to_patch() for query in put]
        for query in delete:
            query_hash = query if isinstance(query, str) else query.hash
            patch.append({"op": "del", "hash": query_hash})
        self.send("changeDesiredQueries", {"desiredQueriesPatch": patch})

    def send(self, kind: str, body: Any) -> None:
        """Any upstream message."""
        self.send_raw(msgspec.json.encode([kind, body]))

    def send_raw(self, text: bytes) -> None:
        """A text frame as it is, for tests of malformed messages."""
        if self.failure is not None:
            raise self.failure
        self._write(websocket.encode_frame(websocket.TEXT, text))

    async def wait_for(
        self, predicate: Callable[[], bool], timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """Return once ``predicate`` holds; it is asked again whenever messages have arrived."""
        if predicate():
            return
        if self.failure is not None:
            raise self.failure
        waiter = _Waiter(predicate, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter.future
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    async def wait_got(
        self, *queries: DesiredQuery | str, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        wanted = {query if isinstance(query, str) else query.hash for query in queries}
        await self.wait_for(lambda: wanted <= self.state.got, timeout_s)

    async def wait_cookie(self, cookie: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Wait until the client is at ``cookie`` or beyond it."""
        await self.wait_for(lambda: (self.state.cookie or "") >= cookie, timeout_s)

    async def wait_last_mutation_id(
        self, mutation_id: int, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        ids = self.state.last_mutation_ids
        await self.wait_for(lambda: ids.get(self.client_id, 0) >= mutation_id, timeout_s)

    async def wait_message(self, kind: str, timeout_s: float = DEFAULT_TIMEOUT_S) -> Other:
        """The first message of this type that is not part of a poke."""
        await self.wait_for(lambda: any(other.type == kind for other in self.messages), timeout_s)
        return next(other for other in self.messages if other.type == kind)

    async def wait_closed(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> Exception:
        """What ended the connection: ServerError, ConnectionLost or ProtocolViolation."""
        try:
            await self.wait_for(lambda: False, timeout_s)
        except (ServerError, ConnectionLost, ProtocolViolation) as error:
            return error
        raise AssertionError("a wait for the impossible returned")

    def close(self) -> None:
        """Leave with a plain close; the state stays readable."""
        if self._transport is not None and not self._transport.is_closing():
            if self.failure is None:
                payload = websocket.close_payload(1000)
                self._write(websocket.encode_frame(websocket.CLOSE, payload))
            self._transport.close()

    # -- asyncio.Protocol --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.failure is not None:
            return
        self.bytes_received += len(data)
        try:
            if self._head is not None:
                data = self._receive_head(data)
            for message in self._reader.feed(data):
                self._receive(message)
        except (ProtocolViolation, ServerError, ConnectionLost) as error:
            self._fail(error)
        except websocket.WebSocketError as error:
            self._fail(ProtocolViolation(str(error)))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(ConnectionLost(1006, str(exc or "")))

    # -- inside ------------------------------------------------------------------------

    def _address(self) -> tuple[str, int]:
        return self._url.hostname or "localhost", self._url.port or 80

    def _init_body(self) -> dict[str, Any]:
        body: dict[str, Any] = {
            "desiredQueriesPatch": [query.to_patch() for query in self._initial_queries]
        }
        if self.state.cookie is None:
            body["clientSchema"] = self.state.schema
        return body

    def _target(self) -> str:
        parameters = {
            "clientID": self.client_id,
            "clientGroupID": self.client_group_id,
            "userID": self._user_id or "",
            "baseCookie": self.state.cookie or "",
            "ts": "1.5",
            "lmid": str(self.state.last_mutation_ids.get(self.client_id, 0)),
            "wsid": self._wsid,
        }
        path = f"{self._url.path.rstrip('/')}/sync/v{self.version}/connect"
        return f"{path}?{urlencode(parameters)}"

    def _write(self, data: bytes) -> None:
        assert self._transport is not None, "connect() comes first"
        self._transport.write(data)

    def _receive_head(self, data: bytes) -> bytes:
        """Take the response's head off the stream; what is left are frames."""
        self._head = (self._head or b"") + data
        parts = websocket.split_response(self._head)
        if parts is None:
            return b""
        head, rest = parts
        self._head = None
        headers = websocket.check_response(head, self._key)
        echoed = headers.get("sec-websocket-protocol")
        if echoed != self._subprotocol:
            raise ProtocolViolation(f"the subprotocol came back as {echoed!r}, not as sent")
        return rest

    def _receive(self, message: websocket.Message) -> None:
        if message.opcode == websocket.TEXT:
            self._deliver(self.session.receive_text(message.payload))
        elif message.opcode == websocket.BINARY:
            self.session.receive_binary(message.payload)
        elif message.opcode == websocket.PING:
            self._write(websocket.encode_frame(websocket.PONG, message.payload))
        elif message.opcode == websocket.CLOSE:
            raise ConnectionLost(*websocket.parse_close(message.payload))

    def _deliver(self, event: Poke | Other | None) -> None:
        if isinstance(event, Poke):
            if self._record:
                self.pokes.append(event)
            if self._on_poke is not None:
                self._on_poke(event)
        elif event is not None:
            self.messages.append(event)
            if isinstance(event.body, Connected) and event.body.wsid != self._wsid:
                raise ProtocolViolation(f"'connected' names wsid {event.body.wsid!r}")
            if self.session.ended:
                raise ServerError(event.body)

    def _fail(self, error: Exception) -> None:
        if self.failure is not None:
            return
        self.failure = error
        if self._transport is not None:
            self._transport.close()
        self._wake()

    def _wake(self) -> None:
        if not self._waiters:
            return
        for waiter in list(self._waiters):
            if waiter.future.done():
                continue
            try:
                holds = waiter.predicate()
            except Exception as error:  # belongs to the one who waits, not to the socket
                waiter.future.set_exception(error)
                continue
            if holds:
                waiter.future.set_result(None)
            elif self.failure is not None:
                waiter.future.set_exception(self.failure)
