"""Durability and size of the replica's write-ahead log file.

Owns fsync and checkpoints; commits never do either (``synchronous=NORMAL``, autocheckpoint off), so
that a small transaction costs a write to the page cache and nothing more.

Why :meth:`WalFile.sync` makes commits durable: a commit in WAL mode has appended its checksummed
frames to the ``-wal`` file when COMMIT returns. ``fdatasync`` writes back all dirty pages of that
file, whichever descriptor wrote them, and its length. After a power loss SQLite's recovery replays
every transaction whose frames are intact, so all commits before the sync survive. Frames leave the
file only by a checkpoint, and with ``synchronous=NORMAL`` SQLite syncs the WAL before a
checkpoint copies it and the database before the WAL is reused. The file's directory entry is synced
once, when the file is opened.

The WAL can be started anew only when it is wholly copied *and* no reader depends on its frames.
Workers always hold a snapshot and commits never pause, so growth is bounded in two steps: a passive
checkpoint in a thread of its own copies nearly everything and does the slow syncs, blocking
nobody; when the file has grown far beyond the limit, the writer copies the few frames that came
meanwhile and asks the readers to re-open their snapshots on the copied database (notifier.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import apsw
import structlog

from zerocache.failpoints import Place, reach

_FRAME_HEADER_BYTES = 24
_GROWTH_BEFORE_RESTART = 4
# Limits by which the WAL may grow before the writer waits for the checkpoint under way.
_GROWTH_BEFORE_WAITING = 2
_CHECKPOINT_BUSY_MS = 0
_RESTART_ROUNDS = 5

log = structlog.get_logger(__name__)


class WalFile:
    """The WAL of one writer connection.

    ``limit_bytes`` is the growth after which a passive checkpoint runs; four times that starts
    the attempts to start the file anew. It is reused, not truncated: giving its pages back takes
    longer than a commit may wait. Belongs to the writer's thread, except for :meth:`sync`.
    """

    def __init__(self, connection: apsw.Connection, path: Path, *, limit_bytes: int) -> None:
        self._connection = connection
        page_size = connection.pragma("page_size")
        self._limit = max(1, limit_bytes // (page_size + _FRAME_HEADER_BYTES))
        # Frames in the WAL after the latest commit, as SQLite reports them.
        self._frames = 0
        # Frames at which the next checkpoint is due; moves up while readers prevent a reset.
        self._due = self._limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # Used by that thread only, from here on.
        self._copier = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._copier.wal_autocheckpoint(0)
        self._copier.set_busy_timeout(_CHECKPOINT_BUSY_MS)
        self._copier.pragma("synchronous", "normal")
        # The checkpoint under way; None without one.
        self._copying: Future[bool] | None = None
        # Frames at which the writer waits for it.
        self._waited_for = 0
        # Replaces SQLite's own autocheckpoint, which runs inside COMMIT.
        connection.set_wal_hook(self._committed)
        # Only a huge transaction makes the file larger than what is reused all the time.
        connection.pragma("journal_size_limit", 2 * _GROWTH_BEFORE_RESTART * limit_bytes)
        wal = path.with_name(path.name + "-wal")
        # Any write creates the file; it exists from here on, as this connection stays open.
        self._descriptor = os.open(wal, os.O_RDONLY)
        _sync_directory(path.parent)

    def sync(self) -> None:
        """Returns when every commit made before the call survives a power loss."""
        os.fdatasync(self._descriptor)

    def maintain(self, move_readers: Callable[[], None] | None, *, wait_ms: int) -> None:
        """Run a checkpoint if one is due. Call between transactions, after readers were told.

        ``move_readers`` asks the readers to re-open their snapshots; ``wait_ms`` bounds how long
        one round of a restart waits for them. Nothing is written meanwhile, so it is short.
        """
        if self._copying is not None:
            if not self._copying.done() and self._frames < self._waited_for:
                return
            self._copying.result()
            self._copying = None
            # What the checkpoint left is little, so the writer can copy it between two commits.
            if self._frames >= _GROWTH_BEFORE_RESTART * self._limit:
                self._restart(move_readers, wait_ms)
        elif self._frames >= self._due:
            self._due = self._frames + self._limit
            self._waited_for = self._frames + _GROWTH_BEFORE_WAITING * self._limit
            self._copying = self._thread.submit(
                _checkpoint, self._copier, apsw.SQLITE_CHECKPOINT_PASSIVE
            )

    def _restart(self, move_readers: Callable[[], None] | None, wait_ms: int) -> None:
        if self._try_restart(0):
            return
        # A reader that re-opened before the last frame was copied still depends on the file, so
        # it takes two rounds at least: one to copy the rest, one to move the readers off it.
        for _ in range(_RESTART_ROUNDS if move_readers is not None else 1):
            if move_readers is not None:
                move_readers()
            if self._try_restart(wait_ms):
                return
        log.info("wal_restart_postponed", frames=self._frames, limit=self._limit)

    def close(self) -> None:
        self._thread.shutdown()
        self._copier.close()
        self._connection.set_wal_hook(None)
        os.close(self._descriptor)

    def _committed(self, _connection: apsw.Connection, _database: str, frames: int) -> int:
        if frames < self._frames:
            self._due = self._limit
        self._frames = frames
        return apsw.SQLITE_OK

    def _try_restart(self, wait_ms: int) -> bool:
        previous = self._connection.pragma("busy_timeout")
        self._connection.set_busy_timeout(wait_ms)
        try:
            done = _checkpoint(self._connection, apsw.SQLITE_CHECKPOINT_RESTART)
        finally:
            self._connection.set_busy_timeout(previous)
        if done:
            self._frames = 0
            self._due = self._limit
        return done


def _checkpoint(connection: apsw.Connection, mode: int) -> bool:
    reach(Place.BEFORE_CHECKPOINT)
    try:
        connection.wal_checkpoint(mode=mode)
    except apsw.BusyError:
        # A reader is in the way, or a backup tool holds the checkpoint lock: next time.
        return False
    reach(Place.CHECKPOINTED)
    return True


def sync_file(path: Path) -> None:
    """Make the contents of a closed file, and its name, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
