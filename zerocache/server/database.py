"""Transactions of mutators: ZQL and CRUD helpers over any Postgres driver.

Owns :class:`ZQLDatabase` and :class:`Transaction`. Drivers come in as adapters (two small
protocols); nothing here knows one. Invariant: everything a mutator does, and the bookkeeping of
its mutation id, happens in one database transaction.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from psycopg import sql

from zerocache.server.crud import Verb, statement
from zerocache.server.schema_check import (
    COLLATION_QUERY,
    ServerSchema,
    best_lower_collation,
    check_schema,
)
from zerocache.zql.builder import QueryBuilder
from zerocache.zql.postgres import compile_run
from zerocache.zql.postgres_types import CATALOG_QUERY, tables_from_catalog
from zerocache.zql.schema import Schema, Table

T = TypeVar("T")
Json = dict[str, Any]


class DatabaseTransaction(Protocol):
    """An open transaction of some driver."""

    @property
    def wrapped_transaction(self) -> Any:
        """The driver's own object."""
        ...

    async def query(self, text: str, params: Sequence[Any] = ()) -> list[Json]:
        """Run SQL with ``$1`` placeholders; its rows as dicts, ``[]`` if it gives none."""
        ...


class DatabaseConnection(Protocol):
    """Where transactions come from: what an adapter implements."""

    def transaction(self) -> AbstractAsyncContextManager[DatabaseTransaction]:
        """Open a transaction; commit when the block ends, roll back when it raises."""
        ...


@dataclass(frozen=True, slots=True)
class MutationInput:
    """The mutation a transaction belongs to; ``upstream_schema`` holds zerocache's tables."""

    upstream_schema: str
    client_group_id: str
    client_id: str
    mutation_id: int


class TableMutator:
    """``tx.mutate.<table>``. Rows are dicts with client names."""

    def __init__(self, transaction: DatabaseTransaction, table: Table, server: ServerSchema):
        self._transaction = transaction
        self._table = table
        self._server = server

    async def insert(self, row: Mapping[str, Any]) -> None:
        """Add a row; does nothing if its primary key exists."""
        await self._execute("insert", row)

    async def upsert(self, row: Mapping[str, Any]) -> None:
        """Add a row, or set the given columns of the one with its primary key."""
        await self._execute("upsert", row)

    async def update(self, row: Mapping[str, Any]) -> None:
        """Set the given columns of the row with this primary key, if there is one."""
        await self._execute("update", row)

    async def delete(self, row: Mapping[str, Any]) -> None:
        """Delete the row with this primary key, if there is one."""
        await self._execute("delete", row)

    async def _execute(self, verb: Verb, row: Mapping[str, Any]) -> None:
        built = statement(verb, self._table, self._server.tables[self._table.server_name], row)
        if built is not None:
            await self._transaction.query(built.text, built.params)


class TableMutators:
    """``tx.mutate``: one attribute (or ``[name]``) per table of the schema."""

    def __init__(self, transaction: DatabaseTransaction, schema: Schema, server: ServerSchema):
        self._transaction = transaction
        self._schema = schema
        self._server = server

    def __getattr__(self, table: str) -> TableMutator:
        if table.startswith("__"):
            # Python probes for optional protocols with hasattr.
            raise AttributeError(table)
        return self[table]

    def __getitem__(self, table: str) -> TableMutator:
        return TableMutator(self._transaction, self._schema.table(table), self._server)


class Transaction:
    """What a mutator gets as ``tx``.

    ``client_id`` and ``mutation_id`` are those of the mutation, empty and 0 outside of one.
    """

    location: Final = "server"
    reason: Final = "authoritative"

    def __init__(
        self,
        db_transaction: DatabaseTransaction,
        schema: Schema,
        server: ServerSchema,
        *,
        client_id: str = "",
        mutation_id: int = 0,
    ) -> None:
        self.db_transaction = db_transaction
        self.client_id = client_id
        self.mutation_id = mutation_id
        self.mutate = TableMutators(db_transaction, schema, server)
        self._schema = schema
        self._server = server

    async def run(self, query: QueryBuilder) -> Any:
        """The result of ``query`` now: a list of dicts; for ``one()`` a dict or None."""
        compiled = compile_run(
            query,
            self._schema,
            self._server.tables,
            lower_collation=self._server.lower_collation,
        )
        asked = compiled.statement
        [row] = await self.db_transaction.query(asked.text, asked.params)
        return compiled.decode(row["result"])


class MutationHooks:
    """The bookkeeping of zerocache inside one transaction (api-and-auth.md §7.3)."""

    def __init__(self, transaction: DatabaseTransaction, mutation: MutationInput) -> None:
        self._transaction = transaction
        self._mutation = mutation

    async def next_mutation_id(self) -> int:
        """Count this client's mutations up by one; the row lock makes concurrent pushes wait."""
        text = self._sql(
            'INSERT INTO {}.clients AS current ("clientGroupID", "clientID", "lastMutationID") '
            "VALUES ($1::text, $2::text, 1) "
            'ON CONFLICT ("clientGroupID", "clientID") '
            'DO UPDATE SET "lastMutationID" = current."lastMutationID" + 1 '
            'RETURNING "lastMutationID"'
        )
        ids = [self._mutation.client_group_id, self._mutation.client_id]
        [row] = await self._transaction.query(text, ids)
        return int(row["lastMutationID"])

    async def write_result(self, result: Json) -> None:
        text = self._sql(
            'INSERT INTO {}.mutations ("clientGroupID", "clientID", "mutationID", "result") '
            "VALUES ($1::text, $2::text, $3::text::int8, $4::text::json)"
        )
        mutation = self._mutation
        ids = [mutation.client_group_id, mutation.client_id, str(mutation.mutation_id)]
        await self._transaction.query(text, [*ids, json.dumps(result)])

    async def delete_results_up_to(self, client_id: str, mutation_id: int) -> None:
        text = self._sql(
            'DELETE FROM {}.mutations WHERE "clientGroupID" = $1::text '
            'AND "clientID" = $2::text AND "mutationID" <= $3::text::int8'
        )
        ids = [self._mutation.client_group_id, client_id, str(mutation_id)]
        await self._transaction.query(text, ids)

    async def delete_results_of(self, client_ids: Sequence[str]) -> None:
        text = self._sql(
            'DELETE FROM {}.mutations WHERE "clientGroupID" = $1::text '
            'AND "clientID" = ANY ($2::text[])'
        )
        await self._transaction.query(text, [self._mutation.client_group_id, list(client_ids)])

    def _sql(self, template: str) -> str:
        return sql.SQL(template).format(sql.Identifier(self._mutation.upstream_schema)).as_string()


class ZQLDatabase:
    """A Postgres database seen through a schema.

    The schema is compared with the database once, in the first transaction that succeeds at it.
    """

    def __init__(self, connection: DatabaseConnection, schema: Schema) -> None:
        self.connection = connection
        self.schema = schema
        self._server: ServerSchema | None = None

    async def transaction(self, fn: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run ``fn`` in a transaction of its own, outside of any mutation."""
        async with self.connection.transaction() as db_transaction:
            server = await self._server_schema(db_transaction)
            return await fn(Transaction(db_transaction, self.schema, server))

    async def run(self, query: QueryBuilder) -> Any:
        """The result of ``query`` in a transaction of its own."""
        return await self.transaction(lambda tx: tx.run(query))

    @asynccontextmanager
    async def mutation(
        self, mutation: MutationInput
    ) -> AsyncIterator[tuple[Transaction, MutationHooks]]:
        """A transaction for ``mutation``, with the bookkeeping it needs."""
        async with self.connection.transaction() as db_transaction:
            transaction = Transaction(
                db_transaction,
                self.schema,
                await self._server_schema(db_transaction),
                client_id=mutation.client_id,
                mutation_id=mutation.mutation_id,
            )
            yield transaction, MutationHooks(db_transaction, mutation)

    async def _server_schema(self, transaction: DatabaseTransaction) -> ServerSchema:
        if self._server is None:
            tables = tables_from_catalog(await transaction.query(CATALOG_QUERY))
            check_schema(self.schema, tables)
            collations = await transaction.query(COLLATION_QUERY)
            self._server = ServerSchema(tables, best_lower_collation(collations))
        return self._server
