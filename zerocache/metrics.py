"""Counters and gauges of one process (config-and-operations.md §7).

Owns the numbers, not their transport: whoever shows them takes a snapshot. Names are those of the
specification without the leading ``zero.``; attributes are part of a series' identity and must
have few values. Updating one costs a dictionary access and never waits.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec

Attributes: TypeAlias = tuple[tuple[str, str], ...]


class Series(msgspec.Struct, frozen=True):
    """One number as it was at some moment."""

    name: str
    kind: Literal["counter", "gauge"]
    attributes: Attributes
    value: int | float


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

    def series(self) -> list[Series]:
        """Every series, sorted by name."""
        with self._lock:
            return sorted(
                [
                    *(Series(name, "counter", at, v) for (name, at), v in self._counters.items()),
                    *(Series(name, "gauge", at, v) for (name, at), v in self._gauges.items()),
                ],
                key=lambda series: (series.name, series.attributes),
            )

    def snapshot(self) -> dict[str, float]:
        """Every series as ``name{key=value,…}`` and its value, sorted by name."""
        return {_label(one.name, one.attributes): one.value for one in self.series()}


def _label(name: str, attributes: Attributes) -> str:
    if not attributes:
        return name
    return f"{name}{{{','.join(f'{key}={value}' for key, value in attributes)}}}"


def prometheus_text(series: Iterable[Series]) -> str:
    """The text format of Prometheus; those of one name must follow each other."""
    lines: list[str] = []
    told = ""
    for one in series:
        name = prometheus_name(one.name)
        if name != told:
            told = name
            lines.append(f"# TYPE {name} {one.kind}")
        labels = ",".join(f'{key}="{_escaped(value)}"' for key, value in one.attributes)
        number = f"{one.value:d}" if isinstance(one.value, int) else repr(one.value)
        lines.append(f"{name}{{{labels}}} {number}" if labels else f"{name} {number}")
    return "".join(f"{line}\n" for line in lines)


def prometheus_name(name: str) -> str:
    return "zero_" + name.replace(".", "_").replace("-", "_")


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
