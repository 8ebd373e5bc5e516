"""The client port of a node: health checks, admin pages, and the way to the sync workers.

Owns the listening sockets and each connection until it knows whose it is. A WebSocket upgrade is
passed to its worker as an open socket *from which nothing was read*: the request is only peeked
at, so the worker sees the connection as if it had accepted it. Must never answer a WebSocket
upgrade itself, except to a page of a foreign origin: even rejections need the handshake, which
workers do. Invariants: clients of one
client group reach the same worker while the number of workers and the task id stay the same; a
connection that says nothing useful is gone after a bounded time and memory.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

import structlog
import xxhash

from view_syncer.client_address import client_address, origin_allowed, parse_networks
from view_syncer.http_head import (
    END_OF_HEAD,
    BadRequest,
    RequestHead,
    error_response,
    parse_head,
    response,
)
from view_syncer.metrics import answer_metrics, node_series
from view_syncer.statz import StatzGroup, answer_statz, default_groups, is_admin, unauthorized
from zerocache.config import Config
from zerocache.control import HandOff
from zerocache.errors import ConfigurationError

HandOver = Callable[[int, socket.socket, HandOff], Awaitable[bool]]
WorkerFigures = Callable[[], Awaitable[Mapping[str, Any]]]

HEAD_TIMEOUT_S = 10.0

_BACKLOG = 1024
_LINGER_S = 1.0
_ACCEPT_RETRY_S = 0.1  # when the process ran out of descriptors

log = structlog.get_logger(__name__)


def worker_of(task_id: str, client_group_id: str, workers: int) -> int:
    """The worker that owns a client group. The task id spreads the groups of a drained node."""
    return xxhash.xxh32_intdigest(f"{task_id}/{client_group_id}".encode()) % workers


class Dispatcher:
    """Accepts connections on the client port.

    * ``bind`` reserves the port (ConfigurationError if it is taken), connections are refused
      until ``listen``; ``close`` stops accepting and drops what was not handed over yet.
    * ``hand_over`` duplicates the socket into a worker; False means no worker was there in time.
    """

    def __init__(
        self,
        config: Config,
        *,
        hand_over: HandOver,
        on_keepalive: Callable[[], None] | None = None,
        not_ready_because: Callable[[], str | None] = lambda: None,
        worker_figures: WorkerFigures | None = None,
        replication_figures: WorkerFigures | None = None,
        groups: Mapping[str, StatzGroup] | None = None,
        head_timeout_s: float = HEAD_TIMEOUT_S,
    ) -> None:
        self._config = config
        self._hand_over = hand_over
        self._on_keepalive = on_keepalive
        self._groups = default_groups(config) if groups is None else groups
        self._not_ready_because = not_ready_because
        self._worker_figures = worker_figures
        self._replication_figures = replication_figures
        self._trusted = parse_networks(config.trusted_proxies)
        self._head_timeout_s = head_timeout_s
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port in use; differs from the configured one if that is 0."""
        return int(self._listeners[0].getsockname()[1])

    def bind(self) -> None:
        port = self._config.port
        for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
            try:
                self._listeners.append(_bound(family, host, port))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno != errno.EADDRINUSE:
                    log.info("ipv6_unavailable", reason=str(error))
                    continue
                raise ConfigurationError(
                    f"Cannot use port {port} on {host}: {error.strerror}. "
                    "Stop what uses it or set ZERO_PORT to another one."
                ) from None
            port = self.port

    def listen(self) -> None:
        for listener in self._listeners:
            listener.listen(_BACKLOG)
            self._spawn(self._accept_from(listener))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        while self._listeners:
            self._listeners.pop().close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept_from(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await _readable(listener)
            except OSError as error:
                # The client gave up already, or descriptors are used up: neither may end the loop.
                log.warning("accept_failed", reason=str(error))
                await asyncio.sleep(_ACCEPT_RETRY_S)
            else:
                self._spawn(self._serve(sock, address[0], _peer(address)))
                await asyncio.sleep(0)  # a flood of connections must not starve those accepted

    async def _serve(self, sock: socket.socket, host: str, peer: str) -> None:
        with sock:
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await self._route(sock, host, peer)
            except BadRequest as error:
                await _answer(sock, error_response(error.status, str(error)))
            except TimeoutError:
                log.debug("connection_said_nothing", peer=peer)
            except OSError as error:
                log.debug("connection_lost", peer=peer, reason=str(error))
            except Exception:
                log.exception("connection_failed", peer=peer)

    async def _route(self, sock: socket.socket, host: str, peer: str) -> None:
        async with asyncio.timeout(self._head_timeout_s):
            head = await peek_head(sock, self._config.max_header_bytes)
        if head is None:
            return
        request = parse_head(head)
        if not request.is_websocket_upgrade or not self._config.num_sync_workers:
            await _answer(sock, await self._answer_to(request))
            return
        origin = request.headers.get("origin")
        if not origin_allowed(origin, self._config.allowed_origins):
            log.warning("origin_refused", origin=origin, peer=peer)
            message = "Pages of this origin may not connect: it is not in ZEROCACHE_ALLOWED_ORIGINS"
            await _answer(sock, error_response(HTTPStatus.FORBIDDEN, message))
            return
        worker = self._worker_for(request)
        address = client_address(host, request.headers, self._trusted)
        if not await self._hand_over(worker, sock, HandOff(peer, address)):
            # Closing without an answer makes the client try again, which is right here.
            log.warning("hand_over_failed", worker=worker, peer=peer)

    def _worker_for(self, request: RequestHead) -> int:
        group = request.query.get("clientGroupID", "")
        if not request.is_sync_connect or not group:
            return 0  # whichever: it will be rejected there
        return worker_of(self._config.task_id, group, self._config.num_sync_workers)

    async def _answer_to(self, request: RequestHead) -> bytes:
        if request.method in ("GET", "HEAD"):
            head_only = request.method == "HEAD"
            match request.path:
                case "/":
                    return response(HTTPStatus.OK, b"OK", head_only=head_only)
                case "/keepalive":
                    if self._on_keepalive is not None:
                        self._on_keepalive()
                    return response(HTTPStatus.OK, b"OK", head_only=head_only)
                case "/livez":
                    return response(HTTPStatus.OK, b"OK", head_only=head_only)
                case "/readyz":
                    return self._readiness(head_only)
                case "/statz":
                    return await self._statz(request)
                case "/metrics":
                    return await self._metrics(request)
        return error_response(
            HTTPStatus.NOT_FOUND, f"Route {request.method}:{request.path} not found"
        )

    def _readiness(self, head_only: bool) -> bytes:
        reason = self._not_ready_because()
        if reason is None:
            return response(HTTPStatus.OK, b"OK", head_only=head_only)
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return response(status, reason.encode(), head_only=head_only)

    async def _statz(self, request: RequestHead) -> bytes:
        groups = dict(self._groups)
        # Not for strangers: workers have better things to do than to count for them.
        admin = is_admin(request.headers.get("authorization"), self._config)
        if admin and self._worker_figures is not None:
            figures = await self._worker_figures()
            groups["workers"] = lambda: figures
        if admin and self._replication_figures is not None:
            replication = dict(await self._replication_figures())
            change_log = replication.pop("changeLog", {})
            replication.pop("series", None)  # the same, for /metrics
            groups["replication"] = lambda: replication
            groups["changeLog"] = lambda: change_log
        return await asyncio.to_thread(answer_statz, request, self._config, groups)

    async def _metrics(self, request: RequestHead) -> bytes:
        if not is_admin(request.headers.get("authorization"), self._config):
            return unauthorized()
        workers = await self._worker_figures() if self._worker_figures else {}
        replication = await self._replication_figures() if self._replication_figures else {}
        return answer_metrics(request, node_series(workers, replication))


async def peek_head(sock: socket.socket, max_bytes: int) -> bytes | None:
    """The request head without its empty line, left unread in the socket.

    None if the peer closed before it was complete; BadRequest if it is longer than ``max_bytes``.
    Peeking leaves the socket readable, so waiting for more would spin; SO_RCVLOWAT makes the
    kernel report it again only once there is more than was seen.
    """
    seen = 0
    while True:
        await _readable(sock)
        peeked = sock.recv(max_bytes, socket.MSG_PEEK)
        end = peeked.find(END_OF_HEAD)
        if end >= 0:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            return peeked[:end]
        if len(peeked) >= max_bytes:
            raise BadRequest(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"The request head is longer than {max_bytes} bytes.",
            )
        if len(peeked) == seen:
            return None  # readable without more bytes: the end of the stream
        seen = len(peeked)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + 1)


async def _answer(sock: socket.socket, answer: bytes) -> None:
    """Send an answer and close so that it arrives.

    Closing with unread bytes would reset the connection and could destroy the answer on its way:
    so say that nothing follows, then read until the peer closes, for a bounded time.
    """
    loop = asyncio.get_running_loop()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
    async with asyncio.timeout(HEAD_TIMEOUT_S):
        await loop.sock_sendall(sock, answer)
    try:
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_LINGER_S):
            while await loop.sock_recv(sock, 65_536):
                pass
    except OSError:
        return  # the peer closed first, or talks on (TimeoutError is one): the answer is out


async def _readable(sock: socket.socket) -> None:
    """Wait until the kernel calls the socket readable, without reading from it."""
    loop = asyncio.get_running_loop()
    turned: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()

    def turn() -> None:
        if not turned.done():
            turned.set_result(None)

    loop.add_reader(fd, turn)
    try:
        await turned
    finally:
        loop.remove_reader(fd)


def _bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock


def _peer(address: Any) -> str:
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
