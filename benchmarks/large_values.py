"""Very large values and very wide rows, from the initial sync and the stream up to a client.

One value of ``--mb`` (100) of each kind is there at the start and one is written while everything
runs; then a row of which the large values do not change (TOAST) is updated. Prints the time and the
peak of each program's private memory for each step.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import uvloop
from psycopg import sql

from benchmarks import report
from benchmarks.cluster import Cluster
from benchmarks.large_transaction import MemoryWatch
from benchmarks.protocol_client import SyncClient, ast_query
from benchmarks.report import Metric, ServerResult
from benchmarks.servers import ZEROCACHE, Server
from benchmarks.sync_messages import ClientSchema, ColumnType, TableSchema

_TIMEOUT_S = 300.0
_COLUMNS = 1_599  # and the key: PostgreSQL's limit
_KINDS: dict[str, ColumnType] = {"t": "string", "j": "json"}


def _schema() -> ClientSchema:
    large: dict[str, ColumnType] = {"id": "number", "n": "number", **_KINDS}
    wide: dict[str, ColumnType] = {"id": "number", **{f"c{i}": "number" for i in range(_COLUMNS)}}
    return ClientSchema(
        {
            name: TableSchema({column: {"type": kind} for column, kind in columns.items()}, ["id"])
            for name, columns in (("large", large), ("wide", wide))
        }
    )


def _write(url: str, number: int, mb: int) -> None:
    """A row of each table; text and JSON are of ``mb`` megabytes, and so is the bytea."""
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO large SELECT %(n)s, 0, repeat('0123456789', %(size)s), "
            "to_jsonb(repeat('abcdefghij', %(size)s)), "
            "decode(repeat('00112233445566778899', %(size)s), 'hex')",
            {"n": number, "size": mb * 100_000},
        )
        names = sql.SQL(", ").join(sql.Placeholder() * (_COLUMNS + 1))
        connection.execute(
            sql.SQL("INSERT INTO wide VALUES ({})").format(names),
            [number, *range(_COLUMNS)],
        )


def _create(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE large (id int PRIMARY KEY, n int NOT NULL, t text, j jsonb, b bytea)"
        )
        columns = ", ".join(f"c{i} int" for i in range(_COLUMNS))
        connection.execute(f"CREATE TABLE wide (id int PRIMARY KEY, {columns})".encode())


async def _timed(
    server: Server, name: str, step: Callable[[], object], done: Callable[[], object]
) -> list[Metric]:
    watch = MemoryWatch(server.pid)
    began = time.monotonic()
    await asyncio.to_thread(step)
    waiting = done()
    if asyncio.iscoroutine(waiting):
        await waiting
    seconds = time.monotonic() - began
    peaks = watch.stop()
    return [
        Metric(name, "seconds", seconds, "s"),
        *(Metric(name, f"{program}: peak", mb, "MB") for program, mb in sorted(peaks.items())),
    ]


async def _measure(server: Server, url: str, mb: int) -> list[Metric]:
    await asyncio.to_thread(_write, url, 1, mb)
    began = time.monotonic()
    # The server's processes, and this one, which stands for the supervisor then.
    watch = MemoryWatch(os.getpid())
    await server.start()
    metrics = [Metric("initial sync", "seconds", time.monotonic() - began, "s")]
    for program, peak in sorted(watch.stop().items()):
        metrics.append(Metric("initial sync", f"{program}: peak", peak, "MB"))
    server.allow_everything(_schema())
    client = SyncClient(
        server.url,
        _schema(),
        [ast_query({"table": "large"}), ast_query({"table": "wide"})],
        version=52,  # the first with chunks, so that no frame is as large as a row
    )
    await client.connect(_TIMEOUT_S)

    def rows(count: int) -> object:
        return client.wait_for(lambda: len(client.state.rows) == count, _TIMEOUT_S)

    metrics += await _timed(server, "first client", lambda: None, lambda: rows(2))
    metrics += await _timed(server, "insert", lambda: _write(url, 2, mb), lambda: rows(4))

    def touch() -> None:
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE large SET n = 1 WHERE id = 1")

    def touched() -> object:
        return client.wait_for(
            lambda: any(row.get("n") == 1 for row in client.state.rows.values()), _TIMEOUT_S
        )

    metrics += await _timed(server, "update beside unchanged values", touch, touched)
    assert {len(row["t"]) for row in client.state.table("large").values()} == {mb * 1_000_000}
    client.close()
    return metrics


async def _run(mb: int) -> None:
    work_dir = Path(tempfile.mkdtemp(prefix="zerocache-bench-"))
    try:
        with Cluster() as cluster:
            url = cluster.create_database("bench")
            await asyncio.to_thread(_create, url)
            server = Server(ZEROCACHE, url, work_dir, workers=1)
            try:
                metrics = await _measure(server, url, mb)
            except BaseException:
                print(server.log_path.read_text()[-3000:])
                raise
            finally:
                await server.stop()
            settings = {"postgres": cluster.version(), "mb": mb, "columns": _COLUMNS + 1}
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)
    results = [ServerResult(ZEROCACHE.name, ZEROCACHE.version(), tuple(metrics))]
    report.print_table(results)
    print(f"written: {report.write('large_values', results, settings)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=100)
    uvloop.run(_run(parser.parse_args().mb))
