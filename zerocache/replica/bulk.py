"""Builds a new replica from an initial copy, all or nothing.

Owns the temporary file ``<replica>.initial-sync``. Until :meth:`BulkLoader.finish` renames it, the
replica's own path is not touched; a crash leaves a temporary file that the next loader deletes.
While it is built the file has no journal on disk and is never synced: nobody reads it, and it is
thrown away on any error. Indexes are made after the rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import apsw

from zerocache.replica import damage
from zerocache.replica.index_build import build_index
from zerocache.replica.layout import (
    ReplicaConfig,
    TableFacts,
    check_names,
    create_internal_tables,
    create_table,
    facts_of,
)
from zerocache.replica.planner_statistics import assume_growth
from zerocache.replica.published import PublishedSchema, wire_name
from zerocache.replica.sql import literal, placeholders, quote
from zerocache.replica.types import SQLiteValue
from zerocache.replica.wal import sync_file

_SUFFIX = ".initial-sync"
_SIDE_FILES = ("-wal", "-shm", "-journal", damage.SUFFIX)
_PRAGMAS = (
    # Not "off": a failed CREATE UNIQUE INDEX has to be undone. Pages added by the transaction,
    # which are nearly all, are never journalled.
    "PRAGMA journal_mode = memory",
    "PRAGMA synchronous = off",
    "PRAGMA locking_mode = exclusive",
    # Also what each sort of an index may hold before it writes to disk. Rows only ever come at the
    # end of a table, so more of it makes nothing faster (measured: 16 MB to 256 MB).
    "PRAGMA cache_size = -32768",
    "PRAGMA threads = 2",
    "PRAGMA analysis_limit = 1000",
)

# More gains nothing (measured: 1 row at a time costs 1.5 to 2.5 times as much).
_VALUES_PER_STATEMENT = 128


class BulkLoader:
    """A context manager: leaving it without :meth:`finish` deletes what was built.

    ``insert_rows`` takes values in column ``position`` order, without ``_0_version``; all rows get
    the replica version. Not thread-safe.
    """

    def __init__(
        self,
        path: str | Path,
        config: ReplicaConfig,
        schema: PublishedSchema,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        check_names(schema)
        self._target = Path(path)
        self._path = self._target.with_name(self._target.name + _SUFFIX)
        self._target.parent.mkdir(parents=True, exist_ok=True)
        _remove(self._path)
        self._facts = list(facts_of(schema))
        self._connection = apsw.Connection(str(self._path))
        for pragma in _PRAGMAS:
            self._connection.execute(pragma)
        self._connection.execute("BEGIN")
        create_internal_tables(self._connection, config, now_ms())
        # The INSERT statements of each table, by wire name.
        self._inserts: dict[str, _Inserts] = {}
        for facts in self._facts:
            create_table(self._connection, facts)
            self._inserts[facts.table.wire_name] = _Inserts.of(facts, config.replica_version)
        self._finished = False

    def __enter__(self) -> BulkLoader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._finished:
            self._connection.close()
            _remove(self._path)

    def insert_rows(self, table: str, rows: Iterable[Sequence[SQLiteValue]]) -> None:
        self._connection.executemany(self._inserts[table].one, rows)

    def insert_values(self, table: str, values: Sequence[SQLiteValue]) -> None:
        """The values of many rows, row after row; the table has columns."""
        inserts = self._inserts[table]
        execute, statement, size = self._connection.execute, inserts.many, inserts.values
        whole = len(values) - len(values) % size
        for at in range(0, whole, size):
            execute(statement, values[at : at + size])
        rest = iter(values[whole:])
        self.insert_rows(table, zip(*[rest] * inserts.width, strict=True))

    def finish(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """:meth:`complete`, then :meth:`replace`."""
        self.complete(progress)
        self.replace()

    def complete(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Build the indexes and make the file durable; ``progress`` is told what is being done."""
        for facts in self._facts:
            for index in facts.indexes:
                progress(f"creating index {wire_name(index.schema, index.name)}")
                build_index(self._connection, index)
        progress("collecting statistics")
        self._connection.execute("COMMIT")
        self._connection.execute("ANALYZE")
        assume_growth(self._connection)
        # Stored in the file: whoever opens it next works in WAL mode.
        self._connection.execute("PRAGMA locking_mode = normal")
        self._connection.execute("PRAGMA journal_mode = wal")
        self._connection.close()
        sync_file(self._path)

    def replace(self) -> None:
        """Put the complete replica in place of whatever is there, in a moment.

        Nobody may have the old replica open for writing.
        """
        # A WAL that belongs to an older file must not be replayed onto the new one.
        _remove(self._target)
        self._path.rename(self._target)
        sync_file(self._target)
        self._finished = True


@dataclass(frozen=True, slots=True)
class _Inserts:
    """Statements that insert one row, and as many as make the binding of values cheapest."""

    one: str
    many: str
    # How many values ``many`` takes, and a row has.
    values: int
    width: int

    @classmethod
    def of(cls, facts: TableFacts, version: str) -> _Inserts:
        width = len(facts.table.columns)
        rows = max(1, _VALUES_PER_STATEMENT // max(width, 1))
        values = f"{placeholders(width)}, {literal(version)}"
        row = f"({values.removeprefix(', ')})"
        start = f"INSERT INTO {quote(facts.table.wire_name)} VALUES "  # noqa: S608 - quoted
        return cls(start + row, start + ", ".join([row] * rows), rows * width, width)


def _remove(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
