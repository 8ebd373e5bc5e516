"""``zerocache dev``: a database, a demo application and a node, in one command.

Owns what starts when, what ends when, and what the terminal says about it. With ZERO_UPSTREAM_DB
set it starts only the node, with settings for development. It must never keep anything outside
its data folder. Invariant: when ``main`` returns, everything it started has ended, the database
last.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
import uvloop
from aiohttp import web

from zerocache.config import Config
from zerocache.config_loader import load_config, merged_environment
from zerocache.dev import banner
from zerocache.dev.client_packages import ClientPackagesError, fetch_packages
from zerocache.dev.demo_api import create_demo_api
from zerocache.dev.embedded import EmbeddedPostgres
from zerocache.dev.folder import locked, write_psql_script
from zerocache.dev.seed import seed
from zerocache.dev.site import DemoSite
from zerocache.errors import ConfigurationError
from zerocache.logging import configure_logging
from zerocache.supervisor import run_node

log = structlog.get_logger(__name__)

_DATABASE = "demo"
_DEMO_PORT = 3000
_EXIT_CONFIGURATION = 78
# How long the announcement waits for npm once everything else is ready.
_PACKAGES_GRACE_S = 20.0


@dataclass(frozen=True)
class Options:
    """The flags that only ``zerocache dev`` has; the rest belongs to the node."""

    data_dir: Path
    demo_port: int | None  # None: the default one, or any if that is taken
    page: bool
    node: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    options = parse_options(argv)
    try:
        return uvloop.run(_run(options))
    except ConfigurationError as error:
        print(f"zerocache dev: {error}", file=sys.stderr)
        return _EXIT_CONFIGURATION
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0  # asked to end while starting; everything has been ended on the way here


def parse_options(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="zerocache dev",
        allow_abbrev=False,
        description="Run zerocache with an embedded PostgreSQL 18 and a demo application. "
        "With ZERO_UPSTREAM_DB (or --upstream-db) it runs on that database, without the demo.",
        epilog="All options of `zerocache` are accepted too; see `zerocache --help`.",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=Path(".zerocache"),
        help="folder for database, replica and JavaScript client (default: %(default)s)",
    )
    parser.add_argument(
        "--demo-port",
        type=int,
        help=f"port of the demo page and API (default: {_DEMO_PORT}, or a free one)",
    )
    parser.add_argument(
        "--no-page", action="store_true", help="do not fetch the JavaScript client, serve no page"
    )
    known, node = parser.parse_known_args(argv)
    return Options(known.data_dir, known.demo_port, not known.no_page, tuple(node))


async def _run(options: Options) -> int:
    # Until the node handles signals itself, SIGTERM means what Ctrl-C means.
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    environ = merged_environment(os.environ, Path(".env"))
    with locked(options.data_dir):
        if _names_upstream(options.node, environ):
            config = _config(options, environ, {})
            return await run_node(config, on_ready=lambda: print(banner.own_database(config)))
        return await _run_demo(options, environ)


async def _run_demo(options: Options, environ: Mapping[str, str]) -> int:
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        # npm needs the network, PostgreSQL the disk: side by side.
        packages = asyncio.create_task(_packages(options))
        stack.push_async_callback(_cancel, packages)
        database = EmbeddedPostgres(options.data_dir / "pg")
        stack.push_async_callback(_end_database, database)
        await database.start()
        await database.create_database(_DATABASE)
        url = database.url(_DATABASE)
        await seed(url)
        write_psql_script(options.data_dir / "psql", database.binaries, url)
        listener = _bind(options.demo_port)
        demo_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        config = _config(options, environ, demo_defaults(url, demo_url, options.data_dir))
        await _serve_demo(stack, listener, url, config, packages)
        demo = banner.Demo(config, listener.getsockname()[1], options.data_dir, database.port)

        def announce() -> None:
            announcing = asyncio.create_task(_announce(demo, packages, started))
            stack.push_async_callback(_cancel, announcing)

        return await run_node(config, on_ready=announce)


async def _packages(options: Options) -> Path:
    if not options.page:
        raise ClientPackagesError("The page is switched off by --no-page.")
    return await fetch_packages(options.data_dir / "npm")


async def _serve_demo(
    stack: AsyncExitStack,
    listener: socket.socket,
    url: str,
    config: Config,
    packages: asyncio.Task[Path],
) -> None:
    app = create_demo_api(url)
    DemoSite(packages, config.port).add_routes(app)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2)
    stack.push_async_callback(runner.cleanup)
    await runner.setup()
    await web.SockSite(runner, listener).start()


async def _announce(demo: banner.Demo, packages: asyncio.Task[Path], started: float) -> None:
    """Say what runs where, once the page works too (or npm takes unusually long)."""
    await asyncio.wait([packages], timeout=_PACKAGES_GRACE_S)
    problem: str | None = None
    if not packages.done():
        problem = "npm is still fetching the JavaScript client; the page waits for it."
    elif (error := packages.exception()) is not None:
        problem = str(error)
    print(banner.demo_text(demo, time.monotonic() - started, problem), flush=True)


async def _end_database(database: EmbeddedPostgres) -> None:
    # A second SIGTERM must not cut this short: the checkpoint is what makes the next start fast.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: None)
    await database.stop()


async def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # retrieved; who needed it has seen it


# --- settings ---


def demo_defaults(upstream: str, demo_url: str, data_dir: Path) -> dict[str, str]:
    return {
        "ZERO_UPSTREAM_DB": upstream,
        # With a database of the user's own, the view records stay in that: this folder may be
        # used with another one tomorrow.
        "ZERO_CVR_DB": f"sqlite:{data_dir / 'cvr.db'}",
        "ZERO_QUERY_URL": f"{demo_url}/api/query",
        "ZERO_MUTATE_URL": f"{demo_url}/api/mutate",
    }


def _names_upstream(flags: Sequence[str], environ: Mapping[str, str]) -> bool:
    given = any(flag.partition("=")[0] == "--upstream-db" for flag in flags)
    return given or "ZERO_UPSTREAM_DB" in environ


def _config(options: Options, environ: Mapping[str, str], demo: Mapping[str, str]) -> Config:
    """What the user set, over what suits development; logging is set up from it."""
    defaults = {
        "NODE_ENV": "development",
        "ZERO_REPLICA_FILE": str(options.data_dir / "replica.db"),
        "ZERO_NUM_SYNC_WORKERS": "2",
        "ZERO_LOG_LEVEL": "warn",
    }
    config, warnings = load_config(options.node, {**defaults, **demo, **environ})
    configure_logging(config.log)
    for warning in warnings:
        log.warning("configuration", message=warning)
    return config


def _bind(wanted: int | None) -> socket.socket:
    """The page's port on 127.0.0.1. A port that was asked for is used or refused."""
    candidates = [_DEMO_PORT, 0] if wanted is None else [wanted]
    for port in candidates:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            listener.close()  # taken by another program
            continue
        return listener
    raise ConfigurationError(
        f"Port {wanted} for the demo page is in use. Choose another one with --demo-port."
    )
