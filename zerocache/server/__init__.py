"""What application developers import to answer zerocache's mutate and query requests.

Owns nothing itself: it names the public surface of the package. It must never open connections.

Describe the data and queries (``zerocache.zql.schema`` and ``zerocache.zql.builder``):

    from zerocache.zql.builder import create_builder
    from zerocache.zql.schema import create_schema, many, number, string, table

    issue = table("issue", {"id": string(), "title": string()}, primary_key="id")
    schema = create_schema([issue], relationships={})
    zql = create_builder(schema)

Mutators and queries, in plain functions:

    async def create_issue(tx: Transaction, args: Any, ctx: Any) -> None:
        await tx.mutate.issue.insert({"id": args["id"], "title": args["title"]})
        rows = await tx.run(zql.issue.where("title", args["title"]))      # list of dicts
        await tx.db_transaction.query("select $1::text as x", ["raw SQL"])  # list of dicts

    mutators = define_mutators({"issue": {"create": define_mutator(create_issue)}})

    def by_title(args: Any, ctx: Any) -> QueryBuilder:
        return zql.issue.where("title", args["title"])

    queries = define_queries({"issue": {"byTitle": define_query(by_title)}})

``define_mutator(validator, fn)`` and ``define_query(validator, fn)`` put a validator in front: any
callable that returns the validated argument or raises, or a pydantic model. Functions are called
as ``fn(tx=, args=, ctx=)`` and ``fn(args=, ctx=)``.

Answer requests (dicts in, dicts out; any web framework):

    db = ZQLDatabase(PsycopgConnection("postgresql://..."), schema)

    async def mutate(url_query: dict[str, str], body: Any) -> dict[str, Any]:
        return await PushProcessor(db, ctx, user_id="u1").process(mutators, url_query, body)

    async def query(body: Any) -> dict[str, Any]:
        return await handle_query_request(
            lambda name, args: must_get_query(queries, name).fn(args=args, ctx=ctx),
            schema, body, user_id="u1",
        )

``handle_mutate_request(db, handler, query, body, user_id=UNSET)`` is the level below PushProcessor:
``handler(transact, mutation)`` calls ``await transact(callback)`` at most once, with
``callback(tx, name, args)``. ``body`` may be parsed JSON, or its text as bytes or str.

Without asyncio (Django, Flask): ``SyncZQLDatabase(PsycopgSyncConnection(url), schema)``, mutators
that are plain ``def`` functions, and ``process_push_sync`` / ``handle_mutate_request_sync`` /
``handle_query_request_sync``.
"""

from zerocache.server.database import (
    DatabaseConnection,
    DatabaseTransaction,
    Transaction,
    ZQLDatabase,
)
from zerocache.server.endpoint import UNSET, UserID
from zerocache.server.errors import (
    ApplicationError,
    DatabaseTransactionError,
    InputValidationError,
    MutationAlreadyProcessed,
    OutOfOrderMutation,
    QueryParseError,
    SchemaMismatchError,
)
from zerocache.server.mutate import Mutation, PushProcessor, Transact, handle_mutate_request
from zerocache.server.mutators import (
    Mutator,
    MutatorRegistry,
    define_mutator,
    define_mutators,
    get_mutator,
    must_get_mutator,
)
from zerocache.server.psycopg_adapter import PsycopgConnection, PsycopgSyncConnection
from zerocache.server.queries import (
    NamedQuery,
    QueryRegistry,
    define_queries,
    define_query,
    get_query,
    must_get_query,
)
from zerocache.server.query import handle_query_request
from zerocache.server.sync import (
    SyncTransaction,
    SyncZQLDatabase,
    handle_mutate_request_sync,
    handle_query_request_sync,
    process_push_sync,
)

__all__ = [
    "UNSET",
    "ApplicationError",
    "DatabaseConnection",
    "DatabaseTransaction",
    "DatabaseTransactionError",
    "InputValidationError",
    "Mutation",
    "MutationAlreadyProcessed",
    "Mutator",
    "MutatorRegistry",
    "NamedQuery",
    "OutOfOrderMutation",
    "PsycopgConnection",
    "PsycopgSyncConnection",
    "PushProcessor",
    "QueryParseError",
    "QueryRegistry",
    "SchemaMismatchError",
    "SyncTransaction",
    "SyncZQLDatabase",
    "Transact",
    "Transaction",
    "UserID",
    "ZQLDatabase",
    "define_mutator",
    "define_mutators",
    "define_queries",
    "define_query",
    "get_mutator",
    "get_query",
    "handle_mutate_request",
    "handle_mutate_request_sync",
    "handle_query_request",
    "handle_query_request_sync",
    "must_get_mutator",
    "must_get_query",
    "process_push_sync",
]
