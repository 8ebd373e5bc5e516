"""The same endpoints without asyncio, for Django, Flask and threads.

Owns no algorithm: it drives the asynchronous code with adapters whose coroutines never suspend,
so that there is one implementation of each rule. It needs no event loop. Invariant: what users
write and get here are plain functions and values.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from zerocache.errors import SdkError
from zerocache.server.database import (
    DatabaseConnection,
    TableMutator,
    TableMutators,
    Transaction,
    ZQLDatabase,
)
from zerocache.server.endpoint import UNSET, Body, BodyError, Json, LogLevel, UserID, logger
from zerocache.server.mutate import (
    Mutation,
    Transact,
    dispatch,
    handle_mutate_request,
)
from zerocache.server.mutators import MutatorRegistry
from zerocache.server.query import (
    QueryRequest,
    argument,
    parse_requests,
    respond,
    unusable_body,
)
from zerocache.zql.builder import QueryBuilder
from zerocache.zql.schema import Schema

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends to its end."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    coroutine.close()
    raise SdkError(
        "a synchronous request waited for something asynchronous; use plain functions and "
        "PsycopgSyncConnection here, or the async functions of zerocache.server"
    )


class SyncTableMutator:
    """``tx.mutate.<table>`` with plain methods."""

    def __init__(self, mutator: TableMutator) -> None:
        self._mutator = mutator

    def insert(self, row: Mapping[str, Any]) -> None:
        drive(self._mutator.insert(row))

    def upsert(self, row: Mapping[str, Any]) -> None:
        drive(self._mutator.upsert(row))

    def update(self, row: Mapping[str, Any]) -> None:
        drive(self._mutator.update(row))

    def delete(self, row: Mapping[str, Any]) -> None:
        drive(self._mutator.delete(row))


class SyncTableMutators:
    """``tx.mutate``."""

    def __init__(self, mutators: TableMutators) -> None:
        self._mutators = mutators

    def __getattr__(self, table: str) -> SyncTableMutator:
        if table.startswith("__"):
            # Python probes for optional protocols with hasattr.
            raise AttributeError(table)
        return self[table]

    def __getitem__(self, table: str) -> SyncTableMutator:
        return SyncTableMutator(self._mutators[table])


class SyncDatabaseTransaction:
    """``tx.db_transaction``: raw SQL and the driver's own connection."""

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction.db_transaction

    @property
    def wrapped_transaction(self) -> Any:
        return self._transaction.wrapped_transaction

    def query(self, text: str, params: Any = ()) -> list[Json]:
        return drive(_query(self._transaction, text, params))


async def _query(transaction: Any, text: str, params: Any) -> list[Json]:
    rows: list[Json] = await transaction.query(text, params)
    return rows


class SyncTransaction:
    """What a plain mutator gets as ``tx``; see :class:`~zerocache.server.database.Transaction`."""

    location: Final = "server"
    reason: Final = "authoritative"

    def __init__(self, transaction: Transaction) -> None:
        self._transaction = transaction
        self.client_id = transaction.client_id
        self.mutation_id = transaction.mutation_id
        self.mutate = SyncTableMutators(transaction.mutate)
        self.db_transaction = SyncDatabaseTransaction(transaction)

    def run(self, query: QueryBuilder) -> Any:
        return drive(self._transaction.run(query))


class SyncZQLDatabase:
    """A :class:`~zerocache.server.database.ZQLDatabase` for plain functions.

    ``connection`` must be an adapter that never suspends, such as ``PsycopgSyncConnection``.
    """

    def __init__(self, connection: DatabaseConnection, schema: Schema) -> None:
        self.wrapped = ZQLDatabase(connection, schema)

    def transaction(self, fn: Callable[[SyncTransaction], T]) -> T:
        async def call(transaction: Transaction) -> T:
            return fn(SyncTransaction(transaction))

        return drive(self.wrapped.transaction(call))

    def run(self, query: QueryBuilder) -> Any:
        return self.transaction(lambda tx: tx.run(query))


SyncMutatorCallback: TypeAlias = Callable[[SyncTransaction, str, Any], None]
SyncTransact: TypeAlias = Callable[[SyncMutatorCallback], Json]
SyncHandler: TypeAlias = Callable[[SyncTransact, Mutation], Json | None]
SyncQueryHandler: TypeAlias = Callable[[str, Any], QueryBuilder]


def handle_mutate_request_sync(
    db: SyncZQLDatabase,
    handler: SyncHandler,
    query: Mapping[str, str],
    body: Body,
    user_id: UserID = UNSET,
    log_level: LogLevel = "info",
    *,
    legacy_response: bool = False,
) -> Json:
    """:func:`~zerocache.server.handle_mutate_request` with a plain ``handler``."""

    async def asynchronous(transact: Transact, mutation: Mutation) -> Json | None:
        def plain_transact(callback: SyncMutatorCallback) -> Json:
            async def run() -> Json:
                return await transact(
                    lambda tx, name, args: callback(SyncTransaction(tx), name, args)
                )

            return drive(run())

        return handler(plain_transact, mutation)

    return drive(
        handle_mutate_request(
            db.wrapped,
            asynchronous,
            query,
            body,
            user_id,
            log_level,
            legacy_response=legacy_response,
        )
    )


def process_push_sync(
    db: SyncZQLDatabase,
    mutators: MutatorRegistry,
    query: Mapping[str, str],
    body: Body,
    *,
    context: Any = None,
    user_id: UserID = UNSET,
    log_level: LogLevel = "info",
    legacy_response: bool = False,
) -> Json:
    """:class:`~zerocache.server.PushProcessor` in one call, with plain mutators."""
    return handle_mutate_request_sync(
        db,
        lambda transact, mutation: transact(
            lambda tx, name, args: dispatch(mutators, name, tx, args, context)
        ),
        query,
        body,
        user_id,
        log_level,
        legacy_response=legacy_response,
    )


def handle_query_request_sync(
    handler: SyncQueryHandler,
    schema: Schema,
    body: Body,
    user_id: UserID = UNSET,
    log_level: LogLevel = "info",
    *,
    legacy_response: bool = False,
) -> Any:
    """:func:`~zerocache.server.handle_query_request` with a plain ``handler``, one by one."""
    log = logger(__name__, log_level)
    try:
        requests = parse_requests(body)
    except BodyError as error:
        log.error("query_request_not_understood", error=str(error))
        return unusable_body(error, legacy_response=legacy_response)
    outcomes = [_ask(handler, request) for request in requests]
    return respond(requests, outcomes, schema, user_id, log, legacy_response=legacy_response)


def _ask(handler: SyncQueryHandler, request: QueryRequest) -> QueryBuilder | Exception:
    try:
        return handler(request.name, argument(request))
    except Exception as error:
        return error
