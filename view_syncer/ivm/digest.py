"""A small t-digest: how a stream of measurements is distributed, in bounded memory.

Owns the centroids. Never exact about the middle, always about how many there were and, nearly,
about the ends. Invariant: centroids are in order of their means, and their weights add up to the
number of measurements taken in. Pipelines have one each, so an empty one must cost next to nothing.
"""

from __future__ import annotations

import math
from array import array

COMPRESSION = 1000
"""What the protocol announces (sync-protocol.md §7); clients build their own digest from ours."""
_CENTROIDS = 100
_BUFFERED = 200


class Digest:
    """Any thread, but one at a time."""

    __slots__ = ("_means", "_new", "_weights")

    def __init__(self) -> None:
        self._means = array("d")
        self._weights = array("d")
        # Measurements that are not yet part of a centroid.
        self._new = array("d")

    def add(self, value: float) -> None:
        """Take in one measurement, which must be finite."""
        self._new.append(value)
        if len(self._new) >= _BUFFERED:
            self._merge()

    @property
    def count(self) -> int:
        return round(sum(self._weights)) + len(self._new)

    def protocol_value(self) -> list[float]:
        """``[compression, mean, weight, mean, weight, …]``."""
        self._merge()
        pairs = zip(self._means, self._weights, strict=True)
        return [COMPRESSION, *(number for pair in pairs for number in pair)]

    def _merge(self) -> None:
        if not self._new:
            return
        points = [*zip(self._means, self._weights, strict=True), *((v, 1.0) for v in self._new)]
        points.sort()
        total = sum(weight for _, weight in points)
        means, weights = array("d"), array("d")
        mean, weight = points[0]
        before = 0.0
        limit = total * _quantile_after(0.0)
        for value, one in points[1:]:
            if before + weight + one <= limit:
                weight += one
                mean += (value - mean) * one / weight
                continue
            means.append(mean)
            weights.append(weight)
            before += weight
            limit = total * _quantile_after(before / total)
            mean, weight = value, one
        means.append(mean)
        weights.append(weight)
        self._means, self._weights, self._new = means, weights, array("d")


def _quantile_after(quantile: float) -> float:
    """Where the centroid that begins at ``quantile`` must end: those at the ends are small."""
    position = math.asin(2 * min(1.0, quantile) - 1) + math.pi / _CENTROIDS
    return 1.0 if position >= math.pi / 2 else (math.sin(position) + 1) / 2
