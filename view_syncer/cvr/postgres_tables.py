"""The tables of the PostgreSQL store, and how older ones become the present ones.

Owns the version row. Migrations run in order, in one transaction, one server at a time. Never
touches what the reference server may have in the same schema.
"""

from __future__ import annotations

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from view_syncer.cvr.statements import statement
from zerocache.errors import ConfigurationError

TABLES_VERSION = 2
# From each version to the next one; 0 is nothing at all.
_STEPS = {0: (2, "create_2"), 1: (2, "from_1_to_2")}


async def migrate(db: AsyncConnection[TupleRow], schema: str) -> None:
    """Bring the tables to :data:`TABLES_VERSION`; ``ConfigurationError`` if that cannot be."""
    try:
        async with db.transaction():
            await _migrate(db, schema)
    except psycopg.errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"The user of ZERO_CVR_DB may not create the tables it needs: {error}. Grant it "
            "CREATE on the database, or set ZERO_CVR_DB to one where it has that right."
        ) from error


async def _migrate(db: AsyncConnection[TupleRow], schema: str) -> None:
    await db.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (f"migrate-schema:{schema}",))
    name = sql.Identifier(schema)
    # Not "IF NOT EXISTS" alone: that asks for the right to create even if there is nothing to do.
    if not await _exists(db, "SELECT to_regnamespace(%s) IS NOT NULL", name.as_string(db)):
        await db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(name))
    version = await _present_version(db, name)
    if version > TABLES_VERSION:
        raise ConfigurationError(
            f"The view records in ZERO_CVR_DB, schema {schema!r}, have version {version}; this "
            f"server knows versions up to {TABLES_VERSION}. Run the newer server that wrote them, "
            "or drop the schema: all clients then start over."
        )
    while version < TABLES_VERSION:
        version, step = _STEPS[version]
        await db.execute(statement("postgres_sql", step, schema=name))


async def _present_version(db: AsyncConnection[TupleRow], schema: sql.Identifier) -> int:
    if await _table(db, schema, "view_meta"):
        row = await (
            await db.execute(sql.SQL("SELECT version FROM {}.view_meta").format(schema))
        ).fetchone()
        assert row is not None
        return int(row[0])
    # Where the reference server has its tables, version 1 could never work: it is left alone.
    ours = await _table(db, schema, "groups") and not await _table(db, schema, "instances")
    return 1 if ours else 0


async def _table(db: AsyncConnection[TupleRow], schema: sql.Identifier, table: str) -> bool:
    name = sql.SQL("{}.{}").format(schema, sql.Identifier(table)).as_string(db)
    return await _exists(db, "SELECT to_regclass(%s) IS NOT NULL", name)


async def _exists(db: AsyncConnection[TupleRow], question: str, name: str) -> bool:
    row = await (await db.execute(question.encode(), (name,))).fetchone()
    return row is not None and bool(row[0])
