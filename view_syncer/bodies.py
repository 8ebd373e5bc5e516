"""Poke bodies from what the record and the engine say.

Owns which patches a step of a client group consists of; the two functions that move the record
note what they moved in the :class:`ConfigChange` that is to be saved before the poke is sent.
Never sends or stores anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from view_syncer.cvr.record import ConfigChange, GroupRecord, QueryHash
from view_syncer.fan_out import FullView, Reconciled
from view_syncer.poke import PokeBody
from view_syncer.queries import QuerySource
from zerocache.protocol import downstream
from zerocache.protocol.versions import ViewVersion


def config_body(version: ViewVersion, change: ConfigChange) -> PokeBody:
    """The desired patches of a configuration change (§4.2.6)."""
    body = PokeBody(version)
    for client_id, ops in change.desired.items():
        body.desired[client_id] = [_query_op(op, query) for op, query in ops]
    return body


def got_body(
    version: ViewVersion,
    record: GroupRecord,
    added: Mapping[QueryHash, str],
    stopped: list[QueryHash],
    change: ConfigChange,
) -> PokeBody:
    """Queries whose results are complete from now on (``added``, with what they run as), and those
    that are no longer followed."""
    body = PokeBody(version)
    for query, unit in added.items():
        known = record.queries[query]
        if known.got_at is None:
            known.got_at, known.unit = version, unit
            change.queries.add(query)
            body.got.append(downstream.put_query(query))
        elif known.unit != unit:
            # Whoever was here before has the rows of another query under this name.
            known.unit = unit
            change.queries.add(query)
            record.provable_from = version
    for query in stopped:
        known = record.queries[query]
        known.got_at = known.unit = None
        record.provable_from = version
        change.queries.add(query)
        body.got.append(downstream.del_query(query))
    return body


def add_rows(body: PokeBody, result: Reconciled, queries: QuerySource, group_id: str) -> None:
    """The row differences of a change of queries, and the internal rows it brought."""
    body.rows.extend(run for run in (result.dels, result.puts) if run)
    queries.add_internal_rows(group_id, result.internal, body)


def full_body(
    version: ViewVersion, record: GroupRecord, view: FullView, queries: QuerySource
) -> PokeBody:
    """All there is, for a client that has nothing; with ``clear`` set, for any."""
    body = PokeBody(version)
    for client_id, desired in record.active_desires().items():
        body.desired[client_id] = [downstream.put_query(query) for query in desired]
    body.got = [downstream.put_query(h) for h, known in record.queries.items() if known.got]
    body.rows.append(view.puts)
    queries.add_internal_rows(record.group_id, view.internal, body)
    return body


def difference_body(
    version: ViewVersion,
    record: GroupRecord,
    base: ViewVersion,
    view: FullView,
    results: Iterable[str],
    queries: QuerySource,
) -> PokeBody:
    """What a client at ``base``, which has mutation ``results``, lacks of the present view. What
    is small is sent whole: to repeat it does no harm."""
    body = PokeBody(version)
    for (client_id, query), desire in record.desires.items():
        op = "put" if desire.active else "del"
        body.desired.setdefault(client_id, []).append(_query_op(op, query))
    body.got = [
        downstream.put_query(query)
        for query, known in record.queries.items()
        if known.got_at is not None and known.got_at > base
    ]
    body.rows.extend(run for run in (view.dels, view.puts) if run)
    queries.add_gone_results(results, view.internal, body)
    queries.add_internal_rows(record.group_id, view.internal, body)
    return body


def wiping(body: PokeBody) -> PokeBody:
    """``body`` for a client that may hold anything."""
    return PokeBody(
        body.version, body.lmids, body.desired, body.got, body.rows, body.mutations, clear=True
    )


def _query_op(op: str, query: QueryHash) -> bytes:
    return downstream.put_query(query) if op == "put" else downstream.del_query(query)
