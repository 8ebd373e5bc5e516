"""How many CRUD mutations a client group may make (sync-protocol.md §8.1).

Owns a sliding window of two buckets: the previous one counts by the share of it that the window
still covers. Refused attempts count nothing. Invariant: once a client's mutation was refused, none
of its later ones is let through before that one, which would leave a gap in its ids.
"""

from __future__ import annotations

from collections.abc import Callable


class MutationLimit:
    """Of one client group; ``maximum`` None is no limit."""

    def __init__(self, maximum: int | None, window_ms: float, time_s: Callable[[], float]) -> None:
        self._maximum = maximum
        self._window_s = window_ms / 1000
        self._time_s = time_s
        self._bucket = 0
        self._count = self._previous = 0
        # By client: the lowest refused mutation that has not come again.
        self._refused: dict[str, int] = {}

    def admit(self, client_id: str, mutation_id: int) -> bool:
        if self._maximum is None:
            return True
        refused = self._refused.get(client_id)
        if refused is not None and mutation_id > refused:
            return False
        if self._weight() >= self._maximum:
            self._refused[client_id] = mutation_id
            return False
        self._refused.pop(client_id, None)
        self._count += 1
        return True

    def _weight(self) -> float:
        """What the window holds at present, after turning to the present bucket."""
        bucket, into = divmod(self._time_s(), self._window_s)
        if bucket != self._bucket:
            self._previous = self._count if bucket == self._bucket + 1 else 0
            self._bucket, self._count = int(bucket), 0
        return self._count + self._previous * (1 - into / self._window_s)
