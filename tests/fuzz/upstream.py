"""The second oracle: PostgreSQL answers the scenario's queries over the same rows.

Owns a database with the tables of one world. Queries are asked as the engine understands them:
orders completed with the client's key, each synced EXISTS a ``related`` of its first witnesses.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import psycopg
from psycopg import sql
from psycopg.types.json import Jsonb

from tests.fuzz.check import Count, Failure
from tests.fuzz.generate import row_key
from tests.fuzz.scenario import Declared, Scenario, client_tables
from tests.view_syncer.ivm.group import Group, identity
from tests.view_syncer.ivm.replica import Replica, Table
from tests.zql.oracle import read_tables, synced
from view_syncer.ivm.engine import Engine
from zerocache.replica.schema import ReplicaSchema
from zerocache.zql import ast
from zerocache.zql.postgres_types import PostgresTable
from zerocache.zql.shape import WITNESS_LIMIT, Const, lift

_TIMEOUT_MS = 5_000


class Upstream:
    """PostgreSQL with the tables of one world at a time."""

    def __init__(self, url: str) -> None:
        self._db = psycopg.connect(url, autocommit=True)
        self._db.execute(f"SET statement_timeout = {_TIMEOUT_MS}".encode())
        self._world: dict[str, Table] = {}
        self._tables: dict[str, PostgresTable] = {}

    def close(self) -> None:
        self._db.close()

    def check(self, scenario: Scenario, replica: Replica, count: Count) -> None:
        """The fresh answers at the replica's present state equal PostgreSQL's."""
        self._copy(scenario, replica)
        engine = Engine(replica.path)
        try:
            for i, asked in enumerate(scenario.queries):
                group = Group(engine, client_tables(scenario, asked.client))
                group.add("q", asked.query)
                declared = scenario.clients[asked.client]
                try:
                    rows = synced(
                        self._db,
                        _Explicit(scenario, engine.schema).query(asked.query),
                        self._keyed(declared),
                    )
                except psycopg.errors.QueryCanceled:
                    count.timeouts += 1
                    continue
                count.upstream += 1
                expected = {}
                for table, by_key in rows.items():
                    facts = declared.get(table)
                    for row in by_key.values() if facts is not None else ():
                        assert facts is not None
                        key = identity(table, {c: row[c] for c in facts.key})
                        expected[key] = {c: row[c] for c in facts.columns}
                if group.store != expected:
                    extra = sorted(group.store.keys() - expected.keys())
                    missing = sorted(expected.keys() - group.store.keys())
                    wrong = [k for k in expected.keys() & group.store.keys()
                             if expected[k] != group.store[k]]  # fmt: skip
                    raise Failure(
                        f"query {i} against PostgreSQL: extra {extra}, missing {missing}, "
                        f"different {wrong}"
                    )
        finally:
            engine.close()

    def _keyed(self, client: dict[str, Declared]) -> dict[str, PostgresTable]:
        """The tables with the client's keys, which complete its orders and cursors."""
        keys = {name: declared.key for name, declared in client.items()}
        return {
            n: PostgresTable(t.name, t.columns, keys.get(n, t.primary_key))
            for n, t in self._tables.items()
        }

    def _copy(self, scenario: Scenario, replica: Replica) -> None:
        if scenario.tables != self._world:
            self._create(scenario.tables)
        for name, rows in replica.rows.items():
            table = sql.Identifier(name)
            self._db.execute(sql.SQL("TRUNCATE {}").format(table))
            columns = scenario.tables[name].columns
            if rows:
                self._db.cursor().executemany(
                    sql.SQL("INSERT INTO {} VALUES ({})").format(
                        table, sql.SQL(", ").join([sql.Placeholder()] * len(columns))
                    ),
                    [
                        [
                            Jsonb(r[c]) if kind == "jsonb" and r[c] is not None else r[c]
                            for c, kind in columns.items()
                        ]
                        for r in rows.values()
                    ],
                )

    def _create(self, tables: dict[str, Table]) -> None:
        for name in self._world:
            self._db.execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(name)))
        self._world = {}
        for name, table in tables.items():
            parts = [
                sql.SQL("{} {}{}").format(
                    sql.Identifier(c),
                    sql.SQL(kind),
                    sql.SQL(" NOT NULL" if c in table.required else ""),
                )
                for c, kind in table.columns.items()
            ]
            parts.append(sql.SQL("PRIMARY KEY ({})").format(_names(table.key)))
            parts += [sql.SQL("UNIQUE ({})").format(_names(u)) for u in table.unique]
            self._db.execute(
                sql.SQL("CREATE TABLE {} ({})").format(
                    sql.Identifier(name), sql.SQL(", ").join(parts)
                )
            )
            self._world[name] = table
        self._tables = read_tables(self._db)


def _names(columns: tuple[str, ...]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, columns))


class _Explicit:
    """Rewrites queries so that witnesses are ``related``, chosen as the engine chooses them."""

    def __init__(self, scenario: Scenario, schema: ReplicaSchema) -> None:
        self._tables = scenario.tables
        self._schema = schema

    def query(self, query: ast.Query, *, witness: bool = False) -> ast.Query:
        last = {r.subquery.alias: r for r in query.related or ()} if not witness else {}
        related = [
            msgspec.structs.replace(r, subquery=self.query(r.subquery))
            for r in last.values()
            if r.system != "permissions"
        ]
        for number, condition in enumerate(self._exists(query.table, query.where)):
            hop = condition.related
            if condition.op == "EXISTS" and hop.system != "permissions":
                node = msgspec.structs.replace(
                    hop.subquery, alias=f"w{number}", limit=WITNESS_LIMIT
                )
                node = self.query(node, witness=True)
                related.append(ast.CorrelatedSubquery(hop.correlation, node))
        order = query.order_by
        if witness and query.start is None:
            order = [(c, "asc") for c in row_key(self._tables[query.table])]
        return msgspec.structs.replace(query, related=related or None, order_by=order)

    def _exists(self, table: str, condition: ast.Condition | None) -> Iterator[ast.Exists]:
        """Every EXISTS that decides anything: what is constant needs no witness."""
        if condition is None or self._is_constant(table, condition):
            return
        if isinstance(condition, ast.Exists):
            yield condition
        elif isinstance(condition, (ast.And, ast.Or)):
            for member in condition.conditions:
                yield from self._exists(table, member)

    def _is_constant(self, table: str, condition: ast.Condition) -> bool:
        shape = lift(ast.Query(table=table, where=condition), self._schema, {}).shape
        return isinstance(shape.where, Const)
