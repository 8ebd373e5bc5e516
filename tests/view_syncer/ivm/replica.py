"""A replica for engine tests: any tables, rows as clients see them, the real writer.

Owns the model of what upstream holds (:attr:`Replica.rows`) and keeps the replica file equal to
it. A change upstream would have refused (a taken key, a missing row) is left out of both, so any
subset of a list of changes is again a valid list: that is what lets failures shrink.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from tests.replica.tables import CONFIG, column, index, table
from view_syncer.ivm.encode import ClientTables, SyncedTable
from zerocache.protocol.versions import lexi_encode
from zerocache.replica.bulk import BulkLoader
from zerocache.replica.published import PublishedIndex, PublishedSchema
from zerocache.replica.writer import ReplicaWriter

Row: TypeAlias = dict[str, Any]
Key: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = dict[str, dict[Key, Row]]

_CATEGORIES = {"text": "S", "bool": "B", "jsonb": "U", "json": "U"}
_FIRST_WATERMARK = 1_000
_MAX_SAFE = 2**53 - 1


class Table(msgspec.Struct, frozen=True):
    """``columns``: name to Postgres type. Key columns are NOT NULL, as are ``not_null``;
    ``unique`` and ``indexes`` are further ones."""

    columns: dict[str, str]
    key: tuple[str, ...]
    not_null: tuple[str, ...] = ()
    unique: tuple[tuple[str, ...], ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()

    @property
    def required(self) -> set[str]:
        return {*self.key, *self.not_null}

    def key_of(self, row: Row) -> Key:
        return tuple(row[c] for c in self.key)


Tables: TypeAlias = Mapping[str, Table]


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """``put`` inserts, or updates in place by key; ``move`` gives the row at ``key`` a new image,
    key included; ``delete``; ``truncate``."""

    op: Literal["put", "move", "delete", "truncate"]
    table: str
    row: dict[str, Any] | None = None
    key: tuple[Any, ...] | None = None


def published(tables: Tables) -> PublishedSchema:
    definitions, indexes = [], []
    for name, facts in tables.items():
        definition = table(
            name,
            [
                column(
                    c,
                    i,
                    kind,
                    type_category=_CATEGORIES.get(kind, "N"),
                    not_null=c in facts.required,
                )
                for i, (c, kind) in enumerate(facts.columns.items(), 1)
            ],
            primary_key=facts.key,
        )
        definitions.append(definition)
        indexes.append(index(definition, *facts.key, unique=True, is_primary=True, name=f"{name}!"))
        numbers = itertools.count()
        for unique, several in ((True, facts.unique), (False, facts.indexes)):
            indexes.extend(
                _named(index(definition, *cs, unique=unique), next(numbers)) for cs in several
            )
    return PublishedSchema(tables=tuple(definitions), indexes=tuple(indexes))


def _named(definition: PublishedIndex, number: int) -> PublishedIndex:
    return msgspec.structs.replace(definition, name=f"{definition.table}_{number}")


def client_tables(tables: Tables, digest: str = "all") -> ClientTables:
    """A client schema that declares everything."""
    return ClientTables(
        digest, {n: SyncedTable(n, tuple(t.columns), t.key) for n, t in tables.items()}
    )


def stored(value: Any, kind: str = "") -> Any:
    """A client's value as the replica holds it."""
    if value is not None and kind in ("json", "jsonb"):
        return msgspec.json.encode(value).decode()
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _MAX_SAFE:
        return int(value)
    return value


class Model:
    """What upstream holds. :meth:`accept` refuses what upstream would refuse."""

    def __init__(self, tables: Tables, rows: Mapping[str, Sequence[Row]] | None = None) -> None:
        self.tables = tables
        self.rows: Rows = {name: {} for name in tables}
        for name, several in (rows or {}).items():
            for row in several:
                if self._fits(name, row, None):
                    self.rows[name][tables[name].key_of(row)] = row

    def accept(self, change: Change) -> bool:
        """Make ``change`` to the rows; False if it is impossible and nothing was done."""
        facts, rows = self.tables[change.table], self.rows[change.table]
        if change.op == "truncate":
            rows.clear()
            return True
        key = change.key
        if change.op == "put":
            assert change.row is not None
            key = facts.key_of(change.row)
        elif key not in rows:
            return False
        assert key is not None
        if change.row is not None and not self._fits(
            change.table, change.row, key if key in rows else None
        ):
            return False
        rows.pop(key, None)
        if change.row is not None:
            rows[facts.key_of(change.row)] = change.row
        return True

    def _fits(self, name: str, row: Row, replaced: Key | None) -> bool:
        """Whether ``row`` violates no unique index once ``replaced`` is gone."""
        facts = self.tables[name]
        if facts.key_of(row) != replaced and facts.key_of(row) in self.rows[name]:
            return False
        for columns in facts.unique:
            mine = [row[c] for c in columns]
            if None not in mine and any(
                [r[c] for c in columns] == mine for k, r in self.rows[name].items() if k != replaced
            ):
                return False
        return True


class Replica(Model):
    """A replica file that holds the model's rows."""

    def __init__(
        self,
        path: Path,
        tables: Tables,
        rows: Mapping[str, Sequence[Row]] | None = None,
        *,
        template: Path | None = None,
    ) -> None:
        """``template``: a file built from the same tables and rows, copied instead of built."""
        super().__init__(tables, rows)
        self.path = path
        if template is None:
            self._build()
        else:
            shutil.copyfile(template, path)
        self.writer = ReplicaWriter(path)
        self._watermarks = itertools.count(_FIRST_WATERMARK)

    def _build(self) -> None:
        with BulkLoader(self.path, CONFIG, published(self.tables)) as loader:
            for name, by_key in self.rows.items():
                columns = self.tables[name].columns
                loader.insert_rows(
                    name,
                    [tuple(stored(r[c], k) for c, k in columns.items()) for r in by_key.values()],
                )
            loader.finish()

    def commit(self, *transactions: Iterable[Change]) -> None:
        """Each argument is one upstream transaction; all of them one commit of the replica."""
        for changes in transactions:
            self.writer.begin_transaction(lexi_encode(next(self._watermarks)))
            for change in changes:
                self.apply(change)
            self.writer.end_transaction()
        self.writer.commit()

    def apply(self, change: Change) -> None:
        facts = self.tables[change.table]
        known = change.op == "put" and facts.key_of(change.row or {}) in self.rows[change.table]
        if not self.accept(change):
            return
        key = (
            None
            if change.key is None
            else dict(zip(facts.key, map(stored, change.key), strict=True))
        )
        if change.op == "truncate":
            self.writer.truncate([change.table])
        elif change.op == "delete":
            self.writer.delete(change.table, key or {})
        else:
            row = self._stored(facts, change.row or {})
            if change.op == "move" or known:
                self.writer.update(change.table, key, row)
            else:
                self.writer.insert(change.table, row)

    def _stored(self, facts: Table, row: Row) -> Row:
        return {c: stored(row[c], kind) for c, kind in facts.columns.items()}

    def close(self) -> None:
        self.writer.close()
