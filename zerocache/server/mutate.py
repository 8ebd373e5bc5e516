"""The mutate endpoint: apply a push, one transaction per mutation (api-and-auth.md §7.2).

Owns the order of events around a mutation and the shape of the answer. It never touches SQL; the
database comes with hooks for the bookkeeping. Invariants: the last mutation id moves in the same
transaction as the mutation's own writes; a mutation that fails moves it too, in a transaction
that holds nothing but the failure; processing stops only where going on would break the order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal, Protocol, TypeAlias

import msgspec

from zerocache.errors import SdkError
from zerocache.server import registry
from zerocache.server.database import MutationHooks, MutationInput, Transaction
from zerocache.server.endpoint import (
    UNSET,
    Body,
    BodyError,
    Json,
    LogLevel,
    UserID,
    convert,
    identity,
    logger,
    parse_json,
    settle,
)
from zerocache.server.errors import (
    ApplicationError,
    DatabaseTransactionError,
    MutationAlreadyProcessed,
    OutOfOrderMutation,
    as_application_error,
    describe,
    details_of,
)
from zerocache.server.mutators import Mutator, MutatorRegistry

CLEANUP_NAME = "_zero_cleanupResults"
PUSH_VERSION = 1


class Mutation(msgspec.Struct, frozen=True, rename="camel"):
    """One mutation of a push. ``args`` holds the single argument, or nothing."""

    type: Literal["custom", "crud"]
    id: int
    client_id: str = msgspec.field(name="clientID")
    name: str
    args: list[Any]
    timestamp: float

    @property
    def arg(self) -> Any:
        return self.args[0] if self.args else None

    @property
    def key(self) -> Json:
        return {"clientID": self.client_id, "id": self.id}


class _PushBody(msgspec.Struct, frozen=True, rename="camel"):
    client_group_id: str = msgspec.field(name="clientGroupID")
    mutations: list[Mutation]
    push_version: float
    timestamp: float
    request_id: str = msgspec.field(name="requestID")
    schema_version: float | msgspec.UnsetType = msgspec.UNSET
    auth: str | msgspec.UnsetType = msgspec.UNSET
    traceparent: str | msgspec.UnsetType = msgspec.UNSET


class _PushParams(msgspec.Struct, frozen=True):
    schema: str
    app_id: str = msgspec.field(name="appID")


class _CleanupSingle(msgspec.Struct, frozen=True, rename="camel"):
    client_group_id: str = msgspec.field(name="clientGroupID")
    client_id: str = msgspec.field(name="clientID")
    up_to_mutation_id: int = msgspec.field(name="upToMutationID")


class _CleanupBulk(msgspec.Struct, frozen=True, rename="camel"):
    client_group_id: str = msgspec.field(name="clientGroupID")
    client_ids: list[str] = msgspec.field(name="clientIDs")


class MutationDatabase(Protocol):
    """What :class:`~zerocache.server.database.ZQLDatabase` offers here."""

    def mutation(
        self, mutation: MutationInput, /
    ) -> AbstractAsyncContextManager[tuple[Transaction, MutationHooks]]: ...


MutatorCallback: TypeAlias = Callable[[Transaction, str, Any], Any]
"""``callback(tx, name, args)``; may be async."""
Transact: TypeAlias = Callable[[MutatorCallback], Awaitable[Json]]
Handler: TypeAlias = Callable[[Transact, Mutation], Any]
"""``handler(transact, mutation)``: awaits ``transact(callback)`` once and returns its result."""


async def handle_mutate_request(
    db: MutationDatabase,
    handler: Handler,
    query: Mapping[str, str],
    body: Body,
    user_id: UserID = UNSET,
    log_level: LogLevel = "info",
    *,
    legacy_response: bool = False,
) -> Json:
    """Apply the push in ``body`` and answer zerocache; the result is to be sent as JSON, HTTP 200.

    ``query``: the URL's query parameters. ``user_id``: who is logged in (``None``: nobody), which
    zerocache compares with the connection. ``legacy_response``: for a reference server 0.25.
    """
    log = logger(__name__, log_level)
    try:
        push = convert(parse_json(body), _PushBody)
    except BodyError as error:
        log.error("push_not_understood", error=str(error))
        return _failed("parse", f"the push body is not valid: {error}", [])
    ids = [mutation.key for mutation in push.mutations]
    try:
        params = convert(dict(query), _PushParams)
    except BodyError as error:
        log.error("push_parameters_not_understood", error=str(error))
        return _failed("parse", f"the query parameters of the push are not valid: {error}", ids)
    if push.push_version != PUSH_VERSION:
        version = f"{push.push_version:g}"
        return _failed(
            "unsupportedPushVersion",
            f"push version {version} is not supported; this server understands {PUSH_VERSION}",
            ids,
        )
    outcome = await _Push(db, handler, push, params.schema, log).process()
    if isinstance(outcome, dict):
        return outcome
    if legacy_response:
        return {"mutations": outcome}
    return {"kind": "MutateResponse", "mutations": outcome, **identity(user_id)}


def _failed(reason: str, message: str, ids: list[Json], details: Json | None = None) -> Json:
    return {
        "kind": "PushFailed",
        "origin": "server",
        "reason": reason,
        "message": message,
        "mutationIDs": ids,
        **(details or {}),
    }


class _Phase(Enum):
    """How far a mutation got; decides what a failure of its handler means."""

    BEFORE = "before transact"
    INSIDE = "inside transact"
    AFTER = "after commit"


@dataclass(slots=True)
class _Progress:
    phase: _Phase = _Phase.BEFORE
    response: Json | None = None


class _Push:
    def __init__(
        self, db: MutationDatabase, handler: Handler, push: _PushBody, schema: str, log: Any
    ) -> None:
        self._db = db
        self._handler = handler
        self._push = push
        self._schema = schema
        self._log = log.bind(client_group=push.client_group_id)

    async def process(self) -> list[Json] | Json:
        """The results of all mutations, or the body of a failure of the whole push."""
        results: list[Json] = []
        for done, mutation in enumerate(self._push.mutations):
            try:
                if mutation.type == "custom" and mutation.name == CLEANUP_NAME:
                    await self._clean_up(mutation)
                else:
                    results.append(await self._apply(mutation))
            except Exception as error:
                self._log.error("push_failed", error=describe(error), mutation=mutation.id)
                return self._abort(error, self._push.mutations[done:])
        return results

    def _abort(self, error: Exception, left: Sequence[Mutation]) -> Json:
        reasons = {OutOfOrderMutation: "oooMutation", DatabaseTransactionError: "database"}
        reason = next((r for kind, r in reasons.items() if isinstance(error, kind)), "internal")
        return _failed(reason, describe(error), [m.key for m in left], details_of(error))

    async def _apply(self, mutation: Mutation) -> Json:
        if mutation.type != "custom":
            raise SdkError(
                f"mutation {mutation.id} has type {mutation.type!r}; this endpoint runs custom "
                "mutations only: set ZERO_ENABLE_CRUD_MUTATIONS for the others"
            )
        progress = _Progress()
        try:
            return await self._run_handler(mutation, progress)
        except (OutOfOrderMutation, MutationAlreadyProcessed, DatabaseTransactionError):
            raise
        except Exception as raised:
            error = as_application_error(raised)
            if progress.phase is _Phase.BEFORE:
                await self._transact(mutation, None, error)
            elif progress.phase is _Phase.AFTER:
                self._log.error("failed_after_commit", error=str(error), mutation=mutation.id)
            self._log.warning("application_error", error=str(error), mutation=mutation.id)
            return _app_error(mutation, error)

    async def _run_handler(self, mutation: Mutation, progress: _Progress) -> Json:
        async def transact(callback: MutatorCallback) -> Json:
            if progress.phase is not _Phase.BEFORE:
                raise SdkError(
                    f"transact was called twice for mutation {mutation.name}; "
                    "a mutation is one transaction: do all of its work in one callback"
                )
            progress.phase = _Phase.INSIDE
            progress.response = await self._transact_or_record(mutation, callback)
            progress.phase = _Phase.AFTER
            return progress.response

        returned = await settle(self._handler(transact, mutation))
        if progress.response is None:
            raise SdkError(
                f"the handler of mutation {mutation.name} returned without calling transact; "
                "call it exactly once, or raise an ApplicationError"
            )
        return returned if isinstance(returned, dict) else progress.response

    async def _transact_or_record(self, mutation: Mutation, callback: MutatorCallback) -> Json:
        """Run ``callback``; if that fails, record why in a second transaction."""
        try:
            await self._transact(mutation, callback, None)
        except MutationAlreadyProcessed as duplicate:
            return self._duplicate(mutation, duplicate)
        except OutOfOrderMutation:
            raise
        except Exception as raised:
            error = as_application_error(raised)
        else:
            return {"id": mutation.key, "result": {}}
        self._log.warning("mutation_failed", error=str(error), mutation=mutation.id)
        try:
            await self._transact(mutation, None, error)
        except MutationAlreadyProcessed as duplicate:
            return self._duplicate(mutation, duplicate)
        return _app_error(mutation, error)

    def _duplicate(self, mutation: Mutation, error: MutationAlreadyProcessed) -> Json:
        self._log.warning("mutation_already_processed", mutation=mutation.id)
        result = {"error": "alreadyProcessed", "details": str(error)}
        return {"id": mutation.key, "result": result}

    async def _transact(
        self, mutation: Mutation, callback: MutatorCallback | None, error: ApplicationError | None
    ) -> None:
        """Count the mutation, then run ``callback`` or write ``error`` as its result."""
        opened = False
        try:
            async with self._db.mutation(self._input(mutation)) as (transaction, hooks):
                opened = True
                _check_order(mutation, await hooks.next_mutation_id())
                if error is not None:
                    await hooks.write_result(_app_error(mutation, error)["result"])
                elif callback is not None:
                    await settle(callback(transaction, mutation.name, mutation.arg))
        except (ApplicationError, OutOfOrderMutation, MutationAlreadyProcessed):
            raise
        except Exception as cause:
            raise DatabaseTransactionError(opened=opened, cause=cause) from cause

    def _input(self, mutation: Mutation) -> MutationInput:
        group = self._push.client_group_id
        return MutationInput(self._schema, group, mutation.client_id, mutation.id)

    async def _clean_up(self, mutation: Mutation) -> None:
        """Delete results the clients have seen. Nobody waits for this, so failures only warn."""
        try:
            args = _cleanup_args(mutation.arg)
            if args.client_group_id != self._push.client_group_id:
                raise BodyError(f"client group {args.client_group_id} is not the push's own")
            async with self._db.mutation(self._input(mutation)) as (_, hooks):
                if isinstance(args, _CleanupBulk):
                    await hooks.delete_results_of(args.client_ids)
                else:
                    await hooks.delete_results_up_to(args.client_id, args.up_to_mutation_id)
        except Exception as error:
            self._log.warning("result_cleanup_failed", error=describe(error))


def _cleanup_args(arg: Any) -> _CleanupSingle | _CleanupBulk:
    kind = arg.get("type", "single") if isinstance(arg, dict) else "single"
    if kind == "bulk":
        bulk = convert(arg, _CleanupBulk)
        if not bulk.client_ids:
            raise BodyError("clientIDs is empty")
        return bulk
    if kind != "single":
        raise BodyError(f"cleanup of type {kind!r} is not known")
    return convert(arg, _CleanupSingle)


def _check_order(mutation: Mutation, expected: int) -> None:
    if mutation.id < expected:
        raise MutationAlreadyProcessed(mutation.client_id, mutation.id, expected)
    if mutation.id > expected:
        raise OutOfOrderMutation(mutation.client_id, mutation.id, expected)


def _app_error(mutation: Mutation, error: ApplicationError) -> Json:
    result = {"error": "app", "message": str(error), **details_of(error)}
    return {"id": mutation.key, "result": result}


class PushProcessor:
    """Dispatches the mutations of a push to mutators by name.

    Mutators may come as a registry of :func:`define_mutators` or as nested dicts of mutators and
    of plain functions ``fn(tx, args)``. ``context`` is handed to every mutator as ``ctx``.
    """

    def __init__(
        self,
        db: MutationDatabase,
        context: Any = None,
        *,
        user_id: UserID = UNSET,
        log_level: LogLevel = "info",
        legacy_response: bool = False,
    ) -> None:
        self._db = db
        self._context = context
        self._user_id = user_id
        self._log_level = log_level
        self._legacy_response = legacy_response

    async def process(
        self, mutators: MutatorRegistry, query: Mapping[str, str], body: Body
    ) -> Json:
        """Answer one request; see :func:`handle_mutate_request`."""

        async def handler(transact: Transact, mutation: Mutation) -> Json:
            return await transact(
                lambda tx, name, args: dispatch(mutators, name, tx, args, self._context)
            )

        return await handle_mutate_request(
            self._db,
            handler,
            query,
            body,
            self._user_id,
            self._log_level,
            legacy_response=self._legacy_response,
        )


def dispatch(mutators: MutatorRegistry, name: str, tx: Any, args: Any, context: Any) -> Any:
    """Call the mutator ``name``; parts of a name are joined by dots, by old clients with pipes."""
    found = registry.must_find(mutators, "mutator", name, legacy_separator=True)
    if isinstance(found, Mutator):
        return found.fn(tx=tx, args=args, ctx=context)
    return found(tx, args)
