"""Remembers, in the replica, where in upstream's log it stands beside its transactions.

Owns two one-row tables. ``_zero.slotPosition`` says how far the slot was moved without any
transaction of ours: while only unpublished tables change, upstream is acknowledged past the
replica's version so that it can recycle WAL; without a record of that, a replica restored from an
old copy could not be told from one that is merely idle, and the transactions in between would be
missing for ever. ``_zero.upstream`` names the cluster and timeline that positions belong to
(history.py). Invariant: a position is durable here before upstream is told.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from replication_manager.history import Origin

_TABLE = '"_zero.slotPosition"'
_ORIGIN = '"_zero.upstream"'
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
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {_ORIGIN} (lock INTEGER PRIMARY KEY CHECK (lock = 1), "
            "system TEXT NOT NULL, timeline INTEGER NOT NULL)"
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

    def origin(self) -> Origin | None:
        """Where the replica last streamed from; None if it never did."""
        row = self._connection.execute(
            f"SELECT system, timeline FROM {_ORIGIN}"  # noqa: S608 - a constant
        ).fetchone()
        return Origin(str(row[0]), int(row[1])) if row else None

    def record_origin(self, origin: Origin) -> None:
        if origin != self.origin():
            self._connection.execute(
                f"INSERT INTO {_ORIGIN} VALUES (1, ?, ?) ON CONFLICT (lock) "  # noqa: S608
                "DO UPDATE SET system = excluded.system, timeline = excluded.timeline",
                (origin.system, origin.timeline),
            )

    def close(self) -> None:
        self._connection.close()
