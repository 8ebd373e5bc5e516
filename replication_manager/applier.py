"""From pgoutput payloads to row changes in the replica, without any I/O of its own.

Owns what must be remembered between messages: the relations and the transaction that is open.
Rows go straight into the open SQLite transaction, so memory does not grow with the size of a
transaction. It never commits and never acknowledges: the stream does, at the borders this reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from replication_manager.pgoutput import (
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Truncate,
    Update,
    decode,
)
from replication_manager.schema_drift import check_relation
from zerocache.errors import ReplicationError
from zerocache.failpoints import Place, reach
from zerocache.protocol.versions import watermark_from_lsn
from zerocache.replica.published import wire_name
from zerocache.replica.relation import RelationWriter
from zerocache.replica.types import StoredRow, TextRow, column_decoder, row_decoder
from zerocache.replica.writer import ReplicaWriter


@dataclass(frozen=True, slots=True)
class _Target:
    """Where rows of one relation go, and how their text becomes stored values."""

    writer: RelationWriter
    decode: Callable[[TextRow], StoredRow]


class Applier:
    """Feeds one connection's messages to the writer.

    * One per connection: relations are announced anew on each.
    * ``confirm`` is asked about every announced relation, with the commit LSN of the transaction
      that needs it; it raises if the replica's schema is not upstream's any more.
    * After any exception the writer must be rolled back and the stream begun again.
    """

    def __init__(self, writer: ReplicaWriter, confirm: Callable[[int], None]) -> None:
        self._writer = writer
        self._confirm = confirm
        self._targets: dict[int, _Target] = {}
        # True between Begin and Commit.
        self.in_transaction = False
        # True inside a transaction that the replica already has.
        self._skipping = False
        # Commit LSN of the newest transaction that began.
        self._lsn = 0
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
        }

    def apply(self, payload: bytes) -> bool:
        """Apply one payload; True if it completed a transaction."""
        message = decode(payload)
        handler = self._handlers.get(type(message))
        if handler is not None:
            try:
                handler(message)
            except ValueError:
                # The text of the error quotes a value, which belongs in no log.
                raise self._undecodable(message) from None
        return type(message) is Commit

    def _undecodable(self, message: Message) -> ReplicationError:
        target = self._targets.get(getattr(message, "relation", 0))
        table = target.writer.table if target else "unknown"
        return ReplicationError(
            f"a value in a change of table {table} cannot be read as its type says: leaving the "
            "row out would make the replica wrong; report this as a bug (the stream is tried "
            "again)",
            code="ZC235",
        )

    def _insert(self, message: Insert) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            target.writer.insert(target.decode(message.new))
            self.changes += 1

    def _update(self, message: Update) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            old = None if message.old is None else target.decode(message.old)
            target.writer.update(old, target.decode(message.new))
            self.changes += 1

    def _delete(self, message: Delete) -> None:
        if not self._skipping:
            target = self._target(message.relation)
            target.writer.delete(target.decode(message.old))
            self.changes += 1

    def _truncate(self, message: Truncate) -> None:
        if not self._skipping:
            for relation in message.relations:
                self._target(relation).writer.truncate()
            self.changes += len(message.relations)

    def _target(self, relation: int) -> _Target:
        try:
            return self._targets[relation]
        except KeyError:
            raise ReplicationError(
                f"a change of relation {relation} arrived before the relation was described: "
                "the stream is not what PostgreSQL promises; it is begun again",
                code="ZC234",
            ) from None

    def _begin(self, message: Begin) -> None:
        self._lsn = message.lsn
        watermark = watermark_from_lsn(message.lsn)
        self.in_transaction = True
        self._skipping = watermark <= self._writer.state.version
        if not self._skipping:
            self._writer.begin_transaction(watermark)

    def _commit(self, _: Commit) -> None:
        if not self._skipping:
            reach(Place.MID_APPLY)
            self._writer.end_transaction()
        self.in_transaction = False
        self._skipping = False

    def _relation(self, message: Relation) -> None:
        facts = self._writer.facts(wire_name(message.schema, message.name))
        check_relation(message, facts)
        self._confirm(self._lsn)
        names = [column.name for column in message.columns]
        by_name = {column.name: column for column in facts.table.columns}
        keys = [column.name for column in message.columns if column.is_key]
        # With identity FULL all columns are flagged, but they are no key.
        key_columns = None if message.identity == "f" or not keys else keys
        self._targets[message.oid] = _Target(
            self._writer.relation(facts.table.wire_name, names, key_columns),
            row_decoder([column_decoder(by_name[name]) for name in names]),
        )
