"""Read snapshots of the replica: one connection, pinned to one commit at a time."""

from __future__ import annotations

from pathlib import Path

from view_syncer.ivm.encode import register_functions
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import open_replica, read_state


class SnapshotReader:
    """One connection whose read transaction can be moved to the newest commit."""

    def __init__(self, path: Path) -> None:
        self.db = open_replica(path)
        register_functions(self.db)
        self.version = Watermark("00")
        self.replica_version = Watermark("00")
        self.log_pos = 0
        self.log_floor = 0

    def begin(self) -> None:
        """Pin the newest commit."""
        if self.db.in_transaction:
            self.db.execute("COMMIT")
        self.db.execute("BEGIN")
        state = read_state(self.db)
        self.version, self.replica_version = state.version, state.replica_version
        self.log_pos, self.log_floor = state.log_pos, state.log_floor

    def end(self) -> None:
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def close(self) -> None:
        self.end()
        self.db.close()
