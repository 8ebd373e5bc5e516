"""The truth of the model checker: a PostgreSQL that is asked about the past.

Owns the writing connection and a ring of connections, each of which holds a snapshot: the database
as it was after one *beat*, the number that every transaction writes into the table ``beat``. A
client that shows a beat is compared with that snapshot. Invariant: a snapshot is only given up
while nobody asks it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

from benchmarks.sync_messages import ClientSchema
from tests.fuzz import model_rules as rules
from tests.fuzz import model_world as world
from tests.zql.oracle import read_tables, synced
from zerocache.zql import ast
from zerocache.zql.postgres_types import PostgresTable

Rows = dict[tuple[str, tuple[Any, ...]], dict[str, Any]]
_SNAPSHOTS = 40
_LOCKING = ("TRUNCATE", "ALTER", "DROP", "CREATE")


@dataclass
class Snapshot:
    """The database after one beat; ``lock`` is held by whoever asks it or gives it up."""

    connection: psycopg.Connection[Any]
    beat: int = -1
    lock: threading.Lock = field(default_factory=threading.Lock)
    # Answers so far, by query and schema, and the permissions they are under.
    answers: dict[tuple[str, int], Rows] = field(default_factory=dict)
    permissions: rules.Rules | None = None

    def take(self, beat: int) -> None:
        self.connection.rollback()
        self.connection.execute("SELECT 1")
        self.beat = beat
        self.answers.clear()
        self.permissions = None

    def give_up(self) -> None:
        self.connection.rollback()
        self.beat = -1


@dataclass(frozen=True)
class Schemas:
    """The client schemas, and the tables as each of them orders rows."""

    declared: tuple[ClientSchema, ...]
    tables: tuple[dict[str, PostgresTable], ...]


class Upstream:
    """One writer; any thread may ask."""

    def __init__(self, url: str, app_id: str) -> None:
        self.beat = 0
        self._app = app_id
        self._written = threading.Condition()
        self._db = psycopg.connect(url, autocommit=True)
        self._db.execute(world.SCHEMA)
        self._db.execute(world.SEED.encode())
        self._db.execute("ANALYZE")
        self._ring = [Snapshot(self._reader(url)) for _ in range(_SNAPSHOTS)]
        tables = read_tables(self._db)
        declared = (world.client_schema(0), world.client_schema(1))
        self.schemas = Schemas(declared, tuple(_keyed(tables, schema) for schema in declared))

    @staticmethod
    def _reader(url: str) -> psycopg.Connection[Any]:
        # Columns may change their types, which prepared statements do not survive.
        connection = psycopg.connect(url, prepare_threshold=None)
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        return connection

    def close(self) -> None:
        for snapshot in self._ring:
            snapshot.connection.close()
        self._db.close()

    def deploy_permissions(self) -> None:
        """Anyone may see every row."""
        self._execute(rules.deploying(rules.EVERYTHING))

    def write(self, statements: list[str], mutation: tuple[str, str] | None = None) -> int:
        """One transaction; ``mutation`` is (group, client) whose next mutation it is. Its beat."""
        if any(s.startswith(_LOCKING) for s in statements):
            self._give_up_all()
        beat = self.beat + 1
        with self._db.transaction():
            for statement in statements:
                self._execute(statement)
            if mutation is not None:
                self._mutate(*mutation, with_result=beat % 2 == 0)
            self._db.execute("UPDATE beat SET n = %s", [beat])
        free = [s for s in self._ring if s.lock.acquire(blocking=False)]
        oldest = min(free, key=lambda s: s.beat)
        oldest.take(beat)
        for snapshot in free:
            snapshot.lock.release()
        with self._written:
            self.beat = beat
            self._written.notify_all()
        return beat

    def _execute(self, statement: str) -> None:
        permissions = rules.deployed_by(statement)
        if permissions is None:
            self._db.execute(statement.encode())
            return
        deploy = sql.SQL("UPDATE {}.permissions SET permissions = %s")
        self._db.execute(deploy.format(sql.Identifier(self._app)), [permissions])

    def _mutate(self, group: str, client: str, *, with_result: bool) -> None:
        shard = f"{self._app}_0"
        bump = sql.SQL(
            "INSERT INTO {} VALUES (%s, %s, 1, NULL) ON CONFLICT "
            '("clientGroupID", "clientID") DO UPDATE SET "lastMutationID" = '
            'clients."lastMutationID" + 1 RETURNING "lastMutationID"'
        ).format(sql.Identifier(shard, "clients"))
        row = self._db.execute(bump, [group, client]).fetchone()
        assert row is not None
        results = sql.Identifier(shard, "mutations")
        if with_result:
            self._db.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s)").format(results),
                [group, client, row[0], json.dumps({"data": row[0]})],
            )
        elif row[0] % 3 == 0:
            # As after an acknowledgement.
            self._db.execute(
                sql.SQL('DELETE FROM {} WHERE "clientGroupID" = %s AND "clientID" = %s').format(
                    results
                ),
                [group, client],
            )

    def _give_up_all(self) -> None:
        """Such statements wait for all readers, and TRUNCATE changes older snapshots too."""
        for snapshot in self._ring:
            with snapshot.lock:
                snapshot.give_up()

    # -- questions -------------------------------------------------------------------------------

    @contextmanager
    def at(self, beat: int) -> Iterator[Snapshot | None]:
        """The database after ``beat``, if it is still known. A poke may overtake the return of
        the transaction that it tells of."""
        with self._written:
            self._written.wait_for(lambda: self.beat >= beat, timeout=30)
        for snapshot in self._ring:
            if snapshot.beat == beat:
                with snapshot.lock:
                    yield snapshot if snapshot.beat == beat else None
                return
        yield None

    def answer(self, snapshot: Snapshot, name: str, query: ast.Query, variant: int) -> Rows:
        """The rows a client with schema ``variant`` holds for ``query``, under the permissions
        that the snapshot has."""
        known = snapshot.answers.get((name, variant))
        if known is not None:
            return known
        declared = self.schemas.declared[variant].tables
        tables = self.schemas.tables[variant]
        found: Rows = {}
        full = world.with_witnesses(rules.restricted(query, self._permissions(snapshot)))
        for table, rows in synced(snapshot.connection, full, tables).items():
            if table not in declared:
                continue
            for row in rows.values():
                key = tuple(row[c] for c in declared[table].primary_key)
                found[table, key] = {c: row[c] for c in declared[table].columns}
        snapshot.answers[name, variant] = found
        return found

    def _permissions(self, snapshot: Snapshot) -> rules.Rules:
        if snapshot.permissions is None:
            asked = sql.SQL("SELECT permissions FROM {}.permissions")
            row = snapshot.connection.execute(asked.format(sql.Identifier(self._app))).fetchone()
            assert row is not None
            snapshot.permissions = rules.read(row[0])
        return snapshot.permissions

    def mutations(self, snapshot: Snapshot, group: str) -> tuple[dict[str, int], set[Any]]:
        """Last mutation ids by client, and (client, id) of the stored results."""
        shard = f"{self._app}_0"
        ids = sql.SQL('SELECT "clientID", "lastMutationID" FROM {} WHERE "clientGroupID" = %s')
        results = sql.SQL('SELECT "clientID", "mutationID" FROM {} WHERE "clientGroupID" = %s')
        db = snapshot.connection
        return (
            dict(db.execute(ids.format(sql.Identifier(shard, "clients")), [group]).fetchall()),
            set(db.execute(results.format(sql.Identifier(shard, "mutations")), [group]).fetchall()),
        )


def _keyed(tables: dict[str, PostgresTable], schema: ClientSchema) -> dict[str, PostgresTable]:
    """The tables with the client's keys, which complete its orders and cursors."""
    declared = schema.tables
    return {
        name: PostgresTable(
            table.name,
            table.columns,
            tuple(declared[name].primary_key) if name in declared else table.primary_key,
        )
        for name, table in tables.items()
    }
