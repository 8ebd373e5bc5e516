"""Looks after what event triggers leave undone, beside the stream.

Owns a thread that, now and then and right after each schema change, (1) has upstream announce what
its triggers did not see, such as changes made while they were disabled, and (2) gives new tables
without a primary key a usable unique index as replica identity, without which PostgreSQL would
refuse their updates. Both only cause announcements on the stream; nothing here touches the replica.
"""

from __future__ import annotations

from typing import Any, Self

import psycopg

from replication_manager.background import BackgroundConnection
from zerocache.postgres.ddl import announce_unnoticed
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.setup import set_identities
from zerocache.postgres.shard import ShardNames

_INTERVAL_S = 5.0
# Lets a transaction that makes a table also give it its key.
_AFTER_CHANGE_S = 0.05
# DDL of others is never kept waiting longer by us.
_LOCK_TIMEOUT = "500ms"


class SchemaGuard:
    """A context manager; :meth:`wake` may be called from any thread."""

    def __init__(self, url: str, shard: ShardNames, *, interval_s: float = _INTERVAL_S) -> None:
        self._shard = shard
        self._interval_s = interval_s
        self._thread = BackgroundConnection(url, "schema-guard", self._guard, retry_s=interval_s)

    def __enter__(self) -> Self:
        self._thread.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.end()

    def wake(self) -> None:
        self._thread.wake()

    def _guard(self, connection: psycopg.Connection[Any], thread: BackgroundConnection) -> None:
        while True:
            if thread.wait(self._interval_s):
                thread.wait(_AFTER_CHANGE_S)
            if thread.is_ending:
                return
            try:
                with connection.transaction():
                    self._look(connection)
            except psycopg.errors.LockNotAvailable:
                # Somebody's DDL is under way; it will be announced, and the next look comes.
                continue

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        connection.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
        announce_unnoticed(connection, self._shard)
        schema = read_published_schema(connection, self._shard.all_publications)
        set_identities(connection, schema)
