"""Counters and gauges of one process (config-and-operations.md §7).

Owns the numbers, not their transport: whoever shows them takes a snapshot. Names are those of the
specification without the leading ``zero.``; attributes are part of a series' identity and must
have few values. Updating one costs a dictionary access and never waits.
"""

from __future__ import annotations

import threading
from typing import TypeAlias

Attributes: TypeAlias = tuple[tuple[str, str], ...]


class Metrics:
    """May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[tuple[str, Attributes], float] = {}
        self._gauges: dict[tuple[str, Attributes], float] = {}

    def count(self, name: str, by: float = 1, **attributes: str) -> None:
        """Add to a counter."""
        series = (name, tuple(sorted(attributes.items())))
        with self._lock:
            self._counters[series] = self._counters.get(series, 0) + by

    def gauge(self, name: str, value: float, **attributes: str) -> None:
        """Set a gauge."""
        with self._lock:
            self._gauges[(name, tuple(sorted(attributes.items())))] = value

    def snapshot(self) -> dict[str, float]:
        """Every series as ``name{key=value,…}`` and its value, sorted by name."""
        with self._lock:
            values = {**self._counters, **self._gauges}
        return {_label(*series): value for series, value in sorted(values.items())}


def _label(name: str, attributes: Attributes) -> str:
    if not attributes:
        return name
    return f"{name}{{{','.join(f'{key}={value}' for key, value in attributes)}}}"
