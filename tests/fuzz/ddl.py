"""Fuzzes schema changes: ``python -m tests.fuzz.ddl --minutes N [--seed S]``.

A real PostgreSQL gets random transactions of DDL mixed with DML while the replication process runs
and is killed now and then. Oracles after every round: each replica table equals upstream's row by
row, nothing was synced anew, and the replica's schema equals that of a freshly synced replica.
Exit status 1 after a failure; what was run is printed with its seed.
"""

# ruff: noqa: S608 - statements are made of names this file invents

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
import traceback
import uuid
from pathlib import Path

import psycopg

from tests.conftest import PostgresCluster, destroy_cluster, make_cluster
from tests.replication_manager.harness import (
    Replicator,
    compare,
    described,
    make_config,
    settle,
)

_ROUNDS_PER_DATABASE = 12
_TYPES = ("int", "bigint", "text", "numeric", "timestamptz", "jsonb", "int[]", "varchar(40)")
_DEFAULTS = {
    "int": ("7", "length(md5(random()::text))"),
    "bigint": ("-1", "3"),
    "text": ("'it''s'", "md5(random()::text)"),
    "numeric": ("1.5", "random()"),
    "timestamptz": ("now()", "clock_timestamp()"),
    "jsonb": ("'{\"a\": 1}'", "'null'"),
    "int[]": ("'{1,NULL}'", "'{}'"),
    "varchar(40)": ("'v'", "'w'"),
}
_GENERATION = 'SELECT replicaVersion FROM "_zero.replicationConfig"'


class Writer:
    """Random statements against a schema it reads back from the database."""

    def __init__(self, url: str, seed: str) -> None:
        self._rng = random.Random(seed)
        self._db = psycopg.connect(url)
        self._number = 0
        self.history: list[str] = []

    def close(self) -> None:
        self._db.close()

    def transaction(self) -> None:
        """One to six statements, some rolled back; those that fail are undone alone."""
        for _ in range(self._rng.randint(1, 6)):
            self._run(self._ddl() if self._rng.random() < 0.45 else self._dml())
        if self._rng.random() < 0.1:
            self.history.append("ROLLBACK")
            self._db.rollback()
        else:
            self.history.append("COMMIT")
            self._db.commit()

    def _run(self, statement: str) -> None:
        try:
            with self._db.transaction():
                self._db.execute(statement.encode())
        except psycopg.Error as error:
            if error.sqlstate is None:
                raise  # the connection is gone
            self.history.append(f"-- failed: {statement}")
        else:
            self.history.append(statement)

    def _name(self, prefix: str) -> str:
        self._number += 1
        return f"{prefix}{self._number}"

    def _tables(self) -> list[str]:
        rows = self._db.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind = 'r' ORDER BY 1"
        )
        return [name for (name,) in rows]

    def _columns(self, table: str) -> list[tuple[str, str]]:
        rows = self._db.execute(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
            [f'public."{table}"'],
        )
        return [(name, kind) for name, kind in rows]

    def _create(self) -> str:
        name = self._name("t")
        if self._rng.random() < 0.15 and self._tables():
            source = self._rng.choice(self._tables())
            return f'CREATE TABLE {name} AS SELECT * FROM "{source}"'
        return f"CREATE TABLE {name} (id int PRIMARY KEY, a text, b {self._rng.choice(_TYPES)})"

    def _ddl(self) -> str:
        tables = self._tables()
        rng = self._rng
        if len(tables) < 2 or (len(tables) < 6 and rng.random() < 0.15):
            return self._create()
        table = rng.choice(tables)
        columns = self._columns(table)
        if len(columns) < 2:  # a table without columns says nothing
            return f'ALTER TABLE "{table}" ADD {self._name("c")} {rng.choice(_TYPES)}'
        column, kind = rng.choice(columns)
        new, new_kind = self._name("c"), rng.choice(_TYPES)
        alter = f'ALTER TABLE "{table}"'
        default = rng.choice(("", f" DEFAULT {rng.choice(_DEFAULTS[new_kind])}"))
        choices = [
            f"{alter} ADD {new} {new_kind}{default}",
            f'{alter} ADD {new} {new_kind}{default}, DROP "{column}"',
            f"{alter} ADD {new} serial",
            f'{alter} DROP "{column}"',
            f'{alter} RENAME "{column}" TO {new}',
            f'{alter} ALTER "{column}" TYPE {new_kind} USING "{column}"::text::{new_kind}',
            f'{alter} ALTER "{column}" TYPE text',
            f'{alter} ALTER "{column}" TYPE bigint',
            f'{alter} ALTER "{column}" TYPE {kind} USING "{column}"',
            f'{alter} ALTER "{column}" SET NOT NULL',
            f'{alter} ALTER "{column}" DROP NOT NULL',
            f'{alter} ALTER "{column}" SET DEFAULT NULL',
            f"{alter} RENAME TO {self._name('t')}",
            f'CREATE INDEX ON "{table}" ("{column}")',
            f'CREATE UNIQUE INDEX ON "{table}" ("{column}")',
            # FULL may end without any key, and then a backfill has to wait for one.
            f"{alter} REPLICA IDENTITY DEFAULT",
        ]
        if rng.random() < 0.06:
            choices = [f'DROP TABLE "{table}"', f'TRUNCATE "{table}"']
        return rng.choice(choices)

    def _dml(self) -> str:
        tables = self._tables()
        if not tables:
            return self._create()
        table, rng = self._rng.choice(tables), self._rng
        columns = [name for name, _ in self._columns(table)]
        at = rng.randint(0, 300)
        if "id" not in columns:
            return f'INSERT INTO "{table}" DEFAULT VALUES'
        if rng.random() < 0.5:
            count = rng.choice((1, 3, 100))
            body = f", a) SELECT i, repeat('{at}', {rng.choice((1, 3000))})"
            body = body if "a" in columns else ") SELECT i"
            return (
                f'INSERT INTO "{table}" (id{body} FROM generate_series({at}, {at + count}) i '
                "ON CONFLICT DO NOTHING"
            )
        column = rng.choice(columns)
        where = f"id::text::int BETWEEN {at} AND {at + 20}"
        return rng.choice(
            (
                f'UPDATE "{table}" SET "{column}" = NULL WHERE {where}',
                f'UPDATE "{table}" SET "{column}" = "{column}" WHERE {where}',
                f'UPDATE "{table}" SET id = -id WHERE {where}',
                f'DELETE FROM "{table}" WHERE {where}',
            )
        )


def _round(writer: Writer, replicator: Replicator, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 12)):
        writer.transaction()
    if rng.random() < 0.3:
        replicator.kill()
        for _ in range(rng.randint(0, 4)):
            writer.transaction()
        replicator.start()
    settle(replicator)
    compare(replicator)


def _against_fresh(cluster: PostgresCluster, url: str, replicator: Replicator) -> None:
    directory = Path(tempfile.mkdtemp(prefix="zc-ddl-fresh-"))
    app_id = f"fresh_{uuid.uuid4().hex[:8]}"
    fresh = Replicator(make_config(url, app_id, directory), directory)
    try:
        fresh.start()
        settle(fresh)
        settle(replicator)
        ours, theirs = described(replicator), described(fresh)
        assert ours == theirs, f"{ours}\n!= freshly synced\n{theirs}"
    finally:
        if fresh.process is not None:
            fresh.kill()
        shutil.rmtree(directory, ignore_errors=True)


def scenario(cluster: PostgresCluster, seed: str, deadline: float) -> tuple[int, str | None]:
    """Rounds on one database; the number of transactions, and what went wrong."""
    rng = random.Random(seed)
    database = cluster.create_database()
    url = cluster.url_of(database)
    directory = Path(tempfile.mkdtemp(prefix="zc-ddl-"))
    replicator = Replicator(make_config(url, f"f_{uuid.uuid4().hex[:8]}", directory), directory)
    writer = Writer(url, seed)
    error = None
    try:
        writer.transaction()
        replicator.start()
        generation = replicator.rows(_GENERATION)
        for _ in range(_ROUNDS_PER_DATABASE):
            _round(writer, replicator, rng)
            assert replicator.rows(_GENERATION) == generation, "it was synced anew"
            if time.monotonic() > deadline:
                break
        _against_fresh(cluster, url, replicator)
    except Exception:
        history = "\n".join(writer.history[-60:])
        error = f"{traceback.format_exc()}\n{history}\n{replicator.log()[-6000:]}"
    finally:
        writer.close()
        if replicator.process is not None:
            replicator.kill()
        shutil.rmtree(directory, ignore_errors=True)
        cluster.drop_database(database)
    return writer.history.count("COMMIT"), error


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz.ddl")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", default=None, help="printed by every run; default: random")
    options = parser.parse_args()
    seed = options.seed or f"{random.SystemRandom().getrandbits(32):08x}"
    deadline = time.monotonic() + options.minutes * 60
    cluster = make_cluster()
    total = number = 0
    try:
        while time.monotonic() < deadline:
            count, error = scenario(cluster, f"{seed}:{number}", deadline)
            total, number = total + count, number + 1
            if error is not None:
                print(f"FAILURE, seed {seed}:{number - 1}\n{error}", flush=True)
                return 1
    finally:
        destroy_cluster(cluster)
    print(f"seed {seed}: no failure; {number} databases, {total} transactions")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
