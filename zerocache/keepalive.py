"""The keepalive monitor: a node whose health checks stop is about to be stopped, so it drains.

Owns the one timer behind ``ZERO_KEEPALIVE_TIMEOUT_MS``. Must never fire before the first call, nor
because this process was too busy to notice calls. Invariant: ``on_expired`` is called at most once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class KeepaliveMonitor:
    """Armed by the first ``call``; calls ``on_expired`` when calls stop for ``timeout_s``."""

    def __init__(self, timeout_s: float, on_expired: Callable[[], None]) -> None:
        self._timeout_s = timeout_s
        self._on_expired = on_expired
        self._calls = 0  # compared between checks; a count cannot be mistaken like a clock can
        self._task: asyncio.Task[None] | None = None

    def call(self) -> None:
        """A health check arrived."""
        self._calls += 1
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        # Four silent quarters in a row, each counted only by a loop that turned: after a stall
        # the waiting calls are handled before the next quarter ends.
        silent, seen = 0, self._calls
        while silent < 4:
            await asyncio.sleep(self._timeout_s / 4)
            silent = silent + 1 if self._calls == seen else 0
            seen = self._calls
        self._on_expired()
