"""The inspector: answers ``inspect`` messages of one worker's clients (sync-protocol.md §7).

Owns who may ask: groups whose client gave the admin password to this process, and everybody in
development. It changes nothing, and a reply has exactly the members the protocol lists, because
clients refuse others and give up the connection over missing ones. An operation that fails is
answered with its reason; it never ends the connection.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator, Sequence
from typing import Any, Final, Protocol

import apsw
import msgspec
import structlog

from view_syncer.analysis import analyze
from view_syncer.client_group import ClientGroup
from view_syncer.context import ConnectionContext
from view_syncer.cvr.record import Desire, GroupRecord, QueryHash, QueryRecord
from view_syncer.engine_host import EngineHost
from view_syncer.fan_out import QueryMeasures
from view_syncer.ivm.digest import COMPRESSION
from view_syncer.queries import QuerySource
from zerocache import __version__
from zerocache.config import Config
from zerocache.errors import QueryError, ZerocacheError
from zerocache.protocol import downstream
from zerocache.protocol.messages import Inspect
from zerocache.zql.ast import Query, to_json
from zerocache.zql.permissions import unreadable_tables

log = structlog.get_logger(__name__)

EMPTY_DIGEST: Final = (COMPRESSION,)
"""A t-digest without samples: its compression alone."""
_FIRST_WITH_HYDRATION_MS = 51
_ANALYZED = "analyzed"


class Asking(Protocol):
    """What the inspector needs of the connection that asks."""

    group: ClientGroup
    version: int
    context: ConnectionContext


class Inspector:
    """One per worker."""

    def __init__(self, config: Config, engine: EngineHost, queries: QuerySource) -> None:
        self._config = config
        self._engine = engine
        self._queries = queries
        # Groups whose client gave the password.
        self._authenticated: set[str] = set()

    async def answer(self, asking: Asking, message: Inspect) -> bytes:
        """The frame that answers ``message``."""
        group_id = asking.group.group_id
        if message.op == "authenticate":
            return self._authenticate(group_id, message)
        if not self._config.development and group_id not in self._authenticated:
            return downstream.inspect_reply(message.id, "authenticated", False)
        log.info("inspected", clientGroupID=group_id, op=message.op)
        try:
            value = await self._value(asking, message)
        except (ZerocacheError, apsw.Error) as error:
            log.warning("inspection_failed", clientGroupID=group_id, op=message.op)
            return downstream.inspect_reply(message.id, "error", str(error))
        return downstream.inspect_reply(message.id, message.op, value)

    def _authenticate(self, group_id: str, message: Inspect) -> bytes:
        accepted = self._is_admin(message.password or "")
        if accepted:
            self._authenticated.add(group_id)
        else:
            self._authenticated.discard(group_id)
        log.info("inspector_authenticated", clientGroupID=group_id, accepted=accepted)
        return downstream.inspect_reply(message.id, "authenticated", accepted)

    def _is_admin(self, password: str) -> bool:
        expected = self._config.admin_password
        if not expected:
            return self._config.development and not password
        return hmac.compare_digest(password.encode(), expected.encode())

    async def _value(self, asking: Asking, message: Inspect) -> Any:
        match message.op:
            case "version":
                return self._config.server_version or __version__
            case "metrics":
                return _digests(*await self._engine.digests())
            case "queries":
                return await self._rows(asking, message.client_id)
            case _:
                return await self._analysis(asking, message)

    async def _rows(self, asking: Asking, client_id: str | None) -> list[dict[str, Any]]:
        measures = await self._engine.measures(asking.group)
        facts = asking.group.inspected()
        return [
            {
                "clientID": owner,
                "queryID": query_hash,
                **_definition(facts.record.queries[query_hash], facts.asts.get(query_hash)),
                "got": facts.record.queries[query_hash].got,
                "deleted": not desire.active,
                "ttl": desire.ttl_ms,
                "inactivatedAt": desire.inactivated_at_ms,
                "rowCount": measures[query_hash].row_count if query_hash in measures else 0,
                "metrics": _query_metrics(measures.get(query_hash), asking.version),
            }
            for owner, query_hash, desire in _desires(facts.record, facts.ttl_now_ms)
            if client_id in (None, owner)
        ]

    async def _analysis(self, asking: Asking, message: Inspect) -> dict[str, Any]:
        query = await self._query(asking, message)
        facts = asking.group.inspected()
        warnings: tuple[str, ...] = ()
        if message.query is not None:
            warnings = tuple(
                f"Table {table} has no read permission, so none of its rows are synced."
                for table in sorted(unreadable_tables(message.query, self._queries.permissions))
            )
        options = message.options
        analysis = await asyncio.to_thread(
            analyze,
            self._config.replica.file,
            query,
            facts.tables,
            synced_rows=options.synced_rows,
            read_rows=options.vended_rows,
            warnings=warnings,
        )
        return analysis.protocol_value()

    async def _query(self, asking: Asking, message: Inspect) -> Query:
        """What the engine would run: an AST with its permissions, or what the application makes
        of a name."""
        if message.name is not None and message.args is not None:
            args = msgspec.json.encode(message.args)
            record = QueryRecord(name=message.name, args_json=args)
        elif message.query is not None:
            record = QueryRecord(ast_json=to_json(message.query))
        else:
            raise QueryError(
                "analyze-query was asked without an AST: give one, or a name with arguments"
            )
        wanted = await self._queries.resolve({_ANALYZED: record}, asking.context, {}, fresh=True)
        if _ANALYZED in wanted.rejected:
            reason = wanted.rejected[_ANALYZED].get("message", "no reason given")
            raise QueryError(f"the application refused the query {message.name!r}: {reason}")
        if _ANALYZED not in wanted.queries:
            raise QueryError(
                f"the query {message.name!r} cannot be transformed: no endpoint for named queries "
                "is configured; set ZERO_QUERY_URL"
            )
        return wanted.queries[_ANALYZED][1]


def _desires(record: GroupRecord, now_ms: float) -> Iterator[tuple[str, QueryHash, Desire]]:
    """Unexpired wishes, by client and query."""
    for (owner, query_hash), desire in sorted(record.desires.items(), key=lambda item: item[0]):
        if query_hash in record.queries and not desire.expired(now_ms):
            yield owner, query_hash, desire


def _definition(query: QueryRecord, running: bytes | None) -> dict[str, Any]:
    """For a named query the AST is what the application made of it, while it runs."""
    ast = query.ast_json or running
    return {
        "ast": None if ast is None else msgspec.Raw(ast),
        "name": query.name,
        "args": None if query.args_json is None else msgspec.Raw(query.args_json),
    }


def _digests(hydrations: Sequence[float], advances: Sequence[float]) -> dict[str, Any]:
    return {"query-materialization-server": hydrations, "query-update-server": advances}


def _query_metrics(measures: QueryMeasures | None, version: int) -> dict[str, Any]:
    """Of one query; of one that does not run nothing is known."""
    hydration_ms = None if measures is None else measures.hydration_ms
    advances = None if measures is None else measures.advances_ms
    if version < _FIRST_WITH_HYDRATION_MS:
        hydrations = EMPTY_DIGEST if hydration_ms is None else (*EMPTY_DIGEST, hydration_ms, 1)
        return _digests(hydrations, advances or EMPTY_DIGEST)
    metrics: dict[str, Any] = {"query-update-server": advances or EMPTY_DIGEST}
    if hydration_ms is not None:
        metrics["query-hydration-server-ms"] = hydration_ms
    return metrics
