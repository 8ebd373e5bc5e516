"""Prepares an upstream database for replication.

Owns the app and shard schemas, their tables and the two internal publications. Everything happens
in ONE transaction under an advisory lock, and the published schema is validated inside it: a
database that cannot be replicated is left exactly as it was. It never touches user tables, with one
documented exception: a table without primary key gets a usable unique index as replica identity,
because PostgreSQL would otherwise refuse its updates from the moment it is published.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, LiteralString, cast

import psycopg
import structlog
from psycopg import sql

from zerocache.errors import UpstreamSetupError
from zerocache.postgres.connection import MISSING_PRIVILEGE, connect, explain
from zerocache.postgres.ddl import ensure_ddl_detection
from zerocache.postgres.introspection import load_sql, read_published_schema
from zerocache.postgres.shard import ShardNames
from zerocache.postgres.validation import (
    check_copyable,
    check_publications,
    check_schema,
    check_server,
)
from zerocache.replica.published import PublishedIndex, PublishedSchema, PublishedTable

# The layout of the shared tables is that of the reference server's shard schema 23.
_SHARD_SCHEMA_VERSION = 23
_LOCK_TIMEOUT = "30s"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A database that is ready.

    ``must_resync``: replicas made before cannot follow any more. ``ddl_detection``: the change
    stream announces changes of the published schema by itself; without it they have to be looked
    for. ``announced``: the schema that was announced last, if any was, before it was set up now.
    """

    publications: tuple[str, ...]
    schema: PublishedSchema
    must_resync: bool
    ddl_detection: bool
    announced: PublishedSchema | None


def set_up_upstream(url: str, shard: ShardNames) -> Upstream:
    """Create or complete the shard's objects; ``UpstreamSetupError`` leaves all as it was."""
    shard.check()
    with connect(url, "setup") as connection:
        check_server(connection)
        try:
            with connection.transaction():
                return _set_up(connection, shard)
        except psycopg.errors.InsufficientPrivilege as error:
            raise _privilege_error(error, url, shard) from error
        except psycopg.Error as error:
            raise explain(error, url, f"setting up {shard.shard_schema}") from error


def _set_up(connection: psycopg.Connection[Any], shard: ShardNames) -> Upstream:
    connection.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
    connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", [shard.setup_lock])
    check_publications(connection, shard)
    _create_objects(connection, shard)
    publications_changed = _ensure_publications(connection, shard)
    list_changed = _store_publication_list(connection, shard)
    schema = read_published_schema(connection, shard.all_publications)
    check_schema(schema, shard)
    detection = ensure_ddl_detection(connection, shard)
    _store_ddl_detection(connection, shard, detection.by_triggers)
    if set_identities(connection, schema):
        schema = read_published_schema(connection, shard.all_publications)
    must_resync = publications_changed or list_changed
    if must_resync:
        check_copyable(connection, schema)
        _forget_replicas(connection, shard)
    return Upstream(
        shard.all_publications, schema, must_resync, detection.by_triggers, detection.announced
    )


def _create_objects(connection: psycopg.Connection[Any], shard: ShardNames) -> None:
    script = sql.SQL(load_sql("setup.sql")).format(
        app=sql.Identifier(shard.app_schema), shard=sql.Identifier(shard.shard_schema)
    )
    connection.execute(script)
    connection.execute(
        sql.SQL(
            'INSERT INTO {}."versionHistory" ("dataVersion", "schemaVersion", "minSafeVersion") '
            "VALUES (%s, %s, 1) ON CONFLICT DO NOTHING"
        ).format(sql.Identifier(shard.shard_schema)),
        [_SHARD_SCHEMA_VERSION, _SHARD_SCHEMA_VERSION],
    )


def _ensure_publications(connection: psycopg.Connection[Any], shard: ShardNames) -> bool:
    """Create the internal publications that are missing; True if any was."""
    existing = {
        name
        for (name,) in connection.execute(
            "SELECT pubname FROM pg_publication WHERE pubname = ANY (%s)",
            [[shard.public_publication, shard.metadata_publication]],
        )
    }
    created = False
    if shard.metadata_publication not in existing:
        connection.execute(_create_metadata_publication(shard))
        created = True
    if not shard.publications and shard.public_publication not in existing:
        connection.execute(
            sql.SQL(
                "CREATE PUBLICATION {} FOR TABLES IN SCHEMA public "
                "WITH (publish_via_partition_root = true)"
            ).format(sql.Identifier(shard.public_publication))
        )
        created = True
    if shard.publications and shard.public_publication in existing:
        connection.execute(
            sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(shard.public_publication))
        )
    return created


def _create_metadata_publication(shard: ShardNames) -> sql.Composed:
    app, own = sql.Identifier(shard.app_schema), sql.Identifier(shard.shard_schema)
    return sql.SQL(
        "CREATE PUBLICATION {name} FOR TABLE {app}.permissions, {own}.clients, {own}.mutations"
    ).format(name=sql.Identifier(shard.metadata_publication), app=app, own=own)


def _store_publication_list(connection: psycopg.Connection[Any], shard: ShardNames) -> bool:
    """Remember what is subscribed to; True if it was something else before."""
    config = sql.Identifier(shard.shard_schema, "shardConfig")
    wanted = list(shard.all_publications)
    before = connection.execute(sql.SQL("SELECT publications FROM {}").format(config)).fetchone()
    connection.execute(
        sql.SQL(
            'INSERT INTO {} AS c (publications, "ddlDetection") VALUES (%s, false) '
            "ON CONFLICT (lock) DO UPDATE SET publications = EXCLUDED.publications "
            "WHERE c.publications <> EXCLUDED.publications"
        ).format(config),
        [wanted],
    )
    changed = before is not None and before[0] != wanted
    if changed and before is not None:
        log.warning("publications_changed", before=before[0], now=wanted)
    return changed


def _store_ddl_detection(
    connection: psycopg.Connection[Any], shard: ShardNames, detected: bool
) -> None:
    connection.execute(
        sql.SQL('UPDATE {} SET "ddlDetection" = %s WHERE "ddlDetection" <> %s').format(
            sql.Identifier(shard.shard_schema, "shardConfig")
        ),
        [detected, detected],
    )


def _forget_replicas(connection: psycopg.Connection[Any], shard: ShardNames) -> None:
    """Replicas of other publications are useless; their slots become unclaimed and are dropped."""
    connection.execute(
        sql.SQL("DELETE FROM {}").format(sql.Identifier(shard.shard_schema, "replicas"))
    )


def set_identities(connection: psycopg.Connection[Any], schema: PublishedSchema) -> bool:
    """Give keyless tables a replica identity through a unique index; True if any got one."""
    changed = False
    for table in schema.tables:
        index = _usable_index(schema, table)
        if index is not None:
            changed |= _set_identity(connection, table, index)
    return changed


def _usable_index(schema: PublishedSchema, table: PublishedTable) -> PublishedIndex | None:
    """The unique index to identify rows by, if the table has no identity of its own."""
    if table.replica_identity != "d" or table.primary_key:
        return None
    not_null = {column.name for column in table.columns if column.not_null}
    usable = [
        index
        for index in schema.indexes_of(table)
        if index.enforced and not_null.issuperset(index.column_names)
    ]
    return min(usable, key=lambda i: (len(i.columns), i.column_names), default=None)


def _set_identity(
    connection: psycopg.Connection[Any], table: PublishedTable, index: PublishedIndex
) -> bool:
    parameters = {"table": table.oid, "index": index.name}
    statements = connection.execute(load_sql("identity.sql"), parameters).fetchall()
    try:
        with connection.transaction():
            for (statement,) in statements:
                # Quoted by the server's own format(): see identity.sql.
                connection.execute(cast(LiteralString, statement))
    except psycopg.errors.InsufficientPrivilege:
        log.warning(
            "replica_identity_not_set",
            table=table.wire_name,
            index=index.name,
            reason="the role does not own the table; PostgreSQL refuses updates and deletes in "
            "it until its owner runs ALTER TABLE … REPLICA IDENTITY USING INDEX",
        )
        return False
    if statements:
        log.info("replica_identity_set", table=table.wire_name, index=index.name)
    return bool(statements)


def _privilege_error(error: psycopg.Error, url: str, shard: ShardNames) -> UpstreamSetupError:
    said = error.diag.message_primary or str(error)
    user = explain(error, url, "setting up")
    if "IN SCHEMA" in said or "superuser" in said:
        advice = (
            "only a superuser may publish a whole schema: let one run CREATE PUBLICATION "
            "my_publication FOR TABLE …, and set ZERO_APP_PUBLICATIONS=my_publication"
        )
    elif said.startswith("permission denied for schema"):
        advice = (
            "the role must see what is published: GRANT USAGE on the schema and SELECT on its "
            "tables to it, or take them out of the publication"
        )
    else:
        advice = (
            "the role needs CREATE on the database (GRANT CREATE ON DATABASE … TO …) and "
            f"ownership of the schemas {shard.app_schema} and {shard.shard_schema} if they exist"
        )
    return UpstreamSetupError(f"{user.args[0].split(';')[0]}; {advice}", code=MISSING_PRIVILEGE)
