"""Serves the demo page and, next to it, the official client from the package cache.

Owns the routes ``/``, ``/page/…`` and ``/npm/…``. It must never serve a file outside the page's
folder and the cache's ``node_modules``, and it never waits for the network: a page without the
client says what is missing. Invariant: module URLs carry the client's version, so that browsers
may keep them for ever.
"""

from __future__ import annotations

import asyncio
import html
import json
from pathlib import Path

from aiohttp import web

from zerocache.dev.client_packages import (
    CLIENT,
    PACKAGES,
    ClientPackagesError,
    ModuleGraph,
    module_graph,
)

_PAGE_FILES = {"app.js": "text/javascript", "model.js": "text/javascript", "style.css": "text/css"}
_NPM_PREFIX = f"/npm/{PACKAGES[CLIENT]}"
_MODULE_SUFFIXES = (".js", ".mjs")


class DemoSite:
    """The page. ``packages`` delivers the folder ``node_modules`` or a ClientPackagesError."""

    def __init__(self, packages: asyncio.Task[Path], zero_port: int) -> None:
        self._packages = packages
        self._zero_port = zero_port
        self._folder = Path(__file__).with_name("page")
        # The import map and preload list, computed at the first visit.
        self._graph: ModuleGraph | None = None

    def add_routes(self, app: web.Application) -> None:
        app.router.add_get("/", self._index)
        app.router.add_get("/page/{name}", self._page_file)
        app.router.add_get(_NPM_PREFIX + "/{path:.+}", self._module)

    async def _index(self, _request: web.Request) -> web.Response:
        try:
            # Shielded: a visitor who leaves must not cancel the download for all others.
            node_modules = await asyncio.shield(self._packages)
            if self._graph is None:
                self._graph = module_graph(node_modules)
        except ClientPackagesError as error:
            return self._html(head="", notice=_notice(error))
        return self._html(head=self._head(self._graph), notice="")

    def _html(self, *, head: str, notice: str) -> web.Response:
        template = (self._folder / "index.html").read_text()
        text = template.replace("<!--HEAD-->", head).replace("<!--NOTICE-->", notice)
        return web.Response(
            text=text, content_type="text/html", headers={"Cache-Control": "no-store"}
        )

    def _head(self, graph: ModuleGraph) -> str:
        urls = {name: f"{_NPM_PREFIX}/{file}" for name, file in graph.imports.items()}
        config = {"zeroPort": self._zero_port}
        preloads = "".join(
            f'<link rel="modulepreload" href="{_NPM_PREFIX}/{html.escape(file)}">'
            for file in graph.modules
        )
        return (
            f'<script type="application/json" id="config">{json.dumps(config)}</script>'
            f'<script type="importmap">{json.dumps({"imports": urls})}</script>'
            f'{preloads}<script type="module" src="/page/app.js"></script>'
        )

    async def _page_file(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        if name not in _PAGE_FILES:
            raise web.HTTPNotFound
        return web.Response(
            text=(self._folder / name).read_text(),
            content_type=_PAGE_FILES[name],
            headers={"Cache-Control": "no-cache"},
        )

    async def _module(self, request: web.Request) -> web.StreamResponse:
        try:
            node_modules = (await asyncio.shield(self._packages)).resolve()
        except ClientPackagesError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        file = (node_modules / request.match_info["path"]).resolve()
        is_module = file.suffix in _MODULE_SUFFIXES and file.is_file()
        if not (is_module and file.is_relative_to(node_modules)):
            raise web.HTTPNotFound
        return web.Response(
            body=file.read_bytes(),
            content_type="text/javascript",
            charset="utf-8",
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )


def _notice(error: ClientPackagesError) -> str:
    return (
        '<section class="notice" data-testid="client-missing">'
        "<h2>The JavaScript client could not be fetched</h2>"
        f"<p>This page needs {html.escape(CLIENT)} {html.escape(PACKAGES[CLIENT])}, which "
        "<code>zerocache dev</code> downloads with npm at its first start.</p>"
        f"<pre>{html.escape(str(error))}</pre>"
        "<p>The database, the demo API and the sync server are running; clients of your own can "
        "connect.</p></section>"
    )
