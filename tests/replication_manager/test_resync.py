"""A new initial sync under workers that hold the old file."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psycopg

from tests.replication_manager.conftest import RunSql
from tests.replication_manager.harness import TIMEOUT_S, Replicator
from view_syncer.engine_host import EngineHost
from view_syncer.ivm.encode import ClientTables, SyncedTable
from zerocache.replica.notifier import watch_versions
from zerocache.zql.ast import parse_query

_TABLES = ClientTables("t", {"t": SyncedTable("t", ("id", "title"), ("id",))})
_ALL = parse_query(json.dumps({"table": "t"}).encode())


async def _notify(path: Path, host: EngineHost) -> None:
    async for _ in watch_versions(path):
        host.notify()


async def test_a_worker_follows_from_file_to_file(
    replicator: Replicator, run_sql: RunSql, database: str
) -> None:
    run_sql("CREATE TABLE t (id int PRIMARY KEY, title text); INSERT INTO t VALUES (0, 'first')")
    replicator.start()
    fatal: list[BaseException] = []
    resets: asyncio.Queue[str] = asyncio.Queue()
    host = EngineHost(
        replicator.file,
        lambda advance: resets.put_nowait(advance.version) if advance.reset else None,
        fatal.append,
    )
    host.start()
    watching = asyncio.create_task(_notify(replicator.directory / "version-ready.sock", host))
    try:
        for number in (1, 2, 3):
            async with await psycopg.AsyncConnection.connect(database) as upstream:
                change = f"ALTER TABLE t ADD COLUMN c{number} int"
                await upstream.execute(change.encode())
                await upstream.execute("INSERT INTO t VALUES (%s, 'later')", [number])
            version = await asyncio.wait_for(resets.get(), TIMEOUT_S)
            view = await host.reconcile("g", _TABLES, {"q": _ALL}, [])
            assert view.version >= version
            assert {json.loads(put)["value"]["id"] for put in view.puts} == {*range(number + 1)}
        assert fatal == []
    finally:
        watching.cancel()
        await host.close()
