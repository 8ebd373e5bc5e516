"""Applies announced changes of the published schema, in order with the rows around them.

Owns the meaning of logical messages ``{app}/{shard}/ddl``: what upstream publishes from there on.
The replica is compared with that and changed within the same transaction. What cannot be replicated
at all (names, replica identity) ends in ResyncRequired, as a fresh start with it would.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import msgspec
import structlog

from replication_manager.pgoutput import LogicalMessage
from zerocache.errors import ReplicationError, ResyncRequired, UpstreamSetupError
from zerocache.postgres.shard import ShardNames
from zerocache.postgres.validation import check_schema
from zerocache.replica.layout import check_names
from zerocache.replica.published import PublishedSchema
from zerocache.replica.schema_change import SchemaEvent, plan_changes
from zerocache.replica.writer import ReplicaWriter

log = structlog.get_logger(__name__)


class SchemaEvents:
    """``changed`` is called after each change, inside the transaction that makes it; ``announce``
    before that, with the schema that upstream has from there on."""

    def __init__(
        self,
        writer: ReplicaWriter,
        shard: ShardNames,
        changed: Callable[[], None] = lambda: None,
        announce: Callable[[PublishedSchema], None] = lambda _: None,
    ) -> None:
        self._writer = writer
        self._shard = shard
        self._changed = changed
        self._announce = announce

    def concerns(self, message: LogicalMessage) -> bool:
        return message.transactional and message.prefix == self._shard.ddl_prefix

    def apply(self, message: LogicalMessage, skipped: Collection[int]) -> None:
        """Change the replica; ``skipped``: oids of unknown tables whose rows were passed over."""
        event = _decode(message)
        query = " ".join(event.context.query.split())[:200]
        try:
            check_schema(event.schema, self._shard)
            check_names(event.schema)
        except UpstreamSetupError as error:
            raise ResyncRequired(f"{error} (changed by: {query})") from error
        changes = plan_changes(self._writer.tables().values(), event, skipped)
        if not changes:
            return
        self._writer.change_schema(changes)
        log.info(
            "schema_changed",
            tag=event.event.tag,
            changes=[type(change).__name__ for change in changes],
            backfills=len(self._writer.pending),
        )
        self._announce(event.schema)
        self._changed()


def _decode(message: LogicalMessage) -> SchemaEvent:
    try:
        return msgspec.json.decode(message.content, type=SchemaEvent)
    except msgspec.MsgspecError as error:
        raise ReplicationError(
            f"an announcement of a schema change cannot be read ({error}): rows after it may not "
            "fit the replica; if another program uses this app id, give it another ZERO_APP_ID",
            code="ZC238",
        ) from error
