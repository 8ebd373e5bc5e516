"""From two states of the published schema to the changes a replica has to make; no I/O.

Owns the comparison. Tables are matched by oid and columns by ``attnum``, so a rename is a rename
and a column dropped and made again is another one. The base is what the replica was built from, not
what upstream saw last: whatever went unnoticed is caught up with at the next announcement.

What existing rows hold afterwards is known only in these cases, all others need a *backfill*:

* a new column has the value upstream noted for rows older than it (``missing``), or NULL when
  there was no default; both only for ALTER TABLE, other commands publish columns that had values;
* a retyped column keeps its values if both types are stored alike and the command had no USING.

Of what happened before an announcement that names no command (UNKNOWN: triggers were disabled, or
there are none) less is taken for granted: what may have changed rows in between does count as that.

A column that waits for its backfill is hidden, unless what it has now is a value of its new type,
too: clients go on with that, and see each row change, as they would have before.

Values are stored decoded and columns have no declared type, so a retype that stores them
differently is never left to SQLite's coercions.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from msgspec import structs

from zerocache.replica.layout import TableFacts, facts_of, identity_key
from zerocache.replica.published import PublishedColumn, PublishedSchema, PublishedTable
from zerocache.replica.types import SQLiteValue, column_decoder

_CREATING = ("CREATE TABLE", "CREATE TABLE AS", "SELECT INTO")
# One command and nothing else; a function or a second command might use USING unseen.
_PLAIN_ALTER = re.compile(r"\s*ALTER\s+TABLE\s[^;]*;?\s*", re.IGNORECASE)
# ALTER TYPE … USING, SET EXPRESSION of a generated column
_USING = re.compile(r"\b(using|expression)\b", re.IGNORECASE)
_LONGEST_QUERY = 10_000
# Stored alike in this direction, and among each other, when there is no USING.
_TEXTS = ("text", "varchar")
_WIDENING = {"int2": 0, "int4": 1, "int8": 2, "numeric": 3}
# A value of one type is one of the others, to a client.
_ALIKE_TO_CLIENTS = (
    frozenset(("text", "varchar", "bpchar")),
    frozenset(("int2", "int4", "int8", "numeric", "float4", "float8")),
)
UNKNOWN = "UNKNOWN"


class EventInfo(msgspec.Struct, frozen=True):
    """``tag`` is that of the command, or UNKNOWN for what happened before it."""

    tag: str = UNKNOWN


class EventContext(msgspec.Struct, frozen=True):
    query: str = ""


class SchemaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a logical message ``{app}/{shard}/ddl`` (ddl_functions.sql makes it)."""

    schema: PublishedSchema
    event: EventInfo = EventInfo()
    context: EventContext = EventContext()
    missing: dict[str, str | None] = {}
    rewritten: tuple[int, ...] = ()
    next_xid: int = 0

    @property
    def is_unknown(self) -> bool:
        return self.event.tag == UNKNOWN

    @property
    def may_use_using(self) -> bool:
        """False only if the command certainly converted values by the types' own casts."""
        query = self.context.query
        plain = len(query) < _LONGEST_QUERY and _PLAIN_ALTER.fullmatch(query)
        return not plain or _USING.search(query) is not None


@dataclass(frozen=True, slots=True)
class DropTable:
    table: str


@dataclass(frozen=True, slots=True)
class CreateTable:
    """``backfill``: it may have rows that the stream does not bring."""

    facts: TableFacts
    backfill: bool


@dataclass(frozen=True, slots=True)
class AddColumn:
    """``value`` is what existing rows have; it is not known if ``backfill``."""

    column: PublishedColumn
    value: SQLiteValue = None
    backfill: bool = False


@dataclass(frozen=True, slots=True)
class AlterTable:
    """All that happens to one kept table, in the order of the fields.

    ``stale``: positions of kept columns whose values are none of their type until they are read
    again. ``refresh``: any row may differ from what the replica has, or be gone, or be new.
    """

    old: TableFacts
    new: TableFacts
    dropped: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    added: tuple[AddColumn, ...] = ()
    stale: tuple[int, ...] = ()
    refresh: bool = False

    @property
    def hidden(self) -> tuple[int, ...]:
        """Positions of columns nobody may see before a backfill."""
        return (*(add.column.position for add in self.added if add.backfill), *self.stale)


Change: TypeAlias = DropTable | CreateTable | AlterTable


def plan_changes(
    before: Iterable[TableFacts], event: SchemaEvent, skipped: Collection[int] = ()
) -> list[Change]:
    """What turns a replica of ``before`` into one of ``event.schema``, drops first.

    ``skipped``: oids of tables of which rows were already passed over. Indexes are not mentioned:
    they follow from the tables' facts (:func:`index_changes`).
    """
    old = {facts.table.oid: facts for facts in before}
    new = {facts.table.oid: facts for facts in facts_of(event.schema)}
    drops: list[Change] = []
    alterations: list[Change] = []
    creations: list[Change] = []
    for oid, facts in old.items():
        if oid not in new:
            drops.append(DropTable(facts.table.wire_name))
    for oid, facts in new.items():
        if oid not in old:
            created = event.event.tag in _CREATING and oid not in skipped
            creations.append(CreateTable(facts, not created))
        elif facts != old[oid] or oid in event.rewritten:
            change = _alteration(old[oid], facts, event)
            if _key_is_unknown(change):
                drops.append(DropTable(change.old.table.wire_name))
                creations.append(CreateTable(facts, True))
            else:
                alterations.append(change)
    return [*drops, *alterations, *creations]


def _alteration(old: TableFacts, new: TableFacts, event: SchemaEvent) -> AlterTable:
    before = {column.position: column for column in old.table.columns}
    now = {column.position: column for column in new.table.columns}
    kept = [(before[at], now[at]) for at in sorted(before.keys() & now.keys())]
    rewritten = new.table.oid in event.rewritten or (
        event.is_unknown and looks_rewritten(old.table, new.table)
    )
    any_value = rewritten and event.may_use_using
    stale = [(a, b) for a, b in kept if _is_stale(a, b, rewritten, any_value)]
    hidden = tuple(b.position for a, b in stale if not _stays_visible(a, b))
    return AlterTable(
        old,
        new,
        dropped=tuple(before[at].name for at in sorted(before.keys() - now.keys())),
        renamed=tuple((a.name, b.name) for a, b in kept if a.name != b.name),
        added=tuple(
            _addition(old.table, now[at], event) for at in sorted(now.keys() - before.keys())
        ),
        stale=hidden,
        refresh=any_value or len(hidden) < len(stale) or _rows_differ(old, new, event),
    )


def looks_rewritten(old: PublishedTable, new: PublishedTable) -> bool:
    """Whether values of a column may have been rewritten, which no row tells.

    VACUUM FULL and TRUNCATE write other files, SET DEFAULT and GRANT write the column's entry; only
    ALTER COLUMN … TYPE does both at once.
    """
    if not old.publication_state:
        return False  # facts stored by older versions do not say
    known = {partition.oid: partition.storage for partition in old.partitions}
    moved = old.storage != new.storage or any(
        known.get(part.oid, part.storage) != part.storage for part in new.partitions
    )
    known_columns = {column.position: column for column in old.columns}
    return moved and any(
        _was_written(known_columns.get(column.position, column), column) for column in new.columns
    )


def _was_written(old: PublishedColumn, new: PublishedColumn) -> bool:
    """VACUUM FULL writes the values of a default into all rows, which the entry of the column no
    longer has then; what is stored for the default stays, though."""
    stored = old.has_missing and not new.has_missing
    kept = old.default_oid != 0 and old.default_oid == new.default_oid
    return old.written != new.written and not (stored and kept)


def _key_is_unknown(change: AlterTable) -> bool:
    """Rows cannot be matched by a key whose own values have to be read first."""
    hidden = set(change.hidden)
    key = identity_key(change.new) or ()
    return any(c.position in hidden for c in change.new.table.columns if c.name in key)


def _addition(table: PublishedTable, column: PublishedColumn, event: SchemaEvent) -> AddColumn:
    unknown = AddColumn(column, backfill=True)
    # DROP EXPRESSION makes a generated column an ordinary one, which is published from then on.
    existed = column.position <= table.attributes
    if event.event.tag != "ALTER TABLE" or column.generated or existed:
        return unknown
    missing = event.missing.get(f"{table.oid}.{column.position}")
    if missing is None:
        has_default = column.default is not None or column.type_kind == "d"
        return unknown if has_default else AddColumn(column)
    decode = column_decoder(column)
    try:
        return AddColumn(column, missing if decode is None else decode(missing))
    except ValueError:
        # Not a reason to give up: the copy decodes the same text and says what is wrong.
        return unknown


def _is_stale(
    before: PublishedColumn, now: PublishedColumn, rewritten: bool, any_value: bool
) -> bool:
    labels = before.enum_labels
    if any(labels.get(oid, label) != label for oid, label in now.enum_labels.items()):
        return True
    old, new = _type(before), _type(now)
    if old == new:
        return False
    if any_value:
        return True
    if (before.type_name, before.type_oid) == (now.type_name, now.type_oid):
        # Only the length or precision: without a rewrite no value was changed by it.
        return rewritten
    return not _stored_alike(before, now)


def _stays_visible(before: PublishedColumn, now: PublishedColumn) -> bool:
    if before.type_oid == now.type_oid:
        return True
    names = {before.type_name, now.type_name}
    return any(names <= alike for alike in _ALIKE_TO_CLIENTS)


def _type(column: PublishedColumn) -> tuple[object, ...]:
    return (
        column.type_name,
        column.type_oid,
        column.type_kind,
        column.is_enum,
        column.is_array,
        column.max_length,
    )


def _stored_alike(before: PublishedColumn, now: PublishedColumn) -> bool:
    if before.type_kind != "b" or now.type_kind != "b" or before.is_array or now.is_array:
        return before.type_oid == now.type_oid  # the type was renamed
    old, new = before.type_name, now.type_name
    if old in _WIDENING and new in _WIDENING:
        # A precision may round, and a numeric that is narrowed is rounded.
        return _WIDENING[old] < _WIDENING[new] and now.max_length is None
    # varchar(n) may cut trailing spaces.
    return old in _TEXTS and new in _TEXTS and now.max_length is None


def _rows_differ(old: TableFacts, new: TableFacts, event: SchemaEvent) -> bool:
    """Whether rows came or went without being streamed."""
    if old.table.row_filter != new.table.row_filter:
        return True
    if event.is_unknown and _passed_unseen(old, new):
        return True
    known = {partition.oid: partition.storage for partition in old.table.partitions}
    present = {partition.oid: partition.storage for partition in new.table.partitions}
    # TRUNCATE of one partition is not published. (VACUUM FULL looks the same from outside.)
    if new.table.oid not in event.rewritten and any(
        storage != present.get(oid, storage) for oid, storage in known.items()
    ):
        return True
    # A partition that was created as one has had all its rows published.
    return not known.keys() <= present.keys() or any(
        part.oid not in known and not part.born_attached for part in new.table.partitions
    )


def _passed_unseen(old: TableFacts, new: TableFacts) -> bool:
    """Whether rows may have come that were not published, or that the replica had to displace."""
    if old.table.publication_state not in ("", new.table.publication_state):
        return True
    unique_before = {index.column_names for index in old.indexes if index.enforced}
    return not unique_before <= {index.column_names for index in new.indexes if index.enforced}


def disturbs(change: Change, reading: TableFacts) -> bool:
    """Whether rows of the table ``reading`` that are read meanwhile may be wrong afterwards, or be
    matched wrongly. Of what may be told of a table later than it happened, or again, only what
    cannot do that is let pass: GRANT, for one, or an index that upstream does not enforce.
    """
    if isinstance(change, DropTable):
        return change.table == reading.table.wire_name
    if isinstance(change, CreateTable) or change.old.table.oid != reading.table.oid:
        return False
    return bool(
        change.refresh
        or change.hidden
        or change.added
        or change.dropped
        or change.renamed
        or _as_read(change.new) != _as_read(reading)
    )


def _as_read(facts: TableFacts) -> tuple[object, ...]:
    columns = tuple(structs.replace(column, written="") for column in facts.table.columns)
    indexes = [index for index in facts.indexes if index.enforced or index.is_replica_identity]
    return structs.replace(facts.table, columns=columns, attributes=0), indexes


@dataclass(frozen=True, slots=True)
class IndexShape:
    """An index as SQLite knows it or shall have it; ``columns`` with "is descending"."""

    name: str
    table: str
    unique: bool
    columns: tuple[tuple[str, bool], ...]


def index_changes(
    present: Iterable[IndexShape], wanted: Iterable[IndexShape]
) -> tuple[list[IndexShape], list[IndexShape]]:
    """Which indexes to drop, then which to create; those that are as they should be stay."""
    old, new = set(present), set(wanted)
    return (
        sorted(old - new, key=lambda index: index.name),
        sorted(new - old, key=lambda index: index.name),
    )


def renames(pairs: Iterable[tuple[str, str]], taken: Collection[str]) -> Iterator[tuple[str, str]]:
    """Single renames that lead to ``pairs`` without ever meeting a name in use.

    SQLite's names ignore case, so even a change of case takes a detour.
    """
    wanted = [(old, new) for old, new in pairs if old != new]
    used = {name.lower() for name in taken}
    second: list[tuple[str, str]] = []
    for number, (old, new) in enumerate(wanted):
        if new.lower() in used:
            detour = f"_zero.rename.{number}"
            second.append((detour, new))
            yield old, detour
        else:
            yield old, new
    yield from second
