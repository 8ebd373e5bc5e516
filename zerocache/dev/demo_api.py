"""The demo's backend: the two endpoints zerocache calls, as one aiohttp application.

This is what an application's own server looks like with ``zerocache.server``. It must never talk
to zerocache by itself: data travels through Postgres only. Invariant: whatever a client sends, the
answer is JSON that says what happened.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from zerocache.dev.demo_mutators import demo_mutators
from zerocache.dev.demo_queries import demo_queries
from zerocache.dev.demo_schema import demo_schema
from zerocache.server import (
    PsycopgConnection,
    PushProcessor,
    ZQLDatabase,
    handle_query_request,
    must_get_query,
)


def create_demo_api(database_url: str) -> web.Application:
    """The application; it connects when the first mutation arrives."""
    schema = demo_schema()
    queries = demo_queries(schema)
    mutators = demo_mutators(schema)
    connection = PsycopgConnection(database_url)
    database = ZQLDatabase(connection, schema)

    async def query(request: web.Request) -> web.Response:
        def handler(name: str, args: Any) -> Any:
            return must_get_query(queries, name).fn(args=args, ctx=None)

        # A real application finds out here who is asking, and passes it as ctx and user_id.
        answer = await handle_query_request(handler, schema, await request.read())
        return web.json_response(answer)

    async def mutate(request: web.Request) -> web.Response:
        processor = PushProcessor(database, None)
        answer = await processor.process(mutators, dict(request.query), await request.read())
        return web.json_response(answer)

    async def close(_app: web.Application) -> None:
        await connection.close()

    app = web.Application()
    app.router.add_post("/api/query", query)
    app.router.add_post("/api/mutate", mutate)
    app.on_cleanup.append(close)
    return app
