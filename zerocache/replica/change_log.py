"""Appends to the replica's change log, and trims it.

Owns ``_zero.changeLog``: which rows changed, in commit order, under positions that rise by one. It
writes inside the SQLite transaction its owner holds open and never commits. Invariant at every
commit: the entries present are exactly those at ``logFloor + 1 .. logPos``.

Entries: ``s`` a row was inserted or updated, ``d`` it was deleted, ``t`` any row of the table may
have changed (row 0): it was emptied, or more of its rows were touched in one go than are worth
naming; ``r`` its table changed its shape (row 0).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Literal, TypeAlias

import apsw

from zerocache.errors import ReplicaError
from zerocache.replica.layout import CHANGE_LOG

LogOp: TypeAlias = Literal["s", "d", "t", "r"]

# Entries held in memory; bounds what a huge transaction costs.
_ENTRIES_PER_WRITE = 10_000
# Entries of one table in one SQLite transaction from which on its rows are not named any more:
# readers recompute what reads the table, which costs less than following every row of it.
_NAMED_ROWS = 50_000
# Trimming waits until this share of the log is superfluous, so that most commits trim nothing.
_TRIM_SHARE = 16


class ChangeLog:
    """The log of one writer; ``keep`` is how many of the newest entries are kept at least."""

    def __init__(self, connection: apsw.Connection, *, keep: int) -> None:
        self._connection = connection
        self._keep = keep
        # Version of the open upstream transaction; None between transactions.
        self.version: str | None = None
        # Entries not yet written: version, table, rowid, op.
        self._held: list[tuple[str, str, int, LogOp]] = []
        # Entries written by the open SQLite transaction.
        self._written = 0
        # Rows named by the open SQLite transaction, by table.
        self._named: Counter[str] = Counter()
        # The version under which a table with too many of them was last noted.
        self._noted: dict[str, str] = {}

    def open_version(self) -> str:
        """The version rows are written under; ``ReplicaError`` outside a transaction."""
        if self.version is None:
            raise ReplicaError(
                "a row change arrived outside a transaction: it would have no version; "
                "call begin_transaction() first"
            )
        return self.version

    def record(self, table: str, rowid: int, op: LogOp) -> None:
        self._held.append((self.open_version(), table, rowid, op))
        if len(self._held) >= _ENTRIES_PER_WRITE:
            self._write()

    def finish(self, log_pos: int, log_floor: int) -> tuple[int, int]:
        """Write everything, trim; from the last commit's bounds to those of the coming one."""
        self._write()
        log_pos += self._written
        # SQLite numbered the entries; it must have gone on where the state says the log ended.
        if self._written and self._last_position() != log_pos:
            raise ReplicaError(
                f"the change log ends at {self._last_position()}, its state says {log_pos}: "
                "something else wrote to the replica; delete it so that a new initial sync "
                "creates it"
            )
        self._forget()
        superfluous = log_pos - log_floor - self._keep
        if superfluous > self._keep // _TRIM_SHARE:
            log_floor += superfluous
            self._connection.execute(
                f"DELETE FROM {CHANGE_LOG} WHERE pos <= ?",  # noqa: S608 - a constant
                (log_floor,),
            )
        return log_pos, log_floor

    def discard(self) -> None:
        """Forget what the rolled back SQLite transaction would have added."""
        self.version = None
        self._held.clear()
        self._forget()

    def _forget(self) -> None:
        """The SQLite transaction is over."""
        self._written = 0
        self._named.clear()
        self._noted.clear()

    def _write(self) -> None:
        if not self._held:
            return
        self._named.update(table for _, table, _, _ in self._held)
        if max(self._named.values()) > _NAMED_ROWS:
            self._held = list(self._without_mass_changes())
        self._connection.executemany(
            f'INSERT INTO {CHANGE_LOG} (version, "table", row, op) '  # noqa: S608 - a constant
            "VALUES (?, ?, ?, ?)",
            self._held,
        )
        self._written += len(self._held)
        self._held.clear()

    def _without_mass_changes(self) -> Iterator[tuple[str, str, int, LogOp]]:
        """What is held, with one ``t`` for each version that touched a table too often."""
        for entry in self._held:
            version, table, _, op = entry
            if self._named[table] <= _NAMED_ROWS or op == "r":
                yield entry
            elif self._noted.get(table) != version:
                self._noted[table] = version
                yield (version, table, 0, "t")

    def _last_position(self) -> int:
        row = self._connection.execute(f"SELECT max(pos) FROM {CHANGE_LOG}").fetchone()  # noqa: S608
        return int(row[0] or 0) if row else 0
