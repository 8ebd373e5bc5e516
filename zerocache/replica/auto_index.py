"""Indexes of the replica that upstream does not have: what they are called, where they are listed.

Owns the form of a wish for an index, the rule by which an index serves a wish, and the table
``_zero.autoIndexes``, which remembers when an index was last asked for. It decides nothing (the
replication process does, in one place) and opens no transaction. Invariant: SQLite's own catalogue
is the truth about an index; the table only adds times to it, so an index that vanished with its
table is simply gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import apsw
import msgspec

from zerocache.replica.planner_statistics import assume_growth
from zerocache.replica.sql import placeholders, quote

AUTO_INDEX_PREFIX = "_zero_auto."
AUTO_INDEXES = quote("_zero.autoIndexes")
SAMPLE_ROWS = 1_000
_ENTRY_OVERHEAD_BYTES = 12

IndexColumn = tuple[str, bool]
"""A column and whether it is descending."""


class IndexWish(msgspec.Struct, frozen=True):
    """An index some query would use: ``equal`` are compared for equality (in any order), ``order``
    continues them, read forwards or backwards."""

    table: str
    equal: tuple[str, ...]
    order: tuple[IndexColumn, ...] = ()

    @property
    def columns(self) -> tuple[IndexColumn, ...]:
        return (*((name, False) for name in self.equal), *self.order)

    @property
    def name(self) -> str:
        parts = (f"{name} desc" if descending else name for name, descending in self.columns)
        return f"{AUTO_INDEX_PREFIX}{self.table}.{','.join(parts)}"

    def __str__(self) -> str:
        parts = (f"{name} DESC" if descending else name for name, descending in self.columns)
        return f"{self.table} ({', '.join(parts)})"


class ExistingIndex(msgspec.Struct, frozen=True):
    """An index as SQLite knows it."""

    name: str
    table: str
    unique: bool
    columns: tuple[IndexColumn, ...]

    @property
    def automatic(self) -> bool:
        return self.name.startswith(AUTO_INDEX_PREFIX)

    def serves(self, wish: IndexWish) -> bool:
        """Whether nothing would be gained by an index made for ``wish``."""
        if self.table != wish.table:
            return False
        names = [name for name, _ in self.columns]
        if self.unique and set(names) <= set(wish.equal):
            return True
        count = len(wish.equal)
        if set(names[:count]) != set(wish.equal):
            return False
        tail = self.columns[count : count + len(wish.order)]
        return tail == wish.order or tail == tuple((n, not d) for n, d in wish.order)


class AutoIndex(msgspec.Struct, frozen=True):
    """``asked_ms``: when a worker last said that a query uses or wants it."""

    index: ExistingIndex
    created_ms: int
    asked_ms: int


def as_index(wish: IndexWish) -> ExistingIndex:
    """The index that would be made for ``wish``."""
    return ExistingIndex(wish.name, wish.table, False, wish.columns)


def without_redundant(wishes: Iterable[IndexWish]) -> list[IndexWish]:
    """Those of ``wishes`` that no index made for another one serves; widest first."""
    kept: list[IndexWish] = []
    for wish in sorted(set(wishes), key=lambda w: (-len(w.columns), w.name)):
        if not any(as_index(other).serves(wish) for other in kept):
            kept.append(wish)
    return kept


def indexes_of(connection: apsw.Connection, table: str) -> list[ExistingIndex]:
    """Every index of ``table``, by name."""
    found: dict[str, tuple[bool, list[IndexColumn]]] = {}
    for name, unique, column, descending in connection.execute(
        'SELECT l.name, l."unique", x.name, x."desc" FROM pragma_index_list(?) l '
        "JOIN pragma_index_xinfo(l.name) x WHERE x.key ORDER BY l.name, x.seqno",
        (table,),
    ):
        found.setdefault(name, (bool(unique), []))[1].append((column, bool(descending)))
    return [
        ExistingIndex(name, table, unique, tuple(columns))
        for name, (unique, columns) in found.items()
    ]


def auto_indexes(connection: apsw.Connection) -> list[AutoIndex]:
    """Every automatic index, by name."""
    times = _times(connection)
    tables = connection.execute(
        "SELECT DISTINCT tbl_name FROM sqlite_schema WHERE type = 'index' "
        "AND substr(name, 1, ?) = ? ORDER BY tbl_name",
        (len(AUTO_INDEX_PREFIX), AUTO_INDEX_PREFIX),
    ).fetchall()
    return [
        AutoIndex(index, *times.get(index.name, (0, 0)))
        for row in tables
        for index in indexes_of(connection, str(row[0]))
        if index.automatic
    ]


def create_auto_index(connection: apsw.Connection, wish: IndexWish, now_ms: int) -> None:
    """Build the index for ``wish`` and give SQLite's planner figures about it."""
    name = quote(wish.name)
    columns = ", ".join(f"{quote(c)} {'DESC' if d else 'ASC'}" for c, d in wish.columns)
    connection.execute(f"CREATE INDEX {name} ON {quote(wish.table)} ({columns})")
    connection.execute(f"ANALYZE {name}")
    assume_growth(connection)
    _create_table(connection)
    connection.execute(
        f"INSERT OR REPLACE INTO {AUTO_INDEXES} VALUES ({placeholders(3)})",  # noqa: S608
        (wish.name, now_ms, now_ms),
    )


def drop_auto_index(connection: apsw.Connection, name: str) -> None:
    """Drop one automatic index; upstream's are refused."""
    if not name.startswith(AUTO_INDEX_PREFIX):
        raise ValueError(f"{name!r} is an index of upstream's and must stay; drop it there")
    connection.execute(f"DROP INDEX IF EXISTS {quote(name)}")
    _create_table(connection)
    connection.execute(f"DELETE FROM {AUTO_INDEXES} WHERE name = ?", (name,))  # noqa: S608


def note_asked(connection: apsw.Connection, name: str, now_ms: int) -> None:
    """Remember that the index ``name`` is still of use."""
    connection.execute(
        f"UPDATE {AUTO_INDEXES} SET asked_ms = ? WHERE name = ?",  # noqa: S608 - a constant
        (now_ms, name),
    )


def count_rows(connection: apsw.Connection, table: str, at_most: int) -> int:
    """The rows of ``table``, counted no further than ``at_most``."""
    (count,) = connection.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM {quote(table)} LIMIT ?)",  # noqa: S608 - quoted
        (at_most,),
    ).fetchone() or (0,)
    return int(count)


def highest_rowid(connection: apsw.Connection, table: str) -> int:
    """No table has more rows than this; cheap however large it is."""
    row = connection.execute(f"SELECT max(_rowid_) FROM {quote(table)}").fetchone()  # noqa: S608
    return 0 if row is None or row[0] is None else int(row[0])


def statistics(connection: apsw.Connection, table: str) -> dict[str | None, tuple[int, ...]]:
    """What ANALYZE found: per index the rows, then the average rows per distinct prefix of one,
    two, ... columns. Under None the rows of a table without indexes."""
    if not _exists(connection, "sqlite_stat1"):
        return {}
    rows = connection.execute("SELECT idx, stat FROM sqlite_stat1 WHERE tbl = ?", (table,))
    return {index: tuple(_numbers(stat)) for index, stat in rows}


def estimate_bytes(connection: apsw.Connection, wish: IndexWish) -> int:
    """About how large an index for ``wish`` would be, from the first rows of its table."""
    width = " + ".join(f"ifnull(length(CAST({quote(c)} AS BLOB)), 1)" for c, _ in wish.columns)
    row = connection.execute(
        f"SELECT avg(w) FROM (SELECT {width} AS w "  # noqa: S608 - quoted
        f"FROM {quote(wish.table)} LIMIT {SAMPLE_ROWS})"
    ).fetchone()
    average = 0.0 if row is None or row[0] is None else float(row[0])
    return int(highest_rowid(connection, wish.table) * (average + _ENTRY_OVERHEAD_BYTES))


def _create_table(connection: apsw.Connection) -> None:
    # Not part of layout.py's tables: replicas made before there were automatic indexes lack it.
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {AUTO_INDEXES} (name TEXT PRIMARY KEY, "
        "created_ms INTEGER NOT NULL, asked_ms INTEGER NOT NULL)"
    )


def _times(connection: apsw.Connection) -> dict[str, tuple[int, int]]:
    if not _exists(connection, "_zero.autoIndexes"):
        return {}
    rows = connection.execute(f"SELECT name, created_ms, asked_ms FROM {AUTO_INDEXES}")  # noqa: S608
    return {name: (created, asked) for name, created, asked in rows}


def _exists(connection: apsw.Connection, table: str) -> bool:
    found = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    return found is not None


def _numbers(stat: str) -> Iterator[int]:
    for word in stat.split():
        if not word.isdigit():
            return  # "unordered", "sz=…" and the like end the figures
        yield int(word)
