"""From desired queries to the ASTs the engine runs, and the internal queries of a group.

Named queries are asked of the application; ad-hoc ASTs get the deployed read permissions; the
bookkeeping tables of mutations are watched by two internal queries per group whose rows become
``lastMutationIDChanges`` and ``mutationsPatch`` instead of rows (sync-protocol.md §3.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import structlog

from view_syncer.context import ConnectionContext
from view_syncer.cvr.facts import RESULTS_UNIT
from view_syncer.cvr.record import QueryHash, QueryRecord
from view_syncer.engine_host import EngineHost
from view_syncer.fan_out import GroupUpdate, InternalQuery
from view_syncer.ivm.encode import ClientTables, PatchSql
from view_syncer.poke import PokeBody
from view_syncer.transform import NamedQuery, QueryTransformer, TransformedQuery
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.protocol.versions import Watermark
from zerocache.replica.sql import quote
from zerocache.zql.ast import Query, parse_query, to_json
from zerocache.zql.permissions import apply_read_permissions

log = structlog.get_logger(__name__)

LMIDS = "lmids"
MUTATION_RESULTS = "mutationResults"
MAX_SAFE_INTEGER = 2**53 - 1


@dataclass(slots=True)
class Wanted:
    """``queries``: per hash a key that names the AST (equal key, equal AST) and the AST.
    ``rejected``: bodies of ``transformError`` entries for queries that do not run. ``permissions``
    numbers those it was made with (:attr:`QuerySource.permissions_number`)."""

    queries: dict[QueryHash, tuple[bytes, Query]] = field(default_factory=dict)
    rejected: dict[QueryHash, dict[str, Any]] = field(default_factory=dict)
    permissions: int = 0


class QuerySource:
    """Shared by all groups of a worker."""

    def __init__(self, app_schema: str, shard_schema: str, transformer: QueryTransformer) -> None:
        self._transformer = transformer
        self._permissions_table = f"{app_schema}.permissions"
        self._clients_table = f"{shard_schema}.clients"
        self._mutations_table = f"{shard_schema}.mutations"
        self._lmids = _internal_tables(LMIDS, self._clients_table, _CLIENT_ROW, _CLIENT_ROW)
        self._results = _internal_tables(
            MUTATION_RESULTS, self._mutations_table, _MUTATION_PUT, _MUTATION_DEL
        )
        self._all_results = replace(
            _internal_tables("all results", self._mutations_table, _RESULT_KEY, _RESULT_KEY),
            facts_as=RESULTS_UNIT,
        )
        self._permissions = _internal_tables(
            _PERMISSIONS, self._permissions_table, _PERMISSIONS_PUT, "''"
        )
        self.permissions: dict[str, Any] | None = None
        # Grows whenever they change.
        self.permissions_number = 0
        self._permissions_known = asyncio.Event()
        self._version = Watermark("00")
        self._version_changed = asyncio.Event()

    # -- permissions ---------------------------------------------------------------------------

    async def watch(self, engine: EngineHost) -> None:
        """Have the engine report changes of the permissions row as updates of this object, and
        read it. Without such a table in the replica nothing is readable by ad-hoc queries. And
        have it remember which mutation results there were, for :meth:`add_gone_results`."""
        number = self.permissions_number
        rows = await self._watch(engine, _PERMISSIONS, self._permissions_table, self._permissions)
        if self.permissions_number == number:  # or they were forgotten, or changed, meanwhile
            self._set_permissions(rows)
        try:
            await self._watch(engine, "results", self._mutations_table, self._all_results)
        except QueryError as error:
            # Then it is not known what clients have, and who comes back starts over.
            log.error("mutation_results_not_watched", reason=str(error))

    async def _watch(
        self, engine: EngineHost, name: str, table: str, tables: ClientTables
    ) -> Sequence[str]:
        """The rows of the table, of whose changes this object hears from now on."""
        if table not in engine.state.schema:
            return ()
        rows = {name: InternalQuery(table, tables)}
        return (await engine.reconcile(self, tables, {}, (), rows)).internal[name]

    def forget_permissions(self) -> None:
        """The engine started over: nothing can be said of them before the next :meth:`watch`."""
        self.permissions_number += 1
        self._permissions_known.clear()

    def take_permissions(self, update: GroupUpdate) -> bool:
        """An advance of the engine for this object; whether it changes the permissions. They then
        hold for all that the advance brings."""
        patch = update.internal.get(_PERMISSIONS)
        if patch is None and _PERMISSIONS not in update.failed:
            return False
        self._set_permissions([] if patch is None else patch.puts)
        return True

    def _set_permissions(self, rows: Sequence[str]) -> None:
        """There is one row at most; one that makes no sense allows nothing."""
        permissions = None
        if rows:
            try:
                permissions = msgspec.json.decode(rows[-1], type=dict[str, Any] | None)
            except msgspec.DecodeError as error:
                log.error("permissions_unreadable", reason=str(error))
        self.permissions = permissions
        self.permissions_number += 1
        self._permissions_known.set()

    # -- versions ------------------------------------------------------------------------------

    @property
    def version(self) -> Watermark:
        """The engine's, as far as the event loop knows."""
        return self._version

    def set_version(self, version: Watermark) -> None:
        """Note how far the worker's engine is."""
        self._version = version
        self._version_changed.set()
        self._version_changed = asyncio.Event()

    async def wait_for_version(self, state: Watermark, timeout_s: float) -> bool:
        """Until the engine has reached ``state``; False if it did not in time."""
        if self._version >= state:
            return True
        try:
            async with asyncio.timeout(timeout_s):
                while self._version < state:
                    await self._version_changed.wait()
        except TimeoutError:
            return False
        return True

    # -- queries -------------------------------------------------------------------------------

    async def validate(self, context: ConnectionContext) -> None:
        """Let the application judge a connection's credentials before any data leaves."""
        outcome = await self._transformer.validate(context.query)
        context.check_identity(outcome.identity)

    async def resolve(
        self,
        queries: Mapping[QueryHash, QueryRecord],
        context: ConnectionContext | None,
        running: Mapping[QueryHash, bytes],
        *,
        fresh: bool = False,
        ask: bool = True,
    ) -> Wanted:
        """The ASTs of ``queries``, by the permissions of now. Named ones that run already are only
        asked for again when ``fresh``: their key is kept. Without ``ask`` the application is not
        called at all."""
        while True:
            await self._permissions_known.wait()
            number = self.permissions_number
            wanted = await self._resolve(queries, context, running, fresh=fresh, ask=ask)
            if number == self.permissions_number:
                wanted.permissions = number
                return wanted

    async def _resolve(
        self,
        queries: Mapping[QueryHash, QueryRecord],
        context: ConnectionContext | None,
        running: Mapping[QueryHash, bytes],
        *,
        fresh: bool,
        ask: bool,
    ) -> Wanted:
        wanted = Wanted()
        named: list[NamedQuery] = []
        for query_hash, record in queries.items():
            if record.ast_json is not None:
                self._ad_hoc(query_hash, record.ast_json, context, wanted)
            elif record.name is not None:
                if query_hash in running and not fresh:
                    wanted.queries[query_hash] = (running[query_hash], _UNCHANGED)
                elif ask:
                    args = msgspec.json.decode(record.args_json or b"[]")
                    named.append(NamedQuery(query_hash, record.name, args))
        if named and context is not None:
            await self._named(named, context, wanted)
        return wanted

    def _ad_hoc(self, query_hash: QueryHash, ast_json: bytes, context: Any, wanted: Wanted) -> None:
        claims = getattr(context, "claims", None) or {}
        query = apply_read_permissions(parse_query(ast_json), self.permissions, claims)
        wanted.queries[query_hash] = (to_json(query), query)

    async def _named(
        self,
        named: list[NamedQuery],
        context: ConnectionContext,
        wanted: Wanted,
    ) -> None:
        outcome = await self._transformer.transform(named, context.query)
        context.check_identity(outcome.identity)
        for query_hash, result in outcome.results.items():
            if isinstance(result, TransformedQuery):
                wanted.queries[query_hash] = (to_json(result.query), result.query)
            else:
                wanted.rejected[query_hash] = result.body()

    # -- internal queries ----------------------------------------------------------------------

    def internal(self, group_id: str) -> dict[str, InternalQuery]:
        """The bookkeeping queries every group runs."""
        return {
            LMIDS: InternalQuery(self._clients_table, self._lmids, _GROUP, group_id),
            MUTATION_RESULTS: InternalQuery(self._mutations_table, self._results, _GROUP, group_id),
        }

    def add_internal(self, group_id: str, update: GroupUpdate, body: PokeBody) -> None:
        """Translate an advance's internal patches."""
        patch = update.internal.get(LMIDS)
        if patch is not None:
            _add_lmids(patch.puts, body)
        patch = update.internal.get(MUTATION_RESULTS)
        if patch is not None:
            body.mutations.extend(text.encode() for _, _, text in patch.dels)
            body.mutations.extend(text.encode() for text in patch.puts)

    def add_gone_results(
        self, held: Iterable[str], rows: Mapping[str, Sequence[str]], body: PokeBody
    ) -> None:
        """Delete the mutation results that somebody has and that are no longer among ``rows``."""
        there = {_decode_put(put).mutation.id for put in rows.get(MUTATION_RESULTS, ())}
        body.mutations.extend(key.encode() for key in held if _decode_del(key).id not in there)

    def add_internal_rows(
        self, group_id: str, rows: Mapping[str, Sequence[str]], body: PokeBody
    ) -> None:
        """Translate the internal rows of a hydration or a full view."""
        _add_lmids(rows.get(LMIDS, ()), body)
        body.mutations.extend(text.encode() for text in rows.get(MUTATION_RESULTS, ()))


_UNCHANGED = Query(table="")
"""Stands for the AST of a query whose key says that it runs already."""

_GROUP = "clientGroupID"
_PERMISSIONS = "permissions"
_PERMISSIONS_PUT = "coalesce(permissions, 'null')"
_CLIENT_ROW = 'json_array("clientID", "lastMutationID")'
_MUTATION_ID = "json_object('clientID', \"clientID\", 'id', \"mutationID\")"
_MUTATION_PUT = (
    "json_object('op', 'put', 'mutation', "
    f"json_object('id', {_MUTATION_ID}, 'result', json(\"result\")))"
)
_MUTATION_DEL = f"json_object('op', 'del', 'id', {_MUTATION_ID})"
_RESULT_KEY = f"hex(\"clientGroupID\") || ':' || {_MUTATION_DEL}"


class _MutationId(msgspec.Struct, frozen=True):
    client_id: str = msgspec.field(name="clientID")
    id: int = 0


class _Result(msgspec.Struct, frozen=True):
    id: _MutationId


class _ResultPut(msgspec.Struct, frozen=True):
    mutation: _Result


_decode_put = msgspec.json.Decoder(_ResultPut).decode
_decode_del = msgspec.json.Decoder(_Result).decode


def _add_lmids(rows: Any, body: PokeBody) -> None:
    for row in rows:
        client, lmid = msgspec.json.decode(row)
        if not 0 <= lmid <= MAX_SAFE_INTEGER:
            raise UnsafeIntegerError(
                f"column 'lastMutationID' of client {client!r} holds {lmid}, which has no exact "
                "JSON number; correct the row in the upstream database"
            )
        body.lmids[client] = lmid


def _internal_tables(digest: str, table: str, put: str, del_: str) -> ClientTables:
    def select(expression: str) -> str:
        return (
            f"SELECT _rowid_, {expression} FROM {quote(table)} "  # noqa: S608 (constants, quoted)
            "WHERE _rowid_ IN (SELECT value FROM carray(?))"
        )

    return ClientTables(f"internal:{digest}", {}, {table: PatchSql(select(put), select(del_))})
