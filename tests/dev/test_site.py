"""The page's routes: import map, modules, and what it says without the client."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from zerocache.dev.client_packages import ClientPackagesError
from zerocache.dev.site import DemoSite

Client = TestClient[web.Request, web.Application]
Open = Callable[[Awaitable[Path]], Awaitable[Client]]


@pytest.fixture
async def open_site() -> AsyncIterator[Open]:
    clients: list[Client] = []

    async def open_with(packages: Awaitable[Path]) -> Client:
        app = web.Application()
        DemoSite(asyncio.ensure_future(packages), 4848).add_routes(app)
        client = TestClient(TestServer(app))
        clients.append(client)
        await client.start_server()
        return client

    yield open_with
    for client in clients:
        await client.close()


async def ready(folder: Path) -> Path:
    return folder


@pytest.mark.js
async def test_page_maps_the_client_to_modules_that_load(
    node_modules: Path, open_site: Open
) -> None:
    client = await open_site(ready(node_modules))
    page = await (await client.get("/")).text()
    found = re.search(r'<script type="importmap">(.*?)</script>', page)
    assert found is not None
    imports = json.loads(found[1])["imports"]
    module = await client.get(imports["@rocicorp/zero"])
    assert module.content_type == "text/javascript"
    assert "immutable" in module.headers["Cache-Control"]
    assert '"zeroPort": 4848' in page
    preloads = re.findall(r'modulepreload" href="([^"]+)"', page)
    assert len(preloads) > 200
    assert (await client.get(preloads[-1])).status == 200


async def test_page_files_are_served_and_nothing_else(tmp_path: Path, open_site: Open) -> None:
    client = await open_site(ready(tmp_path))
    for name in ("app.js", "model.js", "style.css"):
        assert (await client.get(f"/page/{name}")).status == 200
    assert (await client.get("/page/__init__.py")).status == 404


async def test_files_outside_the_packages_are_not_served(tmp_path: Path, open_site: Open) -> None:
    node_modules = tmp_path / "node_modules"
    node_modules.mkdir()
    (tmp_path / "secret.js").write_text("x")
    (node_modules / "link.js").symlink_to(tmp_path / "secret.js")
    (node_modules / "package.json").write_text("{}")
    client = await open_site(ready(node_modules))
    for path in ("..%2Fsecret.js", "link.js", "package.json", "none.js"):
        assert (await client.get(f"/npm/1.9.0/{path}")).status == 404, path


async def test_page_without_the_client_says_what_is_missing(open_site: Open) -> None:
    async def failing() -> Path:
        raise ClientPackagesError("no <network>")

    client = await open_site(failing())
    page = await (await client.get("/")).text()
    assert 'data-testid="client-missing"' in page
    assert "no &lt;network&gt;" in page
    assert "app.js" not in page
    assert (await client.get("/npm/1.9.0/x.js")).status == 503
