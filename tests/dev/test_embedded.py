"""EmbeddedPostgres against real clusters: creation, restarts, crashes and left-overs."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from zerocache.dev.embedded import EmbeddedPostgres
from zerocache.errors import ConfigurationError


@pytest.fixture
async def postgres(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    yield server
    await server.stop()


async def query(server: EmbeddedPostgres, statement: str, database: str = "postgres") -> Any:
    async with await psycopg.AsyncConnection.connect(
        server.url(database), autocommit=True
    ) as connection:
        cursor = await connection.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else None


def server_process(folder: Path) -> psutil.Process:
    pid = int((folder / "pg" / "data" / "postmaster.pid").read_text().split()[0])
    return psutil.Process(pid)


async def ended(process: psutil.Process) -> None:
    await asyncio.to_thread(process.wait, 20)


async def test_new_cluster_is_postgres_18_ready_for_logical_replication(
    postgres: EmbeddedPostgres,
) -> None:
    (version,) = (await query(postgres, "SHOW server_version_num"))[0]
    assert int(version) // 10000 == 18
    assert await query(postgres, "SHOW wal_level") == [("logical",)]
    assert await query(postgres, "SHOW fsync") == [("on",)]


async def test_server_does_not_run_as_root_and_keeps_others_out(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    assert server_process(tmp_path).uids().effective != 0
    assert (tmp_path / "pg" / "password").stat().st_mode & 0o077 == 0
    with pytest.raises(psycopg.OperationalError, match="password"):
        await psycopg.AsyncConnection.connect(
            host="127.0.0.1", port=postgres.port, user="postgres", password="guess"
        )


async def test_database_is_created_once(postgres: EmbeddedPostgres) -> None:
    await postgres.create_database("demo")
    await postgres.create_database("demo")
    assert await query(postgres, "SELECT current_database()", "demo") == [("demo",)]


async def test_data_and_address_survive_a_restart(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "pg")
    await first.start()
    await query(first, "CREATE TABLE kept AS SELECT 1 AS x")
    url = first.url("postgres")
    await first.stop()
    await first.stop()

    second = EmbeddedPostgres(tmp_path / "pg")
    await second.start()
    try:
        assert second.url("postgres") == url
        assert await query(second, "SELECT x FROM kept") == [(1,)]
    finally:
        await second.stop()


async def test_port_taken_by_another_program_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "pg").mkdir()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        (tmp_path / "pg" / "port").write_text(str(taken))
        server = EmbeddedPostgres(tmp_path / "pg")
        await server.start()
        try:
            assert server.port != taken
        finally:
            await server.stop()


async def test_killed_server_is_recovered_with_its_data(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "pg")
    await first.start()
    await query(first, "CREATE TABLE kept AS SELECT 1 AS x")
    process = server_process(tmp_path)
    process.kill()
    await ended(process)
    assert (tmp_path / "pg" / "data" / "postmaster.pid").exists()

    second = EmbeddedPostgres(tmp_path / "pg")
    await second.start()
    try:
        assert await query(second, "SELECT x FROM kept") == [(1,)]
    finally:
        await second.stop()


async def test_pid_file_that_names_a_stranger_is_ignored(tmp_path: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "pg")
    await first.start()
    process = server_process(tmp_path)
    process.kill()
    await ended(process)
    pid_file = tmp_path / "pg" / "data" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]))

    second = EmbeddedPostgres(tmp_path / "pg")
    await second.start()
    await second.stop()


async def test_running_server_of_an_earlier_run_is_taken_over(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    process = server_process(tmp_path)
    second = EmbeddedPostgres(tmp_path / "pg")
    await second.start()
    assert second.port == postgres.port
    assert server_process(tmp_path).pid == process.pid
    await query(second, "SELECT 1")

    await second.stop()
    await ended(process)
    assert not (tmp_path / "pg" / "data" / "postmaster.pid").exists()
    # The fixture's own stop() finds nothing to stop; start it again for a clean end.
    await postgres.start()


async def test_interrupted_initdb_leaves_no_half_cluster(tmp_path: Path) -> None:
    unfinished = tmp_path / "pg" / "data.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    try:
        assert not unfinished.exists()
        assert await query(server, "SELECT 1") == [(1,)]
    finally:
        await server.stop()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_server_ends_with_the_process_that_started_it(
    tmp_path: Path, how: signal.Signals
) -> None:
    program = f"""
import asyncio
from pathlib import Path
from zerocache.dev.embedded import EmbeddedPostgres

async def main():
    server = EmbeddedPostgres(Path({str(tmp_path / "pg")!r}))
    await server.start()
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"started\n"
    process = server_process(tmp_path)
    parent.send_signal(how)
    await parent.wait()
    await ended(process)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["shell", "background"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """SIGINT as a shell leaves it to a program in the foreground, and to one in the background."""
    previous = signal.signal(signal.SIGINT, request.param)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("interrupts")
async def test_cancelled_start_leaves_no_server(tmp_path: Path) -> None:
    waiting = asyncio.Event()

    class NeverReady(EmbeddedPostgres):
        async def _answers(self, port: int) -> bool:
            waiting.set()
            await asyncio.Event().wait()
            return True

    starting = asyncio.create_task(NeverReady(tmp_path / "pg").start())
    await waiting.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not (tmp_path / "pg" / "data" / "postmaster.pid").exists()
    children = psutil.Process().children()
    assert not [child for child in children if str(tmp_path) in " ".join(child.cmdline())]


async def test_failing_start_reports_the_log(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    await server.stop()
    with (tmp_path / "pg" / "data" / "postgresql.conf").open("a") as settings:
        settings.write("no_such_setting = 1\n")
    with pytest.raises(ConfigurationError, match="no_such_setting"):
        await EmbeddedPostgres(tmp_path / "pg").start()


def test_missing_wheel_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"zerocache\[dev\].*ZERO_UPSTREAM_DB"):
        EmbeddedPostgres(tmp_path / "pg")
