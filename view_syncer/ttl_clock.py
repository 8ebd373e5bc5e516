"""The clock on which undesired queries run out (sync-protocol.md §4.4).

Owns one number: for how long, in all, somebody of a client group was connected. It stands still
while nobody is. Invariant: it never goes back.
"""

from __future__ import annotations

from collections.abc import Callable


class TtlClock:
    """``time_s`` is any clock that only goes forward."""

    def __init__(self, time_s: Callable[[], float]) -> None:
        self._time_s = time_s
        self._base_ms = 0.0
        self._running_since_s: float | None = None
        # What the store holds; to tell whether writing would change anything.
        self.saved_ms = 0.0

    def now_ms(self) -> float:
        if self._running_since_s is None:
            return self._base_ms
        return self._base_ms + (self._time_s() - self._running_since_s) * 1000

    def load(self, stored_ms: float) -> None:
        """Go on from what is stored; the time since the start counts on top of it."""
        self._base_ms = self.saved_ms = stored_ms

    def start(self) -> None:
        """Somebody is connected; has no effect if somebody was before."""
        if self._running_since_s is None:
            self._running_since_s = self._time_s()

    def stop(self) -> None:
        """Nobody is connected anymore."""
        self._base_ms = self.now_ms()
        self._running_since_s = None
