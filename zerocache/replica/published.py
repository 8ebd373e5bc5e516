"""What upstream publishes: tables, columns and indexes as the Postgres catalogue describes them.

Owns the messages that introspection produces and the replica's layout consumes. They are plain
facts, JSON-encodable with msgspec, and are stored beside each replicated table so that a later
schema change can be compared with what the replica was built from. Nothing here talks to a
database or decides how a fact is stored.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

SortDirection: TypeAlias = Literal["ASC", "DESC"]
ReplicaIdentity: TypeAlias = Literal["d", "n", "f", "i"]


class PublishedColumn(msgspec.Struct, frozen=True, kw_only=True):
    """One published column.

    * ``position`` is ``attnum``: stable across renames, never reused.
    * ``type_name`` is ``pg_type.typname`` without a schema. For arrays it is the typname of the
      *element* followed by ``[]`` once per declared dimension, at least once (``int4[]``).
    * ``type_oid``, ``type_category`` (``typcategory``) are those of the column's own type, that
      is of the array type for arrays.
    * ``type_kind`` is ``typtype`` (``b`` base, ``e`` enum, ``d`` domain, ``c`` composite, ``r``
      range, ``m`` multirange); for arrays that of the *element*.
    * ``is_array``: ``typcategory = 'A'`` and not a domain. ``is_enum``: the type, or the element
      of the array, is an enum.
    * ``max_length``: the type modifier, minus 4 for varchar and bpchar; None when there is none.
    * ``default``: the default expression as Postgres prints it.
    * ``generated``: a generated or an identity column.
    * ``enum_labels``: the labels of the type (or of the element) by their oid.
    * ``written``: changes whenever the column's entry in the catalogue is written.
    * ``has_missing``: rows older than the column do not have its value, the catalogue has.
    * ``default_oid``: of the default expression; made anew with every ALTER COLUMN … TYPE.
    """

    name: str
    position: int
    type_name: str
    type_oid: int
    type_category: str
    type_kind: str = "b"
    is_enum: bool = False
    is_array: bool = False
    not_null: bool = False
    max_length: int | None = None
    default: str | None = None
    generated: bool = False
    enum_labels: dict[str, str] = {}
    written: str = ""
    has_missing: bool = False
    default_oid: int = 0


class PublishedIndex(msgspec.Struct, frozen=True, kw_only=True):
    """An index without expressions or predicate whose columns are all published.

    ``columns`` are in index order, without INCLUDE columns. ``is_immediate`` is false for
    deferrable constraints, ``is_valid`` for the remains of a failed concurrent build: neither
    may be enforced by the replica.
    """

    schema: str
    table: str
    name: str
    columns: tuple[tuple[str, SortDirection], ...]
    unique: bool = False
    is_primary: bool = False
    is_immediate: bool = True
    is_valid: bool = True
    is_replica_identity: bool = False

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.columns)

    @property
    def enforced(self) -> bool:
        """True if two rows with equal values never coexist, not even inside a transaction."""
        return self.unique and self.is_immediate and self.is_valid


class PublishedPartition(msgspec.Struct, frozen=True, kw_only=True):
    """A partition whose rows are published as those of its root.

    ``storage`` names the file its rows are in; ``born_attached``: it was created as a partition,
    so that all its rows were published from the first.
    """

    oid: int
    storage: int
    born_attached: bool


class PublishedTable(msgspec.Struct, frozen=True, kw_only=True):
    """One published table.

    ``columns`` are the published ones in ``position`` order; ``primary_key`` is in index order
    and empty if there is none or not all of it is published. ``publications`` maps each
    publication the table is in to its row filter (SQL) or None.

    The rest tells what the shape does not: ``storage`` names the file the rows are in (0 for a
    partitioned table), and ``publication_state`` changes whenever one of the publications, or the
    table's place in it, is made anew or altered. It is empty in replicas of older versions.
    ``attributes``: the highest ``attnum`` ever given out, also to columns that are not published.
    """

    schema: str
    name: str
    oid: int
    replica_identity: ReplicaIdentity = "d"
    columns: tuple[PublishedColumn, ...] = ()
    primary_key: tuple[str, ...] = ()
    publications: dict[str, str | None] = {}
    storage: int = 0
    partitions: tuple[PublishedPartition, ...] = ()
    publication_state: str = ""
    attributes: int = 0

    @property
    def wire_name(self) -> str:
        return wire_name(self.schema, self.name)

    @property
    def row_filter(self) -> str | None:
        """The SQL condition that published rows meet; None if any publication is unfiltered."""
        filters = list(self.publications.values())
        if not filters or None in filters:
            return None
        return " OR ".join(f"({condition})" for condition in sorted(set(map(str, filters))))


class PublishedSchema(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a set of publications publishes."""

    tables: tuple[PublishedTable, ...] = ()
    indexes: tuple[PublishedIndex, ...] = ()

    def indexes_of(self, table: PublishedTable) -> tuple[PublishedIndex, ...]:
        return tuple(
            index
            for index in self.indexes
            if index.schema == table.schema and index.table == table.name
        )


def wire_name(schema: str, name: str) -> str:
    """The name of a table (or index) in the replica and on the wire."""
    return name if schema == "public" else f"{schema}.{name}"
