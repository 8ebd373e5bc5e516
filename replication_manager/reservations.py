"""Who still needs which part of the change log.

Owns the named claims on it: the local replica holds what it has not yet made durable; later
subscribers and backups reserve what they may come back for (replication.md §7.6). It decides
nothing: the purge asks for the lowest. Invariant: nothing at or after a reservation is purged.
"""

from __future__ import annotations

import threading

from zerocache.protocol.versions import Lsn


class Reservations:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Lsn] = {}

    def hold(self, name: str, position: Lsn) -> None:
        """``name`` has everything up to ``position``; what comes after stays."""
        with self._lock:
            self._held[name] = position

    def release(self, name: str) -> None:
        with self._lock:
            self._held.pop(name, None)

    def lowest(self) -> Lsn | None:
        """Up to here nobody needs the log; None: nobody has said anything, so all of it."""
        with self._lock:
            return min(self._held.values(), default=None)
