"""How many client connections a node has, by address and by the process that serves them.

Owns the counts behind ``ZEROCACHE_MAX_CONNECTIONS`` and ``…_PER_IP``: the supervisor accepts every
connection and workers report the end of each. Invariant: a reservation is either assigned to a
process or cancelled, and what a process served is forgotten when it ends, so nothing is counted
that is gone.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Final

BUSY_SHARE: Final = 0.95
"""Of the connections allowed: beyond it a load balancer should send clients elsewhere."""


class ConnectionCounts:
    """Limits of 0 do not limit. ``process`` is whatever identifies one run of a worker."""

    def __init__(self, max_connections: int = 0, max_per_address: int = 0) -> None:
        self._max_connections = max_connections
        self._max_per_address = max_per_address
        self._by_address: Counter[str] = Counter()
        self._by_process: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.total = 0
        # Refused since the node started.
        self.refused = 0

    @property
    def is_nearly_full(self) -> bool:
        return 0 < self._max_connections * BUSY_SHARE < self.total

    def of_process(self, process: int) -> int:
        return self._by_process[process].total() if process in self._by_process else 0

    def reserve(self, address: str) -> str | None:
        """Count a connection; returns why it may not be served, and then does not count it."""
        refusal = None
        if self._max_connections and self.total >= self._max_connections:
            refusal = f"This server serves its {self._max_connections} connections already."
        elif self._max_per_address and self._by_address[address] >= self._max_per_address:
            refusal = f"There are {self._max_per_address} connections from your address already."
        if refusal is not None:
            self.refused += 1
            return refusal
        self.total += 1
        self._by_address[address] += 1
        return None

    def assign(self, address: str, process: int) -> None:
        """A reserved connection is served by ``process`` now."""
        self._by_process[process][address] += 1

    def cancel(self, address: str) -> None:
        """A reserved connection is not served after all."""
        self._drop(address, 1)

    def release(self, address: str, process: int) -> None:
        """A connection that ``process`` served has ended."""
        served = self._by_process.get(process)
        if served is None or not served[address]:
            return  # of a process that is gone, or refused: not counted
        served[address] -= 1
        if not served[address]:
            del served[address]
        self._drop(address, 1)

    def forget(self, process: int) -> None:
        """The process is gone, and with it its connections."""
        for address, count in self._by_process.pop(process, Counter()).items():
            self._drop(address, count)

    def _drop(self, address: str, count: int) -> None:
        self.total -= count
        self._by_address[address] -= count
        if not self._by_address[address]:
            del self._by_address[address]
