"""``zerocache dev`` as a person starts it: one command in an empty folder."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.conftest import free_port
from zerocache.dev.app import parse_options

_LAST_LINE = "Ctrl-C ends"


@dataclass
class Dev:
    """A running ``zerocache dev``."""

    process: asyncio.subprocess.Process
    folder: Path
    banner: str

    @property
    def page(self) -> str:
        found = re.search(r"page +(http\S+)", self.banner)
        assert found is not None
        return found[1]

    async def psql(self, statement: str) -> str:
        script = self.folder / ".zerocache" / "psql"
        process = await asyncio.create_subprocess_exec(
            script, "-At", "-c", statement, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await process.communicate()
        return output.decode().strip()

    async def stop(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        async with asyncio.timeout(60):
            return await self.process.wait()


Start = Callable[..., Awaitable[Dev]]


@pytest.fixture
async def start(tmp_path: Path, node_modules: Path) -> AsyncIterator[Start]:
    """Start it in ``tmp_path`` with the client in its cache, return when it is ready."""
    running: list[asyncio.subprocess.Process] = []
    cache = tmp_path / ".zerocache" / "npm"
    cache.mkdir(parents=True)
    (cache / "node_modules").symlink_to(node_modules)

    async def start_it(*flags: str, **environment: str) -> Dev:
        process = await run(tmp_path, *flags, **environment)
        running.append(process)
        return Dev(process, tmp_path, await read_banner(process))

    yield start_it
    for process in running:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def run(folder: Path, *flags: str, **environment: str) -> asyncio.subprocess.Process:
    root = str(Path(__file__).parents[2])
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("ZERO_")}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "zerocache.cli", "dev", "--port", str(free_port()), *flags),
        cwd=folder,
        env={**inherited, "PYTHONPATH": root, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )


async def read_banner(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    lines: list[str] = []
    async with asyncio.timeout(60):
        async for line in process.stdout:
            lines.append(line.decode())
            if _LAST_LINE in lines[-1]:
                return "".join(lines)
    raise AssertionError(f"ended before it was ready:\n{''.join(lines)}")


async def test_one_command_brings_database_api_page_and_sync(start: Start) -> None:
    dev = await start("--demo-port", str(free_port()))
    found = re.search(r"ready \(([\d.]+) s\)", dev.banner)
    assert found is not None
    password = (dev.folder / ".zerocache" / "pg" / "password").read_text()
    assert password not in dev.banner

    async with aiohttp.ClientSession() as http:
        page = await (await http.get(dev.page)).text()
        assert '<script type="importmap">' in page
        sync = re.search(r"sync +(http\S+)", dev.banner)
        assert sync is not None
        assert (await http.get(f"{sync[1]}/keepalive")).status == 200

    suggested = re.search(r"\./\.zerocache/psql -c \"(UPDATE [^\"]+)\"", dev.banner)
    assert suggested is not None
    assert await dev.psql(suggested[1]) == "UPDATE 1"

    children = psutil.Process(dev.process.pid).children(recursive=True)
    assert await dev.stop(signal.SIGINT) == 0
    assert not [child for child in children if child.is_running()]
    assert not (dev.folder / ".zerocache" / "pg" / "data" / "postmaster.pid").exists()


async def test_second_start_keeps_data_and_addresses(start: Start) -> None:
    port = str(free_port())
    first = await start("--demo-port", port)
    assert await first.psql("DELETE FROM issue WHERE id <> 'i1'") == "DELETE 1999"
    assert await first.stop(signal.SIGTERM) == 0

    second = await start("--demo-port", port)
    assert await second.psql("SELECT count(*) FROM issue") == "1"
    assert second.page == first.page
    assert await second.stop(signal.SIGTERM) == 0


async def test_killed_run_is_followed_by_a_working_one(start: Start) -> None:
    first = await start("--demo-port", str(free_port()))
    await first.stop(signal.SIGKILL)
    second = await start("--demo-port", str(free_port()))
    assert await second.stop(signal.SIGINT) == 0


async def test_second_user_of_a_folder_is_refused(start: Start) -> None:
    dev = await start("--demo-port", str(free_port()))
    other = await run(dev.folder)
    output, _ = await other.communicate()
    assert other.returncode == 78
    assert f"process {dev.process.pid}" in output.decode()
    assert await dev.stop(signal.SIGINT) == 0


async def test_own_database_gets_no_demo(start: Start, database: str, app_id: str) -> None:
    dev = await start(ZERO_UPSTREAM_DB=database, ZERO_APP_ID=app_id)
    assert "no demo application" in dev.banner
    assert not (dev.folder / ".zerocache" / "pg").exists()
    assert await dev.stop(signal.SIGINT) == 0


async def test_requested_port_in_use_ends_everything(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = str(other.getsockname()[1])
        process = await run(tmp_path, "--no-page", "--demo-port", taken)
        output, _ = await process.communicate()
    assert process.returncode == 78
    assert f"Port {taken}" in output.decode()
    assert not (tmp_path / ".zerocache" / "pg" / "data" / "postmaster.pid").exists()


async def test_bad_option_is_one_message(tmp_path: Path) -> None:
    process = await run(tmp_path, "--no-page", "--no-such-flag", "1")
    output, _ = await process.communicate()
    assert process.returncode == 78
    assert "--no-such-flag" in output.decode()
    assert "Traceback" not in output.decode()


def test_options_of_the_server_are_handed_on() -> None:
    options = parse_options(["--log-level", "debug", "--data-dir", "d", "--port=5", "--no-page"])
    assert options.node == ("--log-level", "debug", "--port=5")
    assert options.data_dir == Path("d")
    assert not options.page
    assert options.demo_port is None
