"""The tables of a replica file: internal ones, user tables, indexes and their metadata.

Owns every CREATE statement and the encoding of the metadata rows. It must never touch rows of user
tables. Invariants:

* user tables are ordinary rowid tables whose columns have no declared type, constraint or
  default, in upstream ``attnum`` order, with ``_0_version`` last; keys exist only as indexes;
* an index is unique in the replica only if upstream enforces it at every moment;
* rowids are identities, therefore a replica must never be VACUUMed in place while anybody
  remembers rowids: VACUUM renumbers tables without an INTEGER PRIMARY KEY.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import apsw
import msgspec

from zerocache.errors import UpstreamSetupError
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedSchema,
    PublishedTable,
    wire_name,
)
from zerocache.replica.schema import VERSION_COLUMN
from zerocache.replica.sql import placeholders, quote, quote_all
from zerocache.replica.types import client_type, stored_type_name

FORMAT_VERSION = 2
"""Rises with every change of the internal tables; migrations.py leads there from older ones."""
# SQLite's name for the identity of a row; a column may take the shorter ones (rowid, oid) away.
_ROW_NUMBER = "_rowid_"
REPLICATION_CONFIG = quote("_zero.replicationConfig")
REPLICATION_STATE = quote("_zero.replicationState")
CHANGE_LOG = quote("_zero.changeLog")
COLUMN_METADATA = quote("_zero.column_metadata")
TABLE_METADATA = quote("_zero.tableMetadata")
LAST_WRITER = quote("_zero.lastWriter")

CREATE_LAST_WRITER = (
    f"CREATE TABLE {LAST_WRITER} (lock INTEGER PRIMARY KEY CHECK (lock = 1), "
    "boot TEXT NOT NULL, ended INTEGER NOT NULL)"
)
_INTERNAL_TABLES = (
    f"CREATE TABLE {REPLICATION_CONFIG} (lock INTEGER PRIMARY KEY CHECK (lock = 1), "
    "replicaVersion TEXT NOT NULL, publications TEXT NOT NULL, appId TEXT NOT NULL, "
    "shardNum INTEGER NOT NULL, formatVersion INTEGER NOT NULL)",
    f"CREATE TABLE {REPLICATION_STATE} (lock INTEGER PRIMARY KEY CHECK (lock = 1), "
    "stateVersion TEXT NOT NULL, writeTimeMs INTEGER NOT NULL, logPos INTEGER NOT NULL, "
    "logFloor INTEGER NOT NULL)",
    f"CREATE TABLE {CHANGE_LOG} (pos INTEGER PRIMARY KEY, version TEXT NOT NULL, "
    '"table" TEXT NOT NULL, row INTEGER NOT NULL, op TEXT NOT NULL)',
    f"CREATE TABLE {COLUMN_METADATA} (table_name TEXT NOT NULL, column_name TEXT NOT NULL, "
    "upstream_type TEXT NOT NULL, is_not_null INTEGER NOT NULL, is_enum INTEGER NOT NULL, "
    "is_array INTEGER NOT NULL, character_max_length INTEGER, position INTEGER NOT NULL, "
    "PRIMARY KEY (table_name, column_name))",
    f"CREATE TABLE {TABLE_METADATA} (table_name TEXT PRIMARY KEY, schema TEXT NOT NULL, "
    "name TEXT NOT NULL, keys TEXT NOT NULL, minRowVersion TEXT NOT NULL DEFAULT '00', "
    "upstreamMetadata TEXT NOT NULL)",
    CREATE_LAST_WRITER,
)


class ReplicaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a replica was built from; a mismatch with the settings calls for a new one."""

    replica_version: str
    publications: tuple[str, ...]
    app_id: str
    shard_num: int
    format_version: int = FORMAT_VERSION


class TableFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The upstream facts a replicated table was built from (``upstreamMetadata``)."""

    table: PublishedTable
    indexes: tuple[PublishedIndex, ...]


def create_internal_tables(
    connection: apsw.Connection, config: ReplicaConfig, write_time_ms: int
) -> None:
    """Create the ``_zero.*`` tables of a new replica that stands at its replica version."""
    for statement in _INTERNAL_TABLES:
        connection.execute(statement)
    connection.execute(
        f"INSERT INTO {REPLICATION_CONFIG} VALUES (1, ?, ?, ?, ?, ?)",  # noqa: S608 - a constant
        (
            config.replica_version,
            msgspec.json.encode(sorted(config.publications)).decode(),
            config.app_id,
            config.shard_num,
            config.format_version,
        ),
    )
    connection.execute(
        f"INSERT INTO {REPLICATION_STATE} VALUES (1, ?, ?, 0, 0)",  # noqa: S608 - a constant
        (config.replica_version, write_time_ms),
    )


def load_config(connection: apsw.Connection) -> ReplicaConfig | None:
    """The config row, or None if the file holds no finished replica of any format."""
    exists = connection.execute(
        "SELECT 1 FROM sqlite_schema WHERE name = '_zero.replicationConfig'"
    ).fetchone()
    row = exists and connection.execute(f"SELECT * FROM {REPLICATION_CONFIG}").fetchone()  # noqa: S608
    if not row:
        return None
    _, replica_version, publications, app_id, shard_num, format_version = row
    return ReplicaConfig(
        replica_version=replica_version,
        publications=msgspec.json.decode(publications, type=tuple[str, ...]),
        app_id=app_id,
        shard_num=shard_num,
        format_version=format_version,
    )


def create_table_sql(table: PublishedTable) -> str:
    columns = quote_all([*(column.name for column in _in_order(table)), VERSION_COLUMN])
    return f"CREATE TABLE {quote(table.wire_name)} ({columns})"


def create_index_sql(index: PublishedIndex) -> str:
    unique = "UNIQUE " if index.enforced else ""
    columns = ", ".join(f"{quote(name)} {direction}" for name, direction in index.columns)
    name = quote(wire_name(index.schema, index.name))
    table = quote(wire_name(index.schema, index.table))
    return f"CREATE {unique}INDEX {name} ON {table} ({columns})"


def create_table(connection: apsw.Connection, facts: TableFacts) -> None:
    """Create the table and its metadata, but not its indexes."""
    connection.execute(create_table_sql(facts.table))
    save_table(connection, facts)


def create_indexes(connection: apsw.Connection, facts: TableFacts) -> None:
    for index in facts.indexes:
        connection.execute(create_index_sql(index))


def save_table(connection: apsw.Connection, facts: TableFacts, min_row_version: str = "00") -> None:
    """Write (or replace) the metadata of one table and of its columns."""
    table = facts.table
    name = table.wire_name
    connection.execute(f"DELETE FROM {COLUMN_METADATA} WHERE table_name = ?", (name,))  # noqa: S608
    connection.executemany(
        f"INSERT INTO {COLUMN_METADATA} VALUES ({placeholders(8)})",  # noqa: S608 - constants
        [_column_row(name, column) for column in _in_order(table)],
    )
    connection.execute(
        f"INSERT OR REPLACE INTO {TABLE_METADATA} VALUES ({placeholders(6)})",  # noqa: S608
        (
            name,
            table.schema,
            table.name,
            msgspec.json.encode(synced_keys(facts)).decode(),
            min_row_version,
            msgspec.json.encode(facts).decode(),
        ),
    )


def load_tables(connection: apsw.Connection) -> dict[str, TableFacts]:
    """The upstream facts of every replicated table, by wire name."""
    return {
        name: msgspec.json.decode(upstream, type=TableFacts)
        for name, upstream in connection.execute(
            f"SELECT table_name, upstreamMetadata FROM {TABLE_METADATA}"  # noqa: S608 - a constant
        )
    }


def synced_keys(facts: TableFacts) -> list[list[str]]:
    """Keys clients may address rows by, best first (fewest columns, then by name)."""
    synced = {
        column.name
        for column in facts.table.columns
        if client_type(stored_type_name(column), column.is_enum, column.is_array) is not None
    }
    return [list(key) for key in _unique_keys(facts) if synced.issuperset(key)]


def row_key(facts: TableFacts) -> tuple[str, ...] | None:
    """The columns that identify a row inside the replica, whatever their types; None if none do."""
    keys = _unique_keys(facts)
    return keys[0] if keys else None


def identity_key(facts: TableFacts) -> tuple[str, ...] | None:
    """The columns by which upstream's updates and deletes name a row; None if it has none."""
    identity = facts.table.replica_identity
    if identity == "f":
        return row_key(facts)
    if identity == "i":
        keys = [index.column_names for index in facts.indexes if index.is_replica_identity]
        return keys[0] if keys else None
    return facts.table.primary_key or None


def _unique_keys(facts: TableFacts) -> list[tuple[str, ...]]:
    not_null = {column.name for column in facts.table.columns if column.not_null}
    keys = {
        tuple(sorted(index.column_names))
        for index in facts.indexes
        if index.enforced and not_null.issuperset(index.column_names)
    }
    return sorted(keys, key=lambda key: (len(key), key))


def check_names(schema: PublishedSchema) -> None:
    """Refuse what SQLite, whose names ignore ASCII case, cannot hold side by side."""
    _check_distinct("tables", [table.wire_name for table in schema.tables])
    indexes = [wire_name(index.schema, index.name) for index in schema.indexes]
    _check_distinct("indexes", indexes)
    _check_distinct("tables and indexes", [*(t.wire_name for t in schema.tables), *indexes])
    for table in schema.tables:
        names = [column.name for column in table.columns]
        _check_distinct(
            f"columns of table {table.wire_name}", [*names, VERSION_COLUMN, _ROW_NUMBER]
        )


def _check_distinct(what: str, names: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        folded = name.lower()
        if folded in seen:
            raise UpstreamSetupError(
                f"the {what} {seen[folded]!r} and {name!r} have the same name in the replica: "
                "SQLite names ignore case; rename one of them or take it out of the publication"
            )
        if folded.startswith("sqlite_"):
            raise UpstreamSetupError(
                f"{name!r} is among the {what}: SQLite reserves names that begin with sqlite_; "
                "rename it or take it out of the publication"
            )
        seen[folded] = name


def _column_row(table: str, column: PublishedColumn) -> tuple[str | int | None, ...]:
    return (
        table,
        column.name,
        stored_type_name(column),
        int(column.not_null),
        int(column.is_enum),
        int(column.is_array),
        column.max_length,
        column.position,
    )


def _in_order(table: PublishedTable) -> list[PublishedColumn]:
    return sorted(table.columns, key=lambda column: column.position)


def facts_of(schema: PublishedSchema) -> Iterable[TableFacts]:
    """One :class:`TableFacts` per table of ``schema``."""
    return [TableFacts(table=table, indexes=schema.indexes_of(table)) for table in schema.tables]
