"""Lets a client group in if the replica has what it declares, or tells it when to come back.

Owns the difference between a column that is not there and one that is not filled yet: after a
schema change the replica hides what it still copies from upstream. A client that is told that its
schema is not supported gives up and asks its user to reload; one that is sent away for a moment
comes back by itself.
"""

from __future__ import annotations

from view_syncer.engine_host import EngineHost
from view_syncer.schema_check import ClientSchemas
from zerocache.errors import ClientFacingError
from zerocache.protocol.client_schema import ClientSchema
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import load_unfinished


async def require_schema(
    engine: EngineHost, client: ClientSchema, schemas: ClientSchemas
) -> Watermark:
    """The generation of the replica that has all that ``client`` declares; raises
    ``SchemaVersionNotSupported``, or ``ServerOverloaded`` while something of it is being copied."""
    try:
        return _check(engine, client, schemas)
    except ClientFacingError:
        unfinished = await engine.read(lambda e: load_unfinished(e.db))
        waiting = [
            f'"{name}"' for name in sorted(client.tables) if name in unfinished
            and not unfinished[name].isdisjoint(client.tables[name].columns)
        ]  # fmt: skip
        if not waiting:
            # It may have been filled between the two looks.
            return _check(engine, client, schemas)
        raise ClientFacingError(
            "ServerOverloaded",
            f"After a change of the database's schema the server is copying {', '.join(waiting)}; "
            "try again.",
            minBackoffMs=1000,
            maxBackoffMs=5000,
        ) from None


def _check(engine: EngineHost, client: ClientSchema, schemas: ClientSchemas) -> Watermark:
    replica = engine.state
    schemas.check(client, replica.schema)
    return replica.replica_version
