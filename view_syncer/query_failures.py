"""Who is told of queries that do not run, and how.

A rejected or unusable query is reported to the clients that want it, and their connections stay.
Rows that have no JSON form end the connections that want them (sync-protocol.md §3.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from view_syncer.audience import Audience, Client
from view_syncer.cvr.record import GroupRecord, QueryHash
from zerocache.errors import ClientFacingError, QueryError, UnsafeIntegerError
from zerocache.protocol import downstream


def report_rejected(
    audience: Audience, record: GroupRecord, rejected: Mapping[QueryHash, Mapping[str, Any]]
) -> None:
    """``rejected``: entries of ``transformError``."""
    for client in audience.admitted():
        errors = [
            error
            for query, error in rejected.items()
            if (client.client_id, query) in record.desires
        ]
        if errors:
            audience.tell_one(client, downstream.transform_error(errors, client.version))


def report_failed(
    audience: Audience, record: GroupRecord, failed: Mapping[QueryHash, QueryError]
) -> None:
    """Queries the engine cannot serve."""
    reports: dict[QueryHash, dict[str, Any]] = {}
    for query, error in failed.items():
        if isinstance(error, UnsafeIntegerError):
            for client in _desiring(audience, record, query):
                client.fail(ClientFacingError("Internal", str(error)))
        else:
            name = record.queries[query].name or "(ad-hoc query)"
            reports[query] = {"error": "parse", "id": query, "name": name, "message": str(error)}
    report_rejected(audience, record, reports)


def _desiring(audience: Audience, record: GroupRecord, query: QueryHash) -> list[Client]:
    return [c for c in audience.admitted() if (c.client_id, query) in record.desires]
