"""Records and facts as rows of tables, and back; the same for every store.

Owns which rows one save writes: those its :class:`ConfigChange` names, and always the group's
own. The rows are taken when the save is asked for: what happens to the record afterwards is none
of its business. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from view_syncer.cvr.record import ConfigChange, Desire, GroupRecord, QueryRecord
from view_syncer.cvr.store import Checkpoint, Delta, StoredFacts, UnitFacts
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.versions import ViewVersion, Watermark

_Takeover = tuple[str, int, int]
"""The state and the configuration of a version, and an author."""


class GroupRow(msgspec.Struct, frozen=True):
    """The columns of a group. ``client_schema`` and ``takeovers`` are JSON text."""

    group_id: str
    state_version: str
    config_version: int
    client_schema: str | None
    profile_id: str | None
    replica_version: str | None
    ttl_clock: float
    provable_state: str
    provable_config: int
    takeovers: str


class ClientRow(msgspec.Struct, frozen=True):
    group_id: str
    client_id: str


class QueryKey(msgspec.Struct, frozen=True):
    group_id: str
    query_hash: str


class QueryRow(msgspec.Struct, frozen=True):
    group_id: str
    query_hash: str
    ast: str | None
    name: str | None
    args: str | None
    got_state: str | None
    got_config: int | None
    unit: str | None


class DesireKey(msgspec.Struct, frozen=True):
    group_id: str
    client_id: str
    query_hash: str


class DesireRow(msgspec.Struct, frozen=True):
    group_id: str
    client_id: str
    query_hash: str
    ttl_ms: float
    inactivated_at_ms: float | None


class Save(msgspec.Struct, frozen=True):
    """What one save writes, provided that the group is unknown (``new``) or at ``expected``."""

    group: GroupRow
    new: bool
    expected: ViewVersion
    clients: list[ClientRow]
    clients_gone: list[ClientRow]
    queries: list[QueryRow]
    queries_gone: list[QueryKey]
    desires: list[DesireRow]
    desires_gone: list[DesireKey]


def save_of(record: GroupRecord, change: ConfigChange, expected: ViewVersion) -> Save:
    group, queries, desires = record.group_id, record.queries, record.desires
    return Save(
        group=_group_row(record),
        new=not record.exists,
        expected=expected,
        clients=[ClientRow(group, c) for c in change.clients if c in record.clients],
        clients_gone=[ClientRow(group, c) for c in change.clients if c not in record.clients],
        queries=[_query_row(group, q, queries[q]) for q in change.queries if q in queries],
        queries_gone=[QueryKey(group, q) for q in change.queries if q not in queries],
        desires=[
            DesireRow(group, *key, desires[key].ttl_ms, desires[key].inactivated_at_ms)
            for key in change.desires
            if key in desires
        ],
        desires_gone=[DesireKey(group, *key) for key in change.desires if key not in desires],
    )


def record_of(
    group: GroupRow,
    clients: Iterable[str],
    queries: Iterable[QueryRow],
    desires: Iterable[DesireRow],
    *,
    deleted: bool,
) -> GroupRecord:
    schema = group.client_schema
    replica = group.replica_version
    return GroupRecord(
        group.group_id,
        version=_version(group.state_version, group.config_version),
        exists=True,
        deleted=deleted,
        client_schema=None if schema is None else ClientSchema.from_json(schema.encode()),
        profile_id=group.profile_id,
        replica_version=None if replica is None else Watermark(replica),
        ttl_clock_ms=group.ttl_clock,
        provable_from=_version(group.provable_state, group.provable_config),
        takeovers=[
            (_version(state, config), author)
            for state, config, author in msgspec.json.decode(group.takeovers, type=list[_Takeover])
        ],
        clients=set(clients),
        queries={row.query_hash: _query(row) for row in queries},
        desires={
            (row.client_id, row.query_hash): Desire(row.ttl_ms, row.inactivated_at_ms)
            for row in desires
        },
    )


def stored_facts(rows: Sequence[Sequence[Any]]) -> StoredFacts:
    """From rows (0, -, complete_to, -), (1, unit, version, body) of checkpoints, and (2, unit,
    version, body) of deltas in their order."""
    complete_to: Watermark | None = None
    checkpoints: dict[str, Checkpoint] = {}
    deltas: dict[str, list[Delta]] = {}
    for kind, unit, version, body in rows:
        if kind == 0:
            complete_to = version
        elif kind == 1:
            checkpoints[unit] = Checkpoint(version, body)
        else:
            deltas.setdefault(unit, []).append(Delta(version, body))
    return StoredFacts(
        complete_to,
        {
            unit: UnitFacts(checkpoints.get(unit), deltas.get(unit, []))
            for unit in checkpoints.keys() | deltas.keys()
        },
    )


def _group_row(record: GroupRecord) -> GroupRow:
    schema = record.client_schema
    return GroupRow(
        group_id=record.group_id,
        state_version=record.version.state,
        config_version=record.version.config,
        client_schema=None if schema is None else schema.canonical().decode(),
        profile_id=record.profile_id,
        replica_version=record.replica_version,
        ttl_clock=record.ttl_clock_ms,
        provable_state=record.provable_from.state,
        provable_config=record.provable_from.config,
        takeovers=msgspec.json.encode(
            [(version.state, version.config, author) for version, author in record.takeovers]
        ).decode(),
    )


def _query_row(group: str, query: str, record: QueryRecord) -> QueryRow:
    got = record.got_at
    return QueryRow(
        group_id=group,
        query_hash=query,
        ast=_text(record.ast_json),
        name=record.name,
        args=_text(record.args_json),
        got_state=None if got is None else got.state,
        got_config=None if got is None else got.config,
        unit=record.unit,
    )


def _query(row: QueryRow) -> QueryRecord:
    got = None if row.got_state is None else _version(row.got_state, row.got_config or 0)
    return QueryRecord(_bytes(row.ast), row.name, _bytes(row.args), got, row.unit)


def _version(state: str, config: int) -> ViewVersion:
    return ViewVersion(Watermark(state), config)


def _bytes(value: str | None) -> bytes | None:
    return None if value is None else value.encode()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()
