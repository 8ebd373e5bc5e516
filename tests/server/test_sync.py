"""The endpoints without asyncio share the algorithm; here: that plain functions work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.conftest import PARAMS, Upstream, push, schema, zql
from zerocache.errors import SdkError
from zerocache.server import (
    ApplicationError,
    PsycopgConnection,
    PsycopgSyncConnection,
    SyncTransaction,
    SyncZQLDatabase,
    define_mutator,
    define_mutators,
    handle_mutate_request_sync,
    process_push_sync,
)
from zerocache.server.sync import drive


@pytest.fixture
def sync_db(database: str, upstream: Upstream) -> SyncZQLDatabase:
    return SyncZQLDatabase(PsycopgSyncConnection(database), schema)


def create(tx: SyncTransaction, args: Any, ctx: Any) -> None:
    tx.mutate.issue.insert({"id": args, "title": ctx})
    tx.mutate["issue"].upsert({"id": args, "title": "x", "rank": tx.mutation_id})
    tx.mutate.issue.update({"id": args, "title": ctx})
    tx.mutate.issue.insert({"id": "gone", "title": "t"})
    tx.mutate.issue.delete({"id": "gone"})


def fail(tx: SyncTransaction, args: Any, ctx: Any) -> None:
    tx.mutate.issue.insert({"id": "lost", "title": "t"})
    raise ApplicationError("no")


MUTATORS = define_mutators({"create": define_mutator(create), "fail": define_mutator(fail)})


def test_push_with_plain_mutators(sync_db: SyncZQLDatabase, upstream: Upstream) -> None:
    body = push((1, "create", "a"), (2, "fail", None), (3, "create", "b"))
    answer = process_push_sync(sync_db, MUTATORS, PARAMS, body, context="me", user_id="u1")
    assert answer["userID"] == "u1"
    results = [mutation["result"] for mutation in answer["mutations"]]
    assert results == [{}, {"error": "app", "message": "no"}, {}]
    assert upstream.all("SELECT id, title, rank FROM issue ORDER BY id") == [
        ("a", "me", 1),
        ("b", "me", 3),
    ]
    assert upstream.last_mutation_id == 3
    assert set(upstream.results) == {2}


def test_plain_handler_calls_transact_once(sync_db: SyncZQLDatabase, upstream: Upstream) -> None:
    seen: list[Any] = []

    def handler(transact: Any, mutation: Any) -> Any:
        return transact(lambda tx, name, args: seen.extend([tx.client_id, name, args]))

    answer = handle_mutate_request_sync(sync_db, handler, PARAMS, push((1, "a.b", 5)))
    assert answer["mutations"] == [{"id": {"clientID": "c1", "id": 1}, "result": {}}]
    assert seen == ["c1", "a.b", 5]


def test_queries_and_raw_sql(sync_db: SyncZQLDatabase, upstream: Upstream) -> None:
    def work(tx: SyncTransaction) -> Any:
        create(tx, "a", "t")
        assert tx.db_transaction.wrapped_transaction.info.dbname
        return tx.db_transaction.query("SELECT title FROM issue WHERE id = $1::text", ["a"])

    assert sync_db.transaction(work) == [{"title": "t"}]
    assert sync_db.run(zql.issue.one()) == {"id": "a", "title": "t", "rank": 0}


def test_failing_transaction_is_rolled_back(sync_db: SyncZQLDatabase, upstream: Upstream) -> None:
    with pytest.raises(ApplicationError):
        sync_db.transaction(lambda tx: fail(tx, None, None))
    assert upstream.all("SELECT * FROM issue") == []


def test_asynchronous_adapters_are_refused(database: str, upstream: Upstream) -> None:
    with pytest.raises(SdkError, match="waited for something asynchronous"):
        drive(asyncio.sleep(0))
    assert PsycopgConnection(database) is not None
