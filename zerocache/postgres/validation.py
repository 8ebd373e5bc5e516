"""Whether an upstream database can be replicated as it stands.

Owns every check of server, publications and published schema. It only reads, so that a refusal
leaves the database as it was. All problems of one kind are reported at once, because fixing them
one restart at a time is no fun.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import psycopg

from zerocache.errors import UpstreamSetupError
from zerocache.postgres.connection import MISSING_PRIVILEGE
from zerocache.postgres.shard import ShardNames
from zerocache.replica.layout import check_names
from zerocache.replica.published import PublishedSchema, PublishedTable
from zerocache.replica.schema import VERSION_COLUMN

WAL_LEVEL = "ZC111"
SERVER_VERSION = "ZC112"
MISSING_PUBLICATION = "ZC115"
INCOMPLETE_PUBLICATION = "ZC116"
CONFLICTING_COLUMNS = "ZC117"
INVALID_NAME = "ZC118"
NO_IDENTITY = "ZC119"

_OLDEST_SERVER = 150_000
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_COLUMN_NAME = re.compile(r"[A-Za-z_][.A-Za-z0-9_-]*", re.ASCII)
_UNREADABLE = """
    SELECT format('%%s on %%s', problem, c.oid::regclass)
    FROM unnest(%s::oid[]) AS t(oid)
    JOIN pg_class c ON c.oid = t.oid
    CROSS JOIN LATERAL (VALUES
        ('no SELECT', NOT has_table_privilege(c.oid, 'SELECT')),
        ('row security', row_security_active(c.oid))
    ) AS checks(problem, applies)
    WHERE applies
    ORDER BY 1
"""


def check_server(connection: psycopg.Connection[Any]) -> None:
    """The server's version and ``wal_level``."""
    version = connection.info.server_version
    if version < _OLDEST_SERVER:
        raise UpstreamSetupError(
            f"the upstream server is PostgreSQL {version // 10_000}: publications with column "
            "lists and row filters, which replication relies on, came with version 15; upgrade it",
            code=SERVER_VERSION,
        )
    row = connection.execute("SHOW wal_level").fetchone()
    level = row[0] if row else "unknown"
    if level != "logical":
        raise UpstreamSetupError(
            f"the upstream server runs with wal_level = {level}: logical replication needs "
            "wal_level = logical; set it in postgresql.conf (or with ALTER SYSTEM SET wal_level = "
            "'logical', or in the provider's console) and restart the server",
            code=WAL_LEVEL,
        )


def check_publications(connection: psycopg.Connection[Any], shard: ShardNames) -> None:
    """The configured publications exist, publish everything and agree on columns."""
    kinds = {
        name: flags
        for name, *flags in connection.execute(
            "SELECT pubname, pubinsert, pubupdate, pubdelete, pubtruncate "
            "FROM pg_publication WHERE pubname = ANY (%s)",
            [list(shard.publications)],
        )
    }
    missing = [name for name in shard.publications if name not in kinds]
    if missing:
        raise UpstreamSetupError(
            f"unknown publication{_s(missing)} {', '.join(missing)}: ZERO_APP_PUBLICATIONS names "
            "what does not exist in the upstream database; create it there, for example with "
            f"CREATE PUBLICATION {missing[0]} FOR TABLE …, or correct the setting",
            code=MISSING_PUBLICATION,
        )
    incomplete = [name for name, flags in kinds.items() if not all(flags)]
    if incomplete:
        raise UpstreamSetupError(
            f"the publication{_s(incomplete)} {', '.join(incomplete)} leave out some operations: "
            "insert, update, delete and truncate must all be published or the replica would "
            f"silently differ; run ALTER PUBLICATION {incomplete[0]} SET "
            "(publish = 'insert, update, delete, truncate')",
            code=INCOMPLETE_PUBLICATION,
        )
    _check_column_lists(connection, shard.publications)


def _check_column_lists(connection: psycopg.Connection[Any], publications: Sequence[str]) -> None:
    lists: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for schema, table, names in connection.execute(
        "SELECT schemaname, tablename, attnames::text[] FROM pg_publication_tables "
        "WHERE pubname = ANY (%s)",
        [list(publications)],
    ):
        lists[f"{schema}.{table}"].add(tuple(sorted(names)))
    conflicting = sorted(table for table, variants in lists.items() if len(variants) > 1)
    if conflicting:
        raise UpstreamSetupError(
            f"the table{_s(conflicting)} {', '.join(conflicting)} have different column lists in "
            f"the publications {', '.join(publications)}: PostgreSQL cannot stream such a table to "
            "one subscriber; give it the same columns in all of them",
            code=CONFLICTING_COLUMNS,
        )


def check_schema(schema: PublishedSchema, shard: ShardNames) -> None:
    """The published tables fit into a replica."""
    user_tables = [
        table
        for table in schema.tables
        if table.schema not in (shard.app_schema, shard.shard_schema)
    ]
    problems = [problem for table in user_tables for problem in _name_problems(table)]
    if problems:
        raise UpstreamSetupError(
            f"the published schema cannot be replicated: {'; '.join(problems)}. Rename what is "
            "named here, or take it out of the publication",
            code=INVALID_NAME,
        )
    check_names(schema)
    _check_identities(user_tables)
    _check_roots(user_tables)


def _name_problems(table: PublishedTable) -> Iterable[str]:
    where = f"{table.schema}.{table.name}"
    for part in (table.schema, table.name):
        if not _TABLE_NAME.fullmatch(part):
            yield (
                f"table {where!r} is not named by letters, digits, underscores and dashes "
                "starting with a letter"
            )
    for column in table.columns:
        if column.name == VERSION_COLUMN:
            yield f"table {where!r} has a column {VERSION_COLUMN}, which the replica uses itself"
        elif not _COLUMN_NAME.fullmatch(column.name):
            yield (
                f"column {column.name!r} of table {where!r} is not named by letters, digits, "
                "dots, underscores and dashes starting with a letter"
            )


def _check_identities(tables: Sequence[PublishedTable]) -> None:
    without = [f"{table.schema}.{table.name}" for table in tables if table.replica_identity == "n"]
    if without:
        raise UpstreamSetupError(
            f"the table{_s(without)} {', '.join(without)} have REPLICA IDENTITY NOTHING: their "
            f"updates and deletes cannot be replicated; run ALTER TABLE {without[0]} "
            "REPLICA IDENTITY DEFAULT, or take them out of the publication",
            code=NO_IDENTITY,
        )


def _check_roots(tables: Sequence[PublishedTable]) -> None:
    """No table's rows are published as those of another one, too: they would come only there."""
    names = {table.oid: f"{table.schema}.{table.name}" for table in tables}
    twice = [
        f"{names[partition.oid]} as a table and as a partition of {names[root.oid]}"
        for root in tables
        for partition in root.partitions
        if partition.oid in names
    ]
    if twice:
        raise UpstreamSetupError(
            f"the publications publish {'; '.join(twice)}: PostgreSQL sends such rows as those of "
            "the topmost table only, and the other one would stand still; set "
            "publish_via_partition_root alike in all publications, or publish each partition tree "
            "in one place"
        )


def check_copyable(connection: psycopg.Connection[Any], schema: PublishedSchema) -> None:
    """An initial sync can read every published row, and the changes of those rows will follow.

    Not asked of a shard that replicates already: it would end for what may never be needed again.
    """
    _check_identity_indexes(schema)
    unreadable = connection.execute(_UNREADABLE, [[table.oid for table in schema.tables]])
    if problems := [problem for (problem,) in unreadable]:
        raise UpstreamSetupError(
            f"the initial sync may not read what is published: {'; '.join(problems)}. GRANT SELECT "
            "on the tables to the role, give it BYPASSRLS if they have row security, or take them "
            "out of the publication",
            code=MISSING_PRIVILEGE,
        )


def _check_identity_indexes(schema: PublishedSchema) -> None:
    without = [
        f"{table.schema}.{table.name}"
        for table in schema.tables
        if table.replica_identity == "i"
        and not any(index.is_replica_identity for index in schema.indexes_of(table))
    ]
    if without:
        raise UpstreamSetupError(
            f"the table{_s(without)} {', '.join(without)} have an index as REPLICA IDENTITY that "
            "is gone, or whose columns are not all published: PostgreSQL refuses their updates and "
            f"deletes; run ALTER TABLE {without[0]} REPLICA IDENTITY DEFAULT, or name an index",
            code=NO_IDENTITY,
        )


def _s(things: Sequence[object]) -> str:
    return "s" if len(things) > 1 else ""
