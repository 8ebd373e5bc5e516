"""Where the rows of a relation go, and how their text becomes stored values.

Owns the fit between a relation as the stream describes it and a table as the replica has it. They
are the same table if their oid is: a schema that is renamed locks no table, so rows may still come
under the old name. Rows of the shape the table had before a change that was announced meanwhile are
fitted in by position: publications change without a lock, too, so transactions that wrote before
may end after. What such rows lack, the backfill that follows the change brings. Any other shape
ends in ResyncRequired.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replication_manager.pgoutput import Relation
from replication_manager.schema_drift import check_relation, has_shape
from replication_manager.schema_events import SchemaEvents
from zerocache.replica.layout import TableFacts
from zerocache.replica.relation import RelationWriter
from zerocache.replica.types import UNCHANGED, StoredRow, TextRow, column_decoder, row_decoder
from zerocache.replica.writer import ReplicaWriter


@dataclass(frozen=True, slots=True)
class Target:
    writer: RelationWriter
    decode: Callable[[TextRow], StoredRow]


def find_facts(writer: ReplicaWriter, relation: Relation) -> TableFacts | None:
    """The replica's table of ``relation``, whatever it is called now."""
    return next((f for f in writer.tables().values() if f.table.oid == relation.oid), None)


def make_target(
    writer: ReplicaWriter, events: SchemaEvents, relation: Relation, facts: TableFacts, xid: int
) -> Target:
    """``xid``: the transaction that has the rows; another one needs a target of its own, unless the
    relation :func:`fits`."""
    if not fits(relation, facts):
        may_precede = events.may_precede(xid)
        target = _of_the_past(writer, events, relation, facts) if may_precede else None
        if target is not None:
            return target
        if not may_precede or not has_shape(relation, facts):
            check_relation(relation, facts)
    names = [column.name for column in relation.columns]
    by_name = {column.name: column for column in facts.table.columns}
    return Target(
        writer.relation(facts.table.wire_name, names, _key(relation)),
        row_decoder([column_decoder(by_name[name]) for name in names]),
    )


def fits(relation: Relation, facts: TableFacts) -> bool:
    identity = facts.table.replica_identity
    return has_shape(relation, facts) and relation.identity == identity


def _key(relation: Relation) -> list[str] | None:
    keys = [column.name for column in relation.columns if column.is_key]
    # With identity FULL all columns are flagged, but they are no key.
    return None if relation.identity == "f" or not keys else keys


def _of_the_past(
    writer: ReplicaWriter, events: SchemaEvents, relation: Relation, facts: TableFacts
) -> Target | None:
    """For rows that were written before a change and come after it; None if they cannot be."""
    past, key = events.past(relation), _key(relation)
    if past is None or key is None or has_shape(relation, facts):
        return None
    order = [column.name for column in relation.columns]
    before = {c.position: (c.type_oid, order.index(c.name)) for c in past.table.columns}
    sources = []
    for column in facts.table.columns:
        type_oid, at = before.get(column.position, (0, None))
        sources.append(at if type_oid == column.type_oid else None)
    now = {at: c.name for at, c in zip(sources, facts.table.columns, strict=True) if at is not None}
    mapped = [now.get(order.index(name)) for name in key]
    names = [name for name in mapped if name is not None]
    if len(names) < len(mapped):
        return None
    decode = row_decoder([column_decoder(column) for column in facts.table.columns])
    columns = [column.name for column in facts.table.columns]
    return Target(
        writer.relation(facts.table.wire_name, columns, names),
        lambda row: decode(_fitted(row, sources)),
    )


def _fitted(row: TextRow, sources: Sequence[int | None]) -> TextRow:
    return [UNCHANGED if at is None else row[at] for at in sources]
