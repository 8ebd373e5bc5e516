"""Remembers, in the replica, how far its slot was moved without any transaction of ours.

Owns the one-row table ``_zero.slotPosition``. While only unpublished tables change, upstream is
acknowledged past the replica's version so that it can recycle WAL; without a record of that, a
replica restored from an old copy could not be told from one that is merely idle, and the
transactions in between would be missing for ever. Invariant: a position is durable here before
upstream is told.
"""

from __future__ import annotations

from pathlib import Path

import apsw

_TABLE = '"_zero.slotPosition"'
_BUSY_TIMEOUT_MS = 30_000


class SlotPosition:
    """Belongs to the thread of the replica's writer; used only between its transactions."""

    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        # Checkpoints are the writer's business.
        self._connection.wal_autocheckpoint(0)
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {_TABLE} "
            "(lock INTEGER PRIMARY KEY CHECK (lock = 1), lsn INTEGER NOT NULL)"
        )

    def read(self) -> int:
        """The newest recorded position; 0 if there is none."""
        row = self._connection.execute(f"SELECT lsn FROM {_TABLE}").fetchone()  # noqa: S608
        return int(row[0]) if row else 0

    def record(self, lsn: int) -> None:
        """Write ``lsn``; the caller makes the replica's WAL durable."""
        self._connection.execute(
            f"INSERT INTO {_TABLE} VALUES (1, ?) "  # noqa: S608 - a constant
            "ON CONFLICT (lock) DO UPDATE SET lsn = excluded.lsn",
            (lsn,),
        )

    def close(self) -> None:
        self._connection.close()
