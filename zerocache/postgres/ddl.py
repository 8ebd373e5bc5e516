"""Installs what announces changes of the published schema on the change stream.

Owns the functions and event triggers of a shard (``ddl_functions.sql``, ``ddl_triggers.sql``) and
their upgrades. Event triggers are a superuser's privilege: without it there are only the functions
and the shard works in degraded mode, in which a change arrives live if whoever makes it calls
``update_schemas()`` in the same transaction, and costs a new initial sync otherwise. Triggers that
exist are never left outdated: their messages would not mean what this program takes them for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
import psycopg
import structlog
from psycopg import sql

from zerocache.errors import UpstreamSetupError
from zerocache.postgres.connection import MISSING_PRIVILEGE
from zerocache.postgres.introspection import FIRST_WITH_GENERATED_COLUMNS, load_sql
from zerocache.postgres.shard import ShardNames
from zerocache.replica.published import PublishedSchema

# Known to every shard of every app: DDL is serialised per database.
DDL_LOCK = 0x3C6B8468F1BAC0B0
_START_TAGS = (
    "CREATE TABLE", "CREATE TABLE AS", "SELECT INTO", "ALTER TABLE", "DROP TABLE", "CREATE INDEX",
    "ALTER INDEX", "DROP INDEX", "CREATE PUBLICATION", "ALTER PUBLICATION", "DROP PUBLICATION",
    "CREATE SCHEMA", "ALTER SCHEMA", "DROP SCHEMA", "DROP OWNED", "ALTER TYPE", "DROP TYPE",
    "ALTER DOMAIN", "DROP DOMAIN", "CREATE EXTENSION", "ALTER EXTENSION", "DROP EXTENSION",
    # With CASCADE they drop columns, too.
    "DROP FUNCTION", "DROP ROUTINE", "DROP COLLATION",
)  # fmt: skip
_END_TAGS = (*_START_TAGS, "COMMENT")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Detection:
    """``by_triggers`` is false in degraded mode. ``announced``: the schema announced last before
    this set-up, None if none ever was; whatever else changed went unnoticed until now."""

    by_triggers: bool
    announced: PublishedSchema | None


def ensure_ddl_detection(connection: psycopg.Connection[Any], shard: ShardNames) -> Detection:
    """Install or upgrade functions and triggers inside the open transaction."""
    functions = _functions(connection, shard)
    version = hashlib.md5(functions.encode(), usedforsecurity=False).hexdigest()
    before = _installed(connection, shard)
    by_triggers = before == version or _install(connection, shard, functions, version, before)
    announced = announced_schema(connection, shard)
    # What happened while nobody watched is announced now; replicas that exist find out from it.
    announce_unnoticed(connection, shard)
    return Detection(by_triggers, announced)


def announced_schema(
    connection: psycopg.Connection[Any], shard: ShardNames
) -> PublishedSchema | None:
    """The published schema that was announced last."""
    row = connection.execute(
        sql.SQL('SELECT current::text FROM {}."publishedSchema"').format(
            sql.Identifier(shard.shard_schema)
        )
    ).fetchone()
    return None if row is None else msgspec.json.decode(row[0], type=PublishedSchema)


def is_announced(connection: psycopg.Connection[Any], shard: ShardNames) -> bool:
    """Whether the published schema of this moment was announced."""
    row = connection.execute(
        sql.SQL(
            'SELECT current::text = {0}.schema_specs()::text FROM {0}."publishedSchema"'
        ).format(sql.Identifier(shard.shard_schema))
    ).fetchone()
    return row is not None and bool(row[0])


def announce_unnoticed(connection: psycopg.Connection[Any], shard: ShardNames) -> None:
    """Announce what changed without the triggers' notice, if anything did."""
    connection.execute(
        sql.SQL("SELECT {}.update_schemas()").format(sql.Identifier(shard.shard_schema))
    )


def _installed(connection: psycopg.Connection[Any], shard: ShardNames) -> str | None:
    """The fingerprint of the triggers that exist; empty if unknown, None if there are none."""
    row = connection.execute(
        "SELECT count(*), count(*) FILTER (WHERE evtenabled <> 'D'), "
        "obj_description(to_regprocedure(%s), 'pg_proc') FROM pg_event_trigger "
        "WHERE evtname = ANY (%s)",
        [f'"{shard.shard_schema}".update_schemas()', list(shard.event_triggers)],
    ).fetchone()
    if row is None or row[0] == 0:
        return None
    return (row[2] or "") if row[1] == len(shard.event_triggers) else ""


def _install(
    connection: psycopg.Connection[Any],
    shard: ShardNames,
    functions: str,
    version: str,
    before: str | None,
) -> bool:
    try:
        with connection.transaction():
            connection.execute(functions.replace(_NO_VERSION, version))
            connection.execute(_triggers(shard))
    except psycopg.errors.InsufficientPrivilege as error:
        if before is not None:
            raise UpstreamSetupError(
                f"the event triggers {', '.join(shard.event_triggers)} exist but belong to another "
                f"version, and the role may not replace them ({error.diag.message_primary}): what "
                "they announce would be misunderstood; start once with the role that made them, "
                "or let a superuser drop them",
                code=MISSING_PRIVILEGE,
            ) from error
        log.warning(
            "ddl_detection_unavailable",
            reason=error.diag.message_primary,
            consequence="a change of the published schema costs a new initial sync, unless "
            f"SELECT {shard.shard_schema}.update_schemas() follows it in the same transaction",
        )
        connection.execute(functions.replace(_NO_VERSION, version))
        return False
    log.info("ddl_detection_installed", shard=shard.shard_schema, upgraded=before is not None)
    return True


_NO_VERSION = "zerocache-ddl-version"


def _functions(connection: psycopg.Connection[Any], shard: ShardNames) -> str:
    """The script, with a placeholder for its own fingerprint."""
    parameters = {
        "publications": sql.SQL("{}::text[]").format(sql.Literal(list(shard.all_publications))),
        "skip_generated": sql.Literal(
            connection.info.server_version < FIRST_WITH_GENERATED_COLUMNS
        ),
    }
    queries = {
        name: sql.SQL(_inlined(connection, load_sql(f"{name}.sql"), parameters))
        for name in ("tables", "indexes")
    }
    script = sql.SQL(load_sql("ddl_functions.sql")).format(
        shard=sql.Identifier(shard.shard_schema),
        prefix=sql.Literal(shard.ddl_prefix),
        rewritten=sql.Literal(f"zerocache.r_{shard.shard_schema}"),
        commands=sql.Literal(f"zerocache.c_{shard.shard_schema}"),
        version=sql.Literal(_NO_VERSION),
        lock=sql.Literal(DDL_LOCK),
        **queries,
    )
    return script.as_string(connection)


def _inlined(
    connection: psycopg.Connection[Any], query: str, parameters: dict[str, sql.Composable]
) -> str:
    """A query of this package with its parameters written into it."""
    for name, value in parameters.items():
        query = query.replace(f"%({name})s", value.as_string(connection))
    return query.replace("%%", "%")


def _triggers(shard: ShardNames) -> sql.Composed:
    start, end, rewrite = map(sql.Identifier, shard.event_triggers)
    return sql.SQL(load_sql("ddl_triggers.sql")).format(
        start=start,
        end=end,
        rewrite=rewrite,
        shard=sql.Identifier(shard.shard_schema),
        start_tags=sql.SQL(", ").join(map(sql.Literal, _START_TAGS)),
        end_tags=sql.SQL(", ").join(map(sql.Literal, _END_TAGS)),
    )
