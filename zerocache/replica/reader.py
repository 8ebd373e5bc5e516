"""Read access to the replica: connections, schema and state, for workers and for the writer.

Owns how a replica file is opened for reading. A connection made here never writes (``query_only``)
and never checkpoints; what it sees between ``BEGIN`` and ``COMMIT`` is one commit of the writer.
Readers owe the writer one thing: when the notifier announces a version they already have, they
re-open their snapshot (see notifier.py), because the WAL file can only be reset when no reader
depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import apsw
import msgspec

from zerocache.errors import ReplicaError
from zerocache.protocol.versions import Watermark
from zerocache.replica.auto_index import auto_indexes
from zerocache.replica.layout import COLUMN_METADATA, TABLE_METADATA, TableFacts
from zerocache.replica.pending import hidden_columns, load_pending
from zerocache.replica.schema import ReplicaColumn, ReplicaTable
from zerocache.replica.types import client_type

_BUSY_TIMEOUT_MS = 30_000
_STATEMENT_CACHE = 1_000
_READ_PRAGMAS = (
    "PRAGMA query_only = 1",
    # Pages come from the memory map where they can; the cache holds those still in the WAL.
    "PRAGMA cache_size = -32768",
    "PRAGMA mmap_size = 1073741824",
    "PRAGMA temp_store = memory",
)


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """Where the replica stands: one row of ``_zero.replicationState`` plus the generation.

    ``log_pos`` is the highest change log position; every entry above ``log_floor`` still exists.
    ``replica_version`` names the initial sync this replica stems from.
    """

    version: Watermark
    log_pos: int
    log_floor: int
    replica_version: Watermark


def open_replica(path: str | Path) -> apsw.Connection:
    """A read-only connection to an existing replica; ``ReplicaError`` if there is none."""
    if not Path(path).is_file():
        raise ReplicaError(
            f"the replica {path} does not exist: nothing can be served before the initial sync; "
            "wait for the replication process to finish it",
            code="ZC301",
        )
    # Not SQLITE_OPEN_READONLY: a reader must be able to create the -shm file after a crash.
    connection = apsw.Connection(
        str(path), flags=apsw.SQLITE_OPEN_READWRITE, statementcachesize=_STATEMENT_CACHE
    )
    connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
    # The last reader to leave must not spend its shutdown on copying the WAL.
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    # Else SQLite takes a quoted name it does not know for a string: a dropped column would be
    # sent as its own name instead of failing.
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
    for pragma in _READ_PRAGMAS:
        connection.execute(pragma)
    return connection


def read_state(connection: apsw.Connection) -> ReplicaState:
    """The state of the snapshot ``connection`` sees; ``ReplicaError`` if the file is no replica."""
    try:
        row = connection.execute(
            "SELECT s.stateVersion, s.logPos, s.logFloor, c.replicaVersion "
            'FROM "_zero.replicationState" s, "_zero.replicationConfig" c'
        ).fetchone()
    except apsw.SQLError as error:
        raise ReplicaError(
            f"{connection.filename} is not a replica ({error}): it was not made by this program; "
            "delete the file so that a new initial sync creates it"
        ) from error
    if row is None:
        raise ReplicaError(
            f"the replica {connection.filename} has no state: its initial sync did not finish; "
            "delete the file so that a new initial sync creates it"
        )
    version, log_pos, log_floor, replica_version = row
    return ReplicaState(Watermark(version), log_pos, log_floor, Watermark(replica_version))


def load_schema(connection: apsw.Connection) -> dict[str, ReplicaTable]:
    """Every user table of the snapshot ``connection`` sees, by wire name.

    Tables and columns that wait for a backfill are left out, as if they were not published yet.
    """
    pending = load_pending(connection)
    columns: dict[str, dict[str, ReplicaColumn]] = {}
    for table, name, upstream_type, not_null, is_enum, is_array in connection.execute(
        "SELECT table_name, column_name, upstream_type, is_not_null, is_enum, "  # noqa: S608
        "is_array "
        f"FROM {COLUMN_METADATA} ORDER BY table_name, position"
    ):
        columns.setdefault(table, {})[name] = ReplicaColumn(
            name=name,
            upstream_type=upstream_type,
            client_type=client_type(upstream_type, bool(is_enum), bool(is_array)),
            not_null=bool(not_null),
            is_enum=bool(is_enum),
            is_array=bool(is_array),
        )
    own: dict[str, list[tuple[str, ...]]] = {}
    for automatic in auto_indexes(connection):
        names = tuple(name for name, _ in automatic.index.columns)
        own.setdefault(automatic.index.table, []).append(names)
    tables = {}
    for name, keys, min_row_version, upstream in connection.execute(
        "SELECT table_name, keys, minRowVersion, upstreamMetadata "  # noqa: S608 - a constant
        f"FROM {TABLE_METADATA} ORDER BY table_name"
    ):
        facts = msgspec.json.decode(upstream, type=TableFacts)
        backfill = pending.get(facts.table.oid)
        if backfill is not None and backfill.whole:
            continue
        hidden = hidden_columns(facts, pending)
        table_keys = msgspec.json.decode(keys, type=tuple[tuple[str, ...], ...])
        indexes = (*(index.column_names for index in facts.indexes), *own.get(name, ()))
        tables[name] = ReplicaTable(
            name=name,
            columns={n: c for n, c in columns.get(name, {}).items() if n not in hidden},
            keys=tuple(key for key in table_keys if hidden.isdisjoint(key)),
            min_row_version=min_row_version,
            indexes=tuple(index for index in indexes if hidden.isdisjoint(index)),
        )
    return tables


def load_unfinished(connection: apsw.Connection) -> dict[str, frozenset[str]]:
    """The columns, by table, that :func:`load_schema` leaves out until a backfill has filled them;
    of a table that is left out as a whole, all."""
    pending = load_pending(connection)
    unfinished: dict[str, frozenset[str]] = {}
    if not pending:
        return unfinished
    for name, upstream in connection.execute(
        f"SELECT table_name, upstreamMetadata FROM {TABLE_METADATA}"  # noqa: S608 - a constant
    ):
        facts = msgspec.json.decode(upstream, type=TableFacts)
        entry = pending.get(facts.table.oid)
        if entry is not None and entry.whole:
            unfinished[name] = frozenset(column.name for column in facts.table.columns)
        elif entry is not None and entry.columns:
            unfinished[name] = entry.hidden_columns(facts)
    return unfinished
