"""Pushes against a real database: results, bookkeeping, and what stops a push."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.server.conftest import PARAMS, Upstream, push, schema, zql
from zerocache.server import (
    ApplicationError,
    DatabaseTransaction,
    Mutation,
    PsycopgConnection,
    PushProcessor,
    Transact,
    Transaction,
    ZQLDatabase,
    define_mutator,
    define_mutators,
    handle_mutate_request,
)

Json = dict[str, Any]


async def create(tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.issue.insert({"id": args["id"], "title": "t"})


async def fail(tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.issue.insert({"id": "lost", "title": "t"})
    raise ApplicationError("not today", {"why": args})


async def violate(tx: Transaction, args: Any, ctx: Any) -> None:
    await tx.mutate.comment.insert({"id": "c", "issueID": "missing"})


def _reject(value: Any) -> Any:
    raise ValueError("id is missing")


MUTATORS = define_mutators(
    {
        "issue": {
            "create": define_mutator(create),
            "fail": define_mutator(fail),
            "violate": define_mutator(violate),
            "checked": define_mutator(_reject, create),
        }
    }
)


def ok(id: int) -> Json:
    return {"id": {"clientID": "c1", "id": id}, "result": {}}


async def process(db: ZQLDatabase, body: Any, **options: Any) -> Json:
    return await PushProcessor(db, **options).process(MUTATORS, PARAMS, body)


async def test_mutations_apply_in_order_and_count(db: ZQLDatabase, upstream: Upstream) -> None:
    body = push((1, "issue.create", {"id": "a"}), (2, "issue|create", {"id": "b"}))
    answer = await process(db, json.dumps(body).encode())
    assert answer == {"kind": "MutateResponse", "mutations": [ok(1), ok(2)]}
    assert upstream.column("SELECT id FROM issue ORDER BY id") == ["a", "b"]
    assert upstream.last_mutation_id == 2
    assert upstream.results == {}


@pytest.mark.parametrize(
    ("user_id", "claim"), [({}, {}), ({"user_id": None}, {"userID": None}),
                           ({"user_id": "u1"}, {"userID": "u1"})]
)  # fmt: skip
async def test_success_claims_the_identity_it_was_given(
    db: ZQLDatabase, user_id: Json, claim: Json
) -> None:
    assert await process(db, push(), **user_id) == {
        "kind": "MutateResponse",
        "mutations": [],
        **claim,
    }


async def test_legacy_response_has_mutations_only(db: ZQLDatabase) -> None:
    answer = await process(
        db, push((1, "issue.create", {"id": "a"})), user_id="u", legacy_response=True
    )
    assert answer == {"mutations": [ok(1)]}


@pytest.mark.parametrize("body", [b"{", "nonsense", {}, [], None, {"mutations": [{"id": 1}]}])
async def test_unusable_body_is_a_parse_failure_without_ids(db: ZQLDatabase, body: Any) -> None:
    answer = await process(db, body)
    assert (answer["kind"], answer["origin"]) == ("PushFailed", "server")
    assert (answer["reason"], answer["mutationIDs"]) == ("parse", [])


async def test_unusable_parameters_are_a_parse_failure_with_ids(db: ZQLDatabase) -> None:
    answer = await PushProcessor(db).process(MUTATORS, {"schema": "zero_0"}, push((1, "x", None)))
    assert answer["reason"] == "parse"
    assert answer["mutationIDs"] == [{"clientID": "c1", "id": 1}]


async def test_other_push_versions_are_refused(db: ZQLDatabase, upstream: Upstream) -> None:
    answer = await process(db, push((1, "issue.create", {"id": "a"}), pushVersion=2))
    assert answer["reason"] == "unsupportedPushVersion"
    assert answer["mutationIDs"] == [{"clientID": "c1", "id": 1}]
    assert upstream.last_mutation_id == 0


async def test_unknown_keys_of_the_envelope_are_allowed(db: ZQLDatabase) -> None:
    answer = await process(db, push((1, "issue.create", {"id": "a"}), future=True, auth="x"))
    assert answer["kind"] == "MutateResponse"


async def test_raising_mutator_is_recorded_and_later_ones_run(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    body = push((1, "issue.fail", 7), (2, "issue.create", {"id": "b"}))
    answer = await process(db, body)
    error = {"error": "app", "message": "not today", "details": {"why": 7}}
    assert answer["mutations"] == [{"id": {"clientID": "c1", "id": 1}, "result": error}, ok(2)]
    assert upstream.results == {1: error}
    assert upstream.last_mutation_id == 2
    assert upstream.column("SELECT id FROM issue") == ["b"]


async def test_failure_at_commit_is_recorded_with_the_databases_text(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    answer = await process(db, push((1, "issue.violate", None)))
    [result] = answer["mutations"]
    assert result["result"]["error"] == "app"
    assert result["result"]["message"].startswith("insert or update on table")
    assert upstream.results == {1: result["result"]}
    assert upstream.last_mutation_id == 1


@pytest.mark.parametrize("name", ["issue.missing", "issue", "issue.create.more"])
async def test_missing_mutator_is_an_application_error(
    db: ZQLDatabase, upstream: Upstream, name: str
) -> None:
    answer = await process(db, push((1, name, None)))
    assert answer["mutations"][0]["result"]["error"] == "app"
    assert f'"{name}" is not defined' in answer["mutations"][0]["result"]["message"]
    assert upstream.last_mutation_id == 1


async def test_refused_arguments_come_with_their_report(db: ZQLDatabase) -> None:
    answer = await process(db, push((1, "issue.checked", {})))
    result = answer["mutations"][0]["result"]
    assert result["error"] == "app"
    assert result["details"] == {"type": "InputValidationError", "result": "id is missing"}


async def test_duplicate_is_reported_and_processing_continues(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    await process(db, push((1, "issue.create", {"id": "a"})))
    body = push((1, "issue.create", {"id": "x"}), (2, "issue.create", {"id": "b"}))
    first, second = (await process(db, body))["mutations"]
    assert first["result"]["error"] == "alreadyProcessed"
    assert second == ok(2)
    assert upstream.column("SELECT id FROM issue ORDER BY id") == ["a", "b"]
    assert upstream.last_mutation_id == 2


async def test_gap_stops_the_push_and_keeps_what_was_committed(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    body = push(
        (1, "issue.create", {"id": "a"}),
        (3, "issue.create", {"id": "c"}),
        (4, "issue.create", {"id": "d"}),
    )
    answer = await process(db, body)
    assert answer["kind"] == "PushFailed"
    assert answer["reason"] == "oooMutation"
    assert [m["id"] for m in answer["mutationIDs"]] == [3, 4]
    assert upstream.last_mutation_id == 1
    assert upstream.column("SELECT id FROM issue") == ["a"]


async def test_crud_mutation_aborts_the_push(db: ZQLDatabase) -> None:
    body = push((1, "_zero_crud", {"ops": []}))
    body["mutations"][0]["type"] = "crud"
    answer = await process(db, body)
    assert (answer["reason"], answer["mutationIDs"][0]["id"]) == ("internal", 1)


async def handle(db: ZQLDatabase, handler: Callable[..., Any], body: Any) -> Json:
    return await handle_mutate_request(db, handler, PARAMS, body)


async def test_raising_before_transact_behaves_like_raising_inside(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    async def handler(transact: Transact, mutation: Mutation) -> Json:
        raise PermissionError("you may not")

    answer = await handle(db, handler, push((1, "a", None), (2, "a", None)))
    assert [m["result"]["message"] for m in answer["mutations"]] == ["you may not"] * 2
    assert upstream.last_mutation_id == 2
    assert set(upstream.results) == {1, 2}


async def test_duplicate_while_recording_an_early_failure_aborts(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    await process(db, push((1, "issue.create", {"id": "a"})))

    async def handler(transact: Transact, mutation: Mutation) -> Json:
        raise PermissionError("you may not")

    answer = await handle(db, handler, push((1, "a", None)))
    assert answer["reason"] == "internal"


async def test_raising_after_commit_keeps_the_data_and_writes_no_result(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    async def handler(transact: Transact, mutation: Mutation) -> Json:
        await transact(lambda tx, name, args: create(tx, args, None))
        raise RuntimeError("mail server is down")

    answer = await handle(db, handler, push((1, "a", {"id": "kept"})))
    assert answer["mutations"][0]["result"] == {"error": "app", "message": "mail server is down"}
    assert upstream.column("SELECT id FROM issue") == ["kept"]
    assert upstream.results == {}
    assert upstream.last_mutation_id == 1


async def test_second_transact_of_one_mutation_is_refused(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    async def handler(transact: Transact, mutation: Mutation) -> Json:
        await transact(lambda tx, name, args: None)
        return await transact(lambda tx, name, args: None)

    answer = await handle(db, handler, push((1, "a", None)))
    assert "called twice" in answer["mutations"][0]["result"]["message"]
    assert upstream.last_mutation_id == 1


async def test_handler_that_never_transacts_is_an_application_error(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    async def handler(transact: Transact, mutation: Mutation) -> None:
        return None

    answer = await handle(db, handler, push((1, "a", None)))
    assert "without calling transact" in answer["mutations"][0]["result"]["message"]
    assert upstream.last_mutation_id == 1


class FlakyConnection:
    """A connection of which some transactions cannot be opened."""

    def __init__(self, inner: PsycopgConnection, failures: int) -> None:
        self.inner = inner
        self.failures = failures

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DatabaseTransaction]:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no route to database")
        async with self.inner.transaction() as transaction:
            yield transaction


async def test_transaction_that_cannot_be_opened_once_is_recorded(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    assert isinstance(db.connection, PsycopgConnection)
    flaky = ZQLDatabase(FlakyConnection(db.connection, 1), schema)
    answer = await process(flaky, push((1, "issue.create", {"id": "a"})))
    assert answer["mutations"][0]["result"] == {"error": "app", "message": "no route to database"}
    assert upstream.last_mutation_id == 1


async def test_transaction_that_cannot_be_opened_twice_fails_the_push(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    assert isinstance(db.connection, PsycopgConnection)
    flaky = ZQLDatabase(FlakyConnection(db.connection, 2), schema)
    answer = await process(flaky, push((1, "issue.create", {"id": "a"}), (2, "x", None)))
    assert answer["reason"] == "database"
    assert [m["id"] for m in answer["mutationIDs"]] == [1, 2]
    assert upstream.last_mutation_id == 0


async def test_result_that_cannot_be_written_fails_the_push(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    upstream.connection.execute("DROP TABLE zero_0.mutations")
    answer = await process(db, push((1, "issue.fail", None)))
    assert answer["reason"] == "database"
    assert "does not exist" in answer["message"]
    assert upstream.last_mutation_id == 0


async def test_cleanup_deletes_acknowledged_results_only(
    db: ZQLDatabase, upstream: Upstream
) -> None:
    await process(db, push(*((n, "issue.fail", None) for n in (1, 2, 3))))
    single = {"type": "single", "clientGroupID": "g1", "clientID": "c1", "upToMutationID": 2}
    answer = await process(db, push((0, "_zero_cleanupResults", single)))
    assert answer == {"kind": "MutateResponse", "mutations": []}
    assert set(upstream.results) == {3}
    assert upstream.last_mutation_id == 3
    bulk = {"type": "bulk", "clientGroupID": "g1", "clientIDs": ["c1"]}
    await process(db, push((0, "_zero_cleanupResults", bulk)))
    assert upstream.results == {}


async def test_cleanup_accepts_the_form_without_type(db: ZQLDatabase, upstream: Upstream) -> None:
    await process(db, push((1, "issue.fail", None)))
    legacy = {"clientGroupID": "g1", "clientID": "c1", "upToMutationID": 1}
    await process(db, push((0, "_zero_cleanupResults", legacy)))
    assert upstream.results == {}


@pytest.mark.parametrize(
    "argument",
    [
        None,
        {},
        {"type": "bulk", "clientGroupID": "g1", "clientIDs": []},
        {"type": "other", "clientGroupID": "g1", "clientID": "c1", "upToMutationID": 1},
        {"type": "bulk", "clientGroupID": "g2", "clientIDs": ["c1"]},
    ],
)
async def test_malformed_cleanup_is_ignored(
    db: ZQLDatabase, upstream: Upstream, argument: Any
) -> None:
    await process(db, push((1, "issue.fail", None)))
    body = push((0, "_zero_cleanupResults", argument), (2, "issue.create", {"id": "b"}))
    assert (await process(db, body))["mutations"] == [ok(2)]
    assert set(upstream.results) == {1}


async def test_details_that_are_not_json_are_left_out(db: ZQLDatabase) -> None:
    async def handler(transact: Transact, mutation: Mutation) -> Json:
        raise ApplicationError("no", details=object())

    answer = await handle(db, handler, push((1, "a", None)))
    assert answer["mutations"][0]["result"] == {"error": "app", "message": "no"}


async def test_mutator_sees_its_transaction(db: ZQLDatabase, upstream: Upstream) -> None:
    seen: list[Any] = []

    async def look(tx: Transaction, args: Any, ctx: Any) -> None:
        await tx.mutate["issue"].insert({"id": "a", "title": "t"})
        seen.extend([tx.location, tx.reason, tx.client_id, tx.mutation_id, ctx, args])
        seen.append(await tx.run(zql.issue.one()))
        seen.append(await tx.db_transaction.query("SELECT $1::text AS x", ["y"]))

    await PushProcessor(db, "ctx").process({"look": define_mutator(look)}, PARAMS,
                                           push((1, "look", None)))  # fmt: skip
    issue = {"id": "a", "title": "t", "rank": None}
    assert seen == ["server", "authoritative", "c1", 1, "ctx", None, issue, [{"x": "y"}]]


async def test_plain_functions_may_stand_for_mutators(db: ZQLDatabase, upstream: Upstream) -> None:
    async def plain(tx: Transaction, args: Any) -> None:
        await tx.mutate.issue.insert(args)

    mutators = {"a": {"b": plain}}
    body = push((1, "a.b", {"id": "x", "title": "t"}))
    assert (await PushProcessor(db).process(mutators, PARAMS, body))["mutations"] == [ok(1)]
