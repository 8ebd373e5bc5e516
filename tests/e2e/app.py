"""The application's backend: named queries and mutators, as a developer would write them.

Runs in a thread of the test process, so that tests see which requests arrived. It answers both
endpoints for any server: ours or the reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
from aiohttp import web
from psycopg.types.json import Json

Ast = dict[str, Any]


class Refused(Exception):
    """The application refuses a mutation: message, details."""


def _eq(column: str, value: Any) -> Ast:
    return {
        "type": "simple",
        "op": "=",
        "left": {"type": "column", "name": column},
        "right": {"type": "literal", "value": value},
    }


def _related(alias: str, table: str, parent: str, child: str, **rest: Any) -> Ast:
    subquery = {"table": table, "alias": alias, **rest.pop("sub", {})}
    return {
        "system": "client",
        "correlation": {"parentField": [parent], "childField": [child]},
        "subquery": subquery,
        **rest,
    }


def _exists(op: str, related: Ast) -> Ast:
    return {"type": "correlatedSubquery", "op": op, "related": related}


def query_ast(name: str, args: dict[str, Any]) -> Ast:
    by_id = {"orderBy": [["id", "asc"]]}
    comments = _related("comments", "comments", "id", "issue_id", sub=by_id)
    match name:
        case "beat":
            return {"table": "beat", **by_id}
        case "issues.all":
            return {"table": "issues", **by_id}
        case "issues.open":
            return {"table": "issues", "where": _eq("open", True), **by_id}
        case "issues.byID":
            return {"table": "issues", "where": _eq("id", args["id"]), "limit": 1, **by_id}
        case "issues.withComments":
            return {"table": "issues", "where": _eq("open", True), "related": [comments], **by_id}
        case "issues.withOwner":
            owner = _related("owner", "people", "owner_id", "id", sub=by_id)
            return {"table": "issues", "where": _eq("open", True), "related": [owner], **by_id}
        case "issues.withLatestComments":
            window = {"orderBy": [["likes", "desc"], ["id", "asc"]], "limit": 2}
            latest = _related("comments", "comments", "id", "issue_id", sub=window)
            return {"table": "issues", "related": [latest], **by_id}
        case "issues.withLabels":
            hop = _related("labels", "labels", "label_id", "id", sub=by_id)
            sub = {"related": [hop], "orderBy": [["issue_id", "asc"], ["label_id", "asc"]]}
            labels = _related("labels", "issue_labels", "id", "issue_id", sub=sub, hidden=True)
            return {"table": "issues", "where": _eq("open", True), "related": [labels], **by_id}
        case "issues.commented":
            inner = _related("zsubq_comments", "comments", "id", "issue_id")
            return {"table": "issues", "where": _exists("EXISTS", inner), **by_id}
        case "issues.labelled":
            named = {"where": _eq("name", args["name"])}
            hop = _related("zsubq_zhidden_labels", "labels", "label_id", "id", sub=named)
            sub = {"where": _exists("EXISTS", hop)}
            inner = _related("zsubq_labels", "issue_labels", "id", "issue_id", sub=sub)
            return {"table": "issues", "where": _exists("EXISTS", inner), **by_id}
        case "issues.uncommented":
            inner = _related("zsubq_comments", "comments", "id", "issue_id")
            return {"table": "issues", "where": _exists("NOT EXISTS", inner), **by_id}
        case "issues.top":
            order = [["rank", "desc"], ["id", "asc"]]
            return {"table": "issues", "orderBy": order, "limit": args["limit"]}
        case "issues.after":
            return {
                "table": "issues",
                "orderBy": [["rank", "asc"], ["id", "asc"]],
                "start": {
                    "row": {"rank": args["rank"], "id": args["id"]},
                    "exclusive": not args.get("inclusive", False),
                },
                "limit": args["limit"],
            }
        case "teams.tree":
            issues = _related("issues", "issues", "id", "owner_id", sub=by_id)
            people = _related(
                "people", "people", "id", "team_id", sub={"related": [issues], **by_id}
            )
            return {"table": "teams", "related": [people], **by_id}
        case "issues.forbidden":
            raise PermissionError("issues.forbidden is not for you")
    raise LookupError(f"unknown query {name}")


def mutate(cursor: psycopg.Cursor[Any], name: str, args: dict[str, Any]) -> None:
    match name:
        case "issue.create":
            cursor.execute(
                "INSERT INTO issues (id, title, open, rank, owner_id) VALUES (%s,%s,%s,%s,%s)",
                [args["id"], args["title"], args["open"], args.get("rank"), args.get("ownerID")],
            )
        case "issue.update":
            for key, value in args.items():
                if key != "id":
                    column = psycopg.sql.Identifier(key)
                    text = psycopg.sql.SQL("UPDATE issues SET {} = %s WHERE id = %s").format(column)
                    cursor.execute(text, [value, args["id"]])
        case "issue.delete":
            cursor.execute("DELETE FROM issues WHERE id = %s", [args["id"]])
        case "issue.append":
            cursor.execute(
                "INSERT INTO issues (id, title, open, rank)"
                " SELECT %s, %s, true, coalesce(max(rank), 0) + 1 FROM issues",
                [args["id"], args["title"]],
            )
        case "issue.rename":
            if not args["title"]:
                raise Refused("a title must not be empty", {"field": "title"})
            cursor.execute(
                "UPDATE issues SET title = %s WHERE id = %s", [args["title"], args["id"]]
            )
        case _:
            raise LookupError(f"unknown mutator {name}")


class App:
    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="app", daemon=True)
        self._ready = threading.Event()
        self._port = 0
        self._refuse_mutations: int | None = None
        self.mutate_requests = 0

    @contextlib.contextmanager
    def answering_mutations_with(self, *, status: int) -> Iterator[None]:
        """Inside the block, the mutate endpoint answers with an HTTP error only."""
        self._refuse_mutations = status
        yield
        self._refuse_mutations = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._thread.start()
        self._ready.wait(10)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()

    async def _serve(self) -> None:
        application = web.Application()
        application.router.add_post("/query", self._query)
        application.router.add_post("/mutate", self._mutate)
        runner = web.AppRunner(application)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self._port = runner.addresses[0][1]
        self._ready.set()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _query(self, request: web.Request) -> web.Response:
        _, wanted = await request.json()
        answers = []
        for query in wanted:
            ids = {"id": query["id"], "name": query["name"]}
            try:
                ast = query_ast(query["name"], query["args"][0] if query["args"] else {})
            except (PermissionError, LookupError) as error:
                answers.append({**ids, "error": "app", "message": str(error)})
            else:
                answers.append({**ids, "ast": ast})
        return web.json_response({"kind": "QueryResponse", "queries": answers})

    async def _mutate(self, request: web.Request) -> web.Response:
        if self._refuse_mutations is not None:
            return web.Response(status=self._refuse_mutations, text="not now")
        body = await request.json()
        self.mutate_requests += 1
        schema = request.query["schema"]
        results = [self._apply(schema, body["clientGroupID"], m) for m in body["mutations"]]
        return web.json_response({"kind": "MutateResponse", "mutations": [r for r in results if r]})

    def _apply(self, schema: str, group: str, mutation: dict[str, Any]) -> dict[str, Any] | None:
        ids = {"clientID": mutation["clientID"], "id": mutation["id"]}
        if mutation["name"] == "_zero_cleanupResults":
            self.mutate_requests -= 1
            upto = mutation["args"][0]
            if upto["type"] != "single":
                return None
            with psycopg.connect(self._upstream) as db:
                db.execute(
                    psycopg.sql.SQL(
                        'DELETE FROM {}.mutations WHERE "clientGroupID" = %s AND "clientID" = %s'
                        ' AND "mutationID" <= %s'
                    ).format(psycopg.sql.Identifier(schema)),
                    [upto["clientGroupID"], upto["clientID"], upto["upToMutationID"]],
                )
            return None
        try:
            with psycopg.connect(self._upstream) as db, db.cursor() as cursor:
                self._lmid(cursor, schema, group, mutation)
                mutate(cursor, mutation["name"], mutation["args"][0])
        except (Refused, psycopg.Error) as error:
            result = {"error": "app", "message": str(error.args[0])}
            if isinstance(error, Refused):
                result["details"] = error.args[1]
            with psycopg.connect(self._upstream) as db, db.cursor() as cursor:
                self._lmid(cursor, schema, group, mutation)
                cursor.execute(
                    psycopg.sql.SQL("INSERT INTO {}.mutations VALUES (%s,%s,%s,%s)").format(
                        psycopg.sql.Identifier(schema)
                    ),
                    [group, mutation["clientID"], mutation["id"], Json(result)],
                )
            return {"id": ids, "result": result}
        return {"id": ids, "result": {}}

    @staticmethod
    def _lmid(
        cursor: psycopg.Cursor[Any], schema: str, group: str, mutation: dict[str, Any]
    ) -> None:
        cursor.execute(
            psycopg.sql.SQL(
                'INSERT INTO {}.clients AS c ("clientGroupID","clientID","lastMutationID")'
                ' VALUES (%s,%s,1) ON CONFLICT ("clientGroupID","clientID")'
                ' DO UPDATE SET "lastMutationID" = c."lastMutationID" + 1'
                ' RETURNING "lastMutationID"'
            ).format(psycopg.sql.Identifier(schema)),
            [group, mutation["clientID"]],
        )
        assert cursor.fetchone() == (mutation["id"],)
