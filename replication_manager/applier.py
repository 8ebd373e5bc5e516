"""From pgoutput payloads to row changes in the replica, without any I/O of its own.

Owns what must be remembered between messages: the relations and the transaction that is open.
Announced schema changes are made where they arrive, so rows before and after meet their own tables.
Rows go straight into the open SQLite transaction, so memory does not grow with the size of a
transaction. It never commits and never acknowledges: the stream does, at the borders this reports.
"""

from __future__ import annotations

from collections.abc import Callable

import apsw
import structlog

from replication_manager.partition_roots import misplaced, roots
from replication_manager.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    Message,
    Relation,
    Truncate,
    Update,
    decode,
)
from replication_manager.refused_values import refused
from replication_manager.schema_events import SchemaEvents
from replication_manager.targets import Target, find_facts, fits, make_target
from zerocache.errors import ReplicationError
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.published import wire_name
from zerocache.replica.writer import ReplicaWriter

log = structlog.get_logger(__name__)


class Applier:
    """Feeds one connection's messages to the writer.

    * One per connection: relations are announced anew on each.
    * ``confirm`` is asked about every announced relation, with the commit LSN of the transaction
      that needs it; it raises if the replica's schema is not upstream's any more.
    * After any exception the writer must be rolled back and the stream begun again.
    """

    def __init__(
        self,
        writer: ReplicaWriter,
        confirm: Callable[[int], None],
        schema_events: SchemaEvents,
    ) -> None:
        self._writer = writer
        self._confirm = confirm
        self._schema_events = schema_events
        schema_events.connected()
        # What upstream said about each relation; targets are made from it when rows come, and
        # again when the replica's schema has changed since.
        self._relations: dict[int, Relation] = {}
        self._targets: dict[int, Target] = {}
        self._generation = writer.generation
        # As which table each partition is published; None until it is needed.
        self._roots: dict[int, int] | None = None
        # The relation that was described last.
        self._described = 0
        # Unknown tables whose rows were passed over in the open transaction: commands like CREATE
        # TABLE AS write rows before the table is announced.
        self._skipped: dict[int, str] = {}
        # True between Begin and Commit.
        self.in_transaction = False
        # True inside a transaction that the replica already has.
        self._skipping = False
        # Commit LSN of the newest transaction that began.
        self._lsn = 0
        # The transaction that is open.
        self._xid = 0
        # Row changes since the stream last reset it; decides when a group is large enough.
        self.changes = 0
        self._handlers: dict[type[Message], Callable[..., None]] = {
            Insert: self._insert,
            Update: self._update,
            Delete: self._delete,
            Begin: self._begin,
            Commit: self._commit,
            Relation: self._relation,
            Truncate: self._truncate,
            LogicalMessage: self._logical_message,
        }

    @property
    def is_outdated(self) -> bool:
        """Whether another connection is needed for what follows the transaction that ended."""
        return self._schema_events.outdated

    @property
    def lsn(self) -> int:
        """Commit LSN of the newest transaction that began, whether the replica needed it or not."""
        return self._lsn

    def apply(self, payload: bytes) -> bool:
        """Apply one payload; True if it completed a transaction."""
        message = decode(payload)
        handler = self._handlers.get(type(message))
        if handler is not None:
            try:
                handler(message)
            except (ValueError, apsw.TooBigError) as error:
                raise refused(error, self._table_of(message)) from None
        return type(message) is Commit

    def _table_of(self, message: Message) -> str:
        relation = self._relations.get(getattr(message, "relation", 0))
        return wire_name(relation.schema, relation.name) if relation else "unknown"

    def _insert(self, message: Insert) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            if target is None:
                return
            target.writer.insert(target.decode(message.new))
            self.changes += 1

    def _update(self, message: Update) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            if target is None:
                return
            old = None if message.old is None else target.decode(message.old)
            target.writer.update(old, target.decode(message.new))
            self.changes += 1

    def _delete(self, message: Delete) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            if target is None:
                return
            target.writer.delete(target.decode(message.old))
            self.changes += 1

    def _truncate(self, message: Truncate) -> None:
        if not self._skipping:
            for relation in message.relations:
                target = self._target(relation)
                if target is not None:
                    target.writer.truncate()
            self.changes += len(message.relations)

    def _target(self, oid: int) -> Target | None:
        if self._generation != self._writer.generation:
            self._generation = self._writer.generation
            self._targets.clear()
            self._roots = None
        return self._targets.get(oid) or self._new_target(oid)

    def _new_target(self, oid: int) -> Target | None:
        """The target of a relation as it is now; None if the replica does not have the table."""
        message = self._relations.get(oid)
        if message is None:
            raise ReplicationError(
                f"a change of relation {oid} arrived before the relation was described: "
                "the stream is not what PostgreSQL promises; it is begun again",
                code="ZC234",
            )
        facts = find_facts(self._writer, message)
        if facts is None:
            self._skipped[oid] = wire_name(message.schema, message.name)
            return None
        if oid in self._schema_events.bereft:
            raise misplaced(facts.table.wire_name, "their parent left in the same transaction")
        target = make_target(self._writer, self._schema_events, message, facts, self._xid)
        self._confirm(self._lsn)
        if fits(message, facts):
            self._targets[oid] = target
        return target

    def _begin(self, message: Begin) -> None:
        self._lsn, self._xid = message.lsn, message.xid
        watermark = watermark_from_lsn(message.lsn)
        self.in_transaction = True
        self._skipping = watermark <= self._writer.state.version
        if not self._skipping:
            self._writer.begin_transaction(watermark)

    def _commit(self, _: Commit) -> None:
        if self._skipped:
            self._pass_over()
        if not self._skipping:
            reach(Place.MID_APPLY)
            self._writer.end_transaction()
        self.in_transaction = False
        self._skipping = False
        if self._schema_events.bereft:
            self._schema_events.transaction_ended()

    def _pass_over(self) -> None:
        """Rows came of tables that the replica does not have: they have just gone, or else
        something went unnoticed."""
        for table in self._skipped.values():
            if not self._schema_events.may_precede(self._xid):
                self._writer.facts(table)  # raises
            log.info("rows_of_unpublished_table_skipped", table=table)
        self._skipped.clear()

    def _relation(self, message: Relation) -> None:
        self._relations[message.oid] = message
        self._targets.pop(message.oid, None)
        former, self._described = self._described, message.oid
        if not self._skipping and former and former not in self._targets:
            self._check_root(message.oid, former)

    def _check_root(self, oid: int, described: int) -> None:
        """A partition is described right after the table as which its rows come."""
        if self._roots is None or self._generation != self._writer.generation:
            self._roots = roots(facts.table for facts in self._writer.tables().values())
        root = self._roots.get(oid, oid)
        if root not in (oid, described) and self._roots.get(described) == described:
            tables = self._writer.tables().values()
            name = next(f.table.wire_name for f in tables if f.table.oid == described)
            raise misplaced(name, "they were written before their parent left")

    def _logical_message(self, message: LogicalMessage) -> None:
        if not self.in_transaction or not self._schema_events.concerns(message):
            return
        if self._skipping:
            self._schema_events.passed_over()
        else:
            self._schema_events.apply(message, self._skipped)
            present = {facts.table.oid for facts in self._writer.tables().values()}
            for oid in present & self._skipped.keys():
                del self._skipped[oid]
            self.changes += 1
