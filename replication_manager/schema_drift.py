"""Notices that upstream's tables are no longer those the replica was built from.

Owns the comparison, and a thread that makes it every few seconds, for databases without event
triggers (degraded mode); the stream asks for one whenever a relation is described again, so that
rows of a changed table never meet the old schema. What was announced by hand is left to the stream,
which brings it in its place between the rows. What matters is that no other change goes unnoticed,
because rows of another shape, or uniqueness that upstream gave up, would make the replica silently
wrong. Anything that can matter therefore ends in ResyncRequired, but for what the stream can
follow whenever it hears of it: an index that enforces nothing, and TRUNCATE of a single partition,
which PostgreSQL does not publish when partitions are published as their root. Those the thread
announces itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psycopg
import structlog

from replication_manager.pgoutput import Relation
from replication_manager.signals import Stopped, StopSignal
from zerocache.errors import ConfigurationError, ResyncRequired
from zerocache.postgres.connection import abort, connect
from zerocache.postgres.ddl import announce_unnoticed, announced_schema, is_announced
from zerocache.postgres.introspection import read_published_schema
from zerocache.postgres.shard import ShardNames
from zerocache.protocol.versions import lsn_from_text
from zerocache.replica.layout import TableFacts, facts_of
from zerocache.replica.published import (
    PublishedColumn,
    PublishedIndex,
    PublishedSchema,
    PublishedTable,
)
from zerocache.replica.schema_change import looks_rewritten

_INTERVAL_S = 5.0
_PATIENCE_S = 1.0
# DDL of others is never kept waiting longer by us.
_LOCK_TIMEOUT = "500ms"

log = structlog.get_logger(__name__)


def schema_differences(
    replica: Mapping[str, TableFacts], upstream: PublishedSchema, *, suspicions: bool = True
) -> list[str]:
    """What was changed upstream, in words; empty if the replica still fits.

    ``suspicions``: what only may have changed values counts, too. Who compares the values
    themselves needs none.
    """
    current = {facts.table.wire_name: facts for facts in facts_of(upstream)}
    differences = [f"table {name} was added" for name in sorted(current.keys() - replica.keys())]
    differences += [f"table {name} is gone" for name in sorted(replica.keys() - current.keys())]
    for name in sorted(current.keys() & replica.keys()):
        differences += _table_differences(replica[name], current[name])
        if suspicions and looks_rewritten(replica[name].table, current[name].table):
            differences.append(f"values of a column of table {name} may have been rewritten")
    return differences


def _table_differences(before: TableFacts, now: TableFacts) -> Iterable[str]:
    old, new = before.table, now.table
    name = old.wire_name
    if old.oid != new.oid:
        yield f"table {name} was created anew"
        return
    if [_shape(column) for column in old.columns] != [_shape(column) for column in new.columns]:
        yield f"columns of table {name} were changed"
    if old.primary_key != new.primary_key:
        yield f"the primary key of table {name} was changed"
    if old.replica_identity != new.replica_identity:
        yield f"the replica identity of table {name} was changed"
    if old.row_filter != new.row_filter:
        yield f"the row filter of table {name} was changed"
    if missing := _enforced(before.indexes) - _enforced(now.indexes):
        keys = ", ".join(str(list(key)) for key in sorted(missing))
        yield f"a unique index of table {name} on {keys} was dropped"
    if added := _enforced(now.indexes) - _enforced(before.indexes):
        keys = ", ".join(str(list(key)) for key in sorted(added))
        yield f"a unique index of table {name} on {keys} was added"
    # Facts stored by older versions say nothing about the rest.
    if old.publication_state:
        yield from _hidden_differences(old, new)


def _hidden_differences(old: PublishedTable, new: PublishedTable) -> Iterable[str]:
    """What changed rows without sending them, or may have kept some from being sent."""
    name = old.wire_name
    if old.publication_state != new.publication_state:
        yield f"the publication of table {name} was made anew or altered"
    labels = {key: label for column in old.columns for key, label in column.enum_labels.items()}
    for column in new.columns:
        for key, label in column.enum_labels.items():
            if labels.get(key, label) != label:
                yield f"a label of the type of {name}.{column.name} was renamed"
    known = {partition.oid: partition.storage for partition in old.partitions}
    present = {partition.oid: partition.storage for partition in new.partitions}
    if known.keys() - present.keys():
        yield f"table {name} lost a partition"
    if any(part.oid not in known and not part.born_attached for part in new.partitions):
        yield f"an existing table became a partition of {name}"


def _shape(column: PublishedColumn) -> tuple[object, ...]:
    return (column.position, column.name, column.type_oid, column.type_name, column.not_null)


def _enforced(indexes: Iterable[PublishedIndex]) -> set[tuple[str, ...]]:
    return {index.column_names for index in indexes if index.enforced}


def check_relation(relation: Relation, facts: TableFacts) -> None:
    """Compare what the stream announces with what the replica has, before any of its rows."""
    if facts.table.oid != relation.oid:
        change = "was created anew"
    elif not has_shape(relation, facts):
        change = f"has the columns {sorted(c.name for c in relation.columns)} now (or other types)"
    elif relation.identity != facts.table.replica_identity:
        change = f"has replica identity {relation.identity!r} now"
    else:
        return
    raise ResyncRequired(
        f"table {facts.table.wire_name} {change}: its changes cannot be applied to the replica "
        "as it is; a new initial sync is needed"
    )


def has_shape(relation: Relation, facts: TableFacts) -> bool:
    """Whether rows of ``relation`` have the columns that ``facts`` list."""
    types = {column.name: column.type_oid for column in facts.table.columns}
    return types == {column.name: column.type_oid for column in relation.columns}


class SchemaWatch:
    """Compares what is published with what was announced last, in the background and on demand;
    both raise in the caller's thread only.

    * A context manager of the stream's thread, which alone may call its methods.
    * The background thread never raises for a database that is away: the change stream notices
      that too, and knows what to do.
    """

    def __init__(
        self,
        url: str,
        shard: ShardNames,
        *,
        interval_s: float = _INTERVAL_S,
        connector: Callable[[str, str], psycopg.Connection[Any]] = connect,
    ) -> None:
        self._url = url
        self._shard = shard
        self._interval_s = interval_s
        self._connect = connector
        self._stop = StopSignal()
        self._thread = threading.Thread(target=self._run, name="schema-watch", daemon=True)
        # Set once, by the thread; read by whoever calls check().
        self._differences: list[str] = []
        # What committed upstream before this position was seen by a comparison.
        self._seen: int = 0
        # The thread's connection, while it has one.
        self._watching: psycopg.Connection[Any] | None = None
        # Opened when first needed, for comparisons in the stream's thread.
        self._own: psycopg.Connection[Any] | None = None

    def __enter__(self) -> SchemaWatch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(_PATIENCE_S)
        watching = self._watching
        if self._thread.is_alive() and watching is not None:
            # It waits for a server that no longer answers.
            abort(watching)
        self._thread.join()
        self._stop.close()
        if self._own is not None:
            self._own.close()

    def check(self) -> None:
        """``ResyncRequired`` if a difference was found."""
        if self._differences:
            raise drift_error(self._differences)

    def confirm(self, lsn: int) -> None:
        """``ResyncRequired`` if the schema differs from the announced one; looked at now, unless
        that was done since ``lsn``.

        Called when the stream describes a relation, which it does again after anything about the
        relation, its indexes or its publications has changed: rows that follow must not be
        applied as if it had not.
        """
        if lsn >= self._seen:
            if self._own is None:
                self._own = self._connect(self._url, "schema-check")
            self._differences = self._differences or self._compare(self._own)
        self.check()

    def _run(self) -> None:
        try:
            while not self._differences:
                self._watch()
                self._stop.wait(self._interval_s)
        except Stopped:
            return

    def _watch(self) -> None:
        """Compare now and then until the connection breaks or a difference is found."""
        try:
            with self._connect(self._url, "schema-watch") as connection:
                self._watching = connection
                while not self._differences:
                    self._differences = self._compare(connection, announce=True)
                    self._stop.wait(self._interval_s)
        except (ConfigurationError, psycopg.Error) as error:
            log.info("schema_watch_interrupted", reason=str(error))

    def _compare(self, connection: psycopg.Connection[Any], *, announce: bool = False) -> list[str]:
        """``announce``: what the stream can follow is left to it, too."""
        # Read before the catalogue: whoever changed a table and let go of it before then is seen.
        (position,) = connection.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()[0]
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            differences = self._unannounced(connection)
            if announce and not differences:
                # What was compared, and nothing newer: the snapshot is the same.
                connection.execute("SELECT set_config('lock_timeout', %s, true)", [_LOCK_TIMEOUT])
                announce_unnoticed(connection, self._shard)
        self._seen = max(self._seen, lsn_from_text(position))
        return differences

    def _unannounced(self, connection: psycopg.Connection[Any]) -> list[str]:
        if is_announced(connection, self._shard):
            return []
        current = read_published_schema(connection, self._shard.all_publications)
        announced = announced_schema(connection, self._shard)
        return schema_differences(by_name(announced or PublishedSchema()), current)


def by_name(schema: PublishedSchema) -> dict[str, TableFacts]:
    return {facts.table.wire_name: facts for facts in facts_of(schema)}


def drift_error(differences: list[str]) -> ResyncRequired:
    return ResyncRequired(
        f"the published schema differs from the replica's: {'; '.join(differences)}. Without event "
        "triggers a change is only followed if it was announced, by update_schemas() in the same "
        "transaction; a new initial sync is needed"
    )
