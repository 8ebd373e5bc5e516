"""Makes ``reference_values.json``: what the reference server stores for the values of values.py.

Run by hand, as ``python -m tests.replica.reference_values``; it needs the reference server from npm
(see benchmarks/reference.py). Owns the recording only: half of the rows are there before its
initial sync, half are inserted afterwards, and both are read from its replica with its own SQLite.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import reference
from benchmarks.cluster import Cluster
from benchmarks.servers import REFERENCE, Server
from tests.replica.values import SETUP, SYNCED

FILE = Path(__file__).with_name("reference_values.json")
_STREAMED = 100
_PATIENCE = 40
_READ = """
const Database = require(process.argv[1]);
const db = new Database(process.argv[2], {readonly: true});
const rows = [];
for (let at = 0; at < Number(process.argv[3]); at++) {
  const query = `SELECT id, typeof(v) AS type, CASE typeof(v) WHEN 'real' THEN
    printf('%!.17g', v) ELSE CAST(v AS TEXT) END AS text FROM t${at} ORDER BY id`;
  rows.push(db.prepare(query).all());
}
console.log(JSON.stringify(rows));
"""


async def record() -> dict[str, list[dict[str, Any]]]:
    types = list(SYNCED)
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        url = cluster.create_database("values")
        _run(url, SETUP)
        for at, kind in enumerate(types):
            _run(url, f"CREATE TABLE t{at} (id int PRIMARY KEY, v {kind})")
            _insert(url, at, kind, 0)
        server = Server(REFERENCE, url, Path(folder), 1)
        await server.start()
        for at, kind in enumerate(types):
            _insert(url, at, kind, _STREAMED)
        try:
            rows = await _stored(Path(folder), types)
        finally:
            await server.stop()
    return {kind: _pairs(kind, found) for kind, found in zip(types, rows, strict=True)}


def _insert(url: str, at: int, kind: str, first: int) -> None:
    for number, value in enumerate(SYNCED[kind]):
        _run(url, f"INSERT INTO t{at} VALUES ({first + number}, {value})")  # noqa: S608


def _run(url: str, script: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(script.encode())


async def _stored(folder: Path, types: list[str]) -> list[list[dict[str, Any]]]:
    """The rows of all tables, once they are all there."""
    node = reference.command()[0]
    module = Path(node).parents[1] / "@rocicorp" / "zero-sqlite3"
    file = folder / "reference" / "replica.db"
    command = [node, "-e", _READ, str(module), str(file), str(len(types))]
    for _ in range(_PATIENCE):
        output = await asyncio.to_thread(subprocess.check_output, command)
        rows: list[list[dict[str, Any]]] = json.loads(output)
        counts = zip(types, map(len, rows), strict=True)
        if all(count == 2 * len(SYNCED[kind]) for kind, count in counts):
            return rows
        await asyncio.sleep(0.5)
    raise TimeoutError(f"not all rows arrived, but {[*map(len, rows)]}: see the server's log")


def _pairs(kind: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    stored = {row["id"]: [row["type"], row["text"]] for row in rows}
    return [
        {"value": value, "copied": stored[at], "streamed": stored[at + _STREAMED]}
        for at, value in enumerate(SYNCED[kind])
    ]


if __name__ == "__main__":
    recorded = asyncio.run(record())
    FILE.write_text(json.dumps(recorded, indent=1, ensure_ascii=False) + "\n")
