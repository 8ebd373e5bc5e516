"""Rows as patch operations, built by SQLite's JSON functions.

Python never looks at a column value: a ``put`` is one string per row straight from SQLite
(sync-protocol.md §3.2-3.8). What to select depends on the client schema, so encoders are made per
:class:`ClientTables` and used by every client group that shares it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any

import apsw
import msgspec

from view_syncer.ivm.levels import rowid_array
from view_syncer.ivm.pipeline import Delta
from zerocache.errors import QueryError, UnsafeIntegerError
from zerocache.protocol.joined_rows import SEPARATOR, Block, JoinedRows
from zerocache.protocol.poke_parts import MAX_ENTRIES
from zerocache.replica.schema import ReplicaColumn, ReplicaSchema
from zerocache.replica.sql import literal, quote

UNSAFE_FUNCTION = "zc_unsafe_integer"
_MAX_SAFE = 2**53 - 1
_EXACT_SMALL = frozenset({"int2", "int4", "float4", "float8", "date", "time", "timetz"})


@dataclass(frozen=True, slots=True)
class SyncedTable:
    """A table as one client schema declares it: the columns it reads and the key it uses."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PatchSql:
    """``put`` and ``del_`` each select (rowid, text) for the rowids bound to the only parameter.
    ``block``, if there is one, selects (data, length) of a :class:`Block` of the puts."""

    put: str
    del_: str
    block: str | None = None


@dataclass(frozen=True)
class ClientTables:
    """The tables of one client schema, or the internal ones. Equal ``digest`` = equal content.
    What moves in and out of a query on internal tables is only remembered if ``facts_as`` names
    it."""

    digest: str
    tables: Mapping[str, SyncedTable]
    custom: Mapping[str, PatchSql] = field(default_factory=dict)
    facts_as: str = ""

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientTables) and other.digest == self.digest

    @cached_property
    def row_keys(self) -> Mapping[str, tuple[str, ...]]:
        return {name: table.key for name, table in self.tables.items()}


@dataclass(slots=True)
class RowPatch:
    """Patch operations of one pipeline for one client schema.

    ``dels`` carry table and rowid (in the older snapshot) so that a group can drop the deletion
    of a row another of its queries still holds. All dels of a poke go before all puts: a key that
    moved to another row is then put again after its deletion. ``keys`` name, as the deletions
    they may need one day, the rows among ``puts`` that the query did not yield under their key
    before; the rowid is 0 if it yielded the row under another.
    """

    dels: list[tuple[str, int, str]] = field(default_factory=list)
    puts: list[str] = field(default_factory=list)
    keys: list[tuple[str, int, str]] = field(default_factory=list)


def register_functions(db: apsw.Connection) -> None:
    """SQL functions the compiled statements and the encoders call."""
    db.create_scalar_function("zc_lower", _lower, 1, deterministic=True)
    db.create_scalar_function(UNSAFE_FUNCTION, _unsafe_integer, 3, deterministic=True)


def _lower(*arguments: Any) -> Any:
    (value,) = arguments
    return value.lower() if isinstance(value, str) else value


def _unsafe_integer(*arguments: Any) -> Any:
    table, column, value = arguments
    raise UnsafeIntegerError(
        f"column {column!r} of table {table!r} holds {value}, which is outside ±(2^53-1) and has "
        "no exact JSON number; store it as text, or keep it out of the client schema"
    )


class MadeTexts:
    """Texts of rows by what they are for; each is made once."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, ...], dict[int, str | None]] = {}

    def of(
        self,
        kind: tuple[str, ...],
        rowids: Collection[int],
        make: Callable[[Collection[int]], Iterable[tuple[int, str]]],
    ) -> dict[int, str]:
        """The texts of those of ``rowids`` that exist; ``make`` makes those that are missing."""
        known = self._texts.setdefault(kind, {})
        missing = [rowid for rowid in rowids if rowid not in known]
        if missing:
            made = dict(make(missing))
            known.update((rowid, made.get(rowid)) for rowid in missing)
        return {rowid: text for rowid in rowids if (text := known[rowid]) is not None}


class Encoder:
    """Encodes rows for one client schema; the statements are built once per table."""

    def __init__(self, client: ClientTables, schema: ReplicaSchema) -> None:
        self.client = client
        self._schema = schema
        self._sql: dict[str, PatchSql | None] = dict(client.custom)

    def puts(self, db: apsw.Connection, rows: Mapping[str, Collection[int]]) -> Sequence[str]:
        """A ``put`` for each of the rows (by table) that exists in ``db``."""
        joined = self._joined(db, rows)
        return self._puts(db, rows) if joined is None else joined

    def _joined(
        self, db: apsw.Connection, rows: Mapping[str, Collection[int]]
    ) -> JoinedRows | None:
        """The same; None if that is not worth it, or some row cannot be encoded."""
        if sum(map(len, rows.values())) < _FEWEST_JOINED:
            return None
        blocks: list[Block] = []
        for table, rowids in rows.items():
            sql = self._table(table)
            if sql is None:
                continue
            if sql.block is None:
                return None
            remaining = iter(rowids)
            while chunk := array("q", islice(remaining, MAX_ENTRIES)):
                try:
                    (block,) = db.execute(sql.block, (apsw.carray(chunk),))
                except (apsw.SQLError, apsw.TooBigError):
                    return None
                if block[0] is not None:
                    blocks.append(Block(*block))
        return JoinedRows(blocks)

    def _puts(self, db: apsw.Connection, rows: Mapping[str, Collection[int]]) -> list[str]:
        found: list[str] = []
        for table, rowids in rows.items():
            sql = self._table(table)
            if sql is not None and rowids:
                found.extend(text for _, text in _encoded(db, sql.put, table, rowids))
        return found

    def puts_by_row(
        self, db: apsw.Connection, rows: Mapping[str, Collection[int]]
    ) -> dict[str, dict[int, str]]:
        """The same by table and rowid; tables the client does not declare are left out."""
        found: dict[str, dict[int, str]] = {}
        for table, rowids in rows.items():
            sql = self._table(table)
            if sql is not None and rowids:
                found[table] = dict(_encoded(db, sql.put, table, rowids))
        return found

    def delta(
        self,
        old: apsw.Connection,
        new: apsw.Connection,
        delta: Delta,
        made: MadeTexts | None = None,
    ) -> RowPatch:
        """``made`` is for all deltas of one advance: a row that several queries hold is encoded
        once."""
        made = MadeTexts() if made is None else made
        patch = RowPatch()
        for table, change in delta.items():
            sql = self._table(table)
            if sql is None:
                continue
            # What names a row that leaves, or changes its name, is asked of the older snapshot.
            old_rows, new_rows = change.left | change.edited, change.entered | change.edited
            before = made.of(("old", table), old_rows, partial(_texts, old, sql.del_))
            after = made.of(("new", table), new_rows, partial(_texts, new, sql.del_))
            puts = made.of(("put", table), new_rows, partial(_encoded, new, sql.put, table))
            gone = (rowid for rowid in change.left if rowid in before)
            patch.dels.extend((table, rowid, before[rowid]) for rowid in gone)
            self._rekeyed(table, change.edited, before, after, patch)
            came = (rowid for rowid in change.entered if rowid in after)
            patch.keys.extend((table, rowid, after[rowid]) for rowid in came)
            patch.puts.extend(puts.values())
        return patch

    def keys_by_row(
        self, db: apsw.Connection, rows: Mapping[str, Collection[int]]
    ) -> dict[str, dict[int, str]]:
        """The ``del`` of each row that exists in ``db``, by table and rowid."""
        found: dict[str, dict[int, str]] = {}
        for table, rowids in rows.items():
            sql = self._table(table)
            if sql is not None and rowids:
                found[table] = dict(_texts(db, sql.del_, rowids))
        return found

    def dels(
        self, db: apsw.Connection, rows: Mapping[str, Collection[int]]
    ) -> list[tuple[str, int, str]]:
        """A ``del`` (with table and rowid) for each of the rows that exists in ``db``."""
        found: list[tuple[str, int, str]] = []
        for table, rowids in rows.items():
            sql = self._table(table)
            if sql is not None and rowids:
                found.extend(self._dels(db, sql, table, rowids))
        return found

    def _dels(
        self, old: apsw.Connection, sql: PatchSql, table: str, rowids: Collection[int]
    ) -> list[tuple[str, int, str]]:
        return [(table, rowid, text) for rowid, text in _texts(old, sql.del_, rowids)]

    def _rekeyed(
        self,
        table: str,
        rowids: Collection[int],
        before: Mapping[int, str],
        after: Mapping[int, str],
        patch: RowPatch,
    ) -> None:
        """Deletions of the keys that edited rows had before, where the key changed. The rowid is
        given as 0: such a deletion stands whoever holds the row."""
        for rowid in rowids:
            text = before.get(rowid)
            if text is not None and after.get(rowid) != text:
                patch.dels.append((table, 0, text))
                if rowid in after:
                    patch.keys.append((table, 0, after[rowid]))

    def _table(self, name: str) -> PatchSql | None:
        if name not in self._sql:
            table = self.client.tables.get(name)
            # Rows of undeclared tables make clients before 1.2 reject the whole poke.
            self._sql[name] = None if table is None else self._build(table)
        return self._sql[name]

    def _build(self, table: SyncedTable) -> PatchSql:
        columns = self._columns(table)
        head = msgspec.json.encode(table.name).decode()
        put = f'{{"op":"put","tableName":{head},"value":'
        del_ = f'{{"op":"del","tableName":{head},"id":'
        value = _object(table.name, [columns[c] for c in table.columns])
        return PatchSql(
            _select(table.name, put, value),
            _select(table.name, del_, _object(table.name, [columns[c] for c in table.key])),
            _select_block(table.name, put, value),
        )

    def _columns(self, table: SyncedTable) -> Mapping[str, ReplicaColumn]:
        """Client schemas were checked, but perhaps before the replica's changed: until that is
        known to whoever asks, it is the query that cannot be served and not the engine."""
        there = self._schema[table.name].columns if table.name in self._schema else {}
        missing = [name for name in (*table.columns, *table.key) if name not in there]
        if missing:
            raise QueryError(
                f"rows of table {table.name!r} cannot be sent: the column {missing[0]!r}, which "
                "the client's schema declares, is not in the replica any more; reload the client"
            )
        return there


_decode_rowids = msgspec.json.Decoder(list[int]).decode
_ONE_STEP_ROWS = 500
"""Rows encoded at a time; with them the statement's answer is a text of some hundred kilobytes."""
_FEWEST_JOINED = 4
"""Fewer rows are as well encoded one by one."""


def _texts(db: apsw.Connection, sql: str, rowids: Collection[int]) -> list[tuple[int, str]]:
    """What ``sql`` selects for the rows. Many of them as few lines of text: at each row that is
    stepped to other threads are let in, and waking them costs more than the row."""
    if len(rowids) == 1:
        return _row_by_row(db, sql, rowids)
    found: list[tuple[int, str]] = []
    remaining = iter(rowids)
    while chunk := list(islice(remaining, _ONE_STEP_ROWS)):
        found += _in_one_step(db, sql, chunk)
    return found


def _row_by_row(db: apsw.Connection, sql: str, rowids: Iterable[int]) -> list[tuple[int, str]]:
    rows: list[Any] = db.execute(sql, (rowid_array(rowids),)).fetchall()
    return rows


def _in_one_step(db: apsw.Connection, sql: str, rowids: list[int]) -> list[tuple[int, str]]:
    # What is no single line, or nothing at all, makes more lines than there are rows.
    lines = (
        f"WITH found(row, text) AS ({sql}) "  # noqa: S608 (statements of this module)
        "SELECT json_group_array(row), "
        "group_concat(coalesce(text, char(10)), char(10)) FROM found"
    )
    try:
        ((listed, joined),) = db.execute(lines, (rowid_array(rowids),))
    except (apsw.SQLError, apsw.TooBigError):
        return _row_by_row(db, sql, rowids)  # or is told what is wrong with which row
    found = _decode_rowids(listed)
    texts = joined.split("\n") if found else []
    if len(found) != len(texts):
        return _row_by_row(db, sql, rowids)  # no JSON text of SQLite's has a line break
    return list(zip(found, texts, strict=True))


def _encoded(
    db: apsw.Connection, sql: str, table: str, rowids: Collection[int]
) -> list[tuple[int, str]]:
    try:
        return _texts(db, sql, rowids)
    except apsw.TooBigError as error:
        raise QueryError(
            f"a row of table {table!r} cannot be encoded: its JSON is larger than 1,000,000,000 "
            "bytes; keep the column out of the client schema"
        ) from error
    except apsw.SQLError as error:
        if "JSON" not in str(error):
            raise  # the statement, not a value
        # Postgres nests JSON deeper than SQLite parses it.
        raise QueryError(
            f"a row of table {table!r} cannot be encoded ({error}): it holds JSON nested deeper "
            "than 1000 levels; store it as text, or keep it out of the client schema"
        ) from error


_MAX_ARGUMENTS = 60
"""Columns per json_object call; SQLite limits a function to 127 arguments by default."""


def _object(table: str, columns: list[ReplicaColumn]) -> str:
    """The SQL expression of a row's JSON object."""
    chunks = [columns[i : i + _MAX_ARGUMENTS] for i in range(0, len(columns), _MAX_ARGUMENTS)]
    objects = [f"json_object({_pairs(table, chunk)})" for chunk in chunks]
    if len(objects) == 1:
        return objects[0]
    # Cut by length, not by trimming: the last value of a chunk may end in braces itself.
    value = " || ',' || ".join(f"substr({o}, 2, length({o}) - 2)" for o in objects)
    return f"'{{' || {value} || '}}'"


def _select(table: str, head: str, value: str) -> str:
    return (
        f"SELECT _rowid_, {literal(head)} || {value} || '}}' "  # noqa: S608 (quoted parts only)
        f"FROM {quote(table)} AS found WHERE _rowid_ IN (SELECT value FROM carray(?))"
    )


def _select_block(table: str, head: str, value: str) -> str:
    # What stands between two values is the end of one operation and the head of the next. The
    # order of the join is told, or SQLite sorts the rowids first.
    values = f"group_concat({value}, {literal('}' + SEPARATOR + head)})"
    return (
        f"SELECT CAST({literal(head)} || {values} || '}}' AS BLOB), count(*) "  # noqa: S608
        f"FROM carray(?) AS wanted CROSS JOIN {quote(table)} AS found "
        "ON found._rowid_ = wanted.value"
    )


def _pairs(table: str, columns: Iterable[ReplicaColumn]) -> str:
    return ", ".join(f"{literal(c.name)}, {_json_value(table, c)}" for c in columns)


def _json_value(table: str, column: ReplicaColumn) -> str:
    # Named in full: in a join there are others with columns of their own.
    name = f"found.{quote(column.name)}"
    match column.client_type:
        case "boolean":
            return f"json(CASE {name} WHEN 0 THEN 'false' WHEN 1 THEN 'true' END)"
        case "json":
            return f"json({name})"
        case "number" if column.upstream_type not in _EXACT_SMALL:
            return (
                f"CASE WHEN {name} NOT BETWEEN {-_MAX_SAFE} AND {_MAX_SAFE} "
                f"AND typeof({name}) = 'integer' THEN {UNSAFE_FUNCTION}({literal(table)}, "
                f"{literal(column.name)}, {name}) ELSE {name} END"
            )
    return name
