"""Index requests: how a sync worker tells the replication process which indexes its queries want.

Owns the Unix socket ``index-requests.sock``: one JSON :class:`IndexWish` a line, one way. A wish
is a hint: it may be lost, repeated or refused, and nobody waits for an answer. An index that came
about is seen in the replica like everything else. The writer's side decides nothing here either;
it hands wishes on (``replication_manager/indexes.py`` decides).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import structlog

from zerocache.replica.auto_index import IndexWish

SOCKET_NAME = "index-requests.sock"
MAX_WAITING = 256
"""Wishes a worker keeps while the replication process is away; more are forgotten."""
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 5.0
_LINE_LIMIT = 65_536

log = structlog.get_logger(__name__)


class IndexRequestServer:
    """The replication process' end; ``on_wish`` is called on the event loop."""

    def __init__(self, path: str | Path, on_wish: Callable[[IndexWish], None]) -> None:
        self._path = Path(path)
        self._on_wish = on_wish
        self._server: asyncio.Server | None = None
        self._decoder = msgspec.json.Decoder(IndexWish)
        self._connected: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        # A predecessor that was killed leaves its socket file behind, and bind refuses to reuse it.
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, path=str(self._path), limit=_LINE_LIMIT
        )

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in list(self._connected):
                writer.close()
            await self._server.wait_closed()
            self._server = None
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connected.add(writer)
        try:
            async for line in reader:
                self._on_wish(self._decoder.decode(line))
        except (ValueError, ConnectionError) as error:
            # An over-long line or foreign JSON: whatever sent it is no worker of this version.
            log.warning("index_request_unreadable", reason=str(error))
        finally:
            self._connected.discard(writer)
            writer.close()


class IndexRequester:
    """A worker's end: :meth:`ask` and forget. Lives on the event loop; ``close`` ends it."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        # In order of asking; a wish that waits already is not added again.
        self._waiting: dict[IndexWish, None] = {}
        self._task: asyncio.Task[None] | None = None

    def ask(self, wishes: Iterable[IndexWish]) -> None:
        """Say that each of ``wishes`` is, or would be, of use."""
        self._waiting.update(dict.fromkeys(wishes))
        while len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        if self._waiting and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._send())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send(self) -> None:
        """Until nothing waits; the other side may be starting or restarting meanwhile."""
        retry_s = _FIRST_RETRY_S
        while self._waiting:
            try:
                _, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
                continue
            lines = [msgspec.json.encode(wish) + b"\n" for wish in self._waiting]
            self._waiting.clear()
            writer.writelines(lines)
            writer.close()
            try:
                await writer.wait_closed()
            except ConnectionError as error:
                log.info("index_requests_lost", count=len(lines), reason=str(error))
