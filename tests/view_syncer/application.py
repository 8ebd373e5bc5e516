"""A real HTTP server that plays the application: records requests, answers as told."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from multidict import CIMultiDictProxy

from view_syncer.api_client import ApiClient, ApiEndpoint, open_session
from view_syncer.url_pattern import compile_patterns


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    query: str
    headers: CIMultiDictProxy[str]
    body: Any


class Application:
    """Answers from ``answers`` first, then always with ``default``.

    - ``hold`` makes requests wait after they arrived, until :meth:`release`;
    - an answer of None drops the connection.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answers: deque[tuple[int, Any] | None] = deque()
        self.default: tuple[int, Any] = (200, {"kind": "MutateResponse", "mutations": []})
        self._open = asyncio.Event()
        self._open.set()
        self._arrival = asyncio.Condition()
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._server = TestServer(app)

    def url(self, path: str = "/api") -> str:
        return str(self._server.make_url(path))

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def received(self, count: int) -> None:
        """Wait until ``count`` requests have arrived."""
        async with self._arrival:
            await asyncio.wait_for(
                self._arrival.wait_for(lambda: len(self.requests) >= count), timeout=10
            )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        received = Received(
            request.method,
            request.path,
            request.rel_url.raw_query_string,
            request.headers,
            json.loads(text) if text else None,
        )
        answer = self.answers.popleft() if self.answers else self.default
        async with self._arrival:
            self.requests.append(received)
            self._arrival.notify_all()
        await self._open.wait()
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        status, body = answer
        if isinstance(body, web.StreamResponse):
            return body
        return web.Response(
            status=status,
            text=body if isinstance(body, str) else json.dumps(body),
            content_type="application/json",
        )

    async def __aenter__(self) -> Application:
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release()
        await self._server.close()


class Sleeps:
    """Stands in for ``asyncio.sleep``: returns at once and remembers the delays."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    async def __call__(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)


@asynccontextmanager
async def api_client(sleeps: Sleeps, rand: float = 0.5) -> AsyncIterator[ApiClient]:
    async with open_session() as session:
        yield ApiClient(session, "zero", 0, attempt_timeout_s=10, sleep=sleeps, rand=lambda: rand)


def endpoint(*urls: str, **settings: Any) -> ApiEndpoint:
    return ApiEndpoint(compile_patterns(urls, "ZERO_MUTATE_URL"), **settings)
