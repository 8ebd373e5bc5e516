"""Applies announced changes of the published schema, in order with the rows around them.

Owns the meaning of logical messages ``{app}/{shard}/ddl``: what upstream publishes from there on.
The replica is compared with that and changed within the same transaction. Transactions that were
under way then may still bring rows as the tables were before, so that is remembered, too. What
cannot be replicated at all (names, replica identity) ends in ResyncRequired, as a fresh start with
it would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import msgspec
import structlog

from replication_manager.partition_roots import compare_roots
from replication_manager.pgoutput import LogicalMessage, Relation
from replication_manager.schema_drift import has_shape
from zerocache.errors import ReplicationError, ResyncRequired, UpstreamSetupError
from zerocache.postgres.shard import ShardNames
from zerocache.postgres.validation import check_schema
from zerocache.replica.layout import TableFacts, check_names
from zerocache.replica.published import PublishedSchema
from zerocache.replica.schema_change import (
    AlterTable,
    Change,
    CreateTable,
    SchemaEvent,
    plan_changes,
)
from zerocache.replica.writer import ReplicaWriter

log = structlog.get_logger(__name__)


# So many former shapes of a table are known; transactions that span more changes are rare.
_REMEMBERED = 8
# The stream has transaction ids without their epoch.
_XIDS = 1 << 32


@dataclass(slots=True)
class SchemaMemory:
    """What is known of the changes so far; outlives connections, not initial syncs."""

    # Transactions that began before the last announced change have an older id.
    next_xid: int = 0
    # What tables were before they changed, by oid, newest last.
    past: dict[int, deque[TableFacts]] = field(default_factory=dict)


class SchemaEvents:
    """``changed`` is called after each change, inside the transaction that makes it; ``announce``
    before that, with the schema that upstream has from there on.
    """

    def __init__(
        self,
        writer: ReplicaWriter,
        shard: ShardNames,
        changed: Callable[[], None] = lambda: None,
        announce: Callable[[PublishedSchema], None] = lambda _: None,
        memory: SchemaMemory | None = None,
    ) -> None:
        self._writer = writer
        self._shard = shard
        self._changed = changed
        self._announce = announce
        self._memory = memory or SchemaMemory()
        # Set by a change after which another walsender is needed.
        self.outdated = False
        # Tables as which the one that we have may publish rows of others.
        self.bereft: frozenset[int] = frozenset()

    def may_precede(self, xid: int) -> bool:
        """Whether a transaction may have written before the change that was announced last.

        If it cannot have, rows that do not fit are no leftovers: pgoutput itself is mistaken at
        times, as about the partitions of a table that moved to another schema. One that began
        after the command that made the change, but before that was committed, counts as later:
        where its rows do not fit, a new initial sync is made.
        """
        return self._memory.next_xid > 0 and 0 < (self._memory.next_xid - xid) % _XIDS < _XIDS // 2

    def past(self, relation: Relation) -> TableFacts | None:
        """What the table was when ``relation`` described it, if it changed since."""
        past = self._memory.past.get(relation.oid, ())
        return next((facts for facts in reversed(past) if has_shape(relation, facts)), None)

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
        self._compare_roots(event.schema)
        self._remember(changes)
        self._memory.next_xid = event.next_xid
        self._writer.change_schema(changes)
        log.info(
            "schema_changed",
            tag=event.event.tag,
            changes=[type(change).__name__ for change in changes],
            backfills=len(self._writer.pending),
        )
        self._announce(event.schema)
        self._changed()

    def _compare_roots(self, schema: PublishedSchema) -> None:
        known = [facts.table for facts in self._writer.tables().values()]
        upheaval = compare_roots(known, schema.tables)
        self.outdated = self.outdated or upheaval.is_hidden
        self.bereft |= upheaval.bereft

    def connected(self) -> None:
        """Another walsender takes over, or the change log, which is never mistaken."""
        self.outdated = False
        self.bereft = frozenset()

    def transaction_ended(self) -> None:
        self.bereft = frozenset()

    def passed_over(self) -> None:
        """A change is sent again that the replica has: what it was is not known any more."""
        trees = any(facts.table.partitions for facts in self._writer.tables().values())
        self.outdated = self.outdated or trees

    def _remember(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, CreateTable):
                continue
            known = self._writer.tables()
            old = change.old if isinstance(change, AlterTable) else known[change.table]
            past = self._memory.past.setdefault(old.table.oid, deque(maxlen=_REMEMBERED))
            past.append(old)


def _decode(message: LogicalMessage) -> SchemaEvent:
    try:
        return msgspec.json.decode(message.content, type=SchemaEvent)
    except msgspec.MsgspecError as error:
        raise ReplicationError(
            f"an announcement of a schema change cannot be read ({error}): rows after it may not "
            "fit the replica; if another program uses this app id, give it another ZERO_APP_ID",
            code="ZC238",
        ) from error
