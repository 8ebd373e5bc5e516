"""Looks after what event triggers leave undone, beside the stream.

Owns a thread that, now and then and right after each schema change, (1) has upstream announce what
its triggers did not see, such as changes made while they were disabled, and (2) gives new tables
without a primary key a usable unique index as replica identity, without which PostgreSQL would
refuse their updates. Both only cause announcements on the stream; nothing here touches the replica.
"""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import structlog

from zerocache.errors import ConfigurationError
from zerocache.postgres.connection import connect
from zerocache.postgres.ddl import announce_unnoticed
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.setup import set_identities
from zerocache.postgres.shard import ShardNames

_INTERVAL_S = 5.0
# Lets a transaction that makes a table also give it its key.
_AFTER_CHANGE_S = 0.05
# DDL of others is never kept waiting longer by us.
_LOCK_TIMEOUT = "500ms"

log = structlog.get_logger(__name__)


class SchemaGuard:
    """A context manager; :meth:`wake` may be called from any thread."""

    def __init__(self, url: str, shard: ShardNames, *, interval_s: float = _INTERVAL_S) -> None:
        self._url = url
        self._shard = shard
        self._interval_s = interval_s
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schema-guard", daemon=True)

    def __enter__(self) -> SchemaGuard:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._woken.set()
        self._thread.join()

    def wake(self) -> None:
        self._woken.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                with connect(self._url, "schema-guard") as connection:
                    self._guard(connection)
            except (ConfigurationError, psycopg.Error) as error:
                log.info("schema_guard_interrupted", reason=str(error))
                self._stopping.wait(self._interval_s)

    def _guard(self, connection: psycopg.Connection[Any]) -> None:
        while True:
            if self._woken.wait(self._interval_s):
                self._woken.clear()
                self._stopping.wait(_AFTER_CHANGE_S)
            if self._stopping.is_set():
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
