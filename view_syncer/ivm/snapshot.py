"""Read snapshots of the replica: connections, each pinned to one commit at a time."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from pathlib import Path

import apsw

from view_syncer.ivm.encode import register_functions
from zerocache.errors import ReplicaError
from zerocache.protocol.versions import Watermark
from zerocache.replica.reader import open_replica, read_state


class SnapshotReader:
    """One connection whose read transaction can be moved to the newest commit."""

    def __init__(self, path: Path) -> None:
        # Taken before the file is opened: if it is replaced in between, the reader looks stale.
        self.inode = path.stat().st_ino
        self.db = _open(path)
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

    @property
    def commit(self) -> Hashable:
        """Names what the reader sees; equal for readers that see the same."""
        return self.inode, self.replica_version, self.version, self.log_pos, self.log_floor

    def end(self) -> None:
        if self.db.in_transaction:
            self.db.execute("COMMIT")

    def close(self) -> None:
        self.end()
        self.db.close()


def _open(path: Path) -> apsw.Connection:
    """``FileNotFoundError`` also if the file goes at this very moment, to be replaced."""
    try:
        return open_replica(path)
    except (ReplicaError, apsw.CantOpenError) as error:
        if path.exists():
            raise
        raise FileNotFoundError(f"the replica {path} is being replaced") from error


class ReaderPool:
    """Readers for one snapshot after another: opening one parses the whole schema and starts with
    an empty statement cache. May be used from any thread; a reader belongs to one at a time, and
    one that is pinned to those who agreed on a thread that reads."""

    def __init__(self, path: Path, max_idle: int) -> None:
        self._path = path
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle: list[SnapshotReader] = []
        # Of each commit that is held on to: the reader that does it, and for how many.
        self._pinned: dict[Hashable, tuple[SnapshotReader, int]] = {}

    def take(self) -> SnapshotReader:
        """A reader without a snapshot, of the file that is there now."""
        inode = self._path.stat().st_ino
        while (reader := self._pop()) is not None:
            if reader.inode == inode:
                return reader
            reader.close()
        return SnapshotReader(self._path)

    def give_back(self, reader: SnapshotReader) -> None:
        """End the reader's snapshot; it may be reused."""
        reader.end()
        with self._lock:
            if len(self._idle) < self._max_idle:
                self._idle.append(reader)
                return
        reader.close()

    def pin(self, reader: SnapshotReader) -> SnapshotReader:
        """Hold on to what ``reader`` sees until :meth:`unpin`, by the reader that is returned. All
        who pin the same commit share one: a crowd of hydrations needs few connections."""
        with self._lock:
            pinned, holders = self._pinned.get(reader.commit, (reader, 0))
            self._pinned[reader.commit] = pinned, holders + 1
        if pinned is not reader:
            self.give_back(reader)
        return pinned

    def unpin(self, reader: SnapshotReader) -> None:
        """The last who does ends the snapshot."""
        with self._lock:
            _, holders = self._pinned[reader.commit]
            if holders > 1:
                self._pinned[reader.commit] = reader, holders - 1
                return
            del self._pinned[reader.commit]
        self.give_back(reader)

    def close(self) -> None:
        while (reader := self._pop()) is not None:
            reader.close()

    def _pop(self) -> SnapshotReader | None:
        with self._lock:
            return self._idle.pop() if self._idle else None
