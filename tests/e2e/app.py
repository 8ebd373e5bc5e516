"""The application's backend as a process of its own would be: two endpoints over HTTP.

Runs in a thread of the test process, so that tests can count requests and make it fail. It answers
any server, ours or the reference.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from tests.e2e.model import app_mutators, app_queries, app_schema
from tests.e2e.serving import HttpThread
from zerocache.server import (
    PsycopgConnection,
    PushProcessor,
    ZQLDatabase,
    handle_query_request,
    must_get_query,
)


class App:
    """Start it once; ``url`` has the endpoints ``/query`` and ``/mutate``."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._schema = app_schema()
        self._queries = app_queries(self._schema)
        self._mutators = app_mutators()
        self._http = HttpThread(self._application)
        self._refuse_mutations: int | None = None
        # Names of the mutations that arrived, clean-ups of stored results left out.
        self.mutations: list[str] = []

    @property
    def url(self) -> str:
        return self._http.url

    def start(self) -> None:
        self._http.start()

    def stop(self) -> None:
        self._http.stop()

    @contextlib.contextmanager
    def answering_mutations_with(self, *, status: int) -> Iterator[None]:
        """Inside the block, the mutate endpoint answers with an HTTP error only."""
        self._refuse_mutations = status
        try:
            yield
        finally:
            self._refuse_mutations = None

    async def _application(self) -> web.Application:
        connection = PsycopgConnection(self._upstream)
        self._database = ZQLDatabase(connection, self._schema)

        async def close(_app: web.Application) -> None:
            await connection.close()

        application = web.Application()
        application.router.add_post("/query", self._query)
        application.router.add_post("/mutate", self._mutate)
        application.on_cleanup.append(close)
        return application

    async def _query(self, request: web.Request) -> web.Response:
        def handler(name: str, args: Any) -> Any:
            return must_get_query(self._queries, name).fn(args=args, ctx=None)

        answer = await handle_query_request(handler, self._schema, await request.read())
        return web.json_response(answer)

    async def _mutate(self, request: web.Request) -> web.Response:
        if self._refuse_mutations is not None:
            return web.Response(status=self._refuse_mutations, text="not now")
        body = await request.read()
        names = [mutation["name"] for mutation in json.loads(body)["mutations"]]
        self.mutations += [name for name in names if not name.startswith("_zero_")]
        processor = PushProcessor(self._database, None)
        answer = await processor.process(self._mutators, dict(request.query), body)
        return web.json_response(answer)
