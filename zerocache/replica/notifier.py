"""Version-ready: tells every sync worker of this node that the replica has a new commit.

Owns the Unix socket ``version-ready.sock``: lines of ``<stateVersion>\\n``, newest last. A line
is a hint, not data: losing all but the newest is fine (slow readers get them coalesced), losing the
newest is not. It never blocks the writer, and publishing is allowed from any thread.

A version may be announced again although nothing was committed. It then means "re-open your
snapshot": the writer has copied the whole WAL into the database and wants to start it anew, which
SQLite allows only when no reader still reads from it. Readers that re-open at that point read the
database file alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import structlog

SOCKET_NAME = "version-ready.sock"
_FIRST_RETRY_S = 0.02
_LAST_RETRY_S = 1.0

log = structlog.get_logger(__name__)


class _Subscriber(asyncio.Protocol):
    """One connected worker; holds back versions while its socket is full."""

    def __init__(self, notifier: VersionNotifier) -> None:
        self._notifier = notifier
        self._transport: asyncio.WriteTransport | None = None
        # True between pause_writing and resume_writing: the worker has not read the last line.
        self._paused = False
        # The newest version that could not be written yet.
        self._pending: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Both asyncio's and uvloop's stream transports qualify; only the latter do not inherit it.
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.set_write_buffer_limits(high=0)
        self._notifier.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._notifier.left(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._pending is not None:
            version, self._pending = self._pending, None
            self.send(version)

    def send(self, version: str) -> None:
        if self._transport is None:
            return
        if self._paused:
            self._pending = version
        else:
            self._transport.write(version.encode() + b"\n")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class VersionNotifier:
    """The replication process' end of the socket.

    * ``start`` and ``close`` run on the event loop; ``publish`` may be called from any thread
      between them.
    * A worker that connects is told the newest version at once.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._subscribers: set[_Subscriber] = set()
        # What a worker that connects now has to be told; None before the first publish.
        self._latest: str | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        # A predecessor that was killed leaves its socket file behind, and bind refuses to reuse it.
        self._path.unlink(missing_ok=True)
        self._server = await self._loop.create_unix_server(
            lambda: _Subscriber(self), path=str(self._path)
        )

    def publish(self, version: str) -> None:
        if self._loop is None:
            raise RuntimeError("the notifier is not running: call start() before publish()")
        self._loop.call_soon_threadsafe(self._send, version)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for subscriber in list(self._subscribers):
                subscriber.close()
            await self._server.wait_closed()
            self._server = None
        self._path.unlink(missing_ok=True)

    def joined(self, subscriber: _Subscriber) -> None:
        self._subscribers.add(subscriber)
        if self._latest is not None:
            subscriber.send(self._latest)

    def left(self, subscriber: _Subscriber) -> None:
        self._subscribers.discard(subscriber)

    def _send(self, version: str) -> None:
        self._latest = version
        for subscriber in self._subscribers:
            subscriber.send(version)


async def watch_versions(path: str | Path) -> AsyncGenerator[str, None]:
    """Yield the newest announced version, again and again; reconnects for ever.

    Versions announced while the consumer was busy are coalesced. A version may repeat: see the
    module docstring for what the consumer owes then. Ends only by cancellation or ``aclose``.
    """
    retry_s = _FIRST_RETRY_S
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
        except OSError:
            # The replication process is starting or restarting; it listens before it replicates.
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)
            continue
        retry_s = _FIRST_RETRY_S
        try:
            async for version in _newest_lines(reader):
                yield version
        finally:
            writer.close()
        log.info("version_ready_disconnected", path=str(path))
        await asyncio.sleep(retry_s)


async def _newest_lines(reader: asyncio.StreamReader) -> AsyncGenerator[str, None]:
    """The last complete line of whatever has arrived, until the other side goes away."""
    rest = b""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            complete, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield complete.rpartition(b"\n")[2].decode()
