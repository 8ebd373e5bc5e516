"""What a digest must preserve, whatever is measured."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from view_syncer.ivm.digest import COMPRESSION, Digest

measurements = st.lists(st.floats(0, 1e6, allow_nan=False), max_size=700)


def centroids(digest: Digest) -> list[tuple[float, float]]:
    compression, *numbers = digest.protocol_value()
    assert compression == COMPRESSION
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_empty_digest_is_its_compression_alone() -> None:
    assert Digest().protocol_value() == [1000]


def test_few_measurements_are_kept_as_they_are() -> None:
    digest = Digest()
    for value in (3.0, 1.0, 2.0):
        digest.add(value)
    assert digest.protocol_value() == [1000, 1, 1, 2, 1, 3, 1]


@given(measurements)
def test_count_mean_order_and_range_are_preserved(values: list[float]) -> None:
    digest = Digest()
    for value in values:
        digest.add(value)
    found = centroids(digest)
    assert digest.count == len(values) == round(sum(weight for _, weight in found))
    assert found == sorted(found)
    if values:
        mean = sum(m * w for m, w in found) / len(values)
        assert mean == pytest.approx(sum(values) / len(values), rel=1e-6, abs=1e-6)
        assert min(values) - 1e-6 <= found[0][0]
        assert found[-1][0] <= max(values) + 1e-6


def test_quantiles_of_many_measurements_are_near() -> None:
    choose = random.Random(1)
    values = [choose.lognormvariate(1, 1) for _ in range(50_000)]
    digest = Digest()
    for value in values:
        digest.add(value)
    found = centroids(digest)
    assert len(found) <= 200
    values.sort()
    for quantile in (0.01, 0.5, 0.95, 0.99):
        value = at(quantile * len(values), found)
        low, high = (values[int(len(values) * q)] for q in (quantile - 0.01, quantile + 0.0099))
        assert low <= value <= high * 1.05


def at(rank: float, found: list[tuple[float, float]]) -> float:
    """The mean of the centroid in which ``rank`` falls."""
    ranks = itertools.accumulate(weight for _, weight in found)
    return next(mean for (mean, _), end in zip(found, ranks, strict=True) if end >= rank)
